"""The documents that `bp report` reads: what `bp bench` and `bp check` write as JSON, validated and read back.

Which figures a run has: trade-offs at its points, growth, maps of what is wrong, V-curves of its specs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bpcli.commands.common import Common
from bpcli.errors import UNADVISED, Diagnostic, Place, fail, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from bpcli.render.document import Document
if TYPE_CHECKING:
    from bpcli.render.page import Group
    from bpcli.render.page.figure import Figure


_MAX_BYTES = 1 << 28
_ADVICE = "name a document that bp bench or bp check wrote with --format json"


@dataclass(frozen=True)
class Run:
    """One document: of `kind` "cells" or "findings", its rows as they were before they became JSON."""

    file: str
    kind: str
    rows: Sequence[Mapping[str, Any]]
    document: Document
    show: frozenset[str]

    @property
    def name(self) -> str:
        """What to call it on the page."""
        return f"{self.document.title} · {Path(self.file).name}"


def read_run(file: str) -> Run:
    """Read and validate one document. Raises BpError, with the place where the file is no JSON."""
    data = _parse(file)
    kind = next((k for k in ("cells", "findings") if isinstance(data, dict) and isinstance(data.get(k), list)), None)
    if kind is None:
        fail("not-a-run", f'"{printable(file)}" has neither cells nor findings', help=_ADVICE)
    if data.get("schema_version") != 1:
        what = f'"{printable(file)}" has schema version {printable(str(data.get("schema_version")))}, this bp reads 1'
        fail("not-a-run", what, help="write it again with this version of bp")
    try:
        return _run(file, kind, data)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        # What the rows hold beyond what was validated belongs to the version of bp that wrote them.
        what = f'"{printable(file)}": its {kind} are not what this bp writes ({type(error).__name__}: {error})'
        fail("not-a-run", what, help="write it again with this version of bp")


def _parse(file: str) -> Any:
    try:
        with open(file, "rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        fail("unreadable-file", f'cannot read "{printable(file)}": {why}', help=_ADVICE)
    if len(raw) > _MAX_BYTES:
        fail("too-large", f'"{printable(file)}" is larger than 256 MiB', help="report fewer rows at a time")
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        quote = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        fail("not-a-run", f"no JSON: {error.msg}", Place(file, error.lineno, error.colno, quote), help=_ADVICE)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        fail("not-a-run", f'"{printable(file)}" is no JSON: {error}', help=_ADVICE)


def _run(file: str, kind: str, data: Mapping[str, Any]) -> Run:
    context = data.get("context")
    errors = tuple(_diagnostic(e) for e in data.get("errors") or () if isinstance(e, dict))
    rows = _validated(file, kind, data[kind])
    about = context if isinstance(context, dict) else {}
    document, show = (_bench if kind == "cells" else _check)(rows, errors, about)
    for row in document.rows:  # every cell can be shown, or the run is refused here and not while it is drawn
        _ = [c.show(c.get(row)) for c in document.columns], document.style(row)
    return Run(file, kind, rows, document, show)


def _bench(
    rows: Sequence[Mapping[str, Any]], errors: Sequence[Diagnostic], context: Mapping[str, Any]
) -> tuple[Document, frozenset[str]]:
    """Every column, those that a table in the terminal shows at first and in its order."""
    from bpcli.commands.bench_document import brief_document, full_document

    full = full_document(rows, errors, context)
    brief = list(brief_document(full, quiet=False).columns) if rows else []
    shown = frozenset(c.key for c in brief)
    return replace(full, columns=[*brief, *(c for c in full.columns if c.key not in shown)]), shown


def _check(
    rows: Sequence[Mapping[str, Any]], errors: Sequence[Diagnostic], context: Mapping[str, Any]
) -> tuple[Document, frozenset[str]]:
    """A row a finding; columns without a word in them come last."""
    from bpcli.api.check_document import findings_document
    from bpcli.checking.findings import Finding, Kink, Worst

    names = list(Finding.__dataclass_fields__)
    findings = []
    for row in rows:
        worst, kink = row["worst"], row["kink"]
        known = {n: row[n] for n in names if n in row}
        known |= {"worst": Worst(**worst) if worst else None, "kink": Kink(**kink) if kink else None}
        findings.append(Finding(**known))
    notes = [str(n) for n in context.get("notes") or ()]
    full = findings_document(findings, errors, context, notes)
    shown = frozenset(c.key for c in full.columns if not c.wide and any(c.show(c.get(r)) for r in full.rows))
    return full, shown


def _diagnostic(error: Mapping[str, Any]) -> Diagnostic:
    """A refusal as it was."""
    words = {k: str(error.get(k) or "") for k in ("code", "message", "file", "help")}
    line, column = (error.get(k) for k in ("line", "column"))
    place = Place(words["file"], line, column) if isinstance(line, int) and isinstance(column, int) else None
    return Diagnostic(words["code"] or "error", words["message"], place, help=words["help"] or UNADVISED)


def _validated(file: str, kind: str, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows with numbers as numbers; BpError that names the first that is wrong."""
    from pydantic import ValidationError

    model = _models()[kind]
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(model.model_validate(row).model_dump())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(p) for p in (kind, number, *first["loc"]))
            fail("not-a-run", f'"{printable(file)}": {printable(where)}: {first["msg"]}', help=_ADVICE)
    return found


def _models() -> dict[str, type[BaseModel]]:
    """What the page relies on; rows may hold more. Numbers that JSON lacks are words in a document."""
    return {"cells": _cell(), "findings": _finding()}


def _cell() -> type[BaseModel]:
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


def _finding() -> type[BaseModel]:
    from pydantic import BaseModel, ConfigDict

    class Worst(BaseModel):
        index: tuple[int, ...] | None
        value: float
        reference: float
        bound: float
        z: float
        direction: int | None = None

    class Kink(BaseModel):
        index: tuple[int, ...]
        value: float
        low: float
        high: float

    class Found(BaseModel):
        model_config = ConfigDict(extra="allow")
        spec: str
        method: str
        tensor: str
        shape: tuple[int, ...]
        checked: int
        verdict: Literal["pass", "wrong", "inconclusive"]
        cause: str
        worst: Worst | None
        kernel_error: float | None
        bias: float | None
        cosine: float | None
        blame: dict[str, Any] | None
        kink: Kink | None = None

    return Found


Row = Mapping[str, Any]
POINTS_AT_MOST = 6


def groups(run: Run) -> list[Group]:
    """The groups of figures of a run; of the points of a sweep the most expensive come first."""
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
    """The V-curve of a spec, computed now. Raises BpError where the spec can't be run, or would cost too much."""
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
