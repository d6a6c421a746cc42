"""Bounds on the rounding error of a correct gradient, measured by sampling.

Worst-case bounds (products of absolute Jacobians) grow exponentially with the number of steps and soon excuse any
gradient. Rounding is sampled instead, in two ways, and the bound is the sum of both. First, both passes are run in
float32 and in float64 on the same slightly shifted arrays: the difference is the error of float32, which is linear in
unit roundoff and is scaled to the dtype in question. It is not linear where a unit saturates (1 - a² is off by a unit
of roundoff however small it is), and not known where float32 loses all digits of a difference. Second, therefore, every
array entry, every intermediate result and every cotangent is disturbed by a few units of roundoff of the very dtype
(Parker, "Monte Carlo arithmetic", 1997).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.problem.definition import Array, Problem, Setup, cast
from bpcli.references.numerics.float_range import PASSES, float_range
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation.kink_slopes import ALIKE, slopes_of
from bpcli.runtime.reverse_mode import Unrolled, Window, unrolled
from bpcli.runtime.trace import Disturbance

# Multiples of the sampled standard deviation, and of one rounding of the result, that a correct gradient may be off by;
# with a dozen samples a Gaussian error exceeds the first in fewer than one of 10⁹ entries.
FACTOR = 32.0
# Relative shifts of the arrays. A saturated unit hardly moves under a small one, and would always round the same way.
_SHIFTS = (2.0**-20, 2.0**-14, 2.0**-8) * 4
# Units of roundoff of a disturbance, enough to stand out from the rounding of the passes themselves; and samples.
_UNITS, _DISTURBED = 4.0, 8
# Where float32 loses this much of an entry it is no longer linear in unit roundoff.
_LINEAR = 1e-2
# Roundings of the tensor's largest entry that any entry with as large contributions may show, over FACTOR.
_SATURATED = 1 / 8
_UNDERFLOWS = 1e3
# Roundings of the loss that a gradient which is zero by cancellation may show, at a minimum for instance.
_CANCELLED = 1e5
# A bound of so many roundings, or such a part, of the largest gradients near by leaves no doubt that they are like it.
_SURE, _AT_MOST = 1e6, 1e-2
_LOSS = ""  # beside the names of tensors
# Below it float32 is not what numbers are rounded to.
_SMALLEST = float(np.finfo(np.float32).tiny)
_SINGLE = np.dtype(np.float32)
_DOUBLE = np.dtype(np.float64)


def unit_roundoff(dtype: np.dtype[np.floating]) -> float:
    """Half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


@dataclass(frozen=True, eq=False)
class Rounding:
    """Bounds on rounding: by tensor, of each entry of the gradient; and of the loss that comes with it.

    `scale` is the largest entry of all gradients, on average over the samples, or, where rounding is so large that they
    may be unlike it, of the gradient itself; or, where it cancels, what rounding of the loss may look like. A bound
    beyond it tells nothing. `lost` is the share of the bounds that underflow causes.
    """

    gradient: Mapping[str, FloatArray]
    loss: float
    scale: float
    lost: Mapping[str, FloatArray]


