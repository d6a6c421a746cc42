"""Targets and options of `bp check` that name Python files: told apart, and refused where they do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bpcli.errors import Diagnostic, fail, printable

if TYPE_CHECKING:
    from bpcli.checking.sources.user_process import Process
    from bpcli.commands.common import Common


def objects(targets: Sequence[str]) -> tuple[list[str], list[str], list[Diagnostic]]:
    """The targets that are objects in Python files, the others, and a refusal for each file without an object."""
    from bpcli.api.user_gradients import IN_FILE

    boxes, others, refused = [], [], []
    for target in dict.fromkeys(targets):
        if IN_FILE.fullmatch(target):
            boxes.append(target)
        elif target.endswith(".py") and not Path(target).is_dir():
            what = f'"{printable(target)}" names no object'
            refused.append(Diagnostic("usage", what, help=f"write {printable(target)}:OBJECT"))
        else:
            others.append(target)
    return boxes, others, refused


def process(common: Common, wanted: bool) -> Process:
    """The process for user code of this call of bp, which ends with it; it starts now where it is `wanted`."""
    import contextlib

    import click

    from bpcli.api.user_gradients import user_process

    found = user_process(common.limits(), common.user_time)
    click.get_current_context().with_resource(contextlib.closing(found))
    if wanted:
        found.start()
    return found


def refuse_for_objects(boxes: Sequence[str], options: dict[str, bool]) -> None:
    """Raise BpError for options that mean nothing to an object; `options` says which of them are given."""
    for option, given in options.items():
        if boxes and given:
            advice = "an object has its own gradient and is judged by differences of its own loss"
            fail("usage", f'{option} goes with specs, not with an object ("{printable(boxes[0])}")', help=advice)


def refuse_for_several(gradients: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise BpError for a saved gradient among several specs: it belongs to one."""
    if gradients and len(paths) > 1:
        fail("usage", f"--gradient goes with one spec, not with {len(paths)}", help="name the spec that it belongs to")


def refuse_for_power(options: dict[str, Sequence[str]]) -> None:
    """Raise BpError for gradients beside --power, which plants faults in place of any; `options` says what is given."""
    for option, given in options.items():
        if given:
            advice = "what it could reveal is a property of the spec; check the gradient by a call of its own"
            fail("usage", f"{option} does not go with --power", help=advice)
