"""The loop-only twin on a chosen side of every kink whose side rounding hides.

There the twin may stand on another side than the kernels, and both are right. Whether that is all is a comparison of
the two on one side, left and right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import naive_dual
import numpy as np
from kernel_cases import expected
from naive_dual import Dual, Scalar, chain

from bpcli.methods import parse
from bpcli.problem.definition import Problem
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.kinks import kinked, near_zero, slopes_of
from bpcli.runtime.reverse_mode import unrolled

Array = np.ndarray[Any, Any]
Slope = tuple[Scalar, Scalar]

# Arguments at a kink are this many times smaller than what is taken for one, and others larger.
_CLEAR = 4.0


def stands_elsewhere(problem: Problem, method: str) -> bool:
    """Whether the twin of a float64 problem agrees with the kernels on the left of all its kinks, and on the right.

    Rounding must tell the kinks from all other arguments, so that the twin is moved at these alone.
    """
    slopes, near = slopes_of(problem), nearness(problem)
    if slopes is None or near is None:
        return False
    windows = parse(method).definition(problem.setup).over(problem.setup)
    unsure = rounding(problem, windows, problem.setup.dtype).gradient
    for share in (0.0, 1.0):
        chosen = slopes.chosen(share)
        kernels = unrolled(chosen.setup, windows).gradient(chosen)[1]
        with standing(share, near):
            twin = expected(problem, method)
        if not all(agree(problem, name, kernels[name], twin[name], 2 * unsure[name]) for name in kernels):
            return False
    return True


def agree(problem: Problem, name: str, one: Array, other: Array, tolerance: Array) -> bool:
    """Whether all entries that exist are within their tolerance."""
    pattern = next(t.pattern for t in problem.setup.wrt if t.name == name)
    within = (np.abs(one - other) <= tolerance).ravel()
    return bool((within if pattern is None else within[pattern]).all())


def nearness(problem: Problem) -> float | None:
    """A size that arguments at kinks are well below, and all others well above; None where there is none."""
    at_kinks, others = 0.0, np.inf
    for exact, passes, at in near_zero(problem, kinked(problem.setup.graph)).values():
        every = np.abs([exact, *passes[1:]])  # the first of the passes is in float32
        at_kinks = max(at_kinks, float(np.max(np.where(at, every, 0.0))))
        others = min(others, float(np.min(np.where(at, np.inf, every))))
    near = max(_CLEAR * at_kinks, float(np.finfo(np.float64).tiny))
    return near if _CLEAR * near < others else None


@contextmanager
def standing(share: float, near: float) -> Iterator[None]:
    """The twin with the left slope (a `share` of 0) or the right slope (1) where an argument is within `near` of 0."""
    leaky, size = naive_dual._leaky, naive_dual.ELEMENTWISE["abs"]

    def pinned(right: Callable[..., Slope], low: float, x: Scalar) -> Slope:
        slope = low + (1.0 - low) * share
        return (slope * x, slope) if abs(x.real) <= near else right(x)

    def of_two(right: Callable[[Dual, Dual], Dual]) -> Callable[[Dual, Dual], Dual]:
        def rule(u: Dual, v: Dual) -> Dual:
            if abs(u.value.real - v.value.real) > near:
                return right(u, v)
            return chain(share * u.value + (1.0 - share) * v.value, (share, u), (1.0 - share, v))

        return rule

    elementwise: Mapping[str, Any] = {"abs": lambda x: pinned(size, -1.0, x)}
    with (
        mock.patch.object(naive_dual, "_leaky", lambda x, low: pinned(lambda x: leaky(x, low), low, x)),
        mock.patch.dict(naive_dual.ELEMENTWISE, elementwise),
        mock.patch.object(naive_dual, "MAX", of_two(naive_dual.MAX)),
        mock.patch.object(naive_dual, "MIN", of_two(naive_dual.MIN)),
    ):
        yield
