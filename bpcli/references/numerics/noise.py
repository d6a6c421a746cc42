"""The noise of a computed loss, measured: ECnoise of Moré & Wild, "Estimating computational noise" (SISC 33, 2011).

The noise of what the changes of a step come to, told from their fourth differences.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Setup
from bpcli.references.numerics.derivatives import UNIT_ROUNDOFF
from bpcli.references.numerics.probe import ROWS, FloatArray, Sampler
from bpcli.references.perturbation.one_step import Steps

POINTS = 9
_AGREE = 4.0
_UNIT_ROUNDOFF = 2.0**-53
_SUBNORMAL = float(np.finfo(np.float64).smallest_subnormal)
# Rounding noise is the same at every spacing, a kink or an oscillation within reach is not: the smallest answer counts.
_SPACINGS = (2.0**-26, 2.0**-16, 2.0**-8)
# Where the loss does not move, its resolution is found further out.
_WIDE_SPACINGS = (1.0, 2.0**8, 2.0**16)
# Spacings that differ and are no powers of two, so as not to keep step with the grid of rounded values; their few bits
# keep the points equispaced in floating point.
EVALUATIONS = POINTS * len(_SPACINGS)
"""Of the loss for each row, most of the time: where it does not move it takes twice as many."""
_FACTORS = 1 + np.round(np.arange(1, ROWS + 1) * 0.6180339887 % 1 * 2.0**12) / 2.0**12


def entry_noise(setup: Setup) -> int:
    """Evaluations of the loss that the noise of all tensors takes, where entries are shifted."""
    return EVALUATIONS * ROWS * sum(1 for tensor in setup.wrt if tensor.entries)


def table_noise(values: FloatArray) -> FloatArray:
    """Standard deviation of the noise in `values (..., m)`, taken at m >= 7 equispaced points of a smooth function.

    The k-th differences of a smooth function vanish quickly and those of noise do not; sigma_k is what the k-th column
    of Hamming's difference table says. The first column counts whose differences change sign and which agrees with
    the next two to a factor of 4; without one, the smallest of the columns from the fourth on.
    """
    columns, signs, differences = [], [], values
    for k in range(1, values.shape[-1]):
        differences = differences[..., 1:] - differences[..., :-1]
        gamma = math.factorial(k) ** 2 / math.factorial(2 * k)
        columns.append(np.sqrt(gamma * np.mean(differences**2, axis=-1)))
        signs.append((differences.min(axis=-1) < 0) & (differences.max(axis=-1) > 0))
    sigma = np.stack(columns)
    noise = sigma[3:].min(axis=0)
    for k in reversed(range(len(columns) - 2)):
        three = sigma[k : k + 3]
        settled = signs[k] & (three.max(axis=0) <= _AGREE * three.min(axis=0))
        noise = np.where(settled, sigma[k], noise)
    return np.asarray(noise, dtype=np.float64)


def loss_noise(sampler: Sampler, steps: FloatArray) -> FloatArray:
    """Noise of the loss `(S,)` as it is felt through this tensor, never less than one rounding of the loss.

    `steps (K,)` are the differentiation steps; the points lie within a small part of them. The median over some
    entries stands for all, so that a few entries without influence or near a kink do not matter.
    """
    rows = np.linspace(0, len(sampler.probe.entries) - 1, sampler.noise_rows).astype(np.int64)
    spread = steps[rows] * _FACTORS[: len(rows)]
    noise, moves = _at_spacings(sampler, rows, [spread * spacing for spacing in _SPACINGS])
    if not moves.all():
        further, moves_further = _at_spacings(sampler, rows, [spread * spacing for spacing in _WIDE_SPACINGS])
        noise = np.where(moves, noise, np.where(moves_further, further, np.inf))
    noise = np.where(np.isfinite(noise), 2.0 * noise, 0.0)
    return np.asarray(np.maximum(noise, _UNIT_ROUNDOFF * sampler.level + _SUBNORMAL), dtype=np.float64)


def _at_spacings(
    sampler: Sampler, rows: NDArray[np.int64], spacings: list[FloatArray]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The smallest over the spacings of the median noise of `rows`, infinity if none shows any; does the loss move?

    Spacings are `(rows,)` each, the answers `(S,)`.
    """
    offsets = np.arange(POINTS) - POINTS // 2
    everything = np.concatenate([np.outer(spacing, offsets).ravel() for spacing in spacings])
    change, _ = sampler.shift(np.tile(np.repeat(rows, POINTS), len(spacings)), everything)
    values = change.reshape(len(spacings), len(rows), POINTS, -1).transpose(0, 1, 3, 2)
    # A loss that stays the same from point to point shows its resolution, not its noise; so does one that keeps step
    # with the grid of its own values, where the differences vanish exactly.
    moves = (np.diff(values, axis=-1) != 0).sum(axis=-1) > POINTS // 2
    moves &= np.isfinite(values).all(axis=-1)
    sigma = table_noise(np.nan_to_num(values))
    shown = moves & (sigma > 0)
    ordered = np.sort(np.where(shown, sigma, np.inf), axis=1)
    count = shown.sum(axis=1, keepdims=True)
    median = np.take_along_axis(ordered, np.minimum(count // 2, np.maximum(count - 1, 0)), axis=1)[:, 0]
    return median.min(axis=0), moves.any(axis=(0, 1))


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
