"""The noise of what the changes of a step come to, told from their fourth differences."""

from __future__ import annotations

import numpy as np

from bpcli.problem.steps import Steps
from bpcli.references.numerics.derivatives import UNIT_ROUNDOFF
from bpcli.references.numerics.probe import FloatArray

SIGNED = np.array([1.0, -1.0, 2.0, -2.0])
"""The shifts of a pair of central differences, over the smaller step."""
SAMPLES = 8
"""Of the noise."""
# The variance of a fourth difference over that of what it is made of, 1 + 1 + 16 + 16 + 36.
_OF_FOURTH = 70.0
# What the noise of all steps weighs beside that of one, in samples.
_USUAL = 4.0


class Noise:
    """The noise of what steps come to, told from fourth differences, and samples of it."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.random = steps, np.random.default_rng(0)
        self.starts, self.counts = np.cumsum([0, *steps.sizes[:-1]]), np.array(steps.sizes)
        self.squares, self.usual, self.count = 0.0, 0.0, 0

    @property
    def whole(self) -> float:
        """Two standard deviations of the whole loss."""
        return 2 * float(np.sqrt(self.squares))

    def of(self, t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
        """Standard deviations (batch, W) of losses with `weights (batch, W)` and states that are worth `credit (batch,
        N, W)` together, from their changes (batch, 4, U, W).

        At least one rounding of each; never much less than at other steps, over that.
        """
        fourth = change[:, 2] + change[:, 3] - 4 * (change[:, 0] + change[:, 1])
        squares = np.add.reduceat(fourth**2, self.starts, axis=1) / self.counts[:, None]
        seen = squares.max(axis=1) / _OF_FOURTH
        valued = credit * self.steps.after[t][..., None]
        least = (UNIT_ROUNDOFF * weights * self.steps.losses[t][:, None]) ** 2
        least = least + UNIT_ROUNDOFF**2 * np.sum(valued**2, axis=1)
        over = np.fmax(np.where(least > 0, seen / least, 1.0), 1.0)
        self.usual += float(np.log(over).sum())
        self.count += over.size
        many, usual = self.counts.max(), np.exp(self.usual / self.count)
        variance = least * np.fmax((many * over + _USUAL * usual) / (many + _USUAL), 1.0)
        self.squares += float(variance.sum())
        return np.asarray(np.sqrt(variance))

    def sample(self, shape: tuple[int, ...]) -> FloatArray:
        """Of noise of standard deviation 1, (*shape, samples)."""
        return np.asarray((self.random.random((*shape, SAMPLES)) - 0.5) * 12**0.5)
