"""Patterns of an error, recognised from the given gradient, the right one, and the tolerance `slack` between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.findings import distinct_digits
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import FACTOR

# The fraction of an error that an explanation may leave over.
LEFT = 1e-6
_SAME = 1e-9
PLAIN = {"-1": -1.0, "2": 2.0, "1/2": 0.5, "0": 0.0}
"""Ratios with a name of their own."""
# The fraction of entries that counts as nearly all, and the least median error over the standard deviation of rounding.
_NEARLY_ALL, _TYPICAL = 0.8, 1 / 30
_HALF_ULP = 2.0**-24  # the relative error of a number that was rounded to float32 once


def explained(given: FloatArray, right: FloatArray, slack: FloatArray, value: FloatArray) -> bool:
    """Whether `given` equals `value` to within the slack or a negligible part of its error."""
    finite = np.isfinite(given)
    if not np.array_equal(finite, np.isfinite(value)):
        return False
    left = LEFT * np.abs(given - right)[finite].max(initial=0.0)
    return bool((np.abs(given - value)[finite] <= slack[finite] + left).all())


def not_finite(given: FloatArray) -> str:
    """How many entries are not finite; "" if all are."""
    lost = int((~np.isfinite(given)).sum())
    return f"{lost} of {given.size} entries are not finite" if lost else ""


def factor_words(ratio: float, known: Mapping[str, float], sizes: Mapping[str, float]) -> str:
    """A factor by the names of all `known` numbers and `sizes` that it equals, else as a number.

    One of `PLAIN` needs no size of that value.
    """

    def equal(numbers: Mapping[str, float]) -> list[str]:
        return [word for word, value in numbers.items() if abs(ratio - value) <= _SAME * abs(value)]

    names = equal(known)
    names += [] if equal(PLAIN) else [word for word in equal(sizes) if word not in names]
    return " = ".join(names) or distinct_digits(ratio, 1.0)[0]


def proportional(given: FloatArray, right: FloatArray, slack: FloatArray, theta: FloatArray, name: str) -> str:
    """The factor by which the error is proportional to the array `theta`, called `name`; "" if it is not."""
    share = projection(given - right, theta) if theta.shape == given.shape else None
    if share is None or not explained(given, right, slack, right + share * theta):
        return ""
    return f"the error is {share:.6g} times {name} itself, as from a wrong weight decay"


def projection(given: FloatArray, on: FloatArray) -> float | None:
    """The least-squares coefficient of one array on another; None where it is undefined."""
    largest = float(np.abs(on).max(initial=0.0))
    if not 0 < largest < np.inf or not np.isfinite(given).all():
        return None
    unit = on / largest  # else the squares could overflow or underflow
    return float((given * unit).sum() / (unit * unit).sum()) / largest


def single_precision(given: FloatArray, right: FloatArray, slack: FloatArray, rounding: FloatArray) -> bool:
    """Whether the errors are those of arithmetic in float32, whose bound is `rounding` in each entry.

    Unless all entries are float32 numbers, nearly all must be off: a few may have a small error of another kind.
    """
    inexact, error = rounding > 0, np.abs(given - right)
    size, bound = error[inexact], rounding[inexact]
    if not size.size or not (error <= rounding + _HALF_ULP * np.abs(right) + slack).all():
        return False
    if _are_single(given) and not _are_single(right):
        return True
    nearly_all = (size > slack[inexact]).mean() >= _NEARLY_ALL
    return bool(nearly_all and np.median(size / bound) >= _TYPICAL / FACTOR)


def _are_single(numbers: FloatArray) -> bool:
    return bool((numbers.astype(np.float32) == numbers).all())


def extent(off: NDArray[np.bool_]) -> str:
    """The wrong entries in words: one, a block of rows, or their number."""
    if off.sum() == 1:
        return "a single entry is wrong"
    rows = np.flatnonzero(off.reshape(len(off), -1).any(axis=1)) if off.ndim else np.zeros(1, int)
    if off.ndim and len(rows) == 1:
        return f"row {rows[0]} alone is wrong"
    if off.ndim and len(rows) < len(off) and rows[-1] - rows[0] + 1 == len(rows):
        blocks = len(off) // len(rows) if len(off) % len(rows) == rows[0] % len(rows) == 0 else 0
        return f"rows {rows[0]} to {rows[-1]} alone are wrong" + (f", one of {blocks} equal blocks" if blocks else "")
    count = f"all {off.size}" if off.all() else f"{int(off.sum())} of {off.size}"
    return f"{count} entries are wrong; no known mistake fits"
