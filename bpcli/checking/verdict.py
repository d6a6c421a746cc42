"""The verdict on a gradient, entry by entry: pure functions of arrays of one shape.

z = |g - reference| / (U_ref + U_g), with U_ref the reference's error bound and U_g the rounding that a correct gradient
may show. Every comparison is written so that NaN fails it.

How far one gradient is from another.

What the verdicts on entries come to: one for the tensor, its worst entry, and where it is at a kink.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.findings import Kink, Verdict, Worst
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.numerics.rounding import FACTOR, unit_roundoff

Mask = NDArray[np.bool_]
Codes = NDArray[np.int8]

PASS, INCONCLUSIVE, WRONG = 0, 1, 2
VERDICTS: tuple[Verdict, ...] = ("pass", "inconclusive", "wrong")
CAUSES = ("", "not finite", "kink", "underflow", "noise", "no power", "references disagree", "overflow")
_CAUSE = {cause: code for code, cause in enumerate(CAUSES)}

# The relative error that differences alone must be able to see, in entries down to 1e-6 of the largest.
POWER = 1e-3
SMALL = 1e-6
# The part of the largest gradient of all that no bound may exceed where something passes.
TELLING = 0.1
# Below this multiple of the smallest normal number, intermediate products may have been flushed to zero.
_NEAR_UNDERFLOW = 1e3


@dataclass(frozen=True, eq=False)
class Entries:
    """One tensor's entries: verdict and cause as codes of `VERDICTS` and `CAUSES`, and what they were compared with.

    `suspect` marks the entries for which a second ladder of differences would be decisive and was not given. At a kink
    `low` and `high` are the one-sided derivatives; elsewhere both are the reference.
    """

    verdict: Codes
    cause: Codes
    value: FloatArray
    reference: FloatArray
    bound: FloatArray
    z: FloatArray
    suspect: Mask
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class References:
    """The estimates at hand: the complex step, differences, differences on other points."""

    complex_step: Estimate | None = None
    central: Estimate | None = None
    second: Estimate | None = None

    @property
    def judge(self) -> Estimate:
        """The sharpest estimate; what stands beside it where that knows nothing. ValueError without a reference."""
        one, other = self.complex_step, self.central
        if one is None or other is None:
            found = one or other
            if found is None:
                raise ValueError("a verdict needs a reference")
            return found
        return where(np.isfinite(one.bound), one, other)


@dataclass(frozen=True, eq=False)
class _Gap:
    """How a gradient stands to one reference: distances are from the nearest derivative where there is a kink.

    `unlike`: beyond these, where a program comes to that treats kinks unlike each other.
    """

    reference: FloatArray
    bound: FloatArray
    z: FloatArray
    within: Mask
    unlike: Mask

    @property
    def parts(self) -> tuple[FloatArray, FloatArray, FloatArray, Mask, Mask]:
        """All of it."""
        return self.reference, self.bound, self.z, self.within, self.unlike


def judge(value: FloatArray, references: References, rounding: FloatArray, dtype: np.dtype[np.floating]) -> Entries:
    """The verdict on each entry of a gradient `value` computed in `dtype`; all arrays have one shape.

    `rounding` is U_g: zero exactly where nothing contributes, infinite where correct kernels overflow, or NaN. Raises
    ValueError without a reference.
    """
    tiny = float(np.finfo(dtype).tiny)
    with np.errstate(all="ignore"):
        value = np.asarray(value, dtype=np.float64)
        found = _found(value, references, rounding, small(dtype))
        finite = np.isfinite(value)
        near = (found.verdict == WRONG) & (rounding > 0) & (np.abs(value - found.reference) <= _NEAR_UNDERFLOW * tiny)
        cases = (np.isposinf(rounding), ~finite, np.isnan(rounding), near)
        causes = [_CAUSE[name] for name in ("overflow", "not finite", "no power", "underflow")]
        verdict = np.select(cases, (INCONCLUSIVE, WRONG, INCONCLUSIVE, INCONCLUSIVE), found.verdict)
        cause = np.select(cases, causes, found.cause)
        z = np.where(finite, found.z, np.nan)
        return Entries(
            verdict.astype(np.int8),
            cause.astype(np.int8),
            value,
            found.reference,
            found.bound,
            z,
            found.suspect & ~np.any(cases, axis=0),
            found.low,
            found.high,
        )


def _found(value: FloatArray, references: References, rounding: FloatArray, part: float) -> Entries:
    """The complex step judges where it knows something, differences elsewhere."""
    exact = references.complex_step
    if exact is None:
        return _by_differences(value, references, rounding, part)
    found = _by_complex_step(value, exact, references, rounding)
    known = np.isfinite(exact.bound)
    if references.central is None or known.all():
        return found
    return merge(known, found, _by_differences(value, references, rounding, part))


def where(mask: Mask, one: Estimate, other: Estimate) -> Estimate:
    """`one` where `mask` says so, else `other`."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Estimate))
    return Estimate(*(np.where(mask, a, b) for a, b in pairs))


