"""Central differences with Richardson extrapolation, an adaptive step per entry, and measured error bounds.

A rung of step h evaluates the loss at ±h, ±2h and ±4h. With D(h) the central difference, R(h) = (4 D(h) - D(2h)) / 3
has a truncation error of O(h⁴), and the bound |R(h) - R(2h)| on it is about 15 times too large: the safety margin. The
even part E(h) = f(x+h) + f(x-h) - 2 f(x) reveals kinks: E(h)/h tends to 0 where f is smooth, and to the jump J of the
slope at a kink. With J extrapolated from the three steps, |R(h) - R(2h)| + |J|/2 covers the error of R(h) for one kink
at any distance. Where the kinks are known, no step crosses one, and J is the jump at the point itself.

The step moves to where noise and truncation balance. A pilot difference with a tiny step guards against steps that span
whole oscillations of the loss; of two rungs that disagree, the one with the smaller step is right. For an entry whose
derivative is below the noise no truncation shows how far its steps may go: they are limited to the entry's own size,
and to a small multiple of the steps at which other entries of the tensor show truncation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from bpcli.methods.base import Exact
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import ChainPlan, Estimate, chain_plan, copy_count, forward_flops
from bpcli.references.numerics.chain_rule import SAMPLES
from bpcli.references.numerics.derivatives import (
    COMPARED,
    NOISE_FACTOR,
    SIGNED,
    SMALL,
    Derivatives,
    Mask,
    Pilot,
    differences,
    scales_of_loss,
    where_finite,
    with_known_kinks,
)
from bpcli.references.numerics.differences import (
    ChainOptions,
    Differentiate,
    Neighbourhood,
    along_flops,
    sweep,
    sweep_along,
)
from bpcli.references.numerics.noise import UNIT_ROUNDOFF, entry_noise, loss_noise
from bpcli.references.numerics.probe import (
    FIRST_STEP,
    PILOT,
    Directions,
    FloatArray,
    Indices,
    Sampler,
)
from bpcli.references.perturbation.kinks import analytic
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime.reverse_mode import Window

ROUNDS = 8
_LEAP = 2.0**8
# Largest step relative to the entry; and relative to the median step at which other entries show truncation.
_LARGEST, _BEYOND = 2.0, 8.0
# Jump of the slope over the noise of a difference, from which on it is no noise.
_SEEN = 8.0


def differentiate(sampler: Sampler, target: float, offset: float = 1.0) -> Derivatives:
    """Derivatives `(K, S)` of the loss with respect to every number of the probe.

    Rounds of evaluations continue, for the entries that need it, until the bound is within `target`, relative to the
    entry or to 1e-6 of the largest one. Steps with an `offset` of 1 and of 0.75 have no point in common. No step is
    smaller than `PILOT` times the first; a kink nearer than that counts as one at the point itself.
    """
    with np.errstate(all="ignore"):
        return _StepSearch(sampler, target, offset).run()


def _power_of_two(steps: FloatArray) -> FloatArray:
    """Nearest powers of two, which are added to a number and subtracted again exactly, but for a carry."""
    return np.asarray(np.exp2(np.round(np.log2(steps))), dtype=np.float64)


class _StepSearch:
    """The search for the best step of each entry."""

    def __init__(self, sampler: Sampler, target: float, offset: float) -> None:
        self.sampler, self.target, self.offset = sampler, target, offset
        self.size = scales_of_loss(sampler)
        self.step = offset * _power_of_two(FIRST_STEP * self.size)
        self.own = np.abs(sampler.probe.points).max(axis=1)
        self.low, self.high = np.zeros_like(self.step), np.full_like(self.step, np.inf)
        self.least = self.step * PILOT
        self.pilot = Pilot(sampler, self.least, loss_noise(sampler, self.step))
        self.best = self.pilot.derivatives(np.arange(len(self.step)))
        self.only_pilot = np.ones(self.best.value.shape, dtype=np.bool_)
        self.bent = np.zeros_like(self.best.value)
        self.best_step = np.repeat(self.least[:, None], self.best.value.shape[1], axis=1)

    def run(self) -> Derivatives:
        """Evaluate rungs until every entry is within its tolerance or cannot be improved."""
        active = np.arange(len(self.step))
        for _ in range(ROUNDS):
            rung = self._with_own_noise(active, self._rung(active))
            agrees = self._merge(active, rung)
            tolerance = self._tolerance(active)
            # The truncation error of a pilot is unknown until a rung agrees with it.
            need = np.where(self.only_pilot[active], np.inf, self.best.bound[active] / tolerance)
            # One step serves all samples, so the least accurate one decides.
            worst = (np.arange(len(active)), need.argmax(axis=1))
            taken = self.step[active].copy()
            inside = self._move(active, rung.truncation[worst], rung.noise[worst], agrees[worst], tolerance[worst])
            goes_on = self._restart_closer(active, rung, taken) | inside
            active = active[goes_on & (need[worst] > 1)]
            if not len(active):
                break
        self._limit_steps()
        return self.best

    def _with_own_noise(self, rows: Indices, rung: Derivatives) -> Derivatives:
        """Repeat the first rung of entries whose own noise turns out to be above that of the loss."""
        first = self.only_pilot[rows] & self.pilot.suspicious(rows, rung)
        changed = self.pilot.remeasure_noise(rows[first.any(axis=1)])
        if len(changed):
            self.best.put(changed, self.pilot.derivatives(changed), self.only_pilot[changed])
            rung.put(np.searchsorted(rows, changed), self._rung(changed))
        return rung

    def _restart_closer(self, rows: Indices, rung: Derivatives, taken: FloatArray) -> Mask:
        """Restart entries whose steps `taken` left the domain of the loss, as of a logarithm, at their own scale."""
        first = _power_of_two(FIRST_STEP * np.maximum(self.own[rows], np.finfo(np.float64).tiny / PILOT))
        lost = ~np.isfinite(rung.bound).any(axis=1) & (self.own[rows] > 0) & (first * _LEAP < taken)
        who = rows[lost]
        self.step[who] = self.offset * first[lost]
        self.size[who] = self.own[who]
        self.high[who], self.least[who] = np.inf, self.step[who] * PILOT
        if len(who):
            self.pilot.take(who, self.least[who])
            self.best.put(who, self.pilot.derivatives(who), self.only_pilot[who])
        return np.asarray(lost)

    def _limit_steps(self) -> None:
        """Repeat entries whose steps are larger than the truncation seen in this tensor justifies."""
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
        """The rung at the current steps of `rows`: Richardson extrapolation of three central differences."""
        h = self.step[rows]
        slope, even, size = differences(self.sampler, np.tile(rows, 3), np.concatenate([h, 2 * h, 4 * h]))
        d1, d2, d4 = slope.reshape(3, len(rows), -1)
        j1, j2, j4 = even.reshape(3, len(rows), -1) / np.array([h, 2 * h, 4 * h])[:, :, None]
        value, coarse = (4 * d1 - d2) / 3, (4 * d2 - d4) / 3
        # E/h = J + h d²f + h³/12 d⁴f + …: this combination keeps J and cancels the next two.
        jump = (16 * j1 - 10 * j2 + j4) / 7
        size = size.reshape(3, len(rows), -1).max(axis=0)
        noise = NOISE_FACTOR * (self.pilot.noise[rows] / h[:, None] + UNIT_ROUNDOFF * size)
        # The truncation error of the pilot, from D(h) - D(2h); it dominates where a derivative vanishes.
        self.bent[rows] = np.abs(d1 - d2) * (self.pilot.steps[rows] / h)[:, None] ** 2
        truncation = np.where(self.pilot.unresolved[rows], np.inf, np.abs(value - coarse))
        rung = Derivatives(value, truncation, noise, np.zeros_like(value))
        if self.sampler.kinks is not None:
            return where_finite(with_known_kinks(rung, jump, 2 * j1 - j2, self.sampler.kinks[rows] / h[:, None]))
        pilot, doubt = self.pilot.jump[rows], self.pilot.doubt(rows)
        at_kink = (np.abs(pilot) > doubt) & (np.abs(jump - pilot) <= np.abs(pilot) / 4)
        # Where rounding in float32 hides the jump from the pilot, one that three steps see alike is at the point too.
        hidden, alike = doubt > np.abs(jump) / 4, np.maximum(np.abs(j1 - jump), np.abs(j4 - jump)) <= np.abs(jump) / 8
        seen = self.sampler.coarse & hidden & alike & (np.abs(jump) > _SEEN * noise)
        at_kink, pilot = at_kink | seen, np.where(seen, jump, pilot)
        near = np.where(at_kink, np.maximum(np.abs(jump - pilot) - doubt, 0.0), np.abs(jump)) / 2
        near = np.where(seen, np.abs(j1 - jump), near)
        kink = np.where(at_kink, np.abs(jump) / 2, 0.0)
        return where_finite(replace(rung, truncation=rung.truncation + near, kink=kink))

    def _merge(self, rows: Indices, rung: Derivatives) -> Mask:
        """Adopt improvements that are consistent with the best values so far; returns where the two agree."""
        bound, known = self.best.bound[rows], np.isfinite(rung.bound)
        own = np.where(self.only_pilot[rows], self.bent[rows], 0.0)
        agrees = np.abs(rung.value - self.best.value[rows]) <= rung.bound + bound + own
        nearer = ~agrees & (self.step[rows, None] < self.best_step[rows])
        # The pilot has no bound on its truncation: any rung that agrees with it is better.
        better = known & (nearer | (agrees & (self.only_pilot[rows] | (rung.bound < bound))))
        self.only_pilot[rows] &= ~better
        self._take(rows, rung, better)
        return np.asarray((agrees | nearer) & known)

    def _take(self, rows: Indices, rung: Derivatives, mask: Mask) -> None:
        """Replace the best values by `rung` where `mask` is set."""
        self.best.put(rows, rung, mask)
        self.best_step[rows] = np.where(mask, self.step[rows, None], self.best_step[rows])

    def _tolerance(self, rows: Indices) -> FloatArray:
        size = np.abs(self.best.value)
        wanted = self.target * np.maximum(size[rows], SMALL * size.max())
        return np.asarray(np.maximum(wanted, np.finfo(np.float64).tiny), dtype=np.float64)

    def _move(
        self, rows: Indices, truncation: FloatArray, noise: FloatArray, agrees: Mask, tolerance: FloatArray
    ) -> Mask:
        """Move the steps of `rows` towards the balance of noise and truncation; False where no step is left to try.

        The search is bracketed by steps where noise dominates and steps where truncation does.
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


