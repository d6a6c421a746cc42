"""`bp new`: write a commented spec to start from, with a gradient function and a test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import click

from bpcli.commands.shared_options import Common, one_of, shared


def _cells() -> tuple[str, ...]:
    from bpcli.commands.scaffold import known_cells

    return known_cells()


def _tasks() -> tuple[str, ...]:
    from bpcli.tasks import known_tasks

    return known_tasks()


def _kinds() -> tuple[str, ...]:
    from bpcli.commands.scaffold import KINDS

    return KINDS


@click.command()
@click.argument("name", required=False)
@click.option("--cell", metavar="CELL", default="vanilla", callback=one_of(_cells), help="Cell; see `bp list cells`.")
@click.option("--task", metavar="TASK", default="random", callback=one_of(_tasks), help="Task; see `bp list tasks`.")
@click.option(
    "--output", "--output-kind", "kind", metavar="KIND", default="numpy-kernel", callback=one_of(_kinds),
    help="numpy-kernel, torch-kernel or jax-kernel, by the library of the gradient function, or spec, without one.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@shared("quiet")
def new(name: str | None, cell: str, task: str, kind: str, force: bool, common: Common) -> int:
    """Write a spec to start from, with a gradient function of yours to be, and a test of it.

    NAME is a folder for the files, or the spec itself where it ends in .toml; it is called after cell and task by
    default. `bp check NAME` passes, with --kernel mine for the gradient function too, and so does the test. Change them
    from there. No file is replaced without --force.
    """
    from bpcli.commands.scaffold import Scaffold, files
    from bpcli.errors import fail
    from bpcli.problem.array_files import check_writable, replace_file

    _refuse_combination(cell, task)
    folder, stem = _place(name or (cell if task == "random" else f"{cell}_{task.replace('-', '_')}"))
    target = f"{stem}.toml" if (name or "").endswith(".toml") else stem
    texts = {folder / file: text for file, text in files(Scaffold(stem, cell, task, kind, target)).items()}
    same = {path for path, text in texts.items() if path.is_file() and path.read_bytes() == text.encode()}
    if (taken := [path for path in texts if os.path.lexists(path) and path not in same]) and not force:
        listed = ", ".join(f'"{path}"' for path in taken)
        fail("file-exists", f"{listed} would be replaced", help="choose another name, or replace it with --force")
    folder.mkdir(parents=True, exist_ok=True)
    for path in texts:
        check_writable(path)
    for path, text in texts.items():
        replace_file(path, _writing(text))
        common.note(f"wrote {path}")
    common.note(f"now: bp check {name or folder}{'' if kind == 'spec' else ' --kernel mine'}")
    return 0


def _writing(text: str) -> Callable[[IO[bytes]], object]:
    """What writes a text to a stream."""
    return lambda stream: stream.write(text.encode())


def _refuse_combination(cell: str, task: str) -> None:
    """Raise BpError for a task of sequences with a cell that has no state."""
    from bpcli.commands.scaffold import PLAIN_TASK, known_cells, recurrent
    from bpcli.errors import fail

    if task != PLAIN_TASK and not recurrent(cell):
        fit = ", ".join(c for c in known_cells() if recurrent(c))
        what = f'the task "{task}" is of sequences, and the cell "{cell}" has no state'
        fail("usage", what, help=f"--task {PLAIN_TASK}, or one of the cells {fit}")


def _place(name: str) -> tuple[Path, str]:
    """The folder for the files and the name of the spec without its suffix, for a folder or a .toml file."""
    from bpcli.errors import fail

    path = Path(name)
    folder, stem = (path.parent, path.stem) if name.endswith(".toml") else (path, path.resolve().name)
    if not re.fullmatch(r"\w[\w.-]*", stem):
        fail("usage", f'"{stem}" is no name for a spec', help="take letters, digits, _, - and .: bp new my_net")
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not place.is_dir():
            fail("usage", f'"{place}" is a file, not a folder', help="choose another name")
    return folder, stem
