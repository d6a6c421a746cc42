"""Add: a coin is flipped at every step, and two earlier flips bias another one, whose probability is to be predicted.

    x₁(t) is 0 or 1 with probability ½,        p(t) = ½ + ½ x₁(t - lag1) - ¼ x₁(t - lag2),

the input is (x₁, 1 - x₁) and the target (p, 1 - p), with x₁ = 0 before the first step. Silviu Pitis, "Recurrent neural
networks in Tensorflow" (2016), with lags 3 and 8; Marschall, Cho & Savin, JMLR 21 (2020), section 4.1, where learning
one lag or both shows in the loss. By cross-entropy, in nats a step once all flips are there, a predictor that ignores
x reaches H(⅝) = 0.66, one that knows the first lag 0.52, one that knows both 0.45, the entropy itself. By squared
error ½ Σ (y - y*)² they reach 5/64, 1/64 and 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import at_least, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class AddOptions:
    """Steps back to the two flips, at least 1."""

    lag1: int = 3
    lag2: int = 8

    def __post_init__(self) -> None:
        at_least(1, lag1=self.lag1, lag2=self.lag2)


@dataclass(frozen=True)
class Add:
    """Two dependencies over time, each of which can be learned without the other."""

    name: str = "add"
    summary: str = (
        "probability of a coin biased by two earlier flips (Pitis 2016; Marschall et al. 2020); x [2], y* [2]"
    )
    Options: type[AddOptions] = AddOptions

    def fill(self, setup: Setup, options: AddOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Flips, and the biased probabilities."""
        T = steps_of(setup, 1 + max(options.lag1, options.lag2))
        flips = draws("flips").integers(0, 2, (T, setup.batch)).astype(np.float64)
        p = 0.5 + 0.5 * _late(flips, options.lag1) - 0.25 * _late(flips, options.lag2)
        return {"input": np.stack([flips, 1 - flips], axis=-1), "target": np.stack([p, 1 - p], axis=-1)}


def _late(flips: NDArray[np.float64], lag: int) -> NDArray[np.float64]:
    """Of every step the flip `lag` steps before."""
    return np.concatenate([np.zeros((lag, flips.shape[1])), flips[:-lag]])


TASK = Add()
