"""Sine: a wave of the frequency that a constant input asks for.

    x is uniform in [-1, 1], the same at every step,        y*(t) = sin(ω t),        ω = low + (high - low) (x + 1) / 2.

After Sussillo & Barak, Neural Computation 25 (2013), who draw one of 51 frequencies. A predictor that ignores x says
the mean wave, and is wrong by the variance of sin(ω t) over ω, which nears ½ once the waves are out of phase: ½ (y -
y*)² nears ¼.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class SineOptions:
    """The lowest and highest frequency in radians a step, 0 < low < high < π."""

    low: float = 0.2
    high: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < np.pi:
            raise ValueError(f"it takes 0 < low < high < π, got low={self.low:g}, high={self.high:g}")


@dataclass(frozen=True)
class Sine:
    """An oscillator whose period is set from outside."""

    name: str = "sine"
    summary: str = "a sine wave whose frequency the input sets (after Sussillo & Barak 2013); x [1], y* [1]"
    Options: type[SineOptions] = SineOptions

    def fill(self, setup: Setup, options: SineOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """The frequency, and its wave."""
        T = steps_of(setup)
        x = draws("frequencies").uniform(-1.0, 1.0, (1, setup.batch, 1))
        omega = options.low + (options.high - options.low) * (x + 1) / 2
        return {"input": np.repeat(x, T, axis=0), "target": np.sin(omega * np.arange(1, T + 1)[:, None, None])}


TASK = Sine()