@functools.lru_cache(maxsize=2)
def rounding(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> Rounding:
    """What the gradient that `windows` define may be off by when it is computed in `dtype`.

    Where there is no contribution at all the bound is exactly zero. Where a value on the way leaves the range of
    `dtype`, so that a correct gradient may be anything, it is infinite. At a kink a shift would choose the slope, which
    is no rounding: there the bound is the largest under the slopes that programs choose.
    """
    slopes = slopes_of(problem)
    if slopes is None:
        return _rounding(problem, windows, dtype)
    each = [_rounding(slopes.chosen(share), windows, dtype) for share in ALIKE]
    gradient, lost = (
        {name: functools.reduce(np.maximum, [part[name] for part in parts]) for name in parts[0]}
        for parts in ([r.gradient for r in each], [r.lost for r in each])
    )
    return Rounding(gradient, float(np.max([r.loss for r in each])), float(np.max([r.scale for r in each])), lost)


def _rounding(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> Rounding:
    with np.errstate(all="ignore"):
        sizes, spreads = _samples(problem, windows)
        disturbed, exact = _disturbed(problem, windows, unit_roundoff(dtype))
        known = float_range(problem, windows, exact, dtype)
        lost = {name: FACTOR * part for name, part in known.lost.items()}
        if dtype == _DOUBLE:  # whose numbers may be beyond the range of float32, in which the others were sampled
            sizes = {
                name: np.where(np.isfinite(size) & (size > _SMALLEST), size, np.abs(exact[name]))
                for name, size in sizes.items()
            }
        each = {
            name: bound(sizes[name], spreads[name], m, dtype, _natural(problem, name, sizes[_LOSS]))
            + FACTOR * disturbed[name]
            + lost[name]
            for name, m in known.magnitudes.items()
        }
        each = {name: np.where(known.left[name], np.inf, size) for name, size in each.items()}
        loss = bound(sizes[_LOSS], spreads[_LOSS], sizes[_LOSS], dtype) + FACTOR * disturbed[_LOSS]
        largest, unsure, here = (_largest(problem.setup, arrays) for arrays in (sizes, each, exact))
        if not unsure <= min(_SURE * unit_roundoff(dtype), _AT_MOST) * largest:
            # What is far from the point is no measure of it where rounding leads there: chaos makes any size.
            largest = min(largest, here)
        scale = max(largest, _CANCELLED * unit_roundoff(dtype) * float(sizes[_LOSS]))
        return Rounding(each, float(loss), scale, lost)


def _natural(problem: Problem, name: str, loss: FloatArray) -> FloatArray:
    """The size of a derivative by an entry in proportion to which the loss changes; by a zero, that of the loss."""
    tensor = next(t for t in problem.setup.wrt if t.name == name)
    size = np.abs(np.asarray(problem.array(tensor), np.float64))
    return np.asarray(loss / np.where(size > 0, size, 1.0))


def _largest(setup: Setup, arrays: Mapping[str, FloatArray]) -> float:
    """The largest absolute value among the arrays of all tensors; NaN where none is a number."""
    sizes = np.concatenate([np.zeros(0), *(np.abs(arrays[t.name]).ravel() for t in setup.wrt if t.entries)])
    known = sizes[~np.isnan(sizes)]
    return float(known.max()) if known.size else float("nan") if sizes.size else 0.0


def rounding_flops(setup: Setup, windows: tuple[Window, ...]) -> float:
    """Predicted floating-point operations of `rounding`: its samples, and `float_range`."""
    return (2 * len(_SHIFTS) + _DISTURBED + 1 + PASSES) * unrolled(setup, windows).flops


def bound(
    size: FloatArray,
    spread: FloatArray,
    magnitude: FloatArray,
    dtype: np.dtype[np.floating],
    natural: FloatArray | float = 0.0,
) -> FloatArray:
    """The bound for entries of absolute value `size` whose float32 rounding has root mean square `spread`.

    Where float32 has lost an entry, the size of its tensor stands in, or the sum of absolute contributions `magnitude`
    where that is less: it grows with products of |J|, without end. Where all of a tensor cancels exactly, its
    `natural` size stands in. Below the normal range rounding is absolute.
    """
    roundoff = unit_roundoff(dtype)
    # A float64 spec may leave the range of float32.
    known = spread if dtype == _SINGLE else np.where(np.isfinite(spread), spread, 0.0)
    scaled = known * (roundoff / unit_roundoff(_SINGLE)) + roundoff * size
    lost = ~(spread <= _LINEAR * size)
    if dtype == _SINGLE:
        lost = ~np.isfinite(spread)
    largest = np.nanmax(size, initial=0.0) or natural
    # A unit that saturates to exactly 1 in float32 has no rounding there, and has some in float64.
    saturated = roundoff * np.fmin(magnitude, largest)
    scaled = np.fmax(scaled, np.where(lost, saturated, _SATURATED * saturated))
    underflow = _UNDERFLOWS * float(np.finfo(dtype).smallest_subnormal)
    return np.where(magnitude == 0, 0.0, FACTOR * scaled + underflow)


def _samples(problem: Problem, windows: tuple[Window, ...]) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By tensor, the mean absolute value of the gradient and the root mean square of its rounding in float32."""
    single = cast(problem, _SINGLE)
    double = cast(problem, _DOUBLE).setup
    generator = np.random.default_rng(0)
    shapes = {_LOSS: (), **{t.name: t.shape for t in problem.setup.wrt}}
    sizes = {name: np.zeros(shape) for name, shape in shapes.items()}
    roots = {name: np.zeros(shape) for name, shape in shapes.items()}
    for shift in _SHIFTS:
        groups = single.arrays
        shifted = Problem(single.setup, *(_shifted(group, shift, generator) for group in groups))
        rounded = _answers(unrolled(single.setup, windows), shifted)
        exact = _answers(unrolled(double, windows), cast(shifted, _DOUBLE))
        for name in shapes:
            sizes[name] += np.abs(exact[name]) / len(_SHIFTS)
            # Squares of what is huge or tiny would leave the range.
            roots[name] = np.hypot(roots[name], (rounded[name] - exact[name]) / len(_SHIFTS) ** 0.5)
    return sizes, roots


def _disturbed(
    problem: Problem, windows: tuple[Window, ...], roundoff: float
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By tensor, the root mean square effect of disturbing every number by one unit of `roundoff`; and the gradient."""
    double = cast(problem, _DOUBLE)
    method = unrolled(double.setup, windows)
    generator = np.random.default_rng(1)
    base = _answers(method, double)
    roots = {name: np.zeros(array.shape) for name, array in base.items()}
    shift = _UNITS * roundoff

    for sample in range(_DISTURBED):
        groups = double.arrays
        shifted = Problem(double.setup, *(_shifted(group, shift, generator) for group in groups))
        found = _answers(method, shifted, Disturbance(shift, sample))
        if not all(np.isfinite(found[name][np.isfinite(array)]).all() for name, array in base.items()):
            # Out of a domain on whose edge a program is to the last bit: sqrt(1 - λ²) where λ rounds to 1.
            found = _answers(method, shifted, Disturbance(shift, sample, cotangents=True))
        for name in base:
            roots[name] = np.hypot(roots[name], (found[name] - base[name]) / (_UNITS * _DISTURBED**0.5))
    return {name: _rough(each, base[name]) for name, each in roots.items()}, base


def _rough(disturbed: FloatArray, exact: FloatArray) -> FloatArray:
    """The same, and where it is a good part of the tensor its largest entry for all: few samples of chaos may agree."""
    largest = np.max(disturbed, initial=0.0)
    return disturbed if largest <= _LINEAR * np.max(np.abs(exact), initial=0.0) else np.full_like(disturbed, largest)


def _answers(method: Unrolled, problem: Problem, disturbance: Disturbance | None = None) -> dict[str, FloatArray]:
    loss, arrays = method.gradient(problem, disturbance=disturbance)
    return {name: np.asarray(a, dtype=np.float64) for name, a in {_LOSS: loss, **arrays}.items()}


def _shifted(group: Mapping[str, Array], shift: float, generator: np.random.Generator) -> dict[str, Array]:
    """Each number off by up to `shift` of itself, so that it rounds differently."""
    factors = ((name, array, generator.uniform(-shift, shift, array.shape)) for name, array in group.items())
    return {name: np.asarray(array * (1 + factor), dtype=array.dtype) for name, array, factor in factors}
