"""Richardson's extrapolation carried to many orders, with Ridders' choice of the best entry of the tableau.

T[k][m] combines the central differences at m + 1 steps that halve from one to the next, and is exact for polynomials of
degree 2m + 2 (Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4, 1982). Its error is
taken to be the largest distance to the entries that it was made of, and to the one that follows it; its noise is that
of the differences, weighted as they are.

Extrapolation of many orders: sharp where the loss is noisy and smooth, so that large steps pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import Estimate, copies, forward_flops
from bpcli.references.numerics.derivatives import (
    NOISE_FACTOR,
    UNIT_ROUNDOFF,
    Derivatives,
    where_finite,
    with_known_kinks,
)
from bpcli.references.numerics.differences import Around, sweep, sweep_along
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.noise import entry_noise, loss_noise
from bpcli.references.numerics.oscillation_guard import Pilot
from bpcli.references.numerics.probe import (
    FIRST_STEP,
    NOISE_ROWS,
    PILOT,
    Directions,
    FloatArray,
    Indices,
    Sampler,
    scales,
)
from bpcli.references.perturbation.executor import Executor
from bpcli.references.perturbation.kinks import FREE
from bpcli.runtime.reverse_mode import Window

RUNGS = 16
_ORDERS = 7
_LARGEST = 2.0
# Ladders that may follow the first.
_FURTHER = 3


def extrapolate(sampler: Sampler, offset: float = 1.0) -> Derivatives:
    """Derivatives `(K, S)`, by the entry of each tableau with the smallest bound.

    Where the larger steps leave the loss's domain, or its branches, ladders of smaller steps follow, and where a tiny
    step denies what was found, as it leaps over what the loss does in between.
    """
    with np.errstate(all="ignore"):
        first = offset * np.exp2(np.round(np.log2(_LARGEST * scales(sampler.probe))))
        pilot = Pilot(sampler, first * (FIRST_STEP / _LARGEST * PILOT), loss_noise(sampler, first))
        rows = np.arange(len(first))
        found, again = _agreed(sampler, rows, first, pilot)
        for _ in range(_FURTHER):
            rows = rows[again]
            if not len(rows):
                break
            first = first * 0.5 ** (RUNGS // 2)
            lower, again = _agreed(sampler, rows, first[rows], pilot)
            _improve(found, rows, lower)
        return found


def _agreed(sampler: Sampler, rows: Indices, first: FloatArray, pilot: Pilot) -> tuple[Derivatives, NDArray[np.bool_]]:
    """The best of one ladder a row, where the pilot does not deny it, and the rows that need smaller steps."""
    found, lacking = _ladder(sampler, rows, first, pilot.noise[rows])
    louder = pilot.listen(rows[pilot.odd(rows, found).any(axis=1)])
    if len(louder):
        which = np.searchsorted(rows, louder)
        found.put(which, _ladder(sampler, louder, first[which], pilot.noise[louder])[0])
    denied = pilot.denies(rows, found)
    kept = replace(found, truncation=np.where(denied, np.inf, found.truncation))
    return where_finite(kept), lacking | denied.any(axis=1)


def _ladder(
    sampler: Sampler, rows: Indices, first: FloatArray, noise: FloatArray
) -> tuple[Derivatives, NDArray[np.bool_]]:
    """The best of one ladder a row, from its `first` step down, and the rows of which half of the ladder is missing."""
    steps = first * 0.5 ** np.arange(RUNGS)[:, None]
    slopes, jumps, sizes = _differences(sampler, rows, steps)
    spread = NOISE_FACTOR * (noise / steps[:, :, None] + UNIT_ROUNDOFF * sizes)
    kinks = np.full(slopes.shape[1:], FREE) if sampler.kinks is None else sampler.kinks[rows]
    lacking = ~np.isfinite(slopes[RUNGS // 2]).all(axis=1)
    return _best(slopes, jumps, spread, kinks / steps[:, :, None]), lacking


def _improve(found: Derivatives, rows: Indices, other: Derivatives) -> None:
    """Put what has a smaller bound in its place."""
    found.put(rows, other, other.bound < found.bound[rows])


def _differences(sampler: Sampler, rows: Indices, steps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Central differences, jumps of the slope and largest changes per step at `steps (RUNGS, R)`, `(RUNGS, R, S)`."""
    count = steps.size
    rows = np.tile(rows, len(steps))
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps.ravel(), -steps.ravel()]))
    slope = (change[:count] - change[count:]) / (shift[:count] - shift[count:])
    even = change[:count] + change[count:] - slope * (shift[:count] + shift[count:])
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:]))
    shape = (*steps.shape, -1)
    ratio = steps.reshape(-1, 1)
    return slope.reshape(shape), (even / ratio).reshape(shape), (size / ratio).reshape(shape)


