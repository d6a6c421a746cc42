"""Verdicts as pure functions of arrays: on each entry of a gradient, and from these on the tensor.

z = |g - reference| / (U_ref + U_g), with U_ref the reference's error bound and U_g the rounding error of a correct
gradient. Every comparison is written so that NaN fails it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.findings import Kink, Verdict, Worst
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.numerics.rounding import FACTOR, unit_roundoff

Mask = NDArray[np.bool_]
Codes = NDArray[np.int8]

PASS, INCONCLUSIVE, WRONG = 0, 1, 2
VERDICTS: tuple[Verdict, ...] = ("pass", "inconclusive", "wrong")
WITHIN_TOLERANCE, FEW_DIGITS, EDGE, STEPS_DISAGREE, JUMP = (
    "within tolerance",
    "few digits",
    "edge of the domain",
    "steps disagree",
    "jump",
)
CAUSES = (
    "", "not finite", "kink", "underflow", "noise", "no power", "references disagree", "overflow",
    WITHIN_TOLERANCE, FEW_DIGITS, EDGE, STEPS_DISAGREE, JUMP,
)  # fmt: skip
# Causes of a tensor that passes, by which its entries pass for another reason than that all digits are right.
_OF_PASSING = (WITHIN_TOLERANCE, "kink", FEW_DIGITS)
# Causes of entries that agree with a reference which is not sharp enough.
_POWERLESS = ("noise", "no power", "underflow")
_CAUSE = {cause: code for code, cause in enumerate(CAUSES)}

# The relative error that differences alone must resolve, in entries down to 1e-6 of the largest.
POWER = 1e-3
SMALL = 1e-6
# The part of it that the rounding of an entry's terms may take.
_LITTLE = 0.1
# The largest bound with which an entry may pass, relative to the largest gradient of all tensors.
_TELLING = 0.1
# A difference that is so many times less than the rounding of a correct gradient knows that the derivative is zero.
_NOTHING = 1e-9
# Roundings of its terms that an entry may show which is zero by cancellation, where nothing else gives it a size.
_OF_TERMS = 1e3
# A larger bound on nothing is due to rounding, not to the range of floats.
_ROUNDING = 1e-100
# Below this multiple of the smallest normal number, intermediate products may have been flushed to zero.
_NEAR_UNDERFLOW = 1e3


@dataclass(frozen=True, eq=False)
class Entries:
    """The verdicts on one tensor's entries, as codes of `VERDICTS` and `CAUSES`, with the numbers compared.

    `suspect` marks the entries that need a second, independent step ladder, which was not given. `low` and `high` are
    the one-sided derivatives at a kink, elsewhere both are the reference.
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
    """Estimates by the complex step, by differences, and by differences on an independent step ladder."""

    complex_step: Estimate | None = None
    central: Estimate | None = None
    second: Estimate | None = None

    @property
    def judge(self) -> Estimate:
        """The complex step where its bound is finite, else differences. Raises ValueError without a reference."""
        one, other = self.complex_step, self.central
        if one is not None and other is not None:
            return select(np.isfinite(one.bound), one, other)
        found = one or other
        if found is None:
            raise ValueError("a verdict needs a reference")
        return found


@dataclass(frozen=True, eq=False)
class _Gap:
    """The distance of a gradient from one reference; at a kink, from the nearest derivative.

    `unlike` marks entries outside the bound that a program may reach by taking different slopes at different kinks.
    """

    reference: FloatArray
    bound: FloatArray
    z: FloatArray
    within: Mask
    unlike: Mask


T = TypeVar("T", Estimate, Entries, _Gap)


