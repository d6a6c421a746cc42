"""Central differences on a ladder of steps: each entry has a step of its own and an error bound that was measured.

A rung at step h evaluates at ±h, ±2h and ±4h. With D(h) the central difference, R(h) = (4 D(h) - D(2h)) / 3 has error
O(h⁴) (Richardson), and |R(h) - R(2h)| is about 15 times that error, which is the safety margin of the truncation. The
even part E(h) = f(x+h) + f(x-h) - 2 f(x) shows kinks: E(h)/h tends to 0 where f is smooth, and to the jump J of the
slope at a kink. With J extrapolated over the three steps, |R(h) - R(2h)| + |J|/2 covers the error of R(h) for one
kink at any distance. Where the kinks are known no step goes beyond one, and J is what it is at the point itself. The
step goes to where noise and truncation balance. A first difference with a tiny step, the pilot, guards against steps so
large that they leap over the function's oscillations, and of two rungs that disagree the one with the smaller steps is
right. Where an entry does not stand out of the noise, nothing tells how far its steps may
go: not beyond its own size, nor much beyond the steps at which the other entries of its tensor show truncation.

Central differences with a bound that was measured: the loss evaluated at shifted values, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from bpcli.methods.base import Exact
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import ByChain, Estimate, by_chain, copies, forward_flops
from bpcli.references.numerics.derivatives import (
    COMPARED,
    NOISE_FACTOR,
    SIGNED,
    SMALL,
    UNIT_ROUNDOFF,
    Derivatives,
    Mask,
    where_finite,
    with_known_kinks,
)
from bpcli.references.numerics.differences import Around, Differentiate, Quick, sweep, sweep_along
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.noise import SAMPLES, entry_noise, loss_noise
from bpcli.references.numerics.oscillation_guard import Pilot, differences
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
from bpcli.references.perturbation.kinks import analytic
from bpcli.runtime.reverse_mode import Window

ROUNDS = 8
_LEAP = 2.0**8
# Steps relative to the entry, the largest at all; and over the median of those at which others show truncation.
_LARGEST, _BEYOND = 2.0, 8.0


def differentiate(sampler: Sampler, target: float, offset: float = 1.0) -> Derivatives:
    """Derivatives `(K, S)` of the loss with respect to every number of the probe.

    Rounds of evaluations go on, for the entries that need it, until the bound is `target` relative to the entry or to
    1e-6 of the largest one. Ladders with an `offset` of 1 and of 0.75 have no point in common. No step is smaller than
    `PILOT` times the first; a kink that is nearer counts as one at the point itself.
    """
    with np.errstate(all="ignore"):
        return _Climb(sampler, target, offset).run()


def _power_of_two(steps: FloatArray) -> FloatArray:
    """Nearest powers of two: to add one to a number and take it away again is exact, but for a carry."""
    return np.asarray(np.exp2(np.round(np.log2(steps))), dtype=np.float64)


class _Climb:
    """The search for the best step of each entry."""

    def __init__(self, sampler: Sampler, target: float, offset: float) -> None:
        self.sampler, self.target, self.offset = sampler, target, offset
        self.step = offset * _power_of_two(FIRST_STEP * scales(sampler.probe))
        self.own = np.abs(sampler.probe.points).max(axis=1)
        self.low, self.high = np.zeros_like(self.step), np.full_like(self.step, np.inf)
        self.least, self.size = self.step * PILOT, scales(sampler.probe)
        self.pilot = Pilot(sampler, self.least, loss_noise(sampler, self.step))
        self.best = self.pilot.found(np.arange(len(self.step)))
        self.only_pilot = np.ones(self.best.value.shape, dtype=np.bool_)
        self.bent = np.zeros_like(self.best.value)
        self.best_step = np.repeat(self.least[:, None], self.best.value.shape[1], axis=1)

    def run(self) -> Derivatives:
        """Rounds of rungs, until every entry is good enough or can't become better."""
        active = np.arange(len(self.step))
        for _ in range(ROUNDS):
            rung = self._listened(active, self._rung(active))
            agrees = self._merge(active, rung)
            tolerance = self._tolerance(active)
            # Of a pilot that no rung agrees with yet nobody knows the truncation.
            need = np.where(self.only_pilot[active], np.inf, self.best.bound[active] / tolerance)
            # One step serves all samples, so the one in greatest need decides.
            worst = (np.arange(len(active)), need.argmax(axis=1))
            taken = self.step[active].copy()
            inside = self._move(active, rung.truncation[worst], rung.noise[worst], agrees[worst], tolerance[worst])
            goes_on = self._nearer(active, rung, taken) | inside
            active = active[goes_on & (need[worst] > 1)]
            if not len(active):
                break
        self._curb()
        return self.best

    def _listened(self, rows: Indices, rung: Derivatives) -> Derivatives:
        """The first rung of an entry, taken again where pilot and rung show that the noise is more than was thought."""
        first = self.only_pilot[rows] & self.pilot.odd(rows, rung)
        louder = self.pilot.listen(rows[first.any(axis=1)])
        if len(louder):
            self.best.put(louder, self.pilot.found(louder), self.only_pilot[louder])
            rung.put(np.searchsorted(rows, louder), self._rung(louder))
        return rung

    def _nearer(self, rows: Indices, rung: Derivatives, taken: FloatArray) -> Mask:
        """Entries whose steps `taken` leave the domain of the loss, as of a logarithm, go by their own size."""
        first = _power_of_two(FIRST_STEP * np.maximum(self.own[rows], np.finfo(np.float64).tiny / PILOT))
        lost = ~np.isfinite(rung.bound).any(axis=1) & (self.own[rows] > 0) & (first * _LEAP < taken)
        who = rows[lost]
        self.step[who] = self.offset * first[lost]
        self.size[who] = self.own[who]
        self.high[who], self.least[who] = np.inf, self.step[who] * PILOT
        if len(who):
            self.pilot.take(who, self.least[who])
            self.best.put(who, self.pilot.found(who), self.only_pilot[who])
        return np.asarray(lost)

    def _curb(self) -> None:
        """Take back what was found with steps larger than anything in this tensor vouches for."""
        unit = np.minimum(self.size, 1.0)  # functions bend within one
        shown = (self.high / unit)[np.isfinite(self.high)]
        if not len(shown):
            return
        limit = self.offset * _power_of_two(_BEYOND * np.median(shown) * unit / self.offset)
        rows = np.flatnonzero((self.best_step > limit[:, None]).any(axis=1))
        if len(rows):
            self.step[rows] = limit[rows]
            rung = self._rung(rows)
            far = self.best_step[rows] > limit[rows, None]
            self._take(rows, rung, far)

    def _rung(self, rows: Indices) -> Derivatives:
        """The rung at the present steps of `rows`: three central differences, extrapolated."""
        h = self.step[rows]
        slope, even, size = differences(self.sampler, np.tile(rows, 3), np.concatenate([h, 2 * h, 4 * h]))
        d1, d2, d4 = slope.reshape(3, len(rows), -1)
        j1, j2, j4 = even.reshape(3, len(rows), -1) / np.array([h, 2 * h, 4 * h])[:, :, None]
        value, coarse = (4 * d1 - d2) / 3, (4 * d2 - d4) / 3
        # E/h = J + h d²f + h³/12 d⁴f + …: this combination keeps J and cancels the next two.
        jump = (16 * j1 - 10 * j2 + j4) / 7
        size = size.reshape(3, len(rows), -1).max(axis=0)
        noise = NOISE_FACTOR * (self.pilot.noise[rows] / h[:, None] + UNIT_ROUNDOFF * size)
        # Of D(h) - D(2h) the pilot's own truncation, which is all of it where a derivative vanishes.
        self.bent[rows] = np.abs(d1 - d2) * (self.pilot.steps[rows] / h)[:, None] ** 2
        rung = Derivatives(value, np.abs(value - coarse), noise, np.zeros_like(value))
        if self.sampler.kinks is not None:
            return where_finite(with_known_kinks(rung, jump, 2 * j1 - j2, self.sampler.kinks[rows] / h[:, None]))
        pilot, doubt = self.pilot.jump[rows], self.pilot.doubt(rows)
        at_kink = (np.abs(pilot) > doubt) & (np.abs(jump - pilot) <= np.abs(pilot) / 4)
        near = np.where(at_kink, np.maximum(np.abs(jump - pilot) - doubt, 0.0), np.abs(jump)) / 2
        kink = np.where(at_kink, np.abs(jump) / 2, 0.0)
        return where_finite(replace(rung, truncation=rung.truncation + near, kink=kink))

    def _merge(self, rows: Indices, rung: Derivatives) -> Mask:
        """Take over what is better and within the bounds of what is known; says where the two agree."""
        bound, known = self.best.bound[rows], np.isfinite(rung.bound)
        own = np.where(self.only_pilot[rows], self.bent[rows], 0.0)
        agrees = np.abs(rung.value - self.best.value[rows]) <= rung.bound + bound + own
        nearer = ~agrees & (self.step[rows, None] < self.best_step[rows])
        # The pilot knows nothing of its truncation: any rung that agrees with it is better.
        better = known & (nearer | (agrees & (self.only_pilot[rows] | (rung.bound < bound))))
        self.only_pilot[rows] &= ~better
        self._take(rows, rung, better)
        return np.asarray((agrees | nearer) & known)

    def _take(self, rows: Indices, rung: Derivatives, mask: Mask) -> None:
        """Put `rung` in the place of the best, where `mask` says so."""
        self.best.put(rows, rung, mask)
        self.best_step[rows] = np.where(mask, self.step[rows, None], self.best_step[rows])

    def _tolerance(self, rows: Indices) -> FloatArray:
        size = np.abs(self.best.value)
        wanted = self.target * np.maximum(size[rows], SMALL * size.max())
        return np.asarray(np.maximum(wanted, np.finfo(np.float64).tiny), dtype=np.float64)

    def _move(
        self, rows: Indices, truncation: FloatArray, noise: FloatArray, agrees: Mask, tolerance: FloatArray
    ) -> Mask:
        """Move the steps of `rows` to where noise and truncation balance; False where there is nowhere to go.

        Steps where noise prevails and steps where truncation does enclose the best one, and the search stays between.
        """
        h = self.step[rows]
        noisy = agrees & (truncation <= noise)
        self.low[rows] = low = np.where(noisy, np.maximum(self.low[rows], h), self.low[rows])
        self.high[rows] = high = np.where(noisy, self.high[rows], np.minimum(self.high[rows], h))
        # Noise falls as 1/h; truncation rises as h⁴.
        up = np.clip(2 * noise / tolerance, 2.0, _LEAP)
        down = np.where(agrees, np.clip((noise / (2 * truncation)) ** 0.2, 2.0**-6, 0.5), 1 / _LEAP)
        step = h * np.where(noisy, up, down)
        enclosed = (low > 0) & np.isfinite(high) & ((step <= low) | (step >= high))
        step = np.where(enclosed, np.sqrt(low * high), step)
        self.step[rows] = step = self.offset * _power_of_two(step / self.offset)
        inside = (step > low) & (step < high) & (step > self.least[rows]) & (step <= _LARGEST * self.size[rows])
        return np.asarray(inside & np.isfinite(16 * step))


