"""How much rounding a correct gradient may show: sums of absolute contributions, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpcli.problem.cast import cast
from bpcli.problem.model import Array, Problem
from bpcli.problem.unrolled import Window, unrolled


def magnitude(problem: Problem, windows: Sequence[Window]) -> dict[str, Array]:
    """For every tensor of the setup, float64, the sum over all paths of |contribution| to each entry of the gradient.

    What a kernel's rounding may change is about unit roundoff times this. Slopes count with the rounding of their own
    evaluation, so saturated units are not taken for exact; a path that is exactly nothing counts as nothing.
    """
    double = cast(problem, np.dtype(np.float64))
    return unrolled(double.setup, tuple(windows)).gradient(double, rounding=True)[1]
