"""Sources of gradients to judge: bp's own methods, a function in a user's file, and a saved gradient.

Each is asked more than once, with its arguments watched, so that a gradient that changes from call to call, or a source
that writes into its arguments, is found out.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from bpcli.checking.sources.user_file import CallResult, Function, Host, UserFile, function_of
from bpcli.checking.sources.validate_gradient import LOSS, parse_gradient, same
from bpcli.errors import Place, fail, printable
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Definition, Exact
from bpcli.problem.array_files import ArrayFile, FileErrors, open_arrays
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.limits import array_bytes
from bpcli.runtime import kernel_loader

_PREFIX = "d_"


@dataclass(frozen=True)
class Answer:
    """A source's first gradient, copied, and what is irregular about it.

    `loss` is None where none came with the gradient. `unsteady` names the tensors (and "loss") for which another call
    with the same arguments gave other bits, `threaded` those for which only another order of jobs did; `changed`
    names the arrays of the problem that were written to (they are restored). `faults` says why a tensor, or an unknown
    key, cannot be compared. `where` is the user's file and line, to end a cause with; "" for bp's own methods.
    """

    loss: float | None
    arrays: Mapping[str, Array]
    unsteady: frozenset[str]
    changed: tuple[str, ...]
    faults: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    threaded: frozenset[str] = frozenset()


class GradientSource(ABC):
    """A source of a gradient outside of bp's methods, called `text` in reports.

    `any_size` says whether it has gradients for other sizes and seeds too; `crashed`, that its last answer ended its
    process or ran out of time, so that the cause is known and blame need not ask again. `meant` is the method that it
    is to agree with, None for the exact gradient.
    """

    text: str
    any_size: ClassVar[bool]
    crashed: bool = False
    meant: MethodCall | None = None

    @abstractmethod
    def answer(self, problem: Problem) -> Answer:
        """The gradient with respect to `problem.setup.wrt`, or why there is none."""

    @property
    def place(self) -> Place | None:
        """Where its source text is; None without one."""
        return None

    def restart(self) -> bool:
        """Move to a fresh process if other code ran in this one and may have spoiled it; returns whether it did."""
        return False

    def refusal(self, setup: Setup) -> str | None:
        """Why it does not apply to a spec; None if it does."""
        return None

    def definition(self, setup: Setup) -> Definition:
        """That of the method that is meant, by default the total derivative."""
        return Exact() if self.meant is None else self.meant.definition(setup)

    def cost(self, setup: Setup) -> Cost:
        """The copies that are handed over; the cost of the source itself is unknown."""
        return Cost(0.0, 2 * sum(array_bytes(setup).values()), setup.T)


@dataclass(eq=False)
class UserFunction(GradientSource):
    """A function `FUNC(params, inputs, state)` in a Python file; a fourth parameter gets the constants and dims.

    It gets copies and is called twice in `process`, a host. Whatever it does is a finding and never ends the check.
    """

    any_size: ClassVar[bool] = True
    text: str
    function: Function
    process: Host
    meant: MethodCall | None = None
    crashed: bool = False

    def answer(self, problem: Problem) -> Answer:
        """See `GradientSource`."""
        first = self._call(problem)
        second = first if first.ended else self._call(problem)
        self.crashed = second.ended
        one, two = first.returned, second.returned
        later = {n: f"not deterministic: called again, {f}" for n, f in two.faults.items() if n not in one.faults}
        faults = {**later, **one.faults}
        unsteady = differing((one.loss, one.arrays), (two.loss, two.arrays)) - set(later)
        arrays = {name: array for name, array in one.arrays.items() if name not in later}
        loss = None if LOSS in faults else one.loss
        changed = tuple(dict.fromkeys((*first.changed, *second.changed)))
        return Answer(loss, arrays, unsteady, changed, faults, self.function.where)

    def restart(self) -> bool:
        """See `GradientSource`."""
        return self.process.restart(str(self.function.file.path), self.function.name)

    @property
    def place(self) -> Place:
        """The line of the function's definition."""
        return self.function.file.place(self.function.line)

    def _call(self, problem: Problem) -> CallResult:
        setup = problem.setup
        numbers = {**setup.spec.constants, **setup.spec.dims}
        return self.function.gradient(problem.arrays, setup.wrt, [setup.dtype], numbers)


