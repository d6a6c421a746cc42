"""How much rounding a correct gradient may show: sums of absolute contributions, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpcli.problem.definition import Array, Problem, cast
from bpcli.runtime.reverse_mode import Window, unrolled

_DOUBLE = np.dtype(np.float64)


def magnitude(
    problem: Problem, windows: Sequence[Window], dtype: np.dtype[np.floating] = _DOUBLE, seed: float = 1.0
) -> dict[str, Array]:
    """For every tensor of the setup, in `dtype`, sums over all paths of |contribution| to each entry of the gradient.

    What a kernel's rounding may change is about unit roundoff times this. Slopes count with the rounding of their own
    evaluation, so saturated units are not taken for exact; a path that is exactly nothing counts as nothing. Losses
    count `seed` times. Infinity times nothing is NaN here, while gradients take it for nothing.
    """
    own = cast(problem, dtype)
    return unrolled(own.setup, tuple(windows)).gradient(own, rounding=True, seed=seed)[1]
