"""Losses of perturbed copies: what is changed, and what is asked of somebody else who computes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bpcli.problem.unrolled import Window

TANGENT = "tangent"
"""Of the tangent network (see `bpcli.problem.tangent`), as Asked.dtype."""
FAR_FLOPS = 1e9
"""Work of so many operations is worth sending away: some tenths of a second."""

Values = NDArray[Any]
"""float64 or complex128, as the copies are."""
FloatArray = NDArray[np.float64]
Found = tuple[Values, FloatArray]
"""Losses (C, batch) of copies, and the kinks they meet, as `Perturbed.followed` gives them, or changes of losses."""


@dataclass(frozen=True)
class Asked:
    """Which losses: restricted to `windows`.

    `dtype`: float64, complex128, or TANGENT for losses of the tangent network.
    `kinked`: those that leave a kink of the problem have no derivative, as `Perturbed` says.
    """

    windows: tuple[Window, ...]
    dtype: str
    kinked: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """A block of copies over the windows of one `length`: copy c has `entries[c]` of the value of the node `nodes[c]`
    changed by `deltas[c]`. A node of -1 is no change.

    `flops` are what it takes, about. Without `starts` nodes are leaves, whose arrays are changed. With `starts` it is
    one node that is computed, and each copy begins at a step of its own, where the change is made, counted from the
    start of each window, in ascending order; the first of those that begin together is not changed. The length 0 stands
    for each step by itself.
    """

    length: int
    nodes: NDArray[np.int64]
    entries: NDArray[np.int64]
    deltas: Values
    flops: float
    starts: NDArray[np.int64] | None = None

    @cached_property
    def leaves(self) -> frozenset[int]:
        """The nodes that are changed."""
        return frozenset(self.nodes.tolist()) - {-1}

    @cached_property
    def groups(self) -> Sequence[tuple[int, int, int]]:
        """Of copies that begin together the first one, the one after the last, and the step."""
        if self.starts is None:
            return [(0, len(self.nodes), 0)]
        firsts = [0, *(np.flatnonzero(np.diff(self.starts)) + 1).tolist(), len(self.starts)]
        return [(a, b, int(self.starts[a])) for a, b in itertools.pairwise(firsts)]


class Elsewhere(Protocol):
    """Somebody with the same problem at hand."""

    def losses(self, asked: Asked, pieces: Sequence[Piece]) -> Iterable[Found]:
        """What `Perturbed.piece` gives for each of `pieces`, in order. Raises BpError where that can't be had."""
