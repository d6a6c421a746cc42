"""Integration: the sum of all inputs so far, a line attractor.

    x(t) is standard normal,        y*(t) = (x(1) + … + x(t)) / √T,

on every entry of the input. As in Mante, Sussillo, Shenoy & Newsome, Nature 503 (2013), without their context. A
predictor that ignores x says 0: its squared error ½ Σ (y - y*)² is t / 2T for each entry at step t, ¼ in the mean over
long sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import NoTaskOptions, role_shape, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class Integration:
    """Evidence added up, with variance one at the last step."""

    name: str = "integration"
    summary: str = "the sum of all inputs so far, over √T (after Mante et al. 2013); x [channels], y* [channels]"
    Options: type[NoTaskOptions] = NoTaskOptions

    def fill(self, setup: Setup, options: NoTaskOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Standard normal evidence, and its sum."""
        T = steps_of(setup)
        x = draws("evidence").standard_normal((T, setup.batch, *role_shape(setup, "input")))
        return {"input": x, "target": np.cumsum(x, axis=0) / np.sqrt(T)}


TASK = Integration()
