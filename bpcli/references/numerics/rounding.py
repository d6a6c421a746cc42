"""How far rounding alone may take a correct derivative from the exact one."""

from __future__ import annotations

import numpy as np

from bpcli.references.numerics.probe import FloatArray

# Multiples of unit roundoff that a sum of absolute contributions may be off by; calibrated on correct gradients.
FACTOR = 64.0
_UNDERFLOWS = 1e3


def rounding(magnitude: FloatArray, dtype: np.dtype[np.floating]) -> FloatArray:
    """Bound on the rounding of a derivative whose contributions have the absolute sum `magnitude`, computed in `dtype`.

    Below the normal range a rounding is absolute; exactly nothing has none.
    """
    kind = np.finfo(dtype)
    unit_roundoff = float(kind.eps) / 2
    bound = FACTOR * unit_roundoff * magnitude + _UNDERFLOWS * float(kind.smallest_subnormal)
    return np.where(magnitude == 0, 0.0, bound)
