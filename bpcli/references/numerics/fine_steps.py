"""Differences over all steps down to the spacing of floats, for derivatives that only one side of a point or only tiny
steps can tell.

`confirms` is asked before a derivative from elsewhere is called wrong. Bounds of differences rest on measured noise,
and noise may depend on the step: where a loss is a sum of squares of almost nothing, or where steps span oscillations,
smaller steps tell another derivative than larger ones. The error in question must then stand out at the finest steps
that resolve it, and none that are finer may fail to for anything but noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bpcli.references.numerics.derivatives import NOISE_FACTOR, SMALL, Mask, differences
from bpcli.references.numerics.noise import UNIT_ROUNDOFF, loss_noise
from bpcli.references.numerics.probe import FIRST_STEP, FloatArray, Indices, Sampler, scales

RUNGS = 48
"""Halvings of the step, from the scale of the number on."""
EVALUATIONS = 4 * RUNGS
"""Evaluations of the loss for one number in `confirms`."""
_OFFSETS = (1.0, 1.09375)
# Extrapolations at neighbouring steps resolve an error of so many times their spread, and then miss by such a part.
_RESOLVED, _NEAR = 8.0, 0.25
# Steps at which noise is so many times less than what resolves an error ought to resolve it.
_QUIET = 32.0
# Finest steps that are compared with all, and the part of the largest change that may not come about within them.
_FINEST, _WILD = 7, 0.1
# An entry this small beside the scale of the steps may be on a scale of its own.
_TINY = 2.0**-16
# The smallest step in units of roundoff of the number.
_SPACING = 4.0


def confirms(sampler: Sampler, rows: Indices, known: FloatArray, error: FloatArray, level: float) -> tuple[Mask, Mask]:
    """Whether the finest steps that resolve an `error (R,)` in a derivative agree with `known (R,)`; and whether there
    are such steps. The probe's losses are summed: S is 1.

    None agree where the loss changes as much within the finest steps as within all: it oscillates within less, unless
    these changes are nothing beside the `level` of the loss.
    """
    with np.errstate(all="ignore"):
        size = np.abs(sampler.probe.points[rows]).max(axis=1)
        scale = np.exp2(np.round(np.log2(scales(sampler.probe)[rows])))
        agrees, resolved = _confirms(sampler, rows, known, error, level, scale)
        # Beside the edge of a domain an entry's own size may be the scale of the loss.
        small = np.flatnonzero((size > 0) & (size < _TINY * scale))
        if len(small):
            own = np.exp2(np.round(np.log2(size[small])))
            nearer, found = _confirms(sampler, rows[small], known[small], error[small], level, own)
            agrees[small] = np.where(found, nearer, agrees[small])
            resolved[small] |= found
    return agrees, resolved


def _confirms(
    sampler: Sampler, rows: Indices, known: FloatArray, error: FloatArray, level: float, scale: FloatArray
) -> tuple[Mask, Mask]:
    """`confirms` by steps from `scale (R,)` on."""
    found, steps, wild = _extrapolated(sampler, rows, level, scale)
    noise = loss_noise(replace(sampler, probe=sampler.probe.rows(rows)), FIRST_STEP * scale)[0]
    spread = np.maximum(NOISE_FACTOR * noise / steps[1:], found.max(axis=0) - found.min(axis=0))
    centre = found.mean(axis=0)
    clear = (spread[:-1] <= error / _RESOLVED) & (spread[1:] <= error / _RESOLVED)
    clear &= np.abs(centre[1:] - centre[:-1]) <= error / _RESOLVED
    clear = clear[:-1] & clear[1:]
    right = clear & (np.abs(centre[1:-1] - known) <= _NEAR * error)
    finest = np.where(clear.any(axis=0), len(clear) - 1 - clear[::-1].argmax(axis=0), 0)
    agrees = np.take_along_axis(right, finest[None], axis=0)[0]
    # Finer steps that noise leaves room for, and that do not resolve the error or tell something else, deny it.
    quiet = (NOISE_FACTOR * noise / steps[3:] <= error / (_RESOLVED * _QUIET)) & np.isfinite(spread[2:])
    other = (spread <= error / 2) & (np.abs(centre - known) > spread + _NEAR * error)
    rung = np.arange(len(spread))[:, None]
    denied = (quiet & ~clear & (rung[:-2] > finest)).any(axis=0) | (other & (rung > finest)).any(axis=0)
    return np.array(agrees & ~wild & ~denied), np.array(clear.any(axis=0))


def _extrapolated(
    sampler: Sampler, rows: Indices, level: float, scale: FloatArray
) -> tuple[FloatArray, FloatArray, Mask]:
    """R(h) = (4 D(h) - D(2h)) / 3, `(2, RUNGS - 1, R)`, at steps of two offsets, NaN below the spacing of floats; the
    steps `(RUNGS, R)`; and where the loss changes within the finest of them as much as within all."""
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
        changes.append(np.nan_to_num(largest * steps, nan=0.0, posinf=0.0))
    most, least = (np.where(m, changes, 0.0).max(axis=(0, 1)) for m in (known, fine))
    wild = (least > 0) & (least >= np.maximum(_WILD * most, SMALL * level))
    return np.stack(found), steps, np.asarray(wild)


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
