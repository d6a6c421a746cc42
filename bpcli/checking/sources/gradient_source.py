"""Asking for a gradient: twice, with copies taken, and with an eye on the arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bpcli.checking.sources.validate_gradient import same
from bpcli.errors import Place
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Definition, Exact
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.limits import array_bytes
from bpcli.runtime import kernel_loader as library


@dataclass(frozen=True)
class Answer:
    """What a method said: its first answer, copied, and what was odd about it.

    `loss` is None where none came with the gradient. `unsteady` names the tensors (and "loss") for which another call
    with the same arguments gave other bits, `threaded` those for which only another order of jobs did; `changed`
    names the arrays of the problem that the method wrote to (they are restored). `faults` takes a tensor, or a key that
    is none, to what makes it impossible to compare. `where` is the user's file and line, for the end of a cause; "" for
    methods of ours.
    """

    loss: float | None
    arrays: Mapping[str, Array]
    unsteady: frozenset[str]
    changed: tuple[str, ...]
    faults: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    threaded: frozenset[str] = frozenset()


class Foreign(ABC):
    """A gradient from elsewhere, judged like a method's: it is meant to be the whole, true one.

    `anywhere` says whether there is one for other sizes and seeds as well; `ended`, that the last answer crashed its
    process or ran out of time: the cause is known, and it is not asked again to explain it.
    """

    text: str
    anywhere: ClassVar[bool]
    ended: bool = False

    @abstractmethod
    def answer(self, problem: Problem) -> Answer:
        """The gradient with respect to `problem.setup.wrt`, or why there is none."""

    @property
    def place(self) -> Place | None:
        """Where it is written; None where it is no program's text."""
        return None

    def afresh(self) -> bool:
        """Move to a fresh process if other code ran in this one: that may be why an answer is wrong. Whether it did."""
        return False

    def definition(self, setup: Setup) -> Definition:
        """The total derivative."""
        return Exact()

    def cost(self, setup: Setup) -> Cost:
        """The copies that are handed over; what is done with them nobody knows."""
        return Cost(0.0, 2 * sum(array_bytes(setup).values()), setup.T)


def ask(call: MethodCall | Foreign, problem: Problem) -> Answer:
    """Compute the gradient twice, the kernels' jobs in another order the second time, and compare bit by bit."""
    if isinstance(call, Foreign):
        return call.answer(problem)
    before = {name: array.copy() for name, array in _arrays(problem).items()}
    first = call.gradient(problem)
    loss, arrays = float(first.loss), {name: np.array(array) for name, array in first.arrays.items()}
    changed = _restore(problem, before)
    with library.reordered():
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
    """The tensors, and "loss", in which two answers (a loss and gradients by name) differ in a bit."""
    found = {name for name, array in first[1].items() if not same(array, second[1].get(name))}
    losses = [None if loss is None else np.float64(loss) for loss in (first[0], second[0])]
    if losses[0] is not None and not same(losses[0], losses[1]):
        found.add("loss")
    return frozenset(found)


def _arrays(problem: Problem) -> dict[str, Array]:
    return {**problem.params, **problem.inputs, **problem.state}


def _restore(problem: Problem, before: dict[str, Array]) -> tuple[str, ...]:
    """Put back what was changed, and name it."""
    changed = []
    for name, array in _arrays(problem).items():
        if not same(array, before[name]):
            array[...] = before[name]
            changed.append(name)
    return tuple(changed)
