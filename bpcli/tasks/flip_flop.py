"""Flip-flop: on every channel the sign of the last pulse is to be held.

At a step a channel has a pulse of +1 or -1 with the given probability, else 0; the target is the last pulse of the
channel, 0 before the first one. Channels are as many as the input has entries. Sussillo & Barak, Neural Computation 25
(2013), with three channels. The signs cannot be known without x, so that a predictor that ignores it says 0 and is
wrong by the square of each target: ½ Σ (y - y*)² is ½ (1 - (1 - probability)^t) a channel at step t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import role_shape, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class FlipFlopOptions:
    """The `probability` of a pulse, above 0 and at most 1."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be above 0 and at most 1, not {self.probability:g}")


@dataclass(frozen=True)
class FlipFlop:
    """One bit of memory for each channel, overwritten at any time."""

    name: str = "flip-flop"
    summary: str = (
        "hold the sign of the last pulse of each channel (Sussillo & Barak 2013); x [channels], y* [channels]"
    )
    Options: type[FlipFlopOptions] = FlipFlopOptions

    def fill(self, setup: Setup, options: FlipFlopOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Pulses, and the last ones."""
        shape = (steps_of(setup), setup.batch, *role_shape(setup, "input"))
        pulses = np.where(draws("pulses").random(shape) < options.probability, 1.0, 0.0)
        pulses *= 2.0 * draws("signs").integers(0, 2, shape) - 1.0
        held = np.zeros(shape)
        for t in range(shape[0]):
            held[t] = np.where(pulses[t] != 0, pulses[t], held[t - 1] if t else 0.0)
        return {"input": pulses, "target": held}


TASK = FlipFlop()
