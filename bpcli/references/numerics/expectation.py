"""The mean of a random method, taken over all outcomes of its random bits, or over draws where there are too many.

All outcomes run on the same local derivatives, from the kernels in float64, as does the gradient that the mean is
compared with: errors of the kernels cancel, and are found in the draw by itself (`recursion`). Over all outcomes the
mean is that gradient to rounding. Over draws it is to within their standard error, which shows nothing for certain:
where a rare outcome counts, draws may miss it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from bpcli.methods._online import drawing, follow, run
from bpcli.methods.base import Expectation, NoOptions, Recursion
from bpcli.methods.rtrl_dense import DenseRTRL
from bpcli.problem.definition import Array, FloatArray, Problem
from bpcli.problem.definition import cast as in_dtype
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps

MOST_BITS = 8
"""Bits of which all outcomes are taken."""
DRAWS = 32
"""Draws where there are more bits."""
_ROUNDING = 1e-11
"""Rounding of a mean over all outcomes, relative to the largest draw."""
_DOUBLE = np.dtype(np.float64)


class Taken:
    """Steps that have been taken once, and are given again and again."""

    def __init__(self, problem: Problem) -> None:
        self._steps = LocalSteps(problem)
        self.setup, self._taken = problem.setup, list(self._steps.since(0))

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """The steps from `start` on."""
        return iter(self._taken[start:])

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient by tensor."""
        return self._steps.gradient(influence, direct)


class Bits:
    """Stands in for a generator: gives the bits of one outcome, zeros when they are used up, and notes its probability.

    It has the functions that an `Expectation` draws with; a rule that asks for others has outcomes that are not bits.
    """

    def __init__(self, bits: Sequence[int] = ()) -> None:
        self.probability, self.used, self._bits = 1.0, 0, bits

    def integers(self, low: int, high: int, size: Any) -> Array:
        """Fair bits."""
        if (low, high) != (0, 2):
            raise AttributeError("integers other than bits")
        return self._take(0.5, size)

    def binomial(self, n: int, p: float, size: Any) -> Array:
        """Bits that are 1 with probability p."""
        if n != 1:
            raise AttributeError("binomials other than bits")
        return self._take(p, size)

    def _take(self, p: float, size: Any) -> Array:
        shape = (size,) if isinstance(size, int) else tuple(size)
        count = int(np.prod(shape))
        own = np.array([*self._bits[self.used : self.used + count]], np.int64)
        own = np.concatenate([own, np.zeros(count - len(own), np.int64)])
        self.used += count
        self.probability *= float(np.prod(np.where(own == 1, p, 1 - p)))
        return own.reshape(shape)


@dataclass(frozen=True)
class Mean:
    """By tensor the distance of a mean from what it is to be, in units of what it may be off by.

    `bits`: of which all outcomes were taken, None for draws. `off` is then the largest of any entry in standard errors.
    """

    off: Mapping[str, float]
    bits: int | None


def mean_of(problem: Problem, expectation: Expectation, draws: int = DRAWS) -> Mean:
    """Compare the mean of an expectation with its definition, for all tensors of its setup."""
    given = expectation.given
    steps = Taken(in_dtype(replace(problem, setup=replace(given.setup, dtype=problem.setup.dtype)), _DOUBLE))
    right = _exact(steps) if not isinstance(expectation.of, Recursion) else run(expectation.of, steps).arrays
    bits = bits_of(given, steps)
    if bits is not None and bits <= MOST_BITS:
        value, largest = mean_over_outcomes(given, steps, bits)
        slack = {name: _ROUNDING * np.maximum(largest[name], np.abs(right[name]).max(initial=0.0)) for name in right}
        return Mean({name: _ratio(value[name] - right[name], slack[name]) for name in right}, bits)
    return Mean(_in_errors(given, steps, right, draws), None)


def _in_errors(recursion: Recursion, steps: Taken, right: Mapping[str, Array], draws: int) -> dict[str, float]:
    """By tensor the largest distance of an entry's mean over draws from `right`, in standard errors."""
    first, second = ({name: np.zeros(a.shape) for name, a in right.items()} for _ in range(2))
    largest = {name: float(np.abs(a).max(initial=0.0)) for name, a in right.items()}
    for i in range(draws):
        for name, values in run(recursion, steps, drawing(steps.setup, f"{recursion.draws} {i}")).arrays.items():
            off = values - right[name]
            first[name] += off / draws
            second[name] += off * off / draws
            largest[name] = max(largest[name], float(np.abs(values).max(initial=0.0)))
    errors = {n: np.sqrt(np.maximum(0, second[n] - first[n] ** 2) / (draws - 1)) for n in right}
    return {n: _ratio(first[n], errors[n] + _ROUNDING * largest[n]) for n in right}


def bits_of(recursion: Recursion, steps: Taken) -> int | None:
    """The number of bits that a draw takes; None where it is not made of bits alone."""
    counted = Bits()
    try:
        run(recursion, steps, cast("np.random.Generator", counted))
    except AttributeError:
        return None
    return counted.used


def mean_over_outcomes(recursion: Recursion, steps: Taken, bits: int) -> tuple[dict[str, FloatArray], dict[str, float]]:
    """The mean over all outcomes of so many bits, and the largest absolute value of any, by tensor."""
    total, largest = dict[str, FloatArray](), dict[str, float]()
    for outcome in itertools.product((0, 1), repeat=bits):
        source = Bits(outcome)
        for name, values in run(recursion, steps, cast("np.random.Generator", source)).arrays.items():
            total[name] = total.get(name, np.zeros(values.shape)) + source.probability * values
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
    return total, largest


def _exact(steps: Taken) -> Mapping[str, Array]:
    return follow(DenseRTRL(), steps, NoOptions(), "exact").arrays


def _ratio(off: FloatArray, slack: FloatArray | float) -> float:
    """The largest |off| / slack; NaN where something is not finite."""
    with np.errstate(all="ignore"):
        return float(np.max(np.where(off == 0, 0, np.abs(off) / slack), initial=0.0))
