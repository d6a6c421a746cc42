"""What a check found: one Finding per spec, method and tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["pass", "wrong", "inconclusive"]


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
    """An entry at a kink and its `value`: anything from `low` to `high`, the slopes on its sides, is right."""

    index: tuple[int, ...]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """The verdict on one tensor of one method on one spec.

    `checked` counts entries (or directions) compared. `kernel_error` is ‖g − ref‖ / ‖ref‖ against what the method is
    meant to compute, at a kink the distance from the nearest derivative over the largest; `bias` is ‖g − g*‖ / ‖g*‖
    against the true gradient and `cosine` the cosine with it: None where the truth was not computed or has norm zero,
    and where entries are at a `kink`, so that there is no one truth. None too where a reference knows nothing, and all
    three where a gradient that passes is rounding alone.
    `cause` is "" or a word such as "noise", "not finite". `blame` comes with a wrong verdict where it is known.
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
        """Whether it passes and is zero in every entry, as far as rounding can tell: nothing to be off from."""
        if self.verdict != "pass" or self.cause or self.kernel_error is not None or self.worst is None:
            return False
        return abs(self.worst.value) <= self.worst.bound < math.inf


def spoiled(found: Finding, cause: str) -> Finding:
    """Wrong for a `cause` that has nothing to do with its numbers; these are left out where they are right."""
    if found.verdict == "pass":
        found = replace(found, worst=None, kernel_error=None, bias=None, cosine=None, kink=None)
    return replace(found, verdict="wrong", cause=cause, blame=None)
