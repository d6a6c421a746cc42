"""The results of a check, one Finding per spec, method and tensor, and how their numbers read in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["pass", "wrong", "inconclusive"]
_DIGITS, _ALL_DIGITS = 6, 17


@dataclass(frozen=True)
class Worst:
    """The entry with the largest z, or the direction: then `index` is None, and `direction` its number, from 1.

    `bound` is U_ref + U_g, z = |value - reference| / bound. At a kink, `reference` is the nearest derivative there.
    """

    index: tuple[int, ...] | None
    value: float
    reference: float
    bound: float
    z: float
    direction: int | None = None


@dataclass(frozen=True)
class Kink:
    """An entry at a kink and its `value`: anything between the one-sided derivatives, `low` and `high`, is right."""

    index: tuple[int, ...]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """The verdict on one tensor of one method on one spec.

    `checked` counts the entries (or directions) compared. `kernel_error` is ‖g − ref‖ / ‖ref‖ against the method's
    definition, at a kink the distance from the nearest derivative over the largest; `bias` is ‖g − g*‖ / ‖g*‖ against
    the true gradient g*, and `cosine` the cosine with it. Both are None where g* is unknown or zero, and at a `kink`,
    where g* is not unique. All three are None for a gradient that passes and is mere rounding.
    `cause` is "", or a word such as "noise" or "not finite". `blame` explains a wrong verdict where possible.
    """

    spec: str
    method: str
    tensor: str
    shape: tuple[int, ...]
    checked: int
    verdict: Verdict
    cause: str
    worst: Worst | None
    kernel_error: float | None
    bias: float | None
    cosine: float | None
    blame: dict[str, object] | None = None
    kink: Kink | None = None

    @property
    def vanishes(self) -> bool:
        """Whether it passes and every entry is zero to within rounding, so that no relative error exists."""
        if self.verdict != "pass" or self.cause or self.kernel_error is not None or self.worst is None:
            return False
        return abs(self.worst.value) <= self.worst.bound < math.inf


def not_compared(spec: str, method: str, tensor: str, cause: str, shape: tuple[int, ...] = ()) -> Finding:
    """A wrong finding without numbers, on a tensor or key that cannot be compared."""
    return Finding(spec, method, tensor, shape, 0, "wrong", cause, None, None, None, None)


def overrule(found: Finding, cause: str) -> Finding:
    """`found` made wrong for a `cause` other than its numbers, which are dropped if they were right."""
    if found.verdict == "pass":
        found = replace(found, worst=None, kernel_error=None, bias=None, cosine=None, kink=None)
    return replace(found, verdict="wrong", cause=cause, blame=None)


def worst_index(finding: Finding) -> list[int] | None:
    """The index of the worst entry; None where nothing, or directions alone, were compared."""
    return list(finding.worst.index) if finding.worst is not None and finding.worst.index is not None else None


def worst_entry(finding: Finding) -> str:
    """The worst value, the reference (at a kink, the one-sided derivatives) and z; "" where nothing was compared."""
    worst, kink = finding.worst, finding.kink
    if worst is None:
        return ""
    value, reference = distinct_digits(worst.value, worst.reference)
    right = f"should be {reference}"
    if kink is not None and (kink.index, kink.value) == (worst.index, worst.value):
        value, right = f"{worst.value:.6g}", f"should be {_one_sided(kink)}"
    return f"{finding.tensor}{position(worst.index, worst.direction)} = {value}, {right} (z = {worst.z:.2g})"


def kinked(tensor: str, kink: Kink) -> str:
    """A value at a kink and the interval of right values."""
    return f"{tensor}{position(kink.index)} = {kink.value:.6g}, any value {_one_sided(kink)}, is right"


def _one_sided(kink: Kink) -> str:
    low, high = distinct_digits(kink.low, kink.high)
    return f"between {low} and {high}, the one-sided derivatives at a kink"


def position(index: tuple[int, ...] | None, direction: int | None = None) -> str:
    """`[3, 1]` for an entry, "" for a scalar, or the number of a direction."""
    if index is None:
        return f" along direction {direction}" if direction else " along a direction"
    return f"[{', '.join(map(str, index))}]" if index else ""


def distinct_digits(one: float, other: float) -> tuple[str, str]:
    """Two numbers with enough digits to tell them apart, at least six."""
    for digits in range(_DIGITS, _ALL_DIGITS):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return f"{one:.{_ALL_DIGITS}g}", f"{other:.{_ALL_DIGITS}g}"
