"""Ridders' method: high-order Richardson extrapolation, with the best entry of the tableau for each derivative.

T[k][m] combines central differences at m + 1 successively halved steps and is exact for polynomials of degree 2m + 2
(Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4, 1982). Its error estimate is the
largest distance to its two parents and to the next entry of its column; its noise is the weighted noise of the
differences. High orders allow large steps, which is accurate where the loss is smooth and noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import Estimate, copy_count, forward_flops
from bpcli.references.numerics.derivatives import (
    NOISE_FACTOR,
    Derivatives,
    Pilot,
    differences,
    scales_of_loss,
    where_finite,
    with_known_kinks,
)
from bpcli.references.numerics.differences import Neighbourhood, along_flops, sweep, sweep_along
from bpcli.references.numerics.noise import UNIT_ROUNDOFF, entry_noise, loss_noise
from bpcli.references.numerics.probe import (
    FIRST_STEP,
    PILOT,
    Directions,
    FloatArray,
    Indices,
    Sampler,
)
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime.reverse_mode import Window

RUNGS = 16
_ORDERS = 7
_LARGEST = 2.0
# Ladders of smaller steps that may follow the first.
_FURTHER = 3


def extrapolate(sampler: Sampler, offset: float = 1.0) -> Derivatives:
    """Derivatives `(K, S)`, each from the tableau entry with the smallest bound.

    Ladders of smaller steps follow where the larger steps leave the domain of the loss or cross a kink, and where the
    pilot difference contradicts the result, which happens when steps span oscillations of the loss.
    """
    with np.errstate(all="ignore"):
        first = offset * np.exp2(np.round(np.log2(_LARGEST * scales_of_loss(sampler))))
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
    """The best entry of one ladder per row, unless the pilot contradicts it; and the rows that need smaller steps."""
    found, lacking = _ladder(sampler, rows, first, pilot.noise[rows])
    changed = pilot.remeasure_noise(rows[pilot.suspicious(rows, found).any(axis=1)])
    if len(changed):
        which = np.searchsorted(rows, changed)
        found.put(which, _ladder(sampler, changed, first[which], pilot.noise[changed])[0])
    denied = pilot.contradicts(rows, found) | pilot.unresolved[rows]
    kept = replace(found, truncation=np.where(denied, np.inf, found.truncation))
    return where_finite(kept), lacking | denied.any(axis=1)


def _ladder(
    sampler: Sampler, rows: Indices, first: FloatArray, noise: FloatArray
) -> tuple[Derivatives, NDArray[np.bool_]]:
    """The best entry of one ladder per row, of halved steps from `first` on; and the rows where half of the differences
    are not finite."""
    steps = first * 0.5 ** np.arange(RUNGS)[:, None]
    each = differences(sampler, np.tile(rows, RUNGS), steps.ravel())
    slopes, even, sizes = (part.reshape(*steps.shape, -1) for part in each)
    jumps = even / steps[:, :, None]
    spread = NOISE_FACTOR * (noise / steps[:, :, None] + UNIT_ROUNDOFF * sizes)
    kinks = np.full(slopes.shape[1:], FREE) if sampler.kinks is None else sampler.kinks[rows]
    lacking = ~np.isfinite(slopes[RUNGS // 2]).all(axis=1)
    return _best(slopes, jumps, spread, kinks / steps[:, :, None]), lacking


def _improve(found: Derivatives, rows: Indices, other: Derivatives) -> None:
    """Replace derivatives by those of `other` with a smaller bound."""
    found.put(rows, other, other.bound < found.bound[rows])


def _best(slopes: FloatArray, jumps: FloatArray, noise: FloatArray, kinks: FloatArray) -> Derivatives:
    """The tableau entry with the smallest bound, for each derivative; `kinks` are distances in steps."""
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
        # E/h = J + h d²f + h³/12 d⁴f + …: extrapolation leaves J, the jump of the slope at a kink.
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
    """Stack the candidates of both."""
    if known is None:
        return new
    return Derivatives(*(np.concatenate(pair) for pair in zip(known.parts, new.parts, strict=True)))


_EVALUATIONS = 2 * RUNGS


@dataclass(frozen=True)
class Ladder:
    """Ridders' method; `offset` shifts the steps, as for `central`."""

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
        """See `Reference`. Only forward passes are used, no derivative rule."""
        around = Neighbourhood(problem, windows, executor)
        return sweep(around, tensors, partial(extrapolate, offset=self.offset))

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`."""
        return sweep_along(problem, windows, directions, partial(extrapolate, offset=self.offset))

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        return (_EVALUATIONS * copy_count(setup) + entry_noise(setup)) * forward_flops(setup, windows)

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        return along_flops(setup, windows, count, _EVALUATIONS)

    def on_other_points(self) -> Ladder:
        """An independent reference: steps that share no point with these."""
        return replace(self, offset=0.75)


REFERENCE = Ladder()