# Relative error to reach, a tenth of what a verdict needs.
TARGET = 1e-4
# The same for the chain rule over steps: half of what a verdict needs, which leaves room for rounding.
_ENOUGH = 5e-4
_SAMPLE_AT_LEAST = 16
# Evaluations per entry: two of the pilot and two rounds of six; and per entry of a spot check.
EVALUATIONS, _COMPARISONS = 14, 6


@dataclass(frozen=True)
class Central:
    """Central differences; `offset` shifts the steps (see `differentiate`).

    `sample` limits the perturbed entries per tensor (None: all); the bound of the others is infinite. `quick` allows
    the chain rule over steps where it is less work.
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
        """See `Reference`. Only forward passes are used, no derivative rule."""
        quick = ChainOptions(_ENOUGH, self.offset, EVALUATIONS) if self.uses_chain(problem.setup) else None
        around = Neighbourhood(problem, windows, executor)
        return sweep(around, tensors, self._differentiate(), self.sample, quick)

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`."""
        return sweep_along(problem, windows, directions, self._differentiate())

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        evaluations = flops = 0.0
        if self.uses_chain(setup):
            chain = self.chain_plan(setup, windows)
            evaluations = _COMPARISONS * COMPARED * len(chain.tensors)
            flops, setup = chain.flops, chain.rest
        evaluations += EVALUATIONS * copy_count(setup, self.sample) + entry_noise(setup)
        return flops + evaluations * forward_flops(setup, windows)

    def chain_plan(self, setup: Setup, windows: Sequence[Window]) -> ChainPlan:
        """Plan of the chain rule over steps, where it is allowed."""
        return chain_plan(setup, windows, len(SIGNED), EVALUATIONS, 2 + SAMPLES)

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        return along_flops(setup, windows, count, EVALUATIONS)

    def within(self, setup: Setup, flops: float) -> Central:
        """This reference, limited to a sample of entries if a full sweep exceeds `flops` operations."""
        windows = Exact().over(setup)
        each = EVALUATIONS * forward_flops(setup, windows) * len(setup.wrt)
        sampled = replace(self, sample=max(_SAMPLE_AT_LEAST, int(flops / each)))
        return self if self.cost(setup, windows) <= max(flops, sampled.cost(setup, windows)) else sampled

    def on_other_points(self) -> Central:
        """An independent reference: steps that share no point with these, and no chain rule."""
        return replace(self, offset=0.75, quick=False)

    def uses_chain(self, setup: Setup) -> bool:
        """Whether the chain rule over steps may be used."""
        return self.quick and self.sample is None and analytic(setup.graph)

    def _differentiate(self) -> Differentiate:
        return partial(differentiate, target=TARGET, offset=self.offset)


REFERENCE = Central()
