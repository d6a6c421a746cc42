"""The judgement of one gradient by differences of a loss: entries, or components along directions.

Before a gradient is called wrong, two step ladders have to reject it, and the error has to stand out at the finest
steps that resolve it. Entries that these leave open go to an extrapolation of high order. On the edge of the loss's
domain, differences of one side stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.checking.sources.black_box_noise import GradientNoise, dtype_of
from bpcli.checking.sources.shared_kinks import NEARBY, slopes_nearby
from bpcli.checking.verdict import (
    EDGE,
    FEW_DIGITS,
    INCONCLUSIVE,
    PASS,
    SMALL,
    STEPS_DISAGREE,
    WRONG,
    Entries,
    Mask,
    References,
    accept,
    judge,
    select,
    tolerate,
    tolerate_along,
    undecided,
    with_verdict,
)
from bpcli.problem.definition import Array, Tensor
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.central import TARGET, differentiate
from bpcli.references.ladder import RUNGS, extrapolate
from bpcli.references.numerics.fine_steps import EVALUATIONS, SIDED_EVALUATIONS, confirms, one_sided
from bpcli.references.numerics.noise import UNIT_ROUNDOFF, loss_noise
from bpcli.references.numerics.probe import (
    FIRST_STEP,
    NOISE_ROWS,
    Indices,
    Probe,
    Sampler,
    dot,
    norms,
    points_along,
    scales,
)
from bpcli.references.numerics.rounding import unit_roundoff

AFFORDABLE = 30.0
"""Predicted seconds to spend on all entries, or on those that are left open."""
# The bound with which an entry may pass, relative to the gradients near by, and to the largest of its own tensor: then
# without regard to the former, and at most.
_RESOLVED, _DIGITS, _AT_MOST = 1e-9, 1e-3, 0.1
# Roundings of the gradients near by of which one that vanishes may be made.
_ROUNDINGS = 4096
# Entries that look wrong of which one has to be confirmed, and of these at a time.
_WITNESSES, _AT_ONCE = 64, 4
# Slopes this close, relative to the jump at a kink, are alike.
_LIKE = 0.02
# A bound on the gradient's rounding, relative to its largest entry, at which a loss in float32 rejects nothing.
_CHAOTIC = 0.1
_LADDER_EVALUATIONS = 2 * RUNGS

Rounding = Callable[[Estimate], FloatArray]
"""From an estimate to the rounding error to allow in a right gradient."""


@dataclass(frozen=True, eq=False)
class DifferenceJudge:
    """Judges gradients of `loss`, NaN where there is none, at the `point`, by tensor.

    `noise` is that of the gradient, `level` and `size` are those of the loss and of gradients near the point, `each`
    the seconds that a loss takes; a `coarse` loss has the digits of float32. A gradient that is off by `tolerance` at
    most, relative to the largest entry of its tensor, passes.
    """

    loss: Callable[[Mapping[str, Array]], float]
    point: Mapping[str, Array]
    noise: GradientNoise
    level: float
    size: float
    each: float
    tolerance: float = 0.0
    coarse: bool = False

    def entries(self, tensor: Tensor, value: Array, places: Indices, shape: tuple[int, ...]) -> Entries:
        """Judge the entries of `value` at the flat `places`, in `shape`."""
        array = self.point[tensor.name].astype(np.float64).reshape(-1)

        def moved(entry: int, delta: float) -> FloatArray:
            found = array.copy()
            found[entry] += delta
            return found

        around = Probe(places, array[places, None], np.arange(len(places))[:, None], summed=True)
        # In float32 a step is rounded to the spacing of the entry.
        sampler = replace(self._sampler(tensor, around, moved), dtype=self.point[tensor.name].dtype)
        wide = value.astype(np.float64).reshape(-1)[places].reshape(shape)

        def rounding(reference: Estimate) -> FloatArray:
            every = self.noise.rounding(tensor.name, value, reference.value)
            return np.where(reference.kink > 0, every.least, every.bounds.reshape(-1)[places].reshape(shape))

        entries = self._decided(
            sampler, wide, dtype_of(value), rounding, lambda entries: self._where_kinks_meet(tensor, entries, places)
        )
        entries = self._unless_chaotic(entries, tensor, value)
        if self.tolerance > 0:
            entries = tolerate(entries, self.tolerance * float(np.abs(entries.reference).max(initial=0.0)))
        return entries

    def _unless_chaotic(self, entries: Entries, tensor: Tensor, value: Array) -> Entries:
        """Reject nothing by a loss in float32 where a few roundings of the params change the gradient much: it bends
        within less than differences can tell."""
        wide = value.astype(np.float64)
        largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
        bounds = self.noise.rounding(tensor.name, value, wide[np.isfinite(wide)]).bounds
        if not self.coarse or not float(np.max(bounds, initial=0.0)) > _CHAOTIC * largest:
            return entries
        return with_verdict(entries, entries.verdict == WRONG, INCONCLUSIVE, STEPS_DISAGREE)

    def _where_kinks_meet(self, tensor: Tensor, entries: Entries, places: Indices) -> Entries:
        """Do not reject values at several kinks by the slopes at both sides alone: slopes near by count too.

        Where they are more than two, a value beyond them all is left open.
        """
        width = (entries.high - entries.low).reshape(-1)
        wrong = np.flatnonzero((entries.verdict.reshape(-1) == WRONG) & (width > 0))
        shape = entries.verdict.shape
        low_end, high_end = entries.low.copy(), entries.high.copy()
        for row in wrong[: self.affordable(NEARBY)]:
            value, low, high = (float(a.reshape(-1)[row]) for a in (entries.value, entries.low, entries.high))
            unit = np.zeros(self.point[tensor.name].size)
            unit[places[row]] = 1.0
            found = slopes_nearby(self.loss, self.point, {tensor.name: unit})
            slack = _LIKE * width[row]
            if not len(found) or ((np.abs(found - low) > slack) & (np.abs(found - high) > slack)).any():
                ends = float(min(low, *found)) if len(found) else low, float(max(high, *found)) if len(found) else high
                low_end.reshape(-1)[row], high_end.reshape(-1)[row] = ends
                inside = ends[0] - slack <= value <= ends[1] + slack
                entries = with_verdict(entries, _mask(np.array([row]), shape), PASS if inside else INCONCLUSIVE, "kink")
        entries = replace(entries, low=low_end, high=high_end)
        return with_verdict(entries, _mask(wrong[self.affordable(NEARBY) :], shape), INCONCLUSIVE, "kink")

    def along(self, tensor: Tensor, value: Array, rows: FloatArray) -> tuple[Entries, FloatArray]:
        """Judge `value` along directions `rows (K, size)`; returns also its components along them."""
        array = self.point[tensor.name].astype(np.float64)

        def moved(row: int, delta: float) -> FloatArray:
            return np.asarray(array.reshape(-1) + delta * rows[row])

        around = points_along(array, rows)
        sampler = replace(self._sampler(tensor, around, moved), noise_rows=NOISE_ROWS)
        wide = value.astype(np.float64)
        along = dot(rows, wide)
        bounds = norms(rows, self.noise.rounding(tensor.name, value, wide[np.isfinite(wide)]).bounds)
        entries = self._decided(sampler, along, dtype_of(value), lambda reference: bounds, lambda entries: entries)
        entries = self._unless_chaotic(entries, tensor, value)
        if self.tolerance > 0:
            largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
            entries = tolerate_along(entries, self.tolerance, rows, largest)
        return entries, along

    def _decided(
        self,
        sampler: Sampler,
        value: FloatArray,
        dtype: np.dtype[Any],
        rounding: Rounding,
        at_kinks: Callable[[Entries], Entries],
    ) -> Entries:
        """Judge `value`, on a second step ladder too if the first one rejects an entry.

        `rounding` takes the estimate to the error to allow, except where both it and `value` are exactly zero.
        `at_kinks` looks again at values that are rejected at kinks.
        """
        shape = value.shape
        central = _estimate(sampler, shape, 1.0)
        edges = self._one_sided(sampler, central)

        def judged(first: Estimate, second: Callable[[], Estimate]) -> Entries:
            bound = np.where((value == 0) & (first.value == 0), 0.0, rounding(first))
            entries = judge(value, References(central=first), bound, dtype)
            if entries.suspect.any():
                entries = judge(value, References(central=first, second=second()), bound, dtype)
                entries = self._confirmed(sampler, at_kinks(entries), first, edges.mask)
            return self._accepted(entries, dtype)

        entries = judged(edges.replaced(central, 1.0), lambda: edges.replaced(_estimate(sampler, shape, 0.75), 0.75))
        rows = np.flatnonzero(undecided(entries) & ~edges.mask)[: self.affordable(_LADDER_EVALUATIONS)]
        if len(rows):
            sharper = judged(_sharper(sampler, rows, central, 1.0), lambda: _sharper(sampler, rows, central, 0.75))
            entries = select(_mask(rows, shape), sharper, entries)
        return with_verdict(entries, edges.mask & (entries.verdict == INCONCLUSIVE), INCONCLUSIVE, EDGE)

    def _accepted(self, entries: Entries, dtype: np.dtype[Any]) -> Entries:
        """Pass entries that are rounding alone beside the gradients near by, or right to some digits of the largest."""
        nothing = np.maximum(np.abs(entries.value), np.abs(entries.reference)) <= entries.bound
        negligible = _RESOLVED * self.size
        least = max(SMALL, _ROUNDINGS * unit_roundoff(dtype)) * self.size
        known = np.where(entries.bound <= np.abs(entries.reference), np.abs(entries.reference), 0.0)
        largest = float(min(known.max(initial=0.0), np.abs(entries.value).max(initial=0.0)))
        entries = accept(entries, np.where(nothing, least, _ROUNDINGS * UNIT_ROUNDOFF * self.size), "")
        return accept(entries, max(_DIGITS * largest, min(negligible, _AT_MOST * largest)), FEW_DIGITS)

    def _one_sided(self, sampler: Sampler, central: Estimate) -> _Edges:
        """The entries without a reference that have a loss on one side only."""
        mask = np.zeros(central.value.shape, dtype=np.bool_)
        rows = np.flatnonzero(~np.isfinite(central.bound))[: self.affordable(2 * SIDED_EVALUATIONS)]
        if not len(rows):
            return _Edges(mask, {})
        noise = np.full(len(rows), loss_noise(sampler, FIRST_STEP * scales(sampler.probe))[0])
        each = {offset: one_sided(sampler, rows, noise, offset) for offset in (1.0, 0.75)}
        mask.reshape(-1)[rows] = sided = each[1.0][2]
        return _Edges(mask, {o: (rows[sided], value[sided], bound[sided]) for o, (value, bound, _) in each.items()})

    def _confirmed(self, sampler: Sampler, entries: Entries, known: Estimate, edges: Mask) -> Entries:
        """Leave open wrong entries whose error does not stand out at the finest steps, from the largest z on.

        One that does is enough: then the others are left as they are.
        """
        left = np.flatnonzero((entries.verdict == WRONG) & (entries.cause == 0) & ~edges)
        left = left[np.argsort(-entries.z.reshape(-1)[left], kind="stable")]
        most = min(_WITNESSES, self.affordable(EVALUATIONS))
        error = np.abs(entries.value - entries.reference).reshape(-1)
        for start in range(0, min(most, len(left)), _AT_ONCE):
            some = left[start : start + _AT_ONCE]
            right, resolved = confirms(sampler, some, known.value.reshape(-1)[some], error[some], self.level)
            for rows, cause in ((some[~right & resolved], STEPS_DISAGREE), (some[~resolved], "noise")):
                entries = with_verdict(entries, _mask(rows, entries.value.shape), INCONCLUSIVE, cause)
            if right.any():
                return entries
        return with_verdict(entries, _mask(left[most:], entries.value.shape), INCONCLUSIVE, "noise")

    def affordable(self, evaluations: int) -> int:
        """How many times so many losses are affordable; at least once."""
        return max(1, int(AFFORDABLE / max(self.each * evaluations, 1e-9)))

    def _sampler(self, tensor: Tensor, around: Probe, moved: Callable[[int, float], FloatArray]) -> Sampler:
        """The loss around one tensor's values, with `moved(entry, delta)` the flat perturbed ones."""
        point = self.point
        array = point[tensor.name]

        def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
            values = np.full((len(entries), 1), np.nan)
            for row, (entry, delta) in enumerate(zip(entries, deltas, strict=True)):
                shifted = moved(int(entry), float(delta)).reshape(array.shape).astype(array.dtype)
                values[row] = self.loss({**point, tensor.name: shifted})
            return values

        return replace(Sampler.of(losses, around), sided=True, coarse=self.coarse)