def user_function(
    file: UserFile,
    name: str,
    text: str,
    process: Host,
    meant: MethodCall | None = None,
    place: Place | None = None,
) -> UserFunction:
    """The function `name` of a file. Raises BpError at `place` where there is none."""
    return UserFunction(text, function_of(file, name, place), process, meant)


@dataclass(frozen=True, eq=False)
class SavedGradient(GradientSource):
    """An .npz file with arrays `d_<name>`, as `bp grad` writes it, and `loss` if it was saved.

    The arrays are read when a problem says what shapes they must have.
    """

    any_size: ClassVar[bool] = False
    text: str
    path: Path
    file: ArrayFile
    meant: MethodCall | None = None

    def answer(self, problem: Problem) -> Answer:
        """See `GradientSource`. Raises BpError for a damaged file."""
        setup = problem.setup
        names = {*problem.params, *problem.inputs, *problem.state}
        held = {name: self._array(name) for name in self.file.names() if name == LOSS or name.startswith(_PREFIX)}
        gradients = {name.removeprefix(_PREFIX): array for name, array in held.items() if name != LOSS}
        given = (held[LOSS], gradients) if LOSS in held else gradients
        where = f" ({printable(str(self.path))})"
        shapes = {tensor.name: tensor.shape for tensor in setup.wrt}
        returned = parse_gradient(given, shapes, names, [setup.dtype]).located(where)
        return Answer(returned.loss, returned.arrays, frozenset(), (), returned.faults, where)

    def _array(self, name: str) -> Array:
        """An array as saved, finite or not. `shape` checks its header against its size before memory is allocated."""
        self.file.shape(name)
        guard = FileErrors(self.path.name, None).guard(f'array "{printable(name)}" is damaged')
        with guard, zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
        return array


def saved_gradient(path: Path, text: str, meant: MethodCall | None = None) -> SavedGradient:
    """The gradient in a file. Raises BpError where it is no readable .npz, or holds no gradient."""
    shown = printable(str(path))
    if not path.exists():
        fail("no-such-file", f'no file "{shown}"', help="bp grad writes such files")
    if path.suffix.lower() != ".npz":
        fail("unknown-format", f"{shown}: not an .npz file", help="numpy.savez writes them")
    file = open_arrays(path, None)
    if not any(name.startswith(_PREFIX) for name in file.names()):
        held = ", ".join(printable(n) for n in file.names()[:20]) or "nothing"
        advice = f"d_W is the gradient with respect to W; the file holds {held}"
        fail("missing-array", f"{shown}: no array d_NAME", help=advice)
    return SavedGradient(text, path, file, meant)


def ask(call: MethodCall | GradientSource, problem: Problem) -> Answer:
    """Compute the gradient twice, the second time with the kernels' jobs in another order, and compare bit by bit."""
    if isinstance(call, GradientSource):
        return call.answer(problem)
    before = {name: array.copy() for name, array in _arrays(problem).items()}
    first = call.gradient(problem)
    loss, arrays = float(first.loss), {name: np.array(array) for name, array in first.arrays.items()}
    changed = _restore(problem, before)
    with kernel_loader.reordered():
        second = call.gradient(problem)
        unsteady = differing((loss, arrays), (float(second.loss), second.arrays))
    changed += tuple(name for name in _restore(problem, before) if name not in changed)
    if not unsteady:
        return Answer(loss, arrays, unsteady, changed)
    third = call.gradient(problem)
    again = differing((loss, arrays), (float(third.loss), third.arrays))
    _restore(problem, before)
    return Answer(loss, arrays, again, changed, threaded=unsteady - again)


def differing(
    first: tuple[float | None, Mapping[str, Array]], second: tuple[float | None, Mapping[str, Array]]
) -> frozenset[str]:
    """The tensors, and "loss", in which two results `(loss, gradients by name)` differ in a bit."""
    found = {name for name, array in first[1].items() if not same(array, second[1].get(name))}
    losses = [None if loss is None else np.float64(loss) for loss in (first[0], second[0])]
    if losses[0] is not None and not same(losses[0], losses[1]):
        found.add(LOSS)
    return frozenset(found)


def _arrays(problem: Problem) -> dict[str, Array]:
    return {**problem.params, **problem.inputs, **problem.state}


def _restore(problem: Problem, before: dict[str, Array]) -> tuple[str, ...]:
    """Restore the arrays that were written to; returns their names."""
    changed = tuple(name for name, array in _arrays(problem).items() if not same(array, before[name]))
    for name in changed:
        _arrays(problem)[name][...] = before[name]
    return changed
