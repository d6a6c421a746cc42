"""The noise of what the changes of a step come to, told from their fourth differences."""

from __future__ import annotations

import numpy as np

from bpcli.problem.steps import Steps
from bpcli.references.numerics.derivatives import UNIT_ROUNDOFF
from bpcli.references.numerics.probe import FloatArray

SAMPLES = 8
"""Of the noise."""
# A fourth difference of shifts by `SIGNED` steps, over the root of 1 + 1 + 16 + 16 + 36, by which it is noisier than a
# loss.
_FOURTH = np.array([-4.0, -4.0, 1.0, 1.0]) / 70.0**0.5
# What the noise of all steps weighs beside that of one, in samples.
_USUAL = 4.0


class Noise:
    """The noise of what steps come to, told from fourth differences, and samples of it.

    `whole` is that of the loss, two standard deviations.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps, self.random = steps, np.random.default_rng(0)
        self.starts, self.counts = np.cumsum([0, *steps.sizes[:-1]]), np.array(steps.sizes)
        self.whole, self.usual, self.count = 0.0, 0.0, 0

    def of(self, t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
        """Standard deviations (batch, U, W) of losses with `weights (batch, W)` and states that are worth `credit
        (batch, N, W)` together, from their changes (batch, 4, U, W).

        At least one rounding of each, and never much less than at other steps, over that; of a number that is noisier
        than the others of its node, its own.
        """
        counted, valued = weights * self.steps.losses[t][:, None], credit * self.steps.after[t][..., None]
        fourth = (_FOURTH @ change.reshape(len(change), 4, -1)).reshape(len(change), *change.shape[2:])
        # Squares of very small or large losses are out of range.
        unit = max(np.abs(part).max(initial=0.0) for part in (counted, valued, fourth))
        unit = unit if 0 < unit < np.inf else 1.0
        least = UNIT_ROUNDOFF**2 * ((counted / unit) ** 2 + np.sum((valued / unit) ** 2, axis=1))
        squares = (fourth / unit) ** 2
        seen = (np.add.reduceat(squares, self.starts, axis=1) / self.counts[:, None]).max(axis=1)
        seen = np.fmax(seen, least)
        self.usual += float(np.log(np.where((least > 0) & np.isfinite(seen), seen / least, 1.0)).sum())
        self.count += least.size
        many, usual = self.counts.max(), np.exp(self.usual / self.count)
        variance = (many * seen + _USUAL * usual * least) / (many + _USUAL)
        self.whole = float(np.hypot(self.whole, 2 * unit * np.sqrt(variance.sum())))
        return np.asarray(unit * np.sqrt(np.fmax(squares, variance[:, None])))

    def sample(self, shape: tuple[int, ...]) -> FloatArray:
        """Of noise of standard deviation 1, (*shape, samples)."""
        return np.asarray((self.random.random((*shape, SAMPLES)) - 0.5) * 12**0.5)
