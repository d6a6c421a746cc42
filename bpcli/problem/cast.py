"""A problem in another dtype."""

from __future__ import annotations

import dataclasses

import numpy as np

from bpcli.problem.model import Problem


def cast(problem: Problem, dtype: np.dtype) -> Problem:
    """The same problem with every array converted; widening is exact."""
    if problem.setup.dtype == dtype:
        return problem
    setup = dataclasses.replace(problem.setup, dtype=dtype)
    groups = ({name: x.astype(dtype) for name, x in g.items()} for g in problem.arrays)
    return Problem(setup, *groups)
