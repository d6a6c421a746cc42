"""A problem in another dtype."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from bpcli.problem.model import Problem, Setup


def cast(problem: Problem, dtype: np.dtype) -> Problem:
    """The same problem with every array converted; widening is exact."""
    if problem.setup.dtype == dtype:
        return problem
    groups = ({name: x.astype(dtype) for name, x in g.items()} for g in problem.arrays)
    return Problem(_setup(problem.setup, dtype), *groups)


@lru_cache(maxsize=8)
def _setup(setup: Setup, dtype: np.dtype) -> Setup:
    """Kept, as what is planned for a setup is."""
    return dataclasses.replace(setup, dtype=dtype)
