"""What a wrong answer is compared with: the right gradient, entry by entry, from the reference interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bpcli.checking.answers import Foreign, ask
from bpcli.checking.blame.signatures import LEFT, explained
from bpcli.checking.faults.model import as_method, separate
from bpcli.checking.interpreter.hooks import RIGHT, Hooks
from bpcli.methods import MethodCall
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.references.base import FloatArray
from bpcli.references.perturbation.kink_slopes import ALIKE, slopes_of
from bpcli.references.rounding import rounding
from bpcli.runtime.reverse_mode import Window

# Two gradients, each with its rounding.
_BOTH = 2.0
_SINGLE = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A method's answers on a problem, the right gradient of its `windows`, and rounding as a slack.

    It was asked four times: `answers` are the first and the third, `unsteady` names what differed from call to call.

    `wrong` names the tensors that are off by more, in the spec's order; answers of the wrong shape are left out.
    """

    problem: Problem
    windows: tuple[Window, ...]
    answers: tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]
    right: Mapping[str, FloatArray]
    slack: Mapping[str, FloatArray]
    unsteady: frozenset[str]
    wrong: tuple[str, ...]
    _made: dict[tuple[object, ...], Mapping[str, FloatArray]] = field(default_factory=dict)

    def accumulates(self, name: str) -> bool:
        """Whether the right gradient was added twice between the first answer and the third."""
        first, third = self.answers
        left = LEFT * np.abs(third[name]).max(initial=0.0)
        return bool((np.abs(third[name] - first[name] - 2 * self.right[name]) <= left).all())

    def planted(self, key: tuple[object, ...], hooks: Hooks, calls: int = 1) -> Mapping[str, FloatArray]:
        """As `planted` on this problem, kept under `key` and the number of calls."""
        if (*key, calls) not in self._made:
            self._made[*key, calls] = planted(self.problem, hooks, self.windows, calls)
        return self._made[*key, calls]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return next(x for x in self.problem.setup.wrt if x.name == name)

    def error(self, name: str) -> FloatArray:
        """What the first answer has too much."""
        return self.answers[0][name] - self.right[name]

    def explained(self, name: str, value: FloatArray, call: int = 0) -> bool:
        """Whether `value` is what the answer is, but for rounding or next to nothing of the error."""
        return explained(self.answers[call][name], self.right[name], self.both(name), value)

    def both(self, name: str) -> FloatArray:
        """What the rounding of two gradients comes to."""
        return np.asarray(_BOTH * self.slack[name])

    def single(self, name: str) -> FloatArray:
        """What the rounding of a gradient in float32 comes to; nothing where it is in float32 by rights."""
        if self.problem.setup.dtype == _SINGLE:
            return np.zeros_like(self.slack[name])
        return rounding(self.problem, self.windows, _SINGLE).gradient[name]


def gather(setup: Setup, call: MethodCall | Foreign) -> Evidence:
    """Ask a method, on copies of the problem's arrays."""
    problem = draw(setup)
    windows = tuple(call.windows(setup))
    asked = [ask(call, separate(problem)) for _ in range(2)]
    first, second = ({x.name: _dense(a.arrays[x.name], x) for x in setup.wrt if x.name in a.arrays} for a in asked)
    unsteady = asked[0].unsteady | asked[1].unsteady
    right = _right(problem, windows, first)
    slack = rounding(problem, windows, setup.dtype).gradient
    comparable = {x.name: x for x in setup.wrt if x.name in first and first[x.name].shape == x.shape}
    found = Evidence(problem, windows, (first, second), right, slack, unsteady, ())
    return replace(found, wrong=tuple(n for n in comparable if not all(_near(found, n, i) for i in range(2))))


def _right(problem: Problem, windows: tuple[Window, ...], answer: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
    """The right gradient: at kinks by slopes that programs take there, those with which most entries are `answer`'s."""
    slopes = slopes_of(problem)
    if slopes is None:
        return planted(problem, RIGHT, windows)
    slack = rounding(problem, windows, problem.setup.dtype).gradient

    def alike(right: Mapping[str, FloatArray]) -> int:
        pairs = [(right[n], value, _BOTH * slack[n]) for n, value in answer.items() if n in right]
        return sum(int((np.abs(a - b) <= room).sum()) for a, b, room in pairs if a.shape == b.shape)

    return max((planted(slopes.chosen(share), RIGHT, windows) for share in ALIKE), key=alike)


def planted(problem: Problem, hooks: Hooks, windows: tuple[Window, ...], calls: int = 1) -> Mapping[str, FloatArray]:
    """The interpreter's gradient with some rules replaced; the last of `calls` calls."""
    method = as_method("planted", hooks, windows)
    own = separate(problem)
    found = [method.gradient(own).arrays for _ in range(calls)][-1]
    return {name: np.asarray(a, float) for name, a in found.items()}


def _near(evidence: Evidence, name: str, call: int) -> bool:
    off = np.abs(evidence.answers[call].get(name, np.full(1, np.nan)) - evidence.right[name])
    return bool((off <= evidence.both(name)).all())


def _dense(given: Array, x: Tensor) -> FloatArray:
    """In float64, nothing where a density leaves entries out: what stands there is ignored."""
    value = np.array(given, dtype=np.float64)
    if x.pattern is not None and value.shape == x.shape:
        value.reshape(-1)[np.setdiff1d(np.arange(value.size), x.pattern)] = 0.0
    return value
