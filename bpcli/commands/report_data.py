"""Input of `bp report`: saved runs, validated and turned back into documents, and the figures that they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bpcli.commands.shared_options import Common
from bpcli.errors import UNADVISED, Diagnostic, Place, fail, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from bpcli.checking.findings import Finding
    from bpcli.render.document import Document
    from bpcli.render.page import Group
    from bpcli.render.page.figure import Figure

Row = Mapping[str, Any]
Model = TypeVar("Model")
POINTS_AT_MOST = 6


@dataclass(frozen=True)
class Run:
    """One saved run: the document of its validated rows, of `kind` "cells" or "findings".

    `show` has the keys of the columns that the page shows initially.
    """

    file: str
    kind: str
    document: Document
    show: frozenset[str]

    @property
    def rows(self) -> Sequence[Row]:
        """The cells or findings."""
        return self.document.rows

    @property
    def name(self) -> str:
        """The heading of the run on the page."""
        return f"{self.document.title} · {Path(self.file).name}"


def read_run(file: str) -> Run:
    """Read and validate a saved run. Raises BpError for any other file."""
    from bpcli.bench.saved_runs import SAVE_A_RUN, read_document
    from bpcli.checking.findings import Finding

    kind, data = read_document(file)
    try:
        context = data.get("context")
        about = context if isinstance(context, dict) else {}
        errors = tuple(_diagnostic(e) for e in data.get("errors") or () if isinstance(e, dict))
        if kind == "cells":
            cells = [cell.model_dump() for cell in _validated(file, kind, data[kind], _cell())]
            document, show = _bench(cells, errors, about)
        else:
            document, show = _check(_validated(file, kind, data[kind], Finding), errors, about)
        for row in document.rows:  # format everything once, so that a bad row is refused here
            _ = [c.show(c.get(row)) for c in document.columns], document.style(row)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        # Rows have more than is validated, in the form of the version of bp that wrote them.
        what = f'"{printable(file)}": its {kind} are not in the format of this bp ({type(error).__name__}: {error})'
        fail("not-a-run", what, help=SAVE_A_RUN)
    return Run(file, kind, document, show)


def _bench(
    rows: Sequence[Row], errors: Sequence[Diagnostic], context: Mapping[str, Any]
) -> tuple[Document, frozenset[str]]:
    """A bench run with every column; those of the table in the terminal come first, and are shown initially."""
    from bpcli.commands.bench_document import brief_document, full_document

    full = full_document(rows, errors, context)
    brief = list(brief_document(full, quiet=False).columns) if rows else []
    shown = frozenset(c.key for c in brief)
    return replace(full, columns=[*brief, *(c for c in full.columns if c.key not in shown)]), shown


def _check(
    findings: Sequence[Finding], errors: Sequence[Diagnostic], context: Mapping[str, Any]
) -> tuple[Document, frozenset[str]]:
    """A check with a row for each finding; empty columns are not shown initially."""
    from bpcli.api.check_document import findings_document

    notes = [str(n) for n in context.get("notes") or ()]
    full = findings_document(findings, errors, context, notes)
    shown = frozenset(c.key for c in full.columns if not c.wide and any(c.show(c.get(r)) for r in full.rows))
    return full, shown


def _diagnostic(error: Mapping[str, Any]) -> Diagnostic:
    """A refusal in a saved run."""
    words = {k: str(error.get(k) or "") for k in ("code", "message", "file", "help")}
    line, column = (error.get(k) for k in ("line", "column"))
    place = Place(words["file"], line, column) if isinstance(line, int) and isinstance(column, int) else None
    return Diagnostic(words["code"] or "error", words["message"], place, help=words["help"] or UNADVISED)


def _validated(file: str, kind: str, rows: Sequence[Any], model: type[Model]) -> list[Model]:
    """The rows as instances of `model`, with numbers that JSON lacks as floats.

    Raises BpError that names the first invalid value.
    """
    from pydantic import TypeAdapter, ValidationError

    from bpcli.bench.saved_runs import SAVE_A_RUN

    adapter, found = TypeAdapter(model), []
    for number, row in enumerate(rows):
        try:
            found.append(adapter.validate_python(row))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(p) for p in (kind, number, *first["loc"]))
            fail("not-a-run", f'"{printable(file)}": {printable(where)}: {first["msg"]}', help=SAVE_A_RUN)
    return found


def _cell() -> type[BaseModel]:
    """The values of a cell that the page relies on; rows may have more."""
    from pydantic import BaseModel, ConfigDict

    class Check(BaseModel):
        model_config = ConfigDict(extra="allow")
        verdict: Literal["pass", "wrong", "inconclusive"]
        how: str
        detail: str

    class Ratio(BaseModel):
        median: float
        low: float
        high: float

    class Cell(BaseModel):
        model_config = ConfigDict(extra="allow")
        spec: str
        method: str
        backend: str
        grid: dict[str, int | float | str]
        settings: dict[str, int | float | str]
        dtype: str
        T: int | None
        batch: int
        threads: int | None
        time_s: float | None
        time_low_s: float | None
        time_high_s: float | None
        compile_s: float | None
        predicted_bytes: int | None
        allocated_bytes: int | None
        peak_bytes: int | None
        forward_steps: int | None
        flops: float | None
        gemm_fraction: float | None
        bias: float | None
        cosine: float | None
        check: Check
        ratio: Ratio | None

    return Cell


def groups(run: Run) -> list[Group]:
    """The groups of figures of a run; of the points of a sweep, the most expensive come first."""
    from bpcli.bench.measurement import by_spec
    from bpcli.render.page import Group
    from bpcli.render.page.plots import growths, heat_maps

    if run.kind == "findings":
        maps = heat_maps(run.rows)
        return [Group("", "blame", maps)] if maps else []
    found = []
    specs = by_spec(run.rows)
    for spec, rows in specs.items():
        timed = [r for r in rows if r["time_s"] is not None]
        before = f"{spec}: " if len(specs) > 1 else ""
        found += [Group(before + name, "trade", figures) for name, figures in _points(timed, before)]
        if grown := growths(timed):
            found.append(Group(spec, "growth", grown))
    return found


def _points(rows: Sequence[Row], before: str) -> list[tuple[str, list[Figure]]]:
    from bpcli.render.page.plots import trades

    points: dict[str, list[Row]] = {}
    for row in rows:
        points.setdefault(", ".join(f"{k}={v}" for k, v in row["settings"].items()), []).append(row)
    order = sorted(points, key=lambda p: -max((r["flops"] or 0.0, r["time_s"]) for r in points[p])[0])
    found = []
    for name in order[:POINTS_AT_MOST]:
        where = f"{before}at {name}. " if name else before
        if figures := trades(points[name], where[:1].upper() + where[1:] if not before else where):
            found.append((name or "as in the spec", figures))
    return found


def curve(path: Path, common: Common) -> Figure:
    """Compute the V-curve of a spec. Raises BpError for a spec that is invalid or too expensive."""
    from bpcli.checking.check_options import CheckOptions, check_bytes
    from bpcli.checking.v_curve import curve_flops, v_curve
    from bpcli.commands.progress import prepare
    from bpcli.commands.specs import open_spec
    from bpcli.problem.draw import draw
    from bpcli.problem.limits import check_cost
    from bpcli.render.page import plots
    from bpcli.runtime.evaluation import check_finite

    setup = open_spec(path, common).setup
    held = check_bytes(setup, [], CheckOptions("central"))
    check_cost(setup, "the V-curve", held, curve_flops(setup), common.limits())
    prepare(common)
    problem = draw(setup)
    check_finite(problem)
    found = v_curve(problem)
    errors = {name: values.tolist() for name, values in found.errors.items()}
    return plots.v_curve(setup.spec.name, found.steps.tolist(), errors, found.overall.tolist(), found.judge)
