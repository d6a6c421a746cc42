"""One array for all numbers of a trace, and the views of it that every trace of a plan takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import memory
from bpcli.kernels.jit import BASE, EPOCH, INNER_ROW, STEP
from bpcli.kernels.stages import Stages, Stretch
from bpcli.tape.layout import WINDOW, Places

Array = NDArray[Any]
KEPT = 4
"""Stretches whose views are kept: of many, their own memory would be more than what they save in time."""


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
        self.params: Sequence[tuple[str, Array]] = [
            (name, self.V[stretch].reshape(shape[0], apart)[:, : shape[1]] if apart else self.V[stretch].reshape(shape))
            for name, stretch, shape, apart in stretches.params
        ]
        self.states: Sequence[tuple[str, Array]] = [
            (name, self.V[stretch].reshape(-1, size)) for name, stretch, size in stretches.states
        ]
        """Of each state the rows before the first step of the window."""
        self._stages, self._kept = stages, dict[Stretch, StretchViews]()
        self.lanes: Sequence[tuple[Array, Sequence[Array]]] = [
            (self.C[first], [self.C[other] for other in others]) for first, others in stretches.lanes
        ]
        """Shares of cotangents of static nodes: the first, where their sum ends up, and the others."""
        self.leaves: Sequence[tuple[int, Array | None, int]] = [
            (n, None if place is None else self.C[place], entries) for n, place, entries in stretches.leaves
        ]
        """Of each leaf's node the gradient, if it has one, and the entries of that."""

    def over(self, stretch: Stretch) -> StretchViews:
        """Those of a stretch of steps, which are kept."""
        if stretch not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[stretch] = StretchViews(self, self._stages, stretch)
        return self._kept[stretch]


class StretchViews:
    """Views of what a stretch of steps reads and writes."""

    def __init__(self, views: Views, stages: Stages, stretch: Stretch) -> None:
        first, last, _ = stretch
        stretches, plan, batch = stages.stretches, stages.plan, stages.plan.extent.batch
        steps, loss = last - first, plan.graph.nodes[plan.graph.loss]
        rows = steps * batch
        self.inputs: Sequence[tuple[int, Array, int, int]] = [
            (n, views.V[base : base + rows * size].reshape(rows, size), first * batch, last * batch)
            for n, _, base, size in stretches.inputs
        ]
        """Of each input its node, its rows, and which of all rows they are."""
        self.losses: Array | None = None
        """Losses (steps, batch) and"""
        self.seeds: Array | None = None
        """their cotangents; None where the loss is the same at all steps."""
        if loss.phase is not Phase.STATIC:
            apart = int(plan.values.table[loss.index, INNER_ROW])
            values = views.V[_first(plan.values, loss.index, stretch) :][: rows * apart]
            self.losses = values[::apart].reshape(steps, batch)
            if loss.index in plan.reverse.touched:
                start = _first(plan.cotangents, loss.index, stretch)
                self.seeds = views.C[start : start + rows].reshape(steps, batch)
        self.carried: Sequence[tuple[Array, Array, Array]] = [
            (views.C[base + steps * size :][:size], views.C[base:][:size], views.C[base:][: steps * size])
            for base, size in stretches.carried
        ]
        """Of each state its cotangents after the last step, before the first one of the chunk, and before each step."""


def _first(places: Places, node: int, stretch: Stretch) -> int:
    """Where a node's rows of the first step of a chunk begin."""
    first, _, origin = stretch
    line = places.table[node].tolist()
    return int(line[BASE] + (first - origin) * line[STEP] if line[EPOCH] == WINDOW else line[BASE])


def views_of(stages: Stages, dtype: np.dtype, room: int) -> Views:
    """Those that a trace before this has left, or new ones; the numbers may be anything."""
    return memory.borrow((stages, room)) or Views(stages, dtype, room)


def leave(views: Views) -> None:
    """Let the next trace have them, or their memory; nobody reads or writes any part of it from now on."""
    if views.bytes <= memory.MOST_READY:
        memory.leave(views.key, views)
    else:
        memory.give_back(views.V)
