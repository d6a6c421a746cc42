"""Central differences with a bound that was measured: the loss evaluated at shifted values, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.kinks import analytic
from bpcli.references.base import ByChain, Estimate, by_chain, copies, forward_flops
from bpcli.references.numerics.directions import NOISE_ROWS, Directions
from bpcli.references.numerics.ladder import differentiate
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.noise import entry_noise
from bpcli.references.numerics.pairs import COMPARED, SIGNED
from bpcli.references.numerics.step_noise import SAMPLES
from bpcli.references.numerics.sweep import Differentiate, Quick, sweep, sweep_along
from bpcli.runtime.reverse_mode import Window

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
        self, problem: Problem, windows: Sequence[Window], tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        """See `Reference`. Independent of every derivative rule: only forward passes are used."""
        quick = Quick(_ENOUGH, self.offset, _EVALUATIONS) if self.through(problem.setup) else None
        return sweep(problem, windows, tensors, self._differentiate(), self.sample, quick)

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
        windows = (Window(0, 0, setup.T),)
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
