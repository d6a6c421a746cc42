"""Entries of gradients in words."""

from __future__ import annotations

from bpcli.checking.findings import Finding, Kink

_DIGITS, _ALL_DIGITS = 6, 17


def worst_entry(finding: Finding) -> str:
    """Both values, and z; at a kink the slopes on its sides. "" where nothing was compared."""
    worst, kink = finding.worst, finding.kink
    if worst is None:
        return ""
    value, reference = apart(worst.value, worst.reference)
    right = f"should be {reference}"
    if kink is not None and (kink.index, kink.value) == (worst.index, worst.value):
        value, right = f"{worst.value:.6g}", f"should be {slopes(kink)}"
    return f"{finding.tensor}{place(worst.index, worst.direction)} = {value}, {right} (z = {worst.z:.2g})"


def kinked(tensor: str, kink: Kink) -> str:
    """A value at a kink, and what is as right."""
    return f"{tensor}{place(kink.index)} = {kink.value:.6g}, right is anything {slopes(kink)}"


def slopes(kink: Kink) -> str:
    """All that is right at a kink."""
    low, high = apart(kink.low, kink.high)
    return f"from {low} to {high}, the slopes at the sides of a kink"


def place(index: tuple[int, ...] | None, direction: int | None = None) -> str:
    """`[3, 1]`, nothing for a number, or the number of a direction, which is no entry."""
    if index is None:
        return f" along direction {direction}" if direction else " along a direction"
    return f"[{', '.join(map(str, index))}]" if index else ""


def apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart, six at least."""
    for digits in range(_DIGITS, _ALL_DIGITS):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return f"{one:.{_ALL_DIGITS}g}", f"{other:.{_ALL_DIGITS}g}"
