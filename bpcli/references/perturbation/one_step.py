"""One-step sensitivities: changes of a step's losses and next states under changes of a value at that step.

Each step starts from the states that the network has there, so that all steps are rows of one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import FloatArray, Setup, Values
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Perturbed, static_values
from bpcli.runtime.copies import Copies, layout_of, reach
from bpcli.runtime.evaluation import node_values

Shifts = Mapping[int, NDArray[Any]]
"""By node, the changes (shifts,) of each of its numbers."""
MOST_ENTRIES = 1 << 20
"""Limit on the numbers held by the copies of a node."""


@dataclass(frozen=True, eq=False)
class StepChanges:
    """Results of changed numbers of one node, for the steps from `first` on.

    `losses (steps, batch, shifts, numbers)` are changes of losses, of complex copies their imaginary parts. `states`
    are those that differ, (shifts · numbers, steps, batch, size), with their place among the N of all states; they are
    views, valid until other steps are evaluated. `met (numbers, steps, batch)` marks kinks that were met.
    """

    steps: Steps
    first: int
    shape: tuple[int, int]
    losses: FloatArray | None
    states: Sequence[tuple[slice, Values]]
    met: NDArray[np.bool_] | None

    def of_states(self, first: int, last: int) -> Iterator[tuple[slice, FloatArray]]:
        """Changes (steps, batch, shifts, numbers, size) of the states that differ, of complex copies the imaginary
        parts, with their places, for the steps from `first` to `last`."""
        for own, values in self.states:
            some = values[:, first - self.first : last - self.first].transpose(1, 2, 0, 3)
            after = self.steps.after[first:last, :, None, own]
            change = some.imag - after.imag if some.dtype.kind == "c" else some - after
            yield own, change.reshape(*change.shape[:2], *self.shape, -1)


class Steps:
    """Single steps in which numbers of `nodes`, states before the step or values in it, are changed one at a time.

    U counts the numbers of `nodes`, N those of all states.
    """

    def __init__(self, perturbed: Perturbed, nodes: Sequence[int]) -> None:
        self.own, self.nodes = perturbed, tuple(nodes)
        self.setup, self.graph = perturbed.setup, perturbed.graph
        self.sizes = [self.graph.nodes[n].size for n in nodes]
        self.N = sum(self.graph.nodes[n].size for n in self.graph.previous.values())
        self._kept: dict[tuple[int, int], Copies] = {}

    @cached_property
    def _values(self) -> Mapping[int, Values]:
        """Values (T, batch, size) of the loss and of the changed nodes that are no states."""
        computed = {*self.nodes, self.graph.loss} - set(self.graph.previous.values())
        found = node_values(self.own.problem, sorted(computed))
        return {n: np.broadcast_to(v, (self.setup.T, self.setup.batch, v.shape[-1])) for n, v in found.items()}

    def value(self, node: int) -> Values:
        """Values (T, batch, size) of a node; of a state, those before each step."""
        return self.own.held[node][:-1] if node in self.own.held else self._values[node]

    @cached_property
    def losses(self) -> Values:
        """Unweighted losses (T, batch)."""
        return np.asarray(self._values[self.graph.loss][..., 0])

    @cached_property
    def after(self) -> Values:
        """States after each step, (T, batch, N)."""
        none = np.zeros((self.setup.T, self.setup.batch, 0), self.own.trace.V.dtype)
        return np.concatenate([none, *(self.own.held[n][1:] for n in self.graph.previous.values())], axis=2)

    def backwards(self, shifts: Shifts) -> Iterator[tuple[int, int, Iterable[StepChanges]]]:
        """Yield stretches of steps, their first and their end, from the last one back, with the results of all changed
        numbers in blocks.

        Where a node takes several blocks, a stretch is a single step, and each result is valid until the next one.
        """
        stretch, blocks = cut(self.setup, {n: len(some) for n, some in shifts.items()})
        for last in range(self.setup.T, 0, -stretch):
            first = max(0, last - stretch)
            # The last stretch overlaps steps that are done, so that all have one length.
            steps = slice(first, first + stretch)
            every = (self._changed(n, numbers, shifts[n], steps) for n, numbers in blocks)
            yield first, last, list(every) if len(blocks) == len(self.nodes) else every

    def _changed(self, node: int, numbers: NDArray[np.int64], deltas: NDArray[Any], steps: slice) -> StepChanges:
        """Change numbers of one node, each by all `deltas`."""
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
        return StepChanges(self, steps.start, shape[:2], losses, states, met)

    def _copies(self, node: int, count: int, steps: slice) -> Copies:
        """Copies with the inputs and states of some steps; cached, since a node has blocks of one or two sizes."""
        trace, setup = self.own.trace, self.setup
        shape = (1, (steps.stop - steps.start) * setup.batch, -1)
        inputs = {n: rows.reshape(setup.T, setup.batch, -1)[steps].reshape(shape) for n, rows in trace.inputs.items()}
        inputs |= {n: held[:-1][steps].reshape(shape) for n, held in self.own.held.items()}
        kept = self._kept.get((node, count))
        if kept is not None:
            kept.feed(inputs)
        else:
            layout = layout_of(setup, frozenset({node}), count, shape[1], 1, True)
            self._kept[node, count] = kept = Copies(layout, trace.V.dtype, inputs, static_values(self.own, layout))
        return kept


def cut(setup: Setup, shifts: Mapping[int, int]) -> tuple[int, list[tuple[int, NDArray[np.int64]]]]:
    """Steps per stretch, and blocks of the numbers of nodes that are shifted `shifts[node]` times each: one block per
    node, or several if the stretch is a single step."""
    sizes = {n: setup.graph.nodes[n].size for n in shifts}
    each = {n: count * setup.batch * reach(setup, frozenset({n}), True).entries(1, 1) for n, count in shifts.items()}
    stretch = max(1, min(setup.T, MOST_ENTRIES // max(each[n] * sizes[n] for n in shifts)))
    return stretch, [
        (n, some)
        for n, size in sizes.items()
        for some in np.array_split(np.arange(size), min(size, -(-size * each[n] * stretch // MOST_ENTRIES)))
    ]
