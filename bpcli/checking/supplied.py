"""A user's gradient function: `FUNC(params, inputs, state)`, with a fourth parameter the constants and dims too.

It gets copies and is called twice; whatever it does is a finding, never the end of the check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bpcli.checking.answers import Answer, Foreign, differing, same
from bpcli.checking.returned import LOSS, Returned, all_faulty, take
from bpcli.checking.userfile import UserFile
from bpcli.errors import Place, fail, printable
from bpcli.problem.model import Problem

_CONSTANTS = "constants"


@dataclass(frozen=True, eq=False)
class Supplied(Foreign):
    """The function `function` of a file, called `text` in reports."""

    anywhere: ClassVar[bool] = True
    text: str
    file: UserFile
    function: Callable[..., Any]
    line: int

    def answer(self, problem: Problem) -> Answer:
        """See `Foreign`."""
        (first, changed), (second, changed_later) = self._call(problem), self._call(problem, again=True)
        later = {n: f"not deterministic: called again, {f}" for n, f in second.faults.items() if n not in first.faults}
        faults = {**later, **first.faults}
        unsteady = differing((first.loss, first.arrays), (second.loss, second.arrays)) - set(later)
        arrays = {name: array for name, array in first.arrays.items() if name not in later}
        loss = None if LOSS in faults else first.loss
        return Answer(loss, arrays, unsteady, tuple(dict.fromkeys((*changed, *changed_later))), faults, self._where)

    @property
    def place(self) -> Place:
        """Where the function is written."""
        return self.file.place(self.line)

    @property
    def _where(self) -> str:
        return f" ({self.file.at(self.line)})"

    def _call(self, problem: Problem, again: bool = False) -> tuple[Returned, tuple[str, ...]]:
        """What comes back from fresh copies, and which of them were changed."""
        setup = problem.setup
        groups = problem.arrays
        given: list[dict[str, Any]] = [{name: array.copy() for name, array in group.items()} for group in groups]
        numbers = {**setup.spec.constants, **setup.spec.dims}
        if _takes_four(self.function):
            given.append(dict(numbers))
        known = {name for group in groups for name in group}
        with self.file.running(again):
            try:
                returned = take(self.function(*given), setup.wrt, known, [setup.dtype]).located(self._where)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                returned = all_faulty(setup.wrt, self.file.raised(error, self.line))
        changed = [name for now, was in zip(given, groups, strict=False) for name in altered(now, was)]
        return returned, tuple(changed) + ((_CONSTANTS,) if given[3:] not in ([], [numbers]) else ())


def supplied(file: UserFile, name: str, text: str, place: Place | None = None) -> Supplied:
    """The function `name` of a file; `BpError` at `place` where there is none."""
    function = file.get(name, place)
    if not callable(function):
        fail(
            "usage", f'"{printable(name)}" of {printable(file.shown)} is not a function', place, help="name a function"
        )
    return Supplied(text, file, function, file.line_of(name))


def altered(now: Mapping[str, Any], was: Mapping[str, Any]) -> list[str]:
    """The names under which a dict of arrays holds something else than it did."""
    changed = [name for name in was if not isinstance(now.get(name), np.ndarray) or not same(now[name], was[name])]
    return changed + [printable(str(name), 60) for name in now if name not in was]


def _takes_four(function: Callable[..., Any]) -> bool:
    """Whether a function has a fourth parameter by position; False where it doesn't say what it takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 4
