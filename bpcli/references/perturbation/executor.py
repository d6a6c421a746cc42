"""Losses of perturbed copies as work for a remote executor: the question, its pieces and the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import FloatArray, Values
from bpcli.runtime.reverse_mode import Window

FAR_FLOPS = 1e9
"""Work of so many operations is worth sending away: some tenths of a second."""

Found = tuple[Values, FloatArray]
"""Losses (C, batch) of copies, and the kinks they meet, as `Perturbed.followed` gives them."""


@dataclass(frozen=True)
class Asked:
    """Which losses: restricted to `windows`.

    `dtype`: float64 or complex128.
    `kinked`: those that leave a kink of the problem have no derivative, as `Perturbed` says.
    """

    windows: tuple[Window, ...]
    dtype: str
    kinked: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """A block of copies over the windows of one `length`: copy c has `entries[c]` of the array of the leaf `nodes[c]`
    changed by `deltas[c]`. A node of -1 is no change.

    `flops` are what it takes, about.
    """

    length: int
    nodes: NDArray[np.int64]
    entries: NDArray[np.int64]
    deltas: Values
    flops: float

    @cached_property
    def leaves(self) -> frozenset[int]:
        """The nodes that are changed."""
        return frozenset(self.nodes.tolist()) - {-1}


class Executor(Protocol):
    """A remote executor that holds the same problem."""

    def losses(self, asked: Asked, pieces: Sequence[Piece]) -> Iterable[Found]:
        """What `Perturbed.piece` gives for each of `pieces`, in order. Raises BpError where that can't be had."""
