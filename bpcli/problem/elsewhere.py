"""Losses of perturbed copies: what is changed, and what is asked of somebody else who computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bpcli.problem.model import Tensor
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
    """Which losses: of copies with `tensor` changed, restricted to `windows`.

    `dtype`: float64, complex128, or TANGENT for losses of the tangent network.
    `kinked`: those that leave a kink of the problem have no derivative, as `Perturbed` says.
    """

    tensor: Tensor
    windows: tuple[Window, ...]
    dtype: str
    kinked: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """A block of copies over the windows of one `length`: copy c has `entries[c]` changed by `deltas[c]`.

    `flops` are what it takes, about. Where there is a `node`, the entries are those of its value at `step`, counted
    from the start of each window, instead of a tensor's; the length 0 stands for each step by itself.
    """

    length: int
    entries: NDArray[np.int64]
    deltas: Values
    flops: float
    node: int = -1
    step: int = 0


@dataclass(frozen=True, eq=False)
class Change:
    """What makes the copies of one block differ: entries of one tensor's array, a change for each.

    `met (copies,)` are the kinks that the static phase meets, as `Kinks` says; `node` and `step` as of `Piece`.
    """

    tensor: Tensor
    entries: NDArray[np.int64]
    deltas: Values
    met: FloatArray
    node: int = -1
    step: int = 0


class Elsewhere(Protocol):
    """Somebody with the same problem at hand."""

    def losses(self, asked: Asked, pieces: Sequence[Piece]) -> Iterable[Found]:
        """What `Perturbed.piece` gives for each of `pieces`, in order. Raises BpError where that can't be had."""