def merge(mask: Mask, one: Entries, other: Entries) -> Entries:
    """`one` where `mask` says so, else `other`."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Entries))
    return Entries(*(np.where(mask, a, b) for a, b in pairs))


def nearest(value: FloatArray, estimate: Estimate) -> FloatArray:
    """What `value` is compared with: the estimate, or at a kink the nearest of all derivatives there."""
    between = np.clip(value, estimate.value - estimate.kink, estimate.value + estimate.kink)
    return np.where((estimate.kink > 0) & ~np.isnan(value), between, estimate.value)


def _gap(value: FloatArray, estimate: Estimate, rounding: FloatArray) -> _Gap:
    # Exactly nothing has no rounding, and a difference of exactly nothing has no error, if there was one at all.
    nothing = (rounding == 0) & (estimate.value == 0) & np.isfinite(estimate.bound)
    bound = np.where(nothing, 0.0, estimate.bound + rounding)
    reference = nearest(value, estimate)
    error = np.abs(value - reference)
    z = np.where(error == 0, 0.0, error / bound)
    return _Gap(reference, bound, z, z <= 1, ~(z <= 1) & (error <= bound + estimate.beyond))


def _by_complex_step(value: FloatArray, exact: Estimate, references: References, rounding: FloatArray) -> Entries:
    """Where the program is analytic: the complex step judges, and a real difference stands beside it."""
    gap = _gap(value, exact, rounding)
    known = np.isfinite(exact.bound)
    accepts = gap.within & known
    verdict = np.where(accepts, PASS, np.where(known, WRONG, INCONCLUSIVE))
    cause = np.where(known, _CAUSE[""], _CAUSE["no power"])
    suspect = np.zeros(value.shape, dtype=np.bool_)
    if references.central is not None:
        contradicts = known & _contradicts(value, exact, references.central, rounding, accepts)
        if references.second is None:
            suspect = contradicts
        else:
            contradicts &= _contradicts(value, exact, references.second, rounding, accepts)
        verdict = np.where(contradicts, INCONCLUSIVE, verdict)
        cause = np.where(contradicts, _CAUSE["references disagree"], cause)
    codes = verdict.astype(np.int8), cause.astype(np.int8)
    return Entries(*codes, value, gap.reference, gap.bound, gap.z, suspect, exact.value, exact.value)


def _contradicts(value: FloatArray, exact: Estimate, real: Estimate, rounding: FloatArray, accepts: Mask) -> Mask:
    """Where the real difference rejects what the complex step accepts, or sides with a gradient that it rejects."""
    real_accepts = _gap(value, real, rounding).within
    agree = np.abs(exact.value - real.value) <= exact.bound + real.bound + real.kink
    return np.where(accepts, ~real_accepts, real_accepts & ~agree)


def small(dtype: np.dtype[np.floating]) -> float:
    """Entries below this part of the largest one are judged by its size: 1e-6, or what the dtype's rounding allows."""
    return max(SMALL, 8 * FACTOR * unit_roundoff(dtype) / POWER)


