"""The Taylor rate: |φ(h) - φ(-h) - 2 h g| falls as h³ when g is the derivative, and as h when it is not.

It needs no derivative of its own and no model of the truncation, so it can side with one of two references that
disagree. It is read at the small end of a ladder of steps, where noise has not yet taken over.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.references.numerics.derivatives import NOISE_FACTOR
from bpcli.references.numerics.noise import loss_noise
from bpcli.references.numerics.probe import FloatArray, Sampler, scales

Mask = NDArray[np.bool_]

RUNGS = 20
_LARGEST = 2.0
# Halvings of the step over which a rate must hold, and the rates themselves: between the two nothing is said.
_SPAN = 3
_CUBIC, _LINEAR = 2.5, 1.15
# Residuals this much above the noise have a rate.
_CLEAR = 8.0
_UNIT_ROUNDOFF = 2.0**-53


def rates(sampler: Sampler, gradient: FloatArray, tolerance: FloatArray) -> tuple[Mask, Mask]:
    """Which of `gradient (K, S)` are right and which are wrong; most may be neither.

    Right: the residual falls as h³ until it drowns in noise, or is nothing else, at a step where it leaves room for an
    error of `tolerance (K, S)` at most. Wrong: over the last halvings before it drowns, it falls as h.
    """
    with np.errstate(all="ignore"):
        steps = np.exp2(np.round(np.log2(_LARGEST * scales(sampler.probe)))) * 0.5 ** np.arange(RUNGS)[:, None]
        residual, floor = _residuals(sampler, steps, gradient)
        clear = residual > _CLEAR * floor
        last = np.where(clear.any(axis=0), RUNGS - 1 - clear[::-1].argmax(axis=0), 0)
        room = (residual + floor) / (2 * steps[:, :, None])
        at_last = np.take_along_axis(room, last[None], axis=0)[0]
        falling = np.stack([_rate(residual, clear, last - i) for i in range(_SPAN)])
        noise_alone = ~clear.any(axis=0) & (np.fmin.reduce(room, axis=0) <= tolerance)
        right = (falling >= _CUBIC).all(axis=0) & (at_last <= tolerance)
        wrong = (np.abs(falling - 1) <= _LINEAR - 1).all(axis=0)
        return np.asarray(right | noise_alone), np.asarray(wrong)


def _residuals(sampler: Sampler, steps: FloatArray, gradient: FloatArray) -> tuple[FloatArray, FloatArray]:
    """|φ(h) - φ(-h) - 2 h g| and what of it may be noise, `(RUNGS, K, S)` each."""
    count = steps.size
    rows = np.tile(np.arange(steps.shape[1]), len(steps))
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps.ravel(), -steps.ravel()]))
    linear = (shift[:count] - shift[count:]) * gradient[rows]
    residual = np.abs(change[:count] - change[count:] - linear)
    size = np.maximum(np.abs(change[:count]), np.abs(change[count:])) + np.abs(linear)
    floor = NOISE_FACTOR * (loss_noise(sampler, steps[0]) + 4 * _UNIT_ROUNDOFF * size)
    shape = (*steps.shape, -1)
    return residual.reshape(shape), np.broadcast_to(floor, residual.shape).reshape(shape)


def _rate(residual: FloatArray, clear: Mask, rung: NDArray[np.int64]) -> FloatArray:
    """log2 of how much the residual falls from the rung before to this one, NaN where either is noise."""
    before = np.maximum(rung - 1, 0)[None]
    here = np.maximum(rung, 0)[None]
    larger, smaller = (np.take_along_axis(residual, k, axis=0)[0] for k in (before, here))
    both = np.take_along_axis(clear, before, axis=0)[0] & np.take_along_axis(clear, here, axis=0)[0]
    return np.asarray(np.where(both & (rung > 0), np.log2(larger / smaller), np.nan))
