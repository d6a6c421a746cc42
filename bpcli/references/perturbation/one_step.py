"""What a change of a number at one step makes of that step: of its losses, and of the states after it.

Every step is taken by itself, from the states that the network has there, so that all steps are rows of one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.problem.definition import FloatArray, Setup, Values
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.runtime.copies import Copies, layout_of, reach
from bpcli.runtime.evaluation import node_values
from bpcli.tape.instructions import BASE

Shifts = Mapping[int, NDArray[Any]]
"""By how much the numbers of a node are changed, (shifts,)."""
MOST_ENTRIES = 1 << 20
"""Numbers that the copies of a node may take."""


@dataclass(frozen=True, eq=False)
class Changed:
    """What changes of numbers of one node make of the steps from `first` on: by how much losses change, (steps, batch,
    shifts, numbers), and states, those that differ, (shifts · numbers, steps, batch, size) with their place among the N
    of all states.

    `met (numbers, steps, batch)` tells where a kink was met. Of complex copies losses are imaginary parts. States are
    views, which hold until other steps are asked for.
    """

    steps: Steps
    first: int
    shape: tuple[int, int]
    losses: FloatArray | None
    states: Sequence[tuple[slice, Values]]
    met: NDArray[np.bool_] | None

    def worth(self, t: int, credit: FloatArray, weights: FloatArray) -> FloatArray:
        """By how much everything changes at a step, (batch, shifts, numbers, W, columns), where the states after it are
        worth `credit (batch, N, W, columns)` and, in the first two columns, its losses `weights (batch, W)`.

        Of complex copies the imaginary part. NaN where a kink is met, at the step or by what `credit` knows as NaN.
        """
        batch, N, windows, columns = credit.shape
        shape = (batch, *self.shape, windows, columns)
        # What met a kink concerns those alone that it moves.
        lost = np.isnan(credit[..., 0]).astype(float) if self.met is not None else None
        flat = credit.reshape(batch, N, windows * columns)
        flat = flat if lost is None else np.where(np.isnan(flat), 0.0, flat)
        worth, moved = np.zeros(shape), np.zeros((*shape[:3], windows), bool)
        for own, values in self.states:
            part, after = values[:, t - self.first].transpose(1, 0, 2), self.steps.after[t, :, None, own]
            part, after = (part.imag, after.imag) if part.dtype.kind == "c" else (part, after)
            # The products first: they need no copy of the states, and round as little as these do.
            worth += (part @ flat[:, own] - after @ flat[:, own]).reshape(shape)
            if lost is not None:
                moved |= ((part != 0).astype(float) @ lost[:, own] > 0).reshape(moved.shape)
        if self.losses is not None:
            worth[..., :2] += (self.losses[t - self.first, ..., None] * weights[:, None, None])[..., None]
        if self.met is not None:
            worth[moved | self.met[:, t - self.first].T[:, None, :, None]] = np.nan
        return worth


class Steps:
    """The numbers of some `nodes`, states before a step or computed in it, changed one at a time.

    U are the numbers of `nodes`, one after the other, N those of all states.
    """

    def __init__(self, perturbed: Perturbed, nodes: Sequence[int]) -> None:
        self.own, self.nodes = perturbed, tuple(nodes)
        self.setup, self.graph = perturbed.setup, perturbed.graph
        self.sizes = [self.graph.nodes[n].size for n in nodes]
        self.N = sum(self.graph.nodes[n].size for n in self.graph.previous.values())
        self._kept: dict[tuple[int, int], Copies] = {}

    @cached_property
    def _values(self) -> Mapping[int, Values]:
        """(T, batch, size) of what is changed and is no state, and of the loss."""
        computed = {*self.nodes, self.graph.loss} - set(self.graph.previous.values())
        found = node_values(self.own.problem, sorted(computed))
        return {n: np.broadcast_to(v, (self.setup.T, self.setup.batch, v.shape[-1])) for n, v in found.items()}

    def value(self, node: int) -> Values:
        """A node's values (T, batch, size), of a state those before each step."""
        return self.own.held[node][:-1] if node in self.own.held else self._values[node]

    @cached_property
    def losses(self) -> Values:
        """(T, batch), unweighted."""
        return np.asarray(self._values[self.graph.loss][..., 0])

    @cached_property
    def after(self) -> Values:
        """The states after each step, (T, batch, N)."""
        none = np.zeros((self.setup.T, self.setup.batch, 0), self.own.trace.V.dtype)
        return np.concatenate([none, *(self.own.held[n][1:] for n in self.graph.previous.values())], axis=2)

    def backwards(self, shifts: Shifts) -> Iterator[tuple[int, Iterator[Changed]]]:
        """The steps, from the last one, with what the numbers come to there, in turn, some at a time."""
        stretch, blocks = cut(self.setup, {n: len(some) for n, some in shifts.items()})
        for last in range(self.setup.T, 0, -stretch):
            first = max(0, last - stretch)
            # The first steps of all with some that are done, so that all stretches are of one length.
            steps = slice(first, first + stretch)
            every = (self._changed(n, numbers, shifts[n], steps) for n, numbers in blocks)
            if len(blocks) == len(self.nodes):
                held = list(every)
                yield from ((t, iter(held)) for t in range(last - 1, first - 1, -1))
            else:
                yield first, every

    def _changed(self, node: int, numbers: NDArray[np.int64], deltas: NDArray[Any], steps: slice) -> Changed:
        """Numbers of one node, each by all `deltas`."""
        graph = self.graph
        shape = (len(deltas), len(numbers), steps.stop - steps.start, self.setup.batch)
        copies = self._copies(node, shape[0] * shape[1], steps)
        rows, reached = copies.rows(node), copies.layout.reach.reached
        rows[:] = self.value(node)[steps].reshape(rows.shape[1:])
        rows[np.arange(len(rows)), :, np.tile(numbers, shape[0])] += np.repeat(deltas, shape[1])[:, None]
        copies.run(0, 1)
        losses = None
        if graph.loss in reached:
            losses = copies.values(graph.loss).reshape(shape).transpose(2, 3, 0, 1) - self.losses[steps, :, None, None]
            losses = losses.imag if losses.dtype.kind == "c" else losses
        ends = itertools.accumulate(graph.nodes[new].size for new in graph.new.values())
        states = [
            (slice(end - graph.nodes[new].size, end), copies.values(new).reshape(len(rows), *shape[2:], -1))
            for end, new in zip(ends, graph.new.values(), strict=True)
            if new in reached
        ]
        met = None
        if self.own.kinks.any:
            every = np.arange(steps.start, steps.stop)[None]
            met = (self.own.kinks.met(copies, self.own.kinks.steps, every, 0) > FREE).reshape(shape)[0]
        return Changed(self, steps.start, shape[:2], losses, states, met)

    def _copies(self, node: int, count: int, steps: slice) -> Copies:
        """With the inputs and states of some steps; kept, as blocks of a node are of a size or two."""
        trace, setup = self.own.trace, self.setup
        shape = (1, (steps.stop - steps.start) * setup.batch, -1)
        inputs = {n: rows.reshape(setup.T, setup.batch, -1)[steps].reshape(shape) for n, rows in trace.inputs.items()}
        inputs |= {n: held[:-1][steps].reshape(shape) for n, held in self.own.held.items()}
        kept = self._kept.get((node, count))
        if kept is not None:
            kept.feed(inputs)
        else:
            layout = layout_of(setup, frozenset({node}), count, shape[1], 1, True)
            static = {
                n.index: trace.value(n.index, n.size)
                for n in self.graph.nodes
                if n.phase is Phase.STATIC and layout.places.table[n.index, BASE] >= 0
            }
            self._kept[node, count] = kept = Copies(layout, trace.V.dtype, inputs, static)
        return kept


def cut(setup: Setup, shifts: Mapping[int, int]) -> tuple[int, list[tuple[int, NDArray[np.int64]]]]:
    """How many steps are taken at a time, and all numbers of nodes, each shifted so often, in blocks: one a node, or
    some for a single step."""
    sizes = {n: setup.graph.nodes[n].size for n in shifts}
    each = {n: count * setup.batch * reach(setup, frozenset({n}), True).entries(1, 1) for n, count in shifts.items()}
    stretch = max(1, min(setup.T, MOST_ENTRIES // max(each[n] * sizes[n] for n in shifts)))
    return stretch, [
        (n, some)
        for n, size in sizes.items()
        for some in np.array_split(np.arange(size), min(size, -(-size * each[n] * stretch // MOST_ENTRIES)))
    ]