def _by_differences(value: FloatArray, references: References, rounding: FloatArray, part: float) -> Entries:
    """Black boxes and programs with kinks: differences judge, with power to pass and on two ladders to condemn."""
    central, second = references.central, references.second
    if central is None:
        raise ValueError("a verdict needs a reference")
    gap = _gap(value, central, rounding)
    size = np.abs(central.value) + central.kink
    power = gap.bound <= POWER * np.maximum(size, part * size.max())
    weak = np.where(central.noise > 0.5 * gap.bound, _CAUSE["noise"], _CAUSE["no power"])
    passes = gap.within & power
    cause = np.where(passes, np.where(central.kink > 0, _CAUSE["kink"], _CAUSE[""]), weak)
    verdict = np.where(passes, PASS, INCONCLUSIVE)
    rejected = ~gap.within
    unlike, suspect = gap.unlike, rejected & ~gap.unlike
    if second is not None:
        suspect = np.zeros(value.shape, dtype=np.bool_)
        other = _gap(value, second, rounding)
        unlike = rejected & ~other.within & (unlike | other.unlike)
        both = rejected & ~other.within
        verdict = np.where(both, WRONG, verdict)
        cause = np.where(rejected, np.where(both, _CAUSE[""], _CAUSE["references disagree"]), cause)
        # An oracle has its own choice at a kink: both are right.
        apart = np.abs(central.value - second.value)
        choice = rejected & other.within & (second.kink > 0) & (apart <= second.kink + central.bound + second.bound)
        verdict, cause = np.where(choice, PASS, verdict), np.where(choice, _CAUSE["kink"], cause)
        gap = _Gap(*(np.where(choice, a, b) for a, b in zip(other.parts, gap.parts, strict=True)))
        central = where(choice, second, central)
    verdict, cause = np.where(unlike, INCONCLUSIVE, verdict), np.where(unlike, _CAUSE["kink"], cause)
    codes = verdict.astype(np.int8), cause.astype(np.int8)
    sides = central.value - central.kink, central.value + central.kink
    return Entries(*codes, value, gap.reference, gap.bound, gap.z, suspect, *sides)


def powered(entries: Entries, scale: FloatArray | float, lost: FloatArray | float = 0.0) -> Entries:
    """The same, but nothing passes within a bound of the size of the largest gradient, `scale`: that tells nothing.

    A kink is told by the slopes on its sides. What underflow takes, `lost`, is the cause where it makes up the bound.
    """
    weak = (entries.verdict == PASS) & ~(entries.bound <= TELLING * scale) & (entries.cause != _CAUSE["kink"])
    verdict = np.where(weak, INCONCLUSIVE, entries.verdict).astype(np.int8)
    cause = np.where(weak, _CAUSE["no power"], entries.cause)
    little = (scale <= _NEAR_UNDERFLOW * float(np.finfo(np.float64).tiny)) | (lost > entries.bound / 4)
    little &= (verdict == INCONCLUSIVE) & np.isin(cause, [_CAUSE["no power"], _CAUSE["noise"]])
    return replace(entries, verdict=verdict, cause=np.where(little, _CAUSE["underflow"], cause).astype(np.int8))


def undecided(entries: Entries) -> Mask:
    """Entries that a sharper reference might decide."""
    causes = [_CAUSE[c] for c in ("noise", "no power", "references disagree")]
    return np.asarray((entries.verdict == INCONCLUSIVE) & np.isin(entries.cause, causes))


def settle(entries: Entries, right: Mask, wrong: Mask) -> Entries:
    """The verdict on what references leave open and the Taylor rate calls right or wrong, where z doesn't contradict.

    Only what a reference rejects is wrong: the rate is the second witness.
    """
    open_ = undecided(entries)
    passes, fails = open_ & right & (entries.z <= 1), open_ & wrong & (entries.z > 1)
    verdict = np.where(passes, PASS, np.where(fails, WRONG, entries.verdict)).astype(np.int8)
    cause = np.where(passes | fails, _CAUSE[""], entries.cause).astype(np.int8)
    return replace(entries, verdict=verdict, cause=cause)


