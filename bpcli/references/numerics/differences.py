"""Finite differences of whole tensors, entry by entry or along directions, and the range of derivatives at kinks.

A derivative is affine in the slope chosen at each kink, so that its extremes are at extreme slopes. If kinks are few,
all patterns of extreme slopes are tried, each by imaginary steps; samples do not interact, so that their extremes add
up. If kinks are many, the slopes are tried that a program takes which treats all kinks alike; how far other programs
may be off is bounded by sums of absolute contributions, since each slope is off its mean by at most half the jump.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import Estimate, empty_estimate, forward_flops
from bpcli.references.numerics.chain_rule import Chain, ChainDerivatives
from bpcli.references.numerics.derivatives import COMPARED, SIGNED, Derivatives, SpotCheck
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.probe import (
    NOISE_ROWS,
    Along,
    Directions,
    FloatArray,
    Indices,
    Probe,
    Sampler,
    norms,
    points_along,
    probe,
)
from bpcli.references.numerics.rounding import magnitude, rounding
from bpcli.references.perturbation import STEP
from bpcli.references.perturbation.kinks import ALIKE, FREE, Shares, Slopes, find_kinks, slopes_of
from bpcli.references.perturbation.perturbed import UNPERTURBED, Executor, Perturbation, Perturbed
from bpcli.runtime.reverse_mode import Window

Differentiate = Callable[[Sampler], Derivatives]
KinkDistances = Callable[[Indices, NDArray[Any]], tuple[NDArray[Any], FloatArray]]


@dataclass(frozen=True)
class ChainOptions:
    """Use of the chain rule over steps: entries whose bound exceeds `target` (see `Derivatives.exceeds`) are perturbed
    themselves, with `entry` evaluations each; steps are `offset` times a power of two."""

    target: float
    offset: float
    entry: float


class Neighbourhood:
    """The loss near the values of a problem, restricted to the branches that the program takes at its kinks."""

    def __init__(self, problem: Problem, windows: Sequence[Window], executor: Executor | None = None) -> None:
        kinks = find_kinks(problem)
        self.problem, self.windows = problem, windows
        self.real = Perturbed(problem, windows, np.dtype(np.float64), kinks, executor)
        complex_ = np.dtype(np.complex128)
        self.imaginary = Perturbed(problem, windows, complex_, kinks, executor) if kinks.any else None
        slopes = slopes_of(problem)
        self.choices = SlopeChoices(slopes, windows) if slopes is not None else None

    @cached_property
    def base(self) -> FloatArray:
        """The unperturbed losses (batch,)."""
        return np.asarray(self.real.unperturbed()[0], dtype=np.float64)

    def evaluate(self, changes: Sequence[Perturbation]) -> list[FloatArray]:
        """The losses (shifts, batch) of each of `changes`, and `base` beside them."""
        *found, unchanged = self.real.evaluate([*changes, UNPERTURBED])
        self.base = np.asarray(unchanged[0][0])
        return [losses for losses, _ in found]

    def entries(self, tensor: Tensor, around: Probe) -> Sampler:
        """A sampler of the entries of a tensor, shifted one at a time."""
        followed = partial(self.imaginary.losses_and_kinks, tensor) if self.imaginary else None
        kinks = _distances(around, followed)
        return Sampler(partial(self.real.losses, tensor), around, self.base, kinks=kinks)

    def along(self, tensor: Tensor, rows: FloatArray) -> Sampler:
        """A sampler of a whole tensor shifted along directions `rows (K, size)`."""
        around = points_along(np.asarray(self.problem.array(tensor), dtype=np.float64), rows)
        followed = Along(self.imaginary, tensor, rows).losses_and_kinks if self.imaginary else None
        losses, kinks = Along(self.real, tensor, rows).losses, _distances(around, followed)
        return Sampler(losses, around, self.base, noise_rows=NOISE_ROWS, kinks=kinks)


def slopes(losses: NDArray[Any], around: Probe) -> FloatArray:
    """Derivatives `(K, S)` from losses (K, batch) after imaginary steps."""
    derivatives = losses.imag / STEP
    return np.asarray(derivatives.sum(axis=1, keepdims=True) if around.summed else derivatives)


def _distances(around: Probe, followed: KinkDistances | None) -> FloatArray:
    """`(K, S)`: how far the kinks are that rounding does not tell from the point, by the speed of their arguments."""
    if followed is None:
        return np.full(around.places.shape, FREE)
    met = followed(around.entries, np.full(len(around.entries), STEP * 1j))[1]
    met = np.where(met > FREE, met * STEP, FREE)
    return met.max(axis=1, keepdims=True) if around.summed else met


@np.errstate(all="ignore")  # the check reports values that are not finite
def sweep(
    losses: Neighbourhood,
    tensors: Sequence[Tensor],
    differentiate: Differentiate,
    sample: int | None = None,
    quick: ChainOptions | None = None,
) -> Mapping[str, Estimate]:
    """Differentiate all entries of `tensors`, or at most `sample` of each: the bound of the others is infinite.

    With `quick`, for graphs without kinks, the chain rule over steps is used where that is cheaper.
    """
    problem = losses.problem
    ready: Mapping[str, ChainDerivatives] = {}
    if quick is not None:
        ready = Chain(problem, losses.real, tensors, len(SIGNED), quick.entry).real(quick.offset, quick.target)
    probes = {tensor.name: probe(problem, tensor) for tensor in tensors}
    found = _known(losses, tensors, probes, ready, quick) if quick is not None else {}
    estimates = {}
    for tensor in tensors:
        around = probes[tensor.name]
        if not len(around.entries):
            estimates[tensor.name] = empty_estimate(tensor.shape)
            continue
        if sample is not None:
            around = around.sample(sample, zlib.crc32(tensor.name.encode()))
        known, rows = found.get(tensor.name, (None, np.zeros(0, np.int64)))
        beyond = np.zeros(around.places.shape)
        if known is None:
            sampler = losses.entries(tensor, around)
            known = differentiate(sampler)
            if losses.choices is not None:
                beyond = apply_ranges(known, sampler.kinks, partial(losses.choices.entries, tensor, around))
        elif len(rows):
            known.put(rows, differentiate(losses.entries(tensor, around.rows(rows))))
        unknown = 0.0 if sample is None else np.inf
        estimates[tensor.name] = Estimate(
            around.scatter(known.value, tensor.shape),
            around.scatter(known.bound, tensor.shape, unknown),
            around.scatter(known.noise, tensor.shape),
            around.scatter(known.kink, tensor.shape),
            around.scatter(beyond, tensor.shape),
        )
    return estimates


def _known(
    losses: Neighbourhood,
    tensors: Sequence[Tensor],
    probes: Mapping[str, Probe],
    ready: Mapping[str, ChainDerivatives],
    quick: ChainOptions,
) -> dict[str, tuple[Derivatives, Indices]]:
    """By tensor, the derivatives that are `ready`, and the rows to differentiate again: those with too large a bound,
    and all if a spot check of a few entries, batched over tensors, disagrees."""
    found, compared = dict[str, tuple[Derivatives, Indices]](), dict[str, tuple[SpotCheck, Perturbation]]()
    for tensor in tensors:
        around = probes[tensor.name]
        if tensor.name not in ready or not len(around.entries):
            continue
        known = Derivatives(*(part.reshape(-1)[around.places] for part in ready[tensor.name].found.parts))
        found[tensor.name] = known, np.flatnonzero(known.exceeds(quick.target)[:, 0])
        few = around.choose(COMPARED, zlib.crc32(tensor.name.encode()))
        comparison = SpotCheck(around.rows(few), known.rows(few), ready[tensor.name].noise)
        compared[tensor.name] = comparison, Perturbation(tensor, comparison.entries, comparison.deltas)
    shifted = losses.evaluate([change for _, change in compared.values()]) if compared else []
    for (name, (comparison, _)), values in zip(compared.items(), shifted, strict=True):
        if not comparison.agrees(values, losses.base):
            found[name] = found[name][0], np.arange(len(probes[name].entries))
    return found


def along_evaluations(count: int, evaluations: int) -> int:
    """Evaluations of the loss in `sweep_along` for a tensor: those of the noise, and so many for each direction."""
    return NOISE_ROWS * NOISE_EVALUATIONS + evaluations * count


def along_flops(setup: Setup, windows: Sequence[Window], count: int, evaluations: int) -> float:
    """Predicted operations of `sweep_along`, `count` directions per tensor with so many `evaluations` each."""
    return along_evaluations(count, evaluations) * len(setup.wrt) * forward_flops(setup, windows)


@np.errstate(all="ignore")  # the check reports values that are not finite
def sweep_along(
    problem: Problem, windows: Sequence[Window], directions: Directions, differentiate: Differentiate
) -> Mapping[str, Estimate]:
    """Derivatives `(K,)` by tensor along its directions."""
    losses = Neighbourhood(problem, windows)
    estimates = {}
    for tensor, rows in directions.items():
        sampler = losses.along(tensor, rows)
        found = differentiate(sampler)
        beyond = np.zeros(found.value.shape)
        if losses.choices is not None:
            beyond = apply_ranges(found, sampler.kinks, partial(losses.choices.along, tensor, rows))
        parts = (found.value, found.bound, found.noise, found.kink, beyond)
        estimates[tensor.name] = Estimate(*(part[:, 0] for part in parts))
    return estimates


_COMPLEX = np.dtype(np.complex128)


@dataclass(frozen=True, eq=False)
class SlopeRange:
    """Extreme derivatives found, how far others may be beyond these, and the rounding bound, `(R, S)` each."""

    low: FloatArray
    high: FloatArray
    beyond: FloatArray
    bound: FloatArray


@dataclass(frozen=True, eq=False)
class SlopeChoices:
    """Derivatives of the losses of `windows` under all slopes that a program may choose at kinks."""

    slopes: Slopes
    windows: Sequence[Window]

    def entries(self, tensor: Tensor, around: Probe, which: Indices) -> SlopeRange:
        """Ranges for the numbers `which` of the probe."""
        around = around.rows(which)
        delta = np.full(len(around.entries), STEP * 1j)
        known, width = (group[tensor.name].reshape(-1)[around.places] for group in (self._bounds, self._widths))
        return self._range(lambda own: own.losses(tensor, around.entries, delta), around.summed, known, width)

    def along(self, tensor: Tensor, rows: FloatArray, which: Indices) -> SlopeRange:
        """Ranges along the directions `rows[which]`, of `rows (K, size)`."""
        rows = rows[which]
        delta, every = np.full(len(rows), STEP * 1j), np.arange(len(rows))
        known = norms(rows, self._bounds[tensor.name])[:, None]
        width = np.abs(rows) @ self._widths[tensor.name].reshape(-1, 1)
        return self._range(lambda own: Along(own, tensor, rows).losses(every, delta), True, known, width)

    def _range(
        self, losses: Callable[[Perturbed], NDArray[Any]], summed: bool, known: FloatArray, width: FloatArray
    ) -> SlopeRange:
        """Ranges from `losses` (R, batch) of perturbed copies after imaginary steps."""
        if not self.slopes.patterns:
            found = np.stack([self._slopes(share, losses) for share in ALIKE])
            found = found.sum(axis=2, keepdims=True) if summed else found
            low, high = found.min(axis=0), found.max(axis=0)
            return SlopeRange(low, high, np.maximum(found[1] + width - high, low - found[1] + width).clip(0.0), known)
        # Grouped by the slopes of static kinks, which all samples share.
        lows, highs = dict[int, FloatArray](), dict[int, FloatArray]()
        for pattern in self.slopes.patterns:
            found, p = self._slopes(self.slopes.shares(pattern), losses), pattern[0]
            lows[p], highs[p] = np.minimum(lows.get(p, found), found), np.maximum(highs.get(p, found), found)
        ends = (np.stack([*group.values()]) for group in (lows, highs))
        low, high = (end.sum(axis=2, keepdims=True) if summed else end for end in ends)
        return SlopeRange(low.min(axis=0), high.max(axis=0), np.zeros(known.shape), known)

    def _slopes(self, shares: Shares, losses: Callable[[Perturbed], NDArray[Any]]) -> FloatArray:
        """Derivatives `(R, batch)` of each sample."""
        return np.asarray(losses(Perturbed(self.slopes.chosen(shares), self.windows, _COMPLEX)).imag / STEP)

    @cached_property
    def _bounds(self) -> Mapping[str, FloatArray]:
        return rounding(self.slopes.problem, tuple(self.windows), np.dtype(np.float64)).gradient

    @cached_property
    def _widths(self) -> Mapping[str, FloatArray]:
        """By tensor, the largest distance to the derivative with mean slopes, for kinks too many to try."""
        mean, most = (magnitude(p, self.windows) for p in (self.slopes.chosen(0.5), self.slopes.steepest))
        return {name: np.abs(most[name] - mean[name]) for name in mean}


def apply_ranges(known: Derivatives, kinks: FloatArray | None, ranges: Callable[[Indices], SlopeRange]) -> FloatArray:
    """Replace differences by ranges where `kinks` are met; `ranges` computes those of some rows.

    Returns `(K, S)` how far derivatives may be beyond the range. Differences are independent evidence of the one-sided
    slopes: where they lie outside the range, the interval covers both, with the bound of the differences.
    """
    met, beyond = np.zeros(known.value.shape, np.bool_) if kinks is None else kinks > FREE, np.zeros(known.value.shape)
    rows = np.flatnonzero(met.any(axis=1))
    if not len(rows):
        return beyond
    with np.errstate(all="ignore"):
        found, own = ranges(rows), known.rows(rows)
        sides, seen = (own.value - own.kink, own.value + own.kink), np.isfinite(own.bound)
        outside = np.maximum(found.low - sides[0], sides[1] - found.high)
        apart = seen & (outside > own.bound + found.bound)
        low = np.where(apart, np.minimum(found.low, sides[0]), found.low)
        high = np.where(apart, np.maximum(found.high, sides[1]), found.high)
        # A range within rounding is no kink.
        kink = np.where(high - low <= found.bound, 0.0, (high - low) / 2)
        rest = np.where(apart, own.truncation, found.bound), np.where(apart, own.noise, 0.0)
        new = Derivatives(low + (high - low) / 2, *rest, kink)
        there = met[rows] & np.isfinite(new.value) & np.isfinite(new.bound) & np.isfinite(new.kink)
    known.put(rows, new, there)
    beyond[rows] = np.where(there, np.where(np.isfinite(found.beyond), found.beyond, np.inf), 0.0)
    return beyond