# The relative error aimed at, a tenth of what a verdict needs.
TARGET = 1e-4
# That of a quick difference which is good enough: half of what a verdict needs, as there is rounding too.
_ENOUGH = 5e-4
_SAMPLE_AT_LEAST = 16
# Evaluations per entry: two of the pilot, six a round, two rounds where the first step does not suffice; and per entry
# that is compared.
_EVALUATIONS, _COMPARISONS = 14, 6


@dataclass(frozen=True)
class Central:
    """`offset` shifts the ladder of steps (see `numerics.ladder`).

    `sample` limits the numbers that are shifted, per tensor; the bound of the others is infinite. None takes all.
    `quick` lets derivatives come by the chain rule over steps where that is less work.
    """

    name: ClassVar[str] = "central"
    summary: ClassVar[str] = "central differences, extrapolated, with steps and error bounds from measured noise"
    offset: float = 1.0
    sample: int | None = None
    quick: bool = True

    def estimate(
        self,
        problem: Problem,
        windows: Sequence[Window],
        tensors: Sequence[Tensor],
        executor: Executor | None = None,
    ) -> Mapping[str, Estimate]:
        """See `Reference`. Independent of every derivative rule: only forward passes are used."""
        quick = Quick(_ENOUGH, self.offset, _EVALUATIONS) if self.through(problem.setup) else None
        around = Around(problem, windows, executor)
        return sweep(around, tensors, self._differentiate(), self.sample, quick)

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`."""
        return sweep_along(problem, windows, directions, self._differentiate())

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        evaluations = flops = 0.0
        if self.through(setup):
            chain = self.by_chain(setup, windows)
            evaluations = _COMPARISONS * COMPARED * len(chain.tensors)
            flops, setup = chain.flops, chain.rest
        evaluations += _EVALUATIONS * copies(setup, self.sample) + entry_noise(setup)
        return flops + evaluations * forward_flops(setup, windows)

    def by_chain(self, setup: Setup, windows: Sequence[Window]) -> ByChain:
        """Which derivatives come by the chain rule over steps, where they may."""
        return by_chain(setup, windows, len(SIGNED), _EVALUATIONS, 2 + SAMPLES)

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        each = NOISE_ROWS * NOISE_EVALUATIONS + _EVALUATIONS * count
        return each * len(setup.wrt) * forward_flops(setup, windows)

    def within(self, setup: Setup, flops: float) -> Central:
        """The same, on a sample of entries if a sweep over all of them took more than `flops`, and more than that."""
        windows = Exact().over(setup)
        each = _EVALUATIONS * forward_flops(setup, windows) * len(setup.wrt)
        sampled = replace(self, sample=max(_SAMPLE_AT_LEAST, int(flops / each)))
        return self if self.cost(setup, windows) <= max(flops, sampled.cost(setup, windows)) else sampled

    def on_other_points(self) -> Central:
        """The same entries on a ladder that shares no point with this one, nor what was concluded from a few."""
        return replace(self, offset=0.75, quick=False)

    def through(self, setup: Setup) -> bool:
        """Whether derivatives may come by the chain rule over steps."""
        return self.quick and self.sample is None and analytic(setup.graph)

    def _differentiate(self) -> Differentiate:
        return partial(differentiate, target=TARGET, offset=self.offset)


REFERENCE = Central()
