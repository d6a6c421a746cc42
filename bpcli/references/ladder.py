"""Extrapolation of many orders: sharp where the loss is noisy and smooth, so that large steps pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import Estimate, copies, forward_flops
from bpcli.references.numerics.directions import NOISE_ROWS, Directions
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.noise import entry_noise
from bpcli.references.numerics.ridders import RUNGS, extrapolate
from bpcli.references.numerics.sweep import sweep, sweep_along
from bpcli.runtime.reverse_mode import Window

_EVALUATIONS = 2 * RUNGS


@dataclass(frozen=True)
class Ladder:
    """`offset` shifts the steps, as of `central`."""

    name: ClassVar[str] = "ladder"
    summary: ClassVar[str] = "differences over a ladder of steps, extrapolated as far as noise allows (Ridders)"
    offset: float = 1.0

    def estimate(
        self, problem: Problem, windows: Sequence[Window], tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        """See `Reference`. Independent of every derivative rule: only forward passes are used."""
        return sweep(problem, windows, tensors, partial(extrapolate, offset=self.offset))

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
