"""How far one gradient is from another."""

from __future__ import annotations

import numpy as np

from bpcli.checking.verdict import nearest
from bpcli.references.base import Estimate, FloatArray


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