def _best(slopes: FloatArray, jumps: FloatArray, noise: FloatArray, kinks: FloatArray) -> Derivatives:
    """The entry of the tableau with the smallest bound, for each derivative; `kinks` are so many steps away."""
    column, weight = slopes, noise
    found = None
    for m in range(1, _ORDERS):
        factor = 4.0**m
        finer, coarser = column[1:], column[:-1]
        value = (factor * finer - coarser) / (factor - 1)
        spread = (factor * weight[1:] + weight[:-1]) / (factor - 1)
        error = np.maximum(np.abs(value - finer), np.abs(value - coarser))
        following = np.abs(np.diff(value, axis=0))
        error = np.maximum(error, np.concatenate([following, np.full_like(value[:1], np.inf)]))
        # J + h d² + h³ d⁴/12 + …: what extrapolation leaves of it is the jump of the slope at a kink.
        odd = 2.0 ** (2 * m - 1)
        coarse, jumps = jumps[1:], (odd * jumps[1:] - jumps[:-1]) / (odd - 1)
        kinks = kinks[1:]
        if m >= 2:
            smooth = Derivatives(value, error, spread, np.zeros_like(value))
            found = _smaller(found, where_finite(with_known_kinks(smooth, jumps, coarse, kinks)))
        column, weight = value, spread
    assert found is not None
    pick = found.bound.argmin(axis=0)[None]
    return Derivatives(*(np.take_along_axis(a, pick, axis=0)[0] for a in found.parts))


def _smaller(known: Derivatives | None, new: Derivatives) -> Derivatives:
    """Rows of both, one below the other."""
    if known is None:
        return new
    return Derivatives(*(np.concatenate(pair) for pair in zip(known.parts, new.parts, strict=True)))


_EVALUATIONS = 2 * RUNGS


@dataclass(frozen=True)
class Ladder:
    """`offset` shifts the steps, as of `central`."""

    name: ClassVar[str] = "ladder"
    summary: ClassVar[str] = "differences over a ladder of steps, extrapolated as far as noise allows (Ridders)"
    offset: float = 1.0

    def estimate(
        self,
        problem: Problem,
        windows: Sequence[Window],
        tensors: Sequence[Tensor],
        executor: Executor | None = None,
    ) -> Mapping[str, Estimate]:
        """See `Reference`. Independent of every derivative rule: only forward passes are used."""
        around = Around(problem, windows, executor)
        return sweep(around, tensors, partial(extrapolate, offset=self.offset))

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`."""
        return sweep_along(problem, windows, directions, partial(extrapolate, offset=self.offset))

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        return (_EVALUATIONS * copies(setup) + entry_noise(setup)) * forward_flops(setup, windows)

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        each = NOISE_ROWS * NOISE_EVALUATIONS + _EVALUATIONS * count
        return each * len(setup.wrt) * forward_flops(setup, windows)

    def on_other_points(self) -> Ladder:
        """The same entries on a ladder that shares no point with this one."""
        return replace(self, offset=0.75)


REFERENCE = Ladder()
