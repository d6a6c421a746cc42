"""Asking a method for its gradient: twice, with copies taken, and with an eye on its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bpcli.methods import MethodCall
from bpcli.problem.model import Array, Problem


@dataclass(frozen=True)
class Answer:
    """What a method said: its first answer, copied, and what was odd about it.

    `unsteady` names the tensors (and "loss") for which a second call with the same arguments gave other bits;
    `changed` names the arrays of the problem that the method wrote to (they are restored).
    """

    loss: float
    arrays: dict[str, Array]
    unsteady: frozenset[str]
    changed: tuple[str, ...]


def ask(call: MethodCall, problem: Problem) -> Answer:
    """Compute the gradient twice and compare bit by bit."""
    before = {name: array.copy() for name, array in _arrays(problem).items()}
    first = call.gradient(problem)
    loss, arrays = float(first.loss), {name: np.array(array) for name, array in first.arrays.items()}
    changed = _restore(problem, before)
    second = call.gradient(problem)
    changed += tuple(name for name in _restore(problem, before) if name not in changed)
    unsteady = {name for name in arrays if not _same(arrays[name], second.arrays.get(name))}
    if not _same(np.float64(loss), np.float64(second.loss)):
        unsteady.add("loss")
    return Answer(loss, arrays, frozenset(unsteady), changed)


def _arrays(problem: Problem) -> dict[str, Array]:
    return {**problem.params, **problem.inputs, **problem.state}


def _restore(problem: Problem, before: dict[str, Array]) -> tuple[str, ...]:
    """Put back what was changed, and name it."""
    changed = []
    for name, array in _arrays(problem).items():
        if not _same(array, before[name]):
            array[...] = before[name]
            changed.append(name)
    return tuple(changed)


def _same(left: Array | np.float64, right: Array | np.float64 | None) -> bool:
    """Bitwise equality: a NaN equals itself, and zeros of either sign differ."""
    if right is None:
        return False
    a, b = np.asarray(left), np.asarray(right)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
