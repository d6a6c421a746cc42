"""`bp reproduce`: published results beside those of bp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.render import Case, Column, Document, digits, words

if TYPE_CHECKING:
    from bpcli.papers import Paper

Row = Mapping[str, Any]
ALL = "all"
_INCONCLUSIVE = 4
_OUTCOMES = {True: "agrees", False: "DIFFERS"}


@click.command()
@click.argument("name", nargs=-1, metavar="[NAME]...")
@shared("threads", "format", "output", "quiet", "verbose", "strict")
def reproduce(name: tuple[str, ...], common: Common) -> int:
    """Compute the published results NAME and show both beside each other; `all` is all of them.

    Without NAME, list the results with their sources, and the time that each takes on one core. Every figure has the
    error that it is allowed; one that is further off says DIFFERS, and with --strict the exit code is 4. The specs are
    in specs/papers, and -v adds a command that shows the same by hand.
    """
    from bpcli.commands.output import announce, emit
    from bpcli.papers import find_paper, known_papers

    names = known_papers() if not name or ALL in name else tuple(dict.fromkeys(name))
    papers = [find_paper(n) for n in names]
    if not name:
        return emit(_listed(papers), common)
    announce(common)
    rows = list(_rows(papers, common))
    differing = [row for row in rows if row["outcome"] == _OUTCOMES[False]]
    code = emit(_document(papers, rows, differing), common, silent=common.quiet and not differing)
    return code or (_INCONCLUSIVE if common.strict and differing else 0)


def _listed(papers: Sequence[Paper]) -> Document:
    """The results that there are."""
    from bpcli.commands.output import duration

    rows = [_about(paper) for paper in papers]
    columns = [
        _column("name", "name", str, right=False),
        _column("title", "result", str, right=False),
        _column("source", "source", str, right=False),
        _column("seconds", "time", lambda s: f"about {duration(s)}"),
        _column("by_hand", "by hand", str, right=False, wide=True),
    ]
    return Document("Results", "papers", columns, rows, context={"command": "reproduce"})


def _about(paper: Paper) -> dict[str, Any]:
    own = {"name": paper.name, "title": paper.title, "source": paper.source, "seconds": paper.seconds}
    spec = f"specs/papers/{paper.spec}.toml"
    return {**own, "spec": spec, "by_hand": paper.by_hand.replace("SPEC", spec)}


def _rows(papers: Sequence[Paper], common: Common) -> Iterator[Row]:
    """The figures of all papers, as they are found."""
    from bpcli.commands.output import duration, progress
    from bpcli.commands.specs import packaged_spec

    for paper in papers:
        common.note(f"{paper.name}: about {duration(paper.seconds)} on one core")
        with progress(common) as say:
            say(f"{paper.name} …")
            for found in paper.figures(packaged_spec(f"papers/{paper.spec}")):
                say(f"{paper.name}: {found.figure} {_figure(found.ours)}")
                row = {**_about(paper), **asdict(found), "outcome": _OUTCOMES[found.agrees]}
                del row["agrees"]
                yield row


def _document(papers: Sequence[Paper], rows: Sequence[Row], differing: Sequence[Row]) -> Document:
    from bpcli.commands.output import describe

    columns = [
        _column("name", "result", str, right=False, label=True),
        _column("figure", "figure", str, right=False),
        _column("published", "published", _figure),
        _column("ours", "ours", _figure),
        _column("allowed", "may be off by", words, right=False),
        _column("outcome", "outcome", str, right=False),
        _column("note", "note", words, right=False, wide=True),
        _column("source", "source", str, right=False, wide=True),
        _column("spec", "spec", str, right=False, wide=True),
        _column("by_hand", "by hand", str, right=False, wide=True),
    ]
    told = f"{len(rows) - len(differing)} of {len(rows)} figures agree with the published ones"
    notes = [f"{row['name']}: {row['figure']}: {row['note']}" for row in rows if row["note"]]
    return Document(
        "Results beside the published ones",
        "figures",
        columns,
        rows,
        context=describe("reproduce", Common(), names=[paper.name for paper in papers]),
        summary={"agree": len(rows) - len(differing), "differ": len(differing)},
        sentences=(f"{told}.",),
        notes=notes,
        style=lambda row: "yellow" if row["outcome"] == _OUTCOMES[False] else "",
        case=_case,
    )


def _case(row: Row) -> Case:
    """A row as a test; one that differs is no wrong gradient."""
    message = f"published {_figure(row['published'])}, ours {_figure(row['ours'])}"
    verdict = "pass" if row["outcome"] == _OUTCOMES[True] else "inconclusive"
    lines = [row["note"]] if row["note"] else []
    return Case(row["name"], row["figure"], verdict, "" if verdict == "pass" else message, lines)


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else digits(5)(value)


def _column(
    key: str, heading: str, show: Callable[[Any], str], right: bool = True, wide: bool = False, label: bool = False
) -> Column:
    return Column(key, heading, lambda row: row[key], show, right, wide, label)
