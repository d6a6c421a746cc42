"""The noise level of a computed loss, by ECnoise (Moré & Wild, "Estimating computational noise", SISC 33, 2011)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Setup
from bpcli.references.numerics.probe import ROWS, FloatArray, Sampler

POINTS = 9
_AGREE = 4.0
UNIT_ROUNDOFF = 2.0**-53
_SINGLE = 2.0**-24
_SUBNORMAL = float(np.finfo(np.float64).smallest_subnormal)
# Rounding noise does not depend on the spacing, the effect of a kink or an oscillation does: the smallest counts.
_SPACINGS = (2.0**-26, 2.0**-16, 2.0**-8)
# Where the loss is constant at these spacings, its resolution shows at larger ones.
_WIDE_SPACINGS = (1.0, 2.0**8, 2.0**16)
EVALUATIONS = POINTS * len(_SPACINGS)
"""Evaluations of the loss per row; twice as many where the loss is constant at small spacings."""
# Irregular factors, so that spacings are not aligned with the grid of rounded values; few bits, so that the points are
# equispaced in floating point.
_FACTORS = 1 + np.round(np.arange(1, ROWS + 1) * 0.6180339887 % 1 * 2.0**12) / 2.0**12


def entry_noise(setup: Setup) -> int:
    """Evaluations of the loss to measure the noise of all tensors by shifted entries."""
    return EVALUATIONS * ROWS * sum(1 for tensor in setup.wrt if tensor.entries)


def table_noise(values: FloatArray) -> FloatArray:
    """Standard deviation of the noise in `values (..., m)` of a smooth function at m >= 7 equispaced points.

    The k-th differences of a smooth function vanish quickly, those of noise do not; sigma_k is the estimate from the
    k-th column of Hamming's difference table. The result is the first sigma_k whose differences change sign and that
    agrees with the next two within a factor of 4; without one, the smallest from the fourth column on.
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
    """Noise level `(S,)`, two standard deviations, of the loss under shifts of this tensor; at least one rounding.

    `steps (K,)` are the differentiation steps; the points span a small part of them. The median over some entries
    stands for all, so that a few entries without influence or near a kink do not matter.
    """
    rows = np.linspace(0, len(sampler.probe.entries) - 1, sampler.noise_rows).astype(np.int64)
    spread = steps[rows] * _FACTORS[: len(rows)]
    near = [spread * spacing for spacing in _SPACINGS]
    noise, moves = _at_spacings(sampler, rows, near, False)
    if sampler.sided:
        beside, moves_beside = _at_spacings(sampler, rows, near, True)
        noise, moves = np.minimum(noise, beside), moves | moves_beside
    if not moves.all():
        further, moves_further = _at_spacings(
            sampler, rows, [spread * spacing for spacing in _WIDE_SPACINGS], sampler.sided
        )
        noise = np.where(moves, noise, np.where(moves_further, further, np.inf))
    noise = np.where(np.isfinite(noise), 2.0 * noise, 0.0)
    return np.asarray(
        np.maximum(noise, (_SINGLE if sampler.coarse else UNIT_ROUNDOFF) * sampler.level + _SUBNORMAL), dtype=np.float64
    )


def _at_spacings(
    sampler: Sampler, rows: NDArray[np.int64], spacings: list[FloatArray], sided: bool
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Minimum over the spacings `(rows,)` of the median noise of `rows`, and whether the loss varies, `(S,)` each.

    The noise is infinite where none shows.
    """
    offsets = np.arange(POINTS) - (0 if sided else POINTS // 2)
    everything = np.concatenate([np.outer(spacing, offsets).ravel() for spacing in spacings])
    change, _ = sampler.shift(np.tile(np.repeat(rows, POINTS), len(spacings)), everything)
    values = change.reshape(len(spacings), len(rows), POINTS, -1).transpose(0, 1, 3, 2)
    # A loss that is constant between most points shows its resolution, not its noise; so does one aligned with the grid
    # of its own values, where differences vanish exactly.
    moves = (np.diff(values, axis=-1) != 0).sum(axis=-1) > POINTS // 2
    moves &= np.isfinite(values).all(axis=-1)
    sigma = table_noise(np.nan_to_num(values))
    shown = moves & (sigma > 0)
    ordered = np.sort(np.where(shown, sigma, np.inf), axis=1)
    count = shown.sum(axis=1, keepdims=True)
    median = np.take_along_axis(ordered, np.minimum(count // 2, np.maximum(count - 1, 0)), axis=1)[:, 0]
    return median.min(axis=0), moves.any(axis=(0, 1))
