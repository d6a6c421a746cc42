"""Richardson's extrapolation carried to many orders, with Ridders' choice of the best entry of the tableau.

T[k][m] combines the central differences at m + 1 steps that halve from one to the next, and is exact for polynomials of
degree 2m + 2 (Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4, 1982). Its error is
taken to be the largest distance to the entries that it was made of, and to the one that follows it; its noise is that
of the differences, weighted as they are.
"""

from __future__ import annotations

import numpy as np

from bpcli.references.numerics.ladder import NOISE_FACTOR, Derivatives, scales, where_finite
from bpcli.references.numerics.noise import loss_noise
from bpcli.references.numerics.probe import FloatArray, Sampler

RUNGS = 16
_ORDERS = 7
_LARGEST = 2.0
_UNIT_ROUNDOFF = 2.0**-53


def extrapolate(sampler: Sampler, offset: float = 1.0) -> Derivatives:
    """Derivatives `(K, S)`, by the entry of each tableau with the smallest bound.

    Kinks within reach of the smallest steps are not told apart: there the bound is at least half the jump.
    """
    with np.errstate(all="ignore"):
        first = offset * np.exp2(np.round(np.log2(_LARGEST * scales(sampler.probe))))
        steps = first * 0.5 ** np.arange(RUNGS)[:, None]
        slopes, jumps, sizes = _differences(sampler, steps)
        noise = NOISE_FACTOR * (loss_noise(sampler, first) / steps[:, :, None] + _UNIT_ROUNDOFF * sizes)
        return _best(slopes, jumps, noise)


def _differences(sampler: Sampler, steps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Central differences, jumps of the slope and largest changes per step at `steps (RUNGS, K)`, `(RUNGS, K, S)`."""
    count = steps.size
    rows = np.tile(np.arange(steps.shape[1]), len(steps))
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps.ravel(), -steps.ravel()]))
    slope = (change[:count] - change[count:]) / (shift[:count] - shift[count:])
    even = change[:count] + change[count:] - slope * (shift[:count] + shift[count:])
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:]))
    shape = (*steps.shape, -1)
    ratio = steps.reshape(-1, 1)
    return slope.reshape(shape), (even / ratio).reshape(shape), (size / ratio).reshape(shape)


def _best(slopes: FloatArray, jumps: FloatArray, noise: FloatArray) -> Derivatives:
    """The entry of the tableau with the smallest bound, for each derivative."""
    column, weight = slopes, noise
    found = None
    for m in range(1, _ORDERS):
        factor = 4.0**m
        finer, coarser = column[1:], column[:-1]
        value = (factor * finer - coarser) / (factor - 1)
        spread = (factor * weight[1:] + weight[:-1]) / (factor - 1)
        error = np.maximum(np.abs(value - finer), np.abs(value - coarser))
        following = np.abs(np.diff(value, axis=0))
        error = np.maximum(error, np.concatenate([following, np.full_like(value[:1], np.inf)]))
        # J + h d² + h³ d⁴/12 + …: what extrapolation leaves of it is the jump of the slope at a kink.
        odd = 2.0 ** (2 * m - 1)
        jumps = (odd * jumps[1:] - jumps[:-1]) / (odd - 1)
        if m >= 2:
            error += np.abs(jumps) / 2
            found = _smaller(found, where_finite(Derivatives(value, error, spread, np.zeros_like(value))))
        column, weight = value, spread
    assert found is not None
    pick = found.bound.argmin(axis=0)[None]
    value, error, spread = (
        np.take_along_axis(a, pick, axis=0)[0] for a in (found.value, found.truncation, found.noise)
    )
    return Derivatives(value, error, spread, np.zeros_like(value))


def _smaller(known: Derivatives | None, new: Derivatives) -> Derivatives:
    """Rows of both, one below the other."""
    if known is None:
        return new
    pairs = ((known.value, new.value), (known.truncation, new.truncation), (known.noise, new.noise))
    value, error, spread = (np.concatenate(pair) for pair in pairs)
    return Derivatives(value, error, spread, np.zeros_like(value))