@dataclass(frozen=True, eq=False)
class _Edges:
    """Entries in `mask` on the edge of the loss's domain, and estimates from one side by the offset of the steps."""

    mask: Mask
    found: Mapping[float, tuple[Indices, FloatArray, FloatArray]]

    def replaced(self, estimate: Estimate, offset: float) -> Estimate:
        """An estimate with those of one side where it has none."""
        if offset not in self.found:
            return estimate
        rows, value, bound = self.found[offset]
        parts = [part.copy() for part in (estimate.value, estimate.bound, estimate.noise, estimate.kink)]
        for part, new in zip(parts, (value, bound, np.zeros_like(value), np.zeros_like(value)), strict=True):
            part.reshape(-1)[rows] = new
        return Estimate(*parts)


def _sharper(sampler: Sampler, rows: Indices, known: Estimate, offset: float) -> Estimate:
    """An estimate with the `rows` by extrapolation over a ladder of steps, where its bound is smaller."""
    part = replace(sampler, probe=sampler.probe.rows(rows))
    found = extrapolate(part, offset)
    better = (found.bound < known.bound.reshape(-1)[rows, None]) & (known.kink.reshape(-1)[rows, None] == 0)
    parts = []
    for old, new in zip(
        (known.value, known.bound, known.noise, known.kink),
        (found.value, found.bound, found.noise, found.kink),
        strict=True,
    ):
        merged = old.copy()
        merged.reshape(-1)[rows] = np.where(better, new, old.reshape(-1)[rows, None])[:, 0]
        parts.append(merged)
    return Estimate(*parts)


def _mask(rows: Indices, shape: tuple[int, ...]) -> Mask:
    found = np.zeros(shape, dtype=np.bool_)
    found.reshape(-1)[rows] = True
    return found


def _estimate(sampler: Sampler, shape: tuple[int, ...], offset: float) -> Estimate:
    found = differentiate(sampler, TARGET, offset)
    parts = (found.value, found.bound, found.noise, found.kink)
    return Estimate(*(sampler.probe.scatter(part, shape) for part in parts))
