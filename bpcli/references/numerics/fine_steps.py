"""Differences over all steps down to the spacing of floats, for derivatives that only one side of a point or only tiny
steps can tell.

`confirms` is asked before a derivative from elsewhere is called wrong. Bounds of differences rest on measured noise,
and noise may depend on the step: where a loss is a sum of squares of almost nothing, or where steps span oscillations,
smaller steps tell another derivative than larger ones. The error in question must then stand out at the finest steps
that resolve it.
"""

from __future__ import annotations

import numpy as np

from bpcli.references.numerics.derivatives import NOISE_FACTOR, Mask, differences
from bpcli.references.numerics.noise import UNIT_ROUNDOFF, loss_noise
from bpcli.references.numerics.probe import FIRST_STEP, FloatArray, Indices, Sampler, scales

RUNGS = 48
"""Halvings of the step, from the scale of the number on."""
EVALUATIONS = 4 * RUNGS
"""Evaluations of the loss for one number in `confirms`."""
_OFFSETS = (1.0, 1.09375)
# Extrapolations at neighbouring steps resolve an error of so many times their spread, and then miss by such a part.
_RESOLVED, _NEAR = 8.0, 0.25
# Finest steps that are compared with all, and the part of the largest change that may not come about within them.
_FINEST, _WILD = 7, 0.1
# The smallest step in units of roundoff of the number.
_SPACING = 4.0


def confirms(sampler: Sampler, rows: Indices, known: FloatArray, error: FloatArray) -> tuple[Mask, Mask]:
    """Whether the finest steps that resolve an `error (R,)` in a derivative agree with `known (R,)`; and whether there
    are such steps. The probe's losses are summed: S is 1.

    None agree where the loss changes as much within the finest steps as within all: it oscillates within less.
    """
    with np.errstate(all="ignore"):
        found, steps, wild = _extrapolated(sampler, rows)
        floor = NOISE_FACTOR * loss_noise(sampler, FIRST_STEP * scales(sampler.probe))[0] / steps[1:]
        spread = np.maximum(floor, found.max(axis=0) - found.min(axis=0))
        centre = found.mean(axis=0)
        clear = (spread[:-1] <= error / _RESOLVED) & (spread[1:] <= error / _RESOLVED)
        clear &= np.abs(centre[1:] - centre[:-1]) <= error / _RESOLVED
        clear = clear[:-1] & clear[1:]
        right = clear & (np.abs(centre[1:-1] - known) <= _NEAR * error)
        finest = np.where(clear.any(axis=0), len(clear) - 1 - clear[::-1].argmax(axis=0), 0)
        agrees = np.take_along_axis(right, finest[None], axis=0)[0]
        return np.asarray(agrees & ~wild), np.asarray(clear.any(axis=0))


def _extrapolated(sampler: Sampler, rows: Indices) -> tuple[FloatArray, FloatArray, Mask]:
    """R(h) = (4 D(h) - D(2h)) / 3, `(2, RUNGS - 1, R)`, at steps of two offsets, NaN below the spacing of floats; the
    steps `(RUNGS, R)`; and where the loss changes within the finest of them as much as within all."""
    scale = np.exp2(np.round(np.log2(scales(sampler.probe)[rows])))
    size = np.abs(sampler.probe.points[rows]).max(axis=1)
    steps = scale * 0.5 ** np.arange(RUNGS)[:, None]
    known = steps >= _SPACING * float(np.finfo(sampler.dtype).eps) * size
    last = RUNGS - 1 - known[::-1].argmax(axis=0)
    fine = known & (np.arange(RUNGS)[:, None] > last - _FINEST)
    found, changes = [], []
    for offset in _OFFSETS:
        slope, _, largest = differences(sampler, np.tile(rows, RUNGS), offset * steps.ravel())
        slope, largest = (np.where(known, a.reshape(steps.shape), np.nan) for a in (slope, largest))
        found.append((4 * slope[1:] - slope[:-1]) / 3)
        changes.append(largest * steps)
    most, least = (np.nanmax(np.where(m, changes, np.nan), axis=(0, 1)) for m in (known, fine))
    return np.stack(found), steps, np.asarray(least >= _WILD * most)


_SIDED = 40
SIDED_EVALUATIONS = 4 * _SIDED
"""Evaluations of the loss for one number in `one_sided`."""
# Differences of first order have to fall as the step: a ratio of 2. Then the bound has this margin.
_FALLS, _MARGIN = (1.8, 2.25), 8.0


def one_sided(sampler: Sampler, rows: Indices, noise: FloatArray, offset: float) -> tuple[FloatArray, FloatArray, Mask]:
    """Derivatives, bounds and whether there is one side alone, `(R,)` each, at numbers on the edge of a domain.

    `noise (R,)` is that of the loss. The bound is infinite unless one-sided differences converge as those of a smooth
    function do, as they do not for x^1.5 at 0.
    """
    with np.errstate(all="ignore"):
        scale = np.exp2(np.round(np.log2(scales(sampler.probe)[rows])))
        steps = offset * scale * 0.5 ** np.arange(_SIDED)[:, None]
        ups, downs = (_slopes(sampler, rows, sign * steps) for sign in (1.0, -1.0))
        up, down = (np.isfinite(a[_SIDED // 2 :]).all(axis=0) for a in (ups, downs))
        slopes = np.where(up, ups, downs)
        once = 2 * slopes[1:] - slopes[:-1]
        twice = (4 * once[1:] - once[:-1]) / 3
        change = np.diff(slopes, axis=0)
        loud = 4 * noise / steps[1:]
        ratio = change[:-1] / change[1:]
        smooth = ((ratio >= _FALLS[0]) & (ratio <= _FALLS[1])) | (np.abs(change[:-1]) <= loud[:-1])
        error = (
            _MARGIN * np.abs(np.diff(twice, axis=0)) + 16 * noise / steps[3:] + 16 * UNIT_ROUNDOFF * np.abs(twice[1:])
        )
        error = np.where(smooth[1:] & smooth[:-1] & np.isfinite(error), error, np.inf)
        best = error.argmin(axis=0)[None]
        value = np.take_along_axis(twice[1:], best, axis=0)[0]
        bound = np.take_along_axis(error, best, axis=0)[0]
    return np.where(np.isfinite(bound), value, 0.0), bound, np.asarray(up ^ down)


def _slopes(sampler: Sampler, rows: Indices, steps: FloatArray) -> FloatArray:
    """Differences quotients `(K, R)` of one side, for steps `(K, R)`."""
    change, shift = sampler.shift(np.tile(rows, len(steps)), steps.ravel())
    return np.asarray((change / shift).reshape(steps.shape))
