"""What a check found: one Finding per spec, method and tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "wrong", "inconclusive"]


@dataclass(frozen=True)
class Worst:
    """The entry (or direction: index None) with the largest z.

    `bound` is U_ref + U_g, z = |value - reference| / bound. At a kink, `reference` is the nearest derivative there.
    """

    index: tuple[int, ...] | None
    value: float
    reference: float
    bound: float
    z: float


@dataclass(frozen=True)
class Finding:
    """The verdict on one tensor of one method on one spec.

    `checked` counts entries (or directions) compared. `kernel_error` is ‖g − ref‖ / ‖ref‖ against what the method is
    meant to compute, at a kink the distance from the nearest derivative over the largest; `bias` is ‖g − g*‖ / ‖g*‖
    against the true gradient and `cosine` the cosine with it (None where the truth was not computed or has norm zero).
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
