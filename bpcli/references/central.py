"""Central differences with a bound that was measured: the loss evaluated at shifted values, and nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from bpcli.graph.model import Graph
from bpcli.methods.base import Window
from bpcli.problem.model import Problem, Setup, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.references.base import Estimate, copies, forward_flops, nothing
from bpcli.references.numerics.ladder import differentiate
from bpcli.references.numerics.probe import Sampler, probe

# The relative error aimed at, a tenth of what a verdict needs.
TARGET = 1e-4
_SAMPLE_AT_LEAST = 16
# Evaluations per entry: two of the pilot, six a round, two rounds where the first step does not suffice.
_EVALUATIONS = 14


@dataclass(frozen=True)
class Central:
    """`offset` shifts the ladder of steps (see `numerics.ladder`).

    `sample` limits the numbers that are shifted, per tensor; the bound of the others is infinite. None takes all.
    """

    name: ClassVar[str] = "central"
    summary: ClassVar[str] = "central differences, extrapolated, with steps and error bounds from measured noise"
    offset: float = 1.0
    sample: int | None = None

    def applies(self, graph: Graph) -> str | None:
        """None: a loss can always be evaluated."""
        return None

    def estimate(
        self, problem: Problem, windows: Sequence[Window], tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        """See `Reference`. Independent of every derivative rule: only forward passes are used."""
        perturbed = Perturbed(problem, windows, np.dtype(np.float64))
        estimates = {}
        for tensor in tensors:
            around = probe(problem, tensor)
            if not len(around.entries):
                estimates[tensor.name] = nothing(tensor.shape)
                continue
            if self.sample is not None:
                around = around.sample(self.sample, zlib.crc32(tensor.name.encode()))
            losses = partial(perturbed.losses, tensor)
            found = differentiate(Sampler.of(losses, around), TARGET, self.offset)
            unknown = 0.0 if self.sample is None else np.inf
            estimates[tensor.name] = Estimate(
                around.scatter(found.value, tensor.shape),
                around.scatter(found.bound, tensor.shape, unknown),
                around.scatter(found.noise, tensor.shape),
                around.scatter(found.kink, tensor.shape),
            )
        return estimates

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        return _EVALUATIONS * copies(setup, self.sample) * forward_flops(setup, windows)

    def within(self, setup: Setup, flops: float) -> Central:
        """The same, on a sample of entries if a sweep over all of them took more than `flops`."""
        windows = (Window(0, 0, setup.T),)
        if self.cost(setup, windows) <= flops:
            return self
        each = _EVALUATIONS * forward_flops(setup, windows) * len(setup.wrt)
        return replace(self, sample=max(_SAMPLE_AT_LEAST, int(flops / each)))

    def on_other_points(self) -> Central:
        """The same entries on a ladder that shares no point with this one."""
        return replace(self, offset=0.75)


REFERENCE = Central()
