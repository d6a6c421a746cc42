"""The noise of a black box, measured by calls: of its loss, of its gradient, and the size that both are compared with.

Two calls with the same arguments may differ: sums in parallel are added in any order, and iterations stop at a
tolerance. Up to `ROUNDING_LIKE`, such differences are noise, which becomes part of the bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bpcli.checking.sources.user_file import CallResult
from bpcli.checking.sources.validate_gradient import same
from bpcli.problem.definition import Array, Tensor
from bpcli.references.base import FloatArray
from bpcli.references.numerics.noise import POINTS, table_noise
from bpcli.references.numerics.probe import directions
from bpcli.references.numerics.rounding import FACTOR, UNITS, unit_roundoff

Params = Mapping[str, Array]
Loss = Callable[[Params], float]
Gradient = Callable[[Params], CallResult]

ROUNDING_LIKE = {np.dtype(np.float64): 2.0**-20, np.dtype(np.float32): 2.0**-10}
"""The part of itself by which a result may differ from call to call, by dtype."""
_REPEATS = 16
_SAMPLES = 8
_SECONDS = 10.0  # for samples of the gradient, of which two are always taken
# A step that leaves a minimum, relative to the params; and rows of directions a tensor.
_AWAY, _ROWS = 2.0**-4, 2
# Steps that a loss in float32 does not resolve, and the noise that shows that it has more digits.
_FINE, _DIGITS = 2.0**-20, 2.0**-40
_NO_NUMBERS = 12  # bits that a float32 number of a short fraction leaves empty


def moved(params: Params, tensor: Tensor, row: FloatArray, step: float) -> dict[str, Array]:
    """The params with one tensor moved along `row` by `step` times its size."""
    array = params[tensor.name]
    size = float(np.abs(array).mean()) or 1.0
    shifted = (array.astype(np.float64).reshape(-1) + step * size * row).reshape(array.shape).astype(array.dtype)
    return {**params, tensor.name: shifted}


def sizes(loss: Loss, params: Params, tensors: Sequence[Tensor]) -> tuple[float, float]:
    """The size of the loss, and of its gradient, near the point: at a minimum both may vanish at the point itself.

    The second is the largest root mean square over a tensor, from differences of one side.
    """
    base = loss(params)
    level, slope = abs(base), 0.0
    for tensor in tensors:
        size = float(np.abs(params[tensor.name]).mean()) or 1.0
        for row in directions(tensor, _ROWS):
            for step in (_AWAY, -_AWAY):
                value = loss(moved(params, tensor, row, step))
                if math.isfinite(value):
                    level = max(level, abs(value))
                    slope = max(slope, abs(value - base) / (_AWAY * size * math.sqrt(tensor.entries)))
    return level, slope


def unsteadiness(loss: Loss, params: Params, first: Sequence[float], level: Callable[[], float]) -> float:
    """The range of repeated losses over the size of the loss; 0 where the `first` ones are all alike."""
    if all(same(np.float64(first[0]), np.float64(value)) for value in first):
        return 0.0
    values = np.array([*first, *(loss(params) for _ in range(_REPEATS))])
    return float((values.max() - values.min()) / max(level(), np.abs(values).max(), np.finfo(np.float64).tiny))


def in_float64(loss: Loss, params: Params) -> Params | None:
    """The params in float64, if some are not and the loss computes in the type of its arguments; else None."""
    if all(array.dtype == np.float64 for array in params.values()):
        return None
    wide: Params = {name: array.astype(np.float64) for name, array in params.items()}
    narrow, base = loss(params), loss(wide)
    values = _beside(loss, wide)
    level = max(abs(base), float(np.abs(values).max()))
    if not (np.isfinite(values).all() and abs(base - narrow) <= ROUNDING_LIKE[np.dtype(np.float32)] * level):
        return None
    fine = float(table_noise(values[:POINTS])) <= _DIGITS * level
    return wide if fine and (np.diff(values) != 0).any() and not _single(values) else None


def is_coarse(loss: Loss, params: Params) -> bool:
    """Whether the loss computes in float32: by the type of its arguments, or as its values have no more digits."""
    if any(array.dtype == np.float32 for array in params.values()):
        return True
    values = _beside(loss, params)
    return bool(np.isfinite(values).all()) and dtype_of(values) == np.float32


def _beside(loss: Loss, params: Params) -> FloatArray:
    """The loss at tiny steps to one side, as there may be a kink at the point, and at a large one."""
    rng = np.random.default_rng(0)
    rows = {name: array * rng.uniform(0.5, 1.5, array.shape) for name, array in params.items()}
    steps = (*(_FINE * k for k in range(POINTS)), _AWAY)
    return np.array([loss({n: np.asarray(a + step * rows[n], a.dtype) for n, a in params.items()}) for step in steps])


def _single(values: Array) -> bool:
    with np.errstate(all="ignore"):
        return bool((values.astype(np.float32) == values).all())


def dtype_of(value: Array) -> np.dtype[np.floating]:
    """The dtype in which a gradient was computed: float32 for numbers that fill float32 and no more."""
    if value.dtype == np.float64 and np.isfinite(value).all() and _single(value):
        fraction = np.frexp(value)[0] * 2.0**_NO_NUMBERS
        if (fraction != np.round(fraction)).any():
            return np.dtype(np.float32)
    return value.dtype


@dataclass(frozen=True, eq=False)
class Allowed:
    """The rounding error to allow in each entry, and the `least` of it, that of a number of the size of the tensor."""

    bounds: FloatArray
    least: float


@dataclass(frozen=True, eq=False)
class GradientNoise:
    """By tensor, the root mean square change `spread` of each entry of a gradient under shifts of all params by a few
    units of roundoff, per unit."""

    spread: Mapping[str, FloatArray]

    def rounding(self, tensor: str, value: Array, reference: FloatArray) -> Allowed:
        """The error to allow in each entry of a right gradient `value`.

        At a kink a shift may select another slope, which is no rounding: there the least counts.
        """
        dtype = dtype_of(value)
        largest = float(np.abs(reference).max(initial=0.0))
        least = FACTOR * unit_roundoff(dtype) * largest + float(np.finfo(dtype).tiny)
        return Allowed(np.asarray(least + FACTOR * self.spread.get(tensor, np.zeros(value.shape))), least)


def gradient_noise(gradient: Gradient, params: Params, first: Mapping[str, Array]) -> GradientNoise:
    """Sample the rounding of a gradient, of which `first` is the one at the point itself, by shifts of the params.

    It shows the rounding of the user's own arithmetic: at a perfect fit all residuals are rounding alone.
    """
    rng, start = np.random.default_rng(1), time.perf_counter()
    total = {name: np.zeros(array.shape) for name, array in first.items()}
    coarsest = max((unit_roundoff(dtype_of(array)) for array in first.values()), default=0.0)
    roundoff = {n: UNITS * max(coarsest, unit_roundoff(a.dtype)) for n, a in params.items()}
    count = 0
    for sample in range(_SAMPLES):
        if sample >= 2 and time.perf_counter() - start > _SECONDS:
            break
        units = {n: rng.uniform(-roundoff[n], roundoff[n], a.shape) for n, a in params.items()}
        shifted = {n: np.asarray(a * (1 + units[n]), dtype=a.dtype) for n, a in params.items()}
        found = gradient(shifted)
        if found.ended:
            break
        arrays = found.returned.arrays
        if set(first) <= set(arrays):
            count += 1
            for name, was in first.items():
                with np.errstate(all="ignore"):
                    off = arrays[name].astype(np.float64) - was.astype(np.float64)
                    # hypot, since squares of huge numbers leave the range.
                    total[name] = np.hypot(total[name], np.where(np.isfinite(off), off, 0.0))
    return GradientNoise({n: t / (math.sqrt(max(1, count)) * UNITS) for n, t in total.items()})
