"""A user's gradient function: `FUNC(params, inputs, state)`, with a fourth parameter the constants and dims too.

It gets copies and is called twice; whatever it does is a finding, never the end of the check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bpcli.checking.sources.gradient_source import Answer, Foreign, differing
from bpcli.checking.sources.user_file import Called, Function, UserFile
from bpcli.checking.sources.user_process import Process
from bpcli.checking.sources.validate_gradient import LOSS
from bpcli.errors import Place, fail, printable
from bpcli.problem.definition import Problem


@dataclass(eq=False)
class Supplied(Foreign):
    """A function of a file, called `text` in reports, run in `process`."""

    anywhere: ClassVar[bool] = True
    text: str
    function: Function
    process: Process
    ended: bool = False

    def answer(self, problem: Problem) -> Answer:
        """See `Foreign`."""
        first = self._call(problem)
        second = first if first.ended else self._call(problem)
        self.ended = second.ended
        one, two = first.returned, second.returned
        later = {n: f"not deterministic: called again, {f}" for n, f in two.faults.items() if n not in one.faults}
        faults = {**later, **one.faults}
        unsteady = differing((one.loss, one.arrays), (two.loss, two.arrays)) - set(later)
        arrays = {name: array for name, array in one.arrays.items() if name not in later}
        loss = None if LOSS in faults else one.loss
        changed = tuple(dict.fromkeys((*first.changed, *second.changed)))
        return Answer(loss, arrays, unsteady, changed, faults, self.function.where)

    def afresh(self) -> bool:
        """See `Foreign`."""
        return self.process.afresh(str(self.function.file.path), self.function.name)

    @property
    def place(self) -> Place:
        """Where the function is written."""
        return self.function.file.place(self.function.line)

    def _call(self, problem: Problem) -> Called:
        setup = problem.setup
        numbers = {**setup.spec.constants, **setup.spec.dims}
        return self.function.gradient(problem.arrays, setup.wrt, [setup.dtype], numbers)


def supplied(file: UserFile, name: str, text: str, process: Process, place: Place | None = None) -> Supplied:
    """The function `name` of a file; `BpError` at `place` where there is none."""
    if not file.seek(name, place)["callable"]:
        fail(
            "usage", f'"{printable(name)}" of {printable(file.shown)} is not a function', place, help="name a function"
        )
    return Supplied(text, Function(file, name, file.line_of(name)), process)