def select(mask: Mask, one: T, other: T) -> T:
    """`one` where `mask` is true, else `other`, in every field."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return type(one)(*(np.where(mask, a, b) for a, b in pairs))


def judge(value: FloatArray, references: References, rounding: FloatArray, dtype: np.dtype[np.floating]) -> Entries:
    """Judge each entry of a gradient `value` computed in `dtype`; all arrays have one shape.

    `rounding` is U_g: zero exactly where no term contributes, infinite where correct kernels overflow, NaN where it is
    unknown. Raises ValueError without a reference.
    """
    tiny = float(np.finfo(dtype).tiny)
    with np.errstate(all="ignore"):
        value = np.asarray(value, dtype=np.float64)
        found = _compared(value, references, rounding, small(dtype))
        finite = np.isfinite(value)
        near = (found.verdict == WRONG) & (rounding > 0) & (np.abs(value - found.reference) <= _NEAR_UNDERFLOW * tiny)
        cases = (np.isposinf(rounding), ~finite, np.isnan(rounding), near)
        causes = [_CAUSE[name] for name in ("overflow", "not finite", "no power", "underflow")]
        return replace(
            found,
            verdict=np.select(cases, (INCONCLUSIVE, WRONG, INCONCLUSIVE, INCONCLUSIVE), found.verdict).astype(np.int8),
            cause=np.select(cases, causes, found.cause).astype(np.int8),
            z=np.where(finite, found.z, np.nan),
            suspect=found.suspect & ~np.any(cases, axis=0),
        )


def _compared(value: FloatArray, references: References, rounding: FloatArray, part: float) -> Entries:
    """Judge by the complex step where its bound is finite, by differences elsewhere."""
    exact = references.complex_step
    if exact is None:
        return _by_differences(value, references, rounding, part)
    found = _by_complex_step(value, exact, references, rounding)
    known = np.isfinite(exact.bound)
    if references.central is None or known.all():
        return found
    return select(known, found, _by_differences(value, references, rounding, part))


def nearest(value: FloatArray, estimate: Estimate) -> FloatArray:
    """The derivative to compare `value` with; at a kink, the nearest in the interval of slopes there."""
    between = np.clip(value, estimate.value - estimate.kink, estimate.value + estimate.kink)
    return np.where((estimate.kink > 0) & ~np.isnan(value), between, estimate.value)


def _gap(value: FloatArray, estimate: Estimate, rounding: FloatArray) -> _Gap:
    # A gradient of exactly zero has no rounding error, and a finite difference of exactly zero has no error either.
    nothing = (rounding == 0) & (estimate.value == 0) & np.isfinite(estimate.bound)
    bound = np.where(nothing, 0.0, estimate.bound + rounding)
    reference = nearest(value, estimate)
    error = np.abs(value - reference)
    z = np.where(error == 0, 0.0, error / bound)
    return _Gap(reference, bound, z, z <= 1, ~(z <= 1) & (error <= bound + estimate.beyond))


def _by_complex_step(value: FloatArray, exact: Estimate, references: References, rounding: FloatArray) -> Entries:
    """Analytic programs: the complex step judges, and differences check it."""
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
    """Where the difference rejects a value that the complex step accepts, or supports one that it rejects."""
    real_accepts = _gap(value, real, rounding).within
    agree = np.abs(exact.value - real.value) <= exact.bound + real.bound + real.kink
    return np.where(accepts, ~real_accepts, real_accepts & ~agree)


def small(dtype: np.dtype[np.floating]) -> float:
    """The size, relative to the largest entry, below which entries are judged by an absolute tolerance.

    1e-6, or more where the rounding of `dtype` requires it.
    """
    return max(SMALL, 8 * FACTOR * unit_roundoff(dtype) / POWER)


def _by_differences(value: FloatArray, references: References, rounding: FloatArray, part: float) -> Entries:
    """Black boxes and programs with kinks: differences judge.

    `pass` needs a bound that resolves a relative error of `POWER`, `wrong` two independent step ladders that reject.
    """
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
        # The second reference may be an oracle, which takes a slope of its own at a kink: both are right.
        apart = np.abs(central.value - second.value)
        choice = rejected & other.within & (second.kink > 0) & (apart <= second.kink + central.bound + second.bound)
        verdict, cause = np.where(choice, PASS, verdict), np.where(choice, _CAUSE["kink"], cause)
        gap, central = select(choice, other, gap), select(choice, second, central)
    verdict, cause = np.where(unlike, INCONCLUSIVE, verdict), np.where(unlike, _CAUSE["kink"], cause)
    codes = verdict.astype(np.int8), cause.astype(np.int8)
    sides = central.value - central.kink, central.value + central.kink
    return Entries(*codes, value, gap.reference, gap.bound, gap.z, suspect, *sides)


def require_power(entries: Entries, scale: FloatArray | float, lost: FloatArray | float = 0.0) -> Entries:
    """Make inconclusive the entries that pass only because their bound is comparable to the largest gradient, `scale`.

    Entries at kinks are exempt: they were compared with one-sided derivatives. The cause is "underflow" where the error
    that underflow makes, `lost`, dominates the bound.
    """
    weak = (entries.verdict == PASS) & ~(entries.bound <= _TELLING * scale) & (entries.cause != _CAUSE["kink"])
    verdict = np.where(weak, INCONCLUSIVE, entries.verdict).astype(np.int8)
    cause = np.where(weak, _CAUSE["no power"], entries.cause)
    least = _NEAR_UNDERFLOW * float(np.finfo(np.float64).tiny)
    little = ((scale <= least) & ~(entries.bound > _ROUNDING)) | (lost > entries.bound / 4)
    little &= (verdict == INCONCLUSIVE) & np.isin(cause, [_CAUSE["no power"], _CAUSE["noise"]])
    return replace(entries, verdict=verdict, cause=np.where(little, _CAUSE["underflow"], cause).astype(np.int8))


@np.errstate(all="ignore")
def accept_zeros(
    entries: Entries,
    real: Estimate | None,
    known: tuple[FloatArray, FloatArray, FloatArray],
    scale: FloatArray | float,
    part: float,
) -> Entries:
    """Pass entries whose derivative is zero, where no size of entries tells whether their bound is a small one.

    `known` are the rounding of correct gradients, the part of it due to underflow, and one rounding of the terms of
    entries that cancel. `real` are differences, `scale` the largest gradient of all tensors, `part` as of `small`. If
    nothing at all has a gradient, and differences show none beside the rounding of a correct one, this may be that of
    its terms, if there are any. An entry of exactly zero passes, in a tensor of zeros, where the reference is zero
    within the smallest part of `scale` that counts.
    """
    if real is None:
        return entries
    rounding, lost, terms = known
    open_ = (entries.verdict == INCONCLUSIVE) & np.isin(entries.cause, [_CAUSE[c] for c in _POWERLESS])
    zero = (real.value == 0) & (real.kink == 0) & (entries.z <= 1)
    of_terms = (rounding <= _OF_TERMS * terms) | ((terms == 0) & (entries.value == 0))
    cancels = zero & (np.fmax(real.bound, lost) <= _NOTHING * rounding) & of_terms & ~(rounding <= _TELLING * scale)
    exact = zero & (entries.value == 0) & (real.bound + rounding <= POWER * part * scale)
    return with_verdict(entries, open_ & (cancels | exact), PASS, "")


def accept_other_orders(entries: Entries, terms: FloatArray) -> Entries:
    """Pass entries that are off by some roundings of their `terms` at most, where that is little beside the entry.

    A right program may add terms in another order: what cancels exactly in one rounds in the other.
    """
    allowed = entries.bound + FACTOR * terms
    rounded = np.abs(entries.value - entries.reference) <= allowed
    little = allowed <= _LITTLE * POWER * np.abs(entries.reference)
    return with_verdict(entries, (entries.verdict == WRONG) & rounded & little, PASS, "")


def undecided(entries: Entries) -> Mask:
    """The inconclusive entries that a sharper reference might decide."""
    causes = [_CAUSE[c] for c in ("noise", "no power", "references disagree")]
    return np.asarray((entries.verdict == INCONCLUSIVE) & np.isin(entries.cause, causes))


def settle(entries: Entries, right: Mask, wrong: Mask) -> Entries:
    """Decide entries that the references leave open and the Taylor rate calls right or wrong, where z agrees.

    An entry is wrong only if a reference rejects it too: `wrong` needs two independent tests.
    """
    open_ = undecided(entries)
    passes, fails = open_ & right & (entries.z <= 1), open_ & wrong & (entries.z > 1)
    verdict = np.where(passes, PASS, np.where(fails, WRONG, entries.verdict)).astype(np.int8)
    cause = np.where(passes | fails, _CAUSE[""], entries.cause).astype(np.int8)
    return replace(entries, verdict=verdict, cause=cause)


def accept(entries: Entries, within: FloatArray | float, cause: str) -> Entries:
    """Pass the entries that agree with a reference whose bound is `within` an absolute size, for a `cause`."""
    passes = undecided(entries) & (entries.z <= 1) & (entries.bound <= within)
    return with_verdict(entries, passes, PASS, cause)


def tolerate(entries: Entries, allowed: FloatArray | float, unsure: FloatArray | float = 0.0) -> Entries:
    """Pass the entries that are off by what the user has `allowed`, and leave open those that are off by `unsure`.

    Where a reference rejects an entry its error counts, where none can tell the error and the bound.
    """
    error = np.abs(entries.value - entries.reference)
    off = error + np.where(entries.verdict == INCONCLUSIVE, entries.bound, 0.0)
    within = off <= allowed
    entries = with_verdict(entries, (entries.verdict == WRONG) & ~within & (off <= unsure), INCONCLUSIVE, "no power")
    return with_verdict(entries, (entries.verdict != PASS) & within, PASS, WITHIN_TOLERANCE)


def tolerate_along(entries: Entries, tolerance: float, rows: FloatArray, largest: float) -> Entries:
    """`tolerate` along directions `rows (K, size)`, for a `tolerance` relative to the `largest` entry of the gradient.

    Errors of that size in all entries are taken to be independent; if they add up, entries have to tell.
    """
    allowed = tolerance * largest
    return tolerate(entries, allowed * np.sqrt((rows**2).sum(axis=1)), allowed * np.abs(rows).sum(axis=1))


def with_verdict(entries: Entries, mask: Mask, verdict: int, cause: str) -> Entries:
    """The entries in `mask` with another verdict and cause."""
    verdicts = np.where(mask, verdict, entries.verdict).astype(np.int8)
    return replace(entries, verdict=verdicts, cause=np.where(mask, _CAUSE[cause], entries.cause).astype(np.int8))


def kernel_error(value: FloatArray, intended: Estimate) -> float | None:
    """‖value − derivative‖ / ‖derivative‖, at kinks the nearest over the largest; None where no derivative is known."""
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
    """The cosine of the angle between two gradients; None where one of them is zero or not finite."""
    sizes = _norm(value), _norm(reference)
    if not all(0 < size < np.inf for size in sizes):
        return None
    return float(np.dot(value.reshape(-1) / sizes[0], reference.reshape(-1) / sizes[1]))


def _norm(array: FloatArray) -> float:
    """The Euclidean norm, scaled so that it neither overflows nor underflows."""
    largest = float(np.abs(array).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(array.reshape(-1) / largest))


def summarise(entries: Entries, places: NDArray[np.int64] | None = None) -> tuple[Verdict, str, Worst | None]:
    """Aggregate entry verdicts into the tensor's verdict, its cause and its worst entry.

    `places` are the flat indices of the entries that exist, None for all. One wrong entry makes a tensor wrong, one
    inconclusive entry keeps it from passing. The worst entry has the largest z among those with the tensor's verdict.
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
    if decided == PASS:
        passing = entries.cause.reshape(-1)[places]
        cause = next((word for word in _OF_PASSING if (passing == CAUSES.index(word)).any()), cause)
    z_worst = float(entries.z.reshape(-1)[worst])
    return VERDICTS[decided], cause, Worst(index, value, reference, bound, z_worst)


def at_kink(entries: Entries, worst: Worst | None, places: NDArray[np.int64] | None = None) -> Kink | None:
    """The worst entry if it is at a kink, else the one with the widest interval of slopes; None without kinks."""
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
    """`worst` with its index turned into the number of a direction, from 1."""
    return worst and replace(worst, index=None, direction=worst.index[0] + 1 if worst.index else None)
