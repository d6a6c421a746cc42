"""`bp list`: the catalogues of bp, each read off its own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from bpcli.commands.shared_options import Common, one_of, shared
from bpcli.errors import BpError, fail, printable
from bpcli.render import FORMATS, Column, Document

Row = Mapping[str, Any]

_HEADINGS = {"kind": "catalogue", "name": "name", "options": "options", "tags": "kind", "summary": "summary"}
_OF_COLUMNS = {**_HEADINGS, "name": "name in CSV", "options": "unit", "tags": "heading", "summary": "meaning"}


def _row(name: str, summary: str, options: Sequence[str] = (), tags: Sequence[str] = ()) -> Row:
    return {"name": name, "options": [*options], "tags": [*tags], "summary": summary}


def _methods() -> Iterator[Row]:
    from bpcli.methods import known_names, load, options_of

    for name in known_names():
        try:
            method = load(name)
        except BpError as error:  # one broken plug-in must not hide the other methods
            click.echo(f"warning: {printable(error.diagnostics[0].what, 2000)}", err=True)
            continue
        yield _row(name, method.summary, options_of(method), sorted(method.tags))


def _tasks() -> Iterator[Row]:
    from bpcli.spec.options import listed
    from bpcli.tasks import find_task, known_tasks

    for name in known_tasks():
        task = find_task(name, None)
        yield _row(name, task.summary, listed(task.Options))


def _cells() -> Iterator[Row]:
    from bpcli.commands.scaffold import known_cells, read_cell

    for name in known_cells():
        yield _row(name, read_cell(name)["summary"])


def _operations() -> Iterator[Row]:
    from bpcli.graph.expressions import COMPOSED
    from bpcli.graph.operations import OPERATIONS

    for name, operation in OPERATIONS.items():
        yield _row(name, operation.description, tags=("analytic" if operation.analytic else "kinked",))
    for name, description in COMPOSED.items():
        yield _row(name, description, tags=("kinked" if name == "clip" else "analytic",))


def _references() -> Iterator[Row]:
    from bpcli import references
    from bpcli.backends import oracle

    for name in references.known():
        yield _row(name, references.get(name).summary)
    for name in oracle.known():
        yield _row(name, oracle.describe(name))


def _formats() -> Iterator[Row]:
    for name, entry in FORMATS.items():
        yield _row(name, entry.summary)


def _columns() -> Iterator[Row]:
    from bpcli.api import check_document
    from bpcli.commands import bench_document
    from bpcli.render.columns import COLUMNS

    headings = {c.key: c.heading for c in (*bench_document.BRIEF, *check_document.COLUMNS)}
    for name, (unit, text) in COLUMNS.items():
        yield _row(name, text, (unit,) if unit else (), (headings.get(name, name),))


CATALOGUES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "methods": _methods,
    "tasks": _tasks,
    "cells": _cells,
    "operations": _operations,
    "references": _references,
    "formats": _formats,
    "columns": _columns,
}


def catalogue(what: str | None) -> Document:
    """The catalogue called `what`, or all of them one after the other."""
    names = (what,) if what else CATALOGUES
    rows = [{"kind": name, **row} for name in names for row in CATALOGUES[name]()]
    empty = {k for k in _HEADINGS if not any(row[k] for row in rows)} | ({"kind"} if what else set())
    headings = _OF_COLUMNS if what == "columns" else _HEADINGS
    columns = [_column(key, heading, hidden=key in empty) for key, heading in headings.items()]
    return Document("Catalogue", "entries", columns, rows, context={"command": "list", "what": what})


def _column(key: str, heading: str, hidden: bool) -> Column:
    return Column(key, heading, lambda row: row[key], _words, right=False, wide=hidden)


def _words(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


@click.command("list")
@click.argument("what", required=False, metavar=f"[{'|'.join(CATALOGUES)}]", callback=one_of(lambda: CATALOGUES))
@click.option(
    "--for", "spec", metavar="SPEC", help="Methods for a spec: their kind, cost and source, or why they don't apply."
)
@shared("set", "dtype", "wrt", "max_memory", "allow_outside", "format", "output")
def list(what: str | None, spec: str | None, common: Common) -> int:
    """List methods, tasks, operations, references, output formats and columns, or one of these catalogues.

    With --for SPEC, list the methods with their kind for that spec (exact, windows, recursion or, for methods that are
    correct on average over random numbers, expectation), their cost per step and sample in symbols, and the operations
    and bytes of a gradient. F is the number of operations of a forward step, V the number of values it holds, N the
    size of the state, P the number of parameters that reach it, and c the number of entries in a column of the
    influence.
    """
    from bpcli.commands.output import emit

    if spec is None:
        if common.overrides or common.wrt:
            fail("usage", "--set, --dtype and --wrt are for a spec", help="add --for SPEC")
        return emit(catalogue(what), common)
    if what not in (None, "methods"):
        fail("usage", f"--for lists methods, not {what}", help="bp list methods --for SPEC")
    from bpcli.commands.methods_for import document

    return emit(document(spec, common), common)
