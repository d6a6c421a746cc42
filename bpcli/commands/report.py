"""`bp report`: write saved runs as a page of HTML, or as plots.

Runs are validated and turned back into documents, with the figures that they allow.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from bpcli.commands.shared_options import Common, relative_bias, shared
from bpcli.errors import UNADVISED, BpError, Diagnostic, Place, fail, printable
from bpcli.render import Document

if TYPE_CHECKING:
    from pydantic import BaseModel

    from bpcli.checking.findings import Finding
    from bpcli.render.page import Group, Section
    from bpcli.render.page.figure import Figure

Row = Mapping[str, Any]
Model = TypeVar("Model")
POINTS_AT_MOST = 6
# The number of specs of a check that get a V-curve without being named.
CURVES_AT_MOST = 4
_KINDS = ("svg", "png")


@dataclass(frozen=True)
class Run:
    """One saved run: the document of its validated rows, of `kind` "cells" or "findings", or "steps" of a training.

    `show` has the keys of the columns that the page shows initially. The rows of a training are its methods; `curves`
    has their figures of every step, by method.
    """

    file: str
    kind: str
    document: Document
    show: frozenset[str]
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def rows(self) -> Sequence[Row]:
        """The cells, findings, or methods of a training."""
        return self.document.rows

    @property
    def name(self) -> str:
        """The heading of the run on the page."""
        return f"{self.document.title} · {Path(self.file).name}"


def read_run(file: str, bias: float | None = None) -> Run:
    """Read and validate a saved run; `bias` replaces the one that it was summarised by.

    Raises BpError for any other file.
    """
    from bpcli.bench.saved_runs import SAVE_A_RUN, TRAINING, read_document
    from bpcli.checking.findings import Finding
    from bpcli.commands.train_document import saved_training

    kind, data = read_document(file)
    curves: dict[str, dict[str, list[float]]] = {}
    try:
        context = data.get("context")
        about = context if isinstance(context, dict) else {}
        errors = tuple(_diagnostic(e) for e in data.get("errors") or () if isinstance(e, dict))
        if kind == "cells":
            cells = [cell.model_dump() for cell in _validated(file, kind, data[kind], _cell())]
            document, show = _bench(cells, errors, about if bias is None else {**about, "bias": bias})
        elif kind == TRAINING:
            document, curves = saved_training(data, errors, about)
            show = frozenset(c.key for c in document.columns)
        else:
            document, show = _check(_validated(file, kind, data[kind], Finding), errors, about)
        for row in document.rows:  # format everything once, so that a bad row is refused here
            _ = [c.show(c.get(row)) for c in document.columns], document.style(row)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        # Rows have more than is validated, in the form of the version of bp that wrote them.
        what = f'"{printable(file)}": its {kind} are not in the format of this bp ({type(error).__name__}: {error})'
        fail("not-a-run", what, help=SAVE_A_RUN)
    return Run(file, kind, document, show, curves)


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
    from bpcli.bench.analysis import family, slopes
    from bpcli.bench.measurement import by_spec, one_error
    from bpcli.render.page import Group
    from bpcli.render.page.plots import growths, heat_maps

    if run.curves:
        return _of_training(run)
    if run.kind == "findings":
        maps = heat_maps(run.rows)
        return [Group("", "blame", maps)] if maps else []
    found = []
    specs = by_spec(run.rows)
    for spec, rows in specs.items():
        timed = [{**r, "error": one_error(r), "family": family(r)} for r in rows if r["time_s"] is not None]
        before = f"{spec}: " if len(specs) > 1 else ""
        found += [Group(before + name, "trade", figures) for name, figures in _points(timed, before)]
        if grown := growths(timed, slopes(timed)):
            found.append(Group(spec, "growth", grown))
    return found


def _of_training(run: Run) -> list[Group]:
    """The losses of all methods, and the alignment along the trajectory of each."""
    from bpcli.render.page import Group
    from bpcli.render.page.curves import alignment_curves, cosine_matrix, loss_curves
    from bpcli.training.watching import TRUE, between, column_of, watched_in

    spec, trivial = run.rows[0]["spec"], run.rows[0]["trivial"]
    losses = {method: curve["loss"] for method, curve in run.curves.items()}
    found = [Group("", "losses", [loss_curves(spec, losses, trivial)])]
    for method, curve in run.curves.items():
        if names := watched_in(curve):
            figures = [alignment_curves(method, {n: curve[column_of("cosine", n)] for n in names})]
            if len(names) > 1:
                pairs = itertools.product((TRUE, *names), repeat=2)
                figures.append(cosine_matrix(method, {(a, b): between(curve, a, b) for a, b in pairs}))
            found.append(Group(f"along {method}", "alignment", figures))
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
    from bpcli.commands.output import prepare
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


@click.command()
@click.argument("run", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--out", metavar="PAGE.html", help="Output page.")
@click.option(
    "--bias", type=float, metavar="NUMBER", callback=relative_bias,
    help="Name the cheapest methods of a bench within this relative bias; by default that of its own --bias.",
)  # fmt: skip
@click.option("--plot", multiple=True, metavar="FILE", help="Write the plots to one .svg or .png file; repeatable.")
@shared("max_memory", "max_time", "allow_outside", "quiet")
def report(run: tuple[str, ...], out: str | None, bias: float | None, plot: tuple[str, ...], common: Common) -> int:
    """Write each RUN, saved by `bp bench`, `bp check` or `bp train` with --format json, to one HTML page.

    A RUN can also be a spec: the page then shows its V-curve, the error of central differences against their step. The
    specs of a saved check are shown too, if their files can be read. The page has plots and tables, is self-contained
    and works offline.
    """
    from bpcli.problem.array_files import replace_file
    from bpcli.render.page import page
    from bpcli.render.page.figure import need_matplotlib, picture

    need_matplotlib()
    kinds = _plot_kinds(run, out, plot)
    runs = [read_run(file, bias) for file in run if not file.endswith(".toml")]
    sections = [_section(r, common) for r in runs] + _curves([f for f in run if f.endswith(".toml")], common)
    figures = [f for s in sections for group in _first(s.groups) for f in group.figures]
    if plot and not figures:
        fail("nothing-to-plot", "these runs have nothing to plot", help="a plot needs two methods, sizes or steps")
    text = page(_title(runs), _subtitle(runs), sections).encode("utf-8", errors="backslashreplace") if out else b""
    files = {out: text} if out else {}
    files |= {path: picture(figures, kind) for path, kind in kinds.items()}
    for path, content in files.items():
        replace_file(path, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        common.note(f"wrote {path}")
    return 0


def _plot_kinds(run: tuple[str, ...], out: str | None, plot: tuple[str, ...]) -> dict[str, str]:
    """The format of each plot. Raises BpError for paths that are invalid or cannot be written."""
    from bpcli.problem.array_files import check_writable

    if not out and not plot:
        fail("usage", "bp report needs -o/--out or --plot", help="for example -o page.html")
    kinds = {path: Path(path).suffix.lower().removeprefix(".") for path in plot}
    for path, kind in kinds.items():
        if kind not in _KINDS:
            fail("usage", f'--plot "{path}" is neither .svg nor .png', help="for example --plot plots.svg")
    read = {os.path.realpath(file) for file in run}
    written = [os.path.realpath(path) for path in ([out] if out else []) + list(plot)]
    for path in written:
        if path in read:
            fail("usage", f'"{path}" is both an input and an output', help="name another file")
        if written.count(path) > 1:
            fail("usage", f'two outputs go to "{path}"', help="give each a path of its own")
    if out and Path(out).suffix.lower() not in (".html", ".htm"):
        fail("usage", f'the page is HTML, "{out}" is not', help="name it page.html; a browser prints it to PDF")
    for path in written:
        check_writable(path)
    return kinds


def _section(run: Run, common: Common) -> Section:
    """A run with its figures; for a check, also the bias of its methods by step, and the V-curves of its specs."""
    from bpcli.render.page import Group, Section

    found = groups(run)
    if run.kind == "findings":
        curves, maps = _of_specs(run, common)
        found += [Group("", kind, figures) for kind, figures in (("bias", maps), ("curves", curves)) if figures]
    return Section(run.name, run.document, run.show, found)


def _of_specs(run: Run, common: Common) -> tuple[list[Figure], list[Figure]]:
    """The V-curves of the specs of a check, under its settings, and maps of the bias of its methods.

    There is a note for each that cannot be computed.
    """
    specs, changed = run.document.context.get("specs"), run.document.context.get("set")
    common = replace(common, overrides=changed if isinstance(changed, dict) else {})
    curves: list[Figure] = []
    maps: list[Figure] = []
    for spec in [s for s in specs if isinstance(s, str)][:CURVES_AT_MOST] if isinstance(specs, list) else []:
        try:
            curves.append(curve(Path(spec), common))
        except BpError as error:
            common.note(f"no V-curve of {spec}: {error.diagnostics[0].what}")
            continue
        for method in _biased(run, Path(spec).stem)[: CURVES_AT_MOST - len(maps)]:
            try:
                maps.append(_bias_map(Path(spec), method, common))
            except BpError as error:
                common.note(f"no map of the bias of {method}: {error.diagnostics[0].what}")
    return curves, maps


def _biased(run: Run, spec: str) -> list[str]:
    """The methods of bp that are right and biased on a spec, in the order of the findings."""
    from bpcli.bench.measurement import EXACT
    from bpcli.methods import known_names

    rows = [r for r in run.rows if r["spec"] == spec and str(r["method"]).partition(":")[0] in known_names()]
    wrong = {r["method"] for r in rows if r["verdict"] != "pass"}
    found = [r["method"] for r in rows if isinstance(r["bias"], float) and r["bias"] > EXACT["float32"]]
    return [method for method in dict.fromkeys(found) if method not in wrong]


def _bias_map(path: Path, method: str, common: Common) -> Figure:
    """The bias of a method by step. Raises BpError where it has none, or is too expensive."""
    from bpcli.commands.per_step import errors
    from bpcli.commands.specs import open_spec
    from bpcli.methods import parse
    from bpcli.render.page.plots import bias_map

    problem = open_spec(path, common)
    return bias_map(problem.setup.spec.name, method, errors(problem, parse(method)))


def _curves(specs: list[str], common: Common) -> list[Section]:
    """A section with the V-curves of specs named on the command line."""
    from bpcli.commands.specs import single
    from bpcli.render.page import Group, Section

    if not specs:
        return []
    figures = [curve(single(spec), common) for spec in specs]
    sentence = "The best step of central differences, and their error there."
    document = Document("V-curves", "rows", (), (), sentences=(sentence,))
    return [Section("Central differences", document, frozenset(), [Group("", "curves", figures)])]


def _first(groups: Sequence[Group]) -> list[Group]:
    """The first group of each kind, which the page shows initially."""
    shown: dict[str, Group] = {}
    for group in groups:
        shown.setdefault(group.kind, group)
    return list(shown.values())


def _title(runs: list[Run]) -> str:
    """The title of the page, which names up to three specs."""
    specs = list(dict.fromkeys(r["spec"] for run in runs for r in run.rows))
    what = "Training" if all(run.kind == "steps" for run in runs) and runs else "Gradients"
    return f"{what} of {', '.join(specs)}" if 0 < len(specs) <= 3 else what


def _subtitle(runs: list[Run]) -> str:
    """The versions and machines of the runs."""
    said = []
    for context in (run.document.context for run in runs):
        machine = context.get("machine")
        machine = machine if isinstance(machine, dict) else {}
        parts = [f"bp {context.get('version', '')}".strip(), str(machine.get("cpu", ""))]
        said.append(", ".join(filter(None, [*parts, f"{machine['cores']} cores" if "cores" in machine else ""])))
    return " · ".join(dict.fromkeys(said))
