"""One array for all numbers of a trace, and the views of it that every trace of a plan takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import memory
from bpcli.kernels.stages import Stages

Array = NDArray[Any]


class Views:
    """Values V, cotangents C, factors F, and `room` for so many more numbers, in one array at `address`."""

    def __init__(self, stages: Stages, dtype: np.dtype, room: int) -> None:
        numbers, self.address = memory.lend(stages.entries + room, dtype)
        plan, stretches = stages.plan, stages.stretches
        self.key, self.bytes = (stages, room), numbers.nbytes
        self.V = numbers[: plan.values.size]
        self.C = numbers[stages.cotangents :][: plan.cotangents.size]
        self.F = numbers[stages.factors :][: plan.values.size]
        self.room = numbers[stages.entries :]
        self.sums: Sequence[Array] = [self.C[stretch] for stretch in stretches.sums]
        """Cotangents that have to be cleared."""
        self.params: Sequence[tuple[str, Array]] = [(name, self.V[stretch]) for name, stretch in stretches.params]
        self.states: Sequence[tuple[str, Array]] = [
            (name, self.V[stretch].reshape(-1, size)) for name, stretch, size in stretches.states
        ]
        """Of each state the rows before the first step of the window."""
        self.lanes: Sequence[tuple[Array, Sequence[Array]]] = [
            (self.C[first], [self.C[other] for other in others]) for first, others in stretches.lanes
        ]
        """Shares of cotangents of static nodes: the first, where their sum ends up, and the others."""
        self.leaves: Sequence[tuple[int, Array | None, int]] = [
            (n, None if place is None else self.C[place], entries) for n, place, entries in stretches.leaves
        ]
        """Of each leaf's node the gradient, if it has one, and the entries of that."""


def views_of(stages: Stages, dtype: np.dtype, room: int) -> Views:
    """Those that a trace before this has left, or new ones; the numbers may be anything."""
    return memory.borrow((stages, room)) or Views(stages, dtype, room)


def leave(views: Views) -> None:
    """Let the next trace have them, or their memory; nobody reads or writes any part of it from now on."""
    if views.bytes <= memory.MOST_READY:
        memory.leave(views.key, views)
    else:
        memory.give_back(views.V)
