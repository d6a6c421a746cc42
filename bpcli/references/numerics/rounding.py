"""How far rounding alone may take a correct gradient from the exact one: measured in float32, where it is large.

Worst-case bounds (products of absolute Jacobians) grow exponentially with the number of steps and soon excuse any
gradient. So the rounding is sampled: the reverse pass is run in float32 and in float64 on the same slightly shifted arrays,
and the difference is what a forward and a backward pass really lose, cancellation and saturation included. Rounding is
linear in unit roundoff, which takes the sample from float32 to float64 (as in stochastic arithmetic: Parker, "Monte Carlo
arithmetic", 1997).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bpcli.methods.base import Window
from bpcli.problem.cast import cast
from bpcli.problem.magnitude import magnitude
from bpcli.problem.model import Array, Problem
from bpcli.problem.unrolled import Unrolled
from bpcli.references.numerics.probe import FloatArray

# Multiples of the sampled standard deviation, and of one rounding of the result, that a correct gradient may be off by;
# with eight samples a Gaussian error exceeds the first in one of 10⁹ entries.
FACTOR = 32.0
SAMPLES = 8
_SHIFT = 2.0**-20
# Where float32 loses this much of an entry it is no longer linear in unit roundoff.
_LINEAR = 1e-2
_UNDERFLOWS = 1e3
_SINGLE = np.dtype(np.float32)
_DOUBLE = np.dtype(np.float64)


def unit_roundoff(dtype: np.dtype[np.floating]) -> float:
    """Half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


def rounding(
    problem: Problem, windows: Sequence[Window], dtype: np.dtype[np.floating]
) -> Mapping[str, FloatArray]:
    """By tensor, a bound on the rounding of each entry of the gradient that `windows` define, computed in `dtype`.

    Where there is no contribution at all the bound is exactly zero.
    """
    with np.errstate(all="ignore"):
        magnitudes = magnitude(problem, windows)
        sizes, spreads = _samples(problem, windows)
        return {
            name: bound(sizes[name], spreads[name], magnitudes[name], dtype) for name in magnitudes
        }


def bound(size: FloatArray, spread: FloatArray, magnitude: FloatArray, dtype: np.dtype[np.floating]) -> FloatArray:
    """The bound for entries of absolute value `size` whose float32 rounding has root mean square `spread`.

    `magnitude`, the sum of absolute contributions, stands in where float32 has lost the entry. Below the normal range
    rounding is absolute.
    """
    roundoff = unit_roundoff(dtype)
    scaled = spread * (roundoff / unit_roundoff(_SINGLE)) + roundoff * size
    lost = ~(spread <= _LINEAR * size) & (dtype != _SINGLE)
    scaled = np.where(lost, np.fmax(scaled, roundoff * magnitude), scaled)
    scaled = np.where(np.isfinite(scaled), scaled, roundoff * magnitude)
    underflow = _UNDERFLOWS * float(np.finfo(dtype).smallest_subnormal)
    return np.where(magnitude == 0, 0.0, FACTOR * scaled + underflow)


def _samples(
    problem: Problem, windows: Sequence[Window]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By tensor, the mean absolute value of the gradient and the root mean square of its rounding in float32."""
    single = cast(problem, _SINGLE)
    double = replace(problem.setup, dtype=_DOUBLE)
    generator = np.random.default_rng(0)
    sizes = {t.name: np.zeros(t.shape) for t in problem.setup.wrt}
    squares = {t.name: np.zeros(t.shape) for t in problem.setup.wrt}
    for _ in range(SAMPLES):
        shifted = Problem(single.setup, *(_shifted(g, generator) for g in (single.params, single.inputs, single.state)))
        rounded = Unrolled(single.setup, windows).gradient(shifted)[1]
        exact = Unrolled(double, windows).gradient(cast(shifted, _DOUBLE))[1]
        for name in sizes:
            sizes[name] += np.abs(exact[name]) / SAMPLES
            squares[name] += (rounded[name].astype(np.float64) - exact[name]) ** 2 / SAMPLES
    return sizes, {name: np.sqrt(square) for name, square in squares.items()}


def _shifted(group: Mapping[str, Array], generator: np.random.Generator) -> dict[str, Array]:
    """Each number off by up to a millionth of itself, so that it rounds differently."""
    factors = ((name, array, generator.uniform(-_SHIFT, _SHIFT, array.shape)) for name, array in group.items())
    return {name: (array * (1 + factor)).astype(_SINGLE) for name, array, factor in factors}