def kernel_error(value: FloatArray, intended: Estimate) -> float | None:
    """Distance from the nearest derivative, relative to the largest: away from kinks there is only one.

    None where no derivative is known.
    """
    known = np.isfinite(intended.bound)
    if not known.any():
        return None
    off = _norm((value - nearest(value, intended))[known])
    size = _norm((np.abs(intended.value) + intended.kink)[known])
    if size > 0:
        return off / size
    return 0.0 if off == 0 else float("inf")


def relative_error(value: FloatArray, reference: FloatArray) -> float | None:
    """‖value − reference‖ / ‖reference‖ in the Euclidean norm; None where the reference is zero."""
    size = _norm(reference)
    return _norm(value - reference) / size if size > 0 else None


def cosine(value: FloatArray, reference: FloatArray) -> float | None:
    """Cosine of the angle between two gradients; None where one of them is zero or not finite."""
    sizes = _norm(value), _norm(reference)
    if not all(0 < size < np.inf for size in sizes):
        return None
    return float(np.dot(value.reshape(-1) / sizes[0], reference.reshape(-1) / sizes[1]))


def _norm(array: FloatArray) -> float:
    """Euclidean norm, scaled so that it neither overflows nor underflows."""
    largest = float(np.abs(array).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(array.reshape(-1) / largest))


def summarise(entries: Entries, places: NDArray[np.int64] | None = None) -> tuple[Verdict, str, Worst | None]:
    """The tensor's verdict, its cause and its worst entry; `places` are the flat indices of the entries that exist.

    One wrong entry makes a tensor wrong, one inconclusive entry keeps it from passing. The worst entry is the one with
    the largest z among those that decided.
    """
    if places is None:
        places = np.arange(entries.verdict.size)
    if not len(places):
        return "inconclusive", "nothing compared", None
    verdicts = entries.verdict.reshape(-1)[places]
    decided = int(verdicts.max())
    deciding = places[verdicts == decided]
    z = entries.z.reshape(-1)[deciding]
    worst = int(deciding[np.where(np.isnan(z), np.inf, z).argmax()])
    value, reference, bound = (float(a.reshape(-1)[worst]) for a in (entries.value, entries.reference, entries.bound))
    index = tuple(int(i) for i in np.unravel_index(worst, entries.verdict.shape))
    cause = CAUSES[int(entries.cause.reshape(-1)[worst])]
    if decided == PASS and (entries.cause.reshape(-1)[places] == CAUSES.index("kink")).any():
        cause = "kink"
    z_worst = float(entries.z.reshape(-1)[worst])
    return VERDICTS[decided], cause, Worst(index, value, reference, bound, z_worst)


def at_kink(entries: Entries, worst: Worst | None, places: NDArray[np.int64] | None = None) -> Kink | None:
    """The worst entry where it is at a kink, else the one with the widest interval of slopes; None where none is."""
    width = (entries.high - entries.low).reshape(-1)
    if places is None:
        places = np.arange(width.size)
    if worst is None or not (width[places] > 0).any():
        return None
    assert worst.index is not None
    here = int(np.ravel_multi_index(worst.index, entries.low.shape)) if worst.index else 0
    where = here if width[here] > 0 else int(places[width[places].argmax()])
    index = tuple(int(i) for i in np.unravel_index(where, entries.low.shape))
    return Kink(index, *(float(a.reshape(-1)[where]) for a in (entries.value, entries.low, entries.high)))


def as_direction(worst: Worst | None) -> Worst | None:
    """`worst` of directions, whose index is the number of one: it counts from 1 and is no entry's."""
    return worst and replace(worst, index=None, direction=worst.index[0] + 1 if worst.index else None)
