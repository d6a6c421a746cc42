"""Copies of a network side by side read nothing but what was written for them."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import FEED_FORWARD, RECURRENT, by_copies, small

from bpcli.runtime import copies


class Stale:
    """NumPy whose new arrays hold what is no number."""

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def empty(self, size: int, dtype: np.dtype) -> np.ndarray:
        return np.full(size, np.nan, dtype)


@pytest.mark.parametrize("shift", [1e-40j, 1e-5])
@pytest.mark.parametrize("name", [*RECURRENT, *FEED_FORWARD])
def test_copies_read_nothing_that_was_left(monkeypatch: pytest.MonkeyPatch, name: str, shift: complex) -> None:
    """Memory is not cleared: with NaNs there the losses have the same bits."""
    problem, method = small(name), "bptt" if name in RECURRENT else "backprop"
    first = by_copies(problem, method, shift)
    monkeypatch.setattr(copies, "np", Stale())
    second = by_copies(problem, method, shift)
    assert all(np.array_equal(values, second[tensor]) for tensor, values in first.items())
