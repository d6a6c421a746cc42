"""`bp report`: write saved runs as a page of HTML, or as plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.errors import BpError, fail

if TYPE_CHECKING:
    from bpcli.commands.report_data import Run
    from bpcli.render.page import Group, Section
    from bpcli.render.page.figure import Figure

# The number of specs of a check that get a V-curve without being named.
CURVES_AT_MOST = 4
_KINDS = ("svg", "png")


@click.command()
@click.argument("run", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--out", metavar="PAGE.html", help="Output page.")
@click.option("--plot", multiple=True, metavar="FILE", help="Write the plots to one .svg or .png file; repeatable.")
@shared("max_memory", "max_time", "allow_outside", "quiet")
def report(run: tuple[str, ...], out: str | None, plot: tuple[str, ...], common: Common) -> int:
    """Write each RUN, saved by `bp bench` or `bp check` with --format json, to one HTML page with plots and tables.

    A RUN can also be a spec: the page then shows its V-curve, the error of central differences against their step. The
    specs of a saved check are shown too, if their files can be read. The page is self-contained and works offline.
    """
    from bpcli.commands.output import note
    from bpcli.commands.report_data import read_run
    from bpcli.problem.array_files import replace_file
    from bpcli.render.page import page
    from bpcli.render.page.figure import need_matplotlib, picture

    need_matplotlib()
    kinds = _plot_kinds(run, out, plot)
    runs = [read_run(file) for file in run if not file.endswith(".toml")]
    sections = [_section(r, common) for r in runs] + _curves([f for f in run if f.endswith(".toml")], common)
    figures = [f for s in sections for group in _first(s.groups) for f in group.figures]
    if plot and not figures:
        fail("nothing-to-plot", "these runs have nothing to plot", help="a plot needs two methods, sizes or steps")
    text = page(_title(runs), _subtitle(runs), sections).encode("utf-8", errors="backslashreplace") if out else b""
    files = {out: text} if out else {}
    files |= {path: picture(figures, kind) for path, kind in kinds.items()}
    for path, content in files.items():
        replace_file(path, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        note(f"wrote {path}", common)
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
        check_writable(path)
    return kinds


def _section(run: Run, common: Common) -> Section:
    """A run with its figures; for a check, also the V-curves of its specs."""
    from bpcli.commands.report_data import groups
    from bpcli.render.page import Group, Section

    found = groups(run)
    if run.kind == "findings" and (curves := _of_specs(run, common)):
        found.append(Group("", "curves", curves))
    return Section(run.name, run.document, run.show, found)


def _of_specs(run: Run, common: Common) -> list[Figure]:
    """The V-curves of the specs of a check, under its settings; a note for each that cannot be computed."""
    from bpcli.commands.output import note
    from bpcli.commands.report_data import curve

    specs, changed = run.document.context.get("specs"), run.document.context.get("set")
    figures = []
    for spec in [s for s in specs if isinstance(s, str)][:CURVES_AT_MOST] if isinstance(specs, list) else []:
        try:
            figures.append(curve(Path(spec), replace(common, overrides=changed if isinstance(changed, dict) else {})))
        except BpError as error:
            note(f"no V-curve of {spec}: {error.diagnostics[0].what}", common)
    return figures


def _curves(specs: list[str], common: Common) -> list[Section]:
    """A section with the V-curves of specs named on the command line."""
    from bpcli.commands.report_data import curve
    from bpcli.commands.specs import single
    from bpcli.render.document import Document
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
    return f"Gradients of {', '.join(specs)}" if 0 < len(specs) <= 3 else "Gradients"


def _subtitle(runs: list[Run]) -> str:
    """The versions and machines of the runs."""
    said = []
    for context in (run.document.context for run in runs):
        machine = context.get("machine")
        machine = machine if isinstance(machine, dict) else {}
        parts = [f"bp {context.get('version', '')}".strip(), str(machine.get("cpu", ""))]
        said.append(", ".join(filter(None, [*parts, f"{machine['cores']} cores" if "cores" in machine else ""])))
    return " · ".join(dict.fromkeys(said))
