"""Losses of perturbed copies of a problem: what finite differences and the complex step are made of."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Phase
from bpcli.kernels.copies import Copies, Layout
from bpcli.kernels.rows import BASE
from bpcli.kernels.trace import Trace
from bpcli.problem.cast import cast
from bpcli.problem.changes import add_impulse, change_parameter, enter, feed
from bpcli.problem.elsewhere import FAR_FLOPS, Asked, Change, FloatArray, Found, Piece, Values
from bpcli.problem.kinks import FREE, NONE, Kinks
from bpcli.problem.layouts import layout_of, plan_of, reach
from bpcli.problem.model import Problem, Tensor
from bpcli.problem.sums import changes_of, marked, total_of
from bpcli.problem.unrolled import Window, loss_weights, merged

BLOCK_ENTRIES = 1 << 18
"""Numbers that the copies of one block may take: some megabytes."""
_NOTHING = Tensor("", "param", ())


@dataclass(frozen=True)
class Spot:
    """Where a node's value is changed in windows of one `length`: `step` steps after their start, or, where the length
    is 0, at each step by itself whose loss counts. `times (windows,)` are the steps that this comes to."""

    length: int
    step: int
    times: tuple[int, ...]


class Perturbed:
    """Losses of perturbed copies, restricted to windows; `dtype` is float64 or complex128.

    A loss that meets one of the `kinks` has no derivative: its imaginary part is NaN, or all of it after a real step.
    """

    def __init__(self, problem: Problem, windows: Sequence[Window], dtype: np.dtype[Any], kinks: Kinks = NONE) -> None:
        self.problem, self.kinks = cast(problem, np.dtype(dtype)), kinks
        self.setup, self.graph, self.windows = problem.setup, problem.setup.graph, tuple(windows)
        self.elsewhere, self.label = problem.elsewhere, np.dtype(dtype).name
        self.weights = loss_weights(problem.setup)
        self.groups: dict[int, list[Window]] = defaultdict(list)
        for window in merged(windows):
            self.groups[window.stop - window.start].append(window)
        self.groups[0] = [Window(t, t, t + 1) for w in merged(windows) for t in range(w.loss_from, w.stop)]
        self.weighted: dict[int, tuple[NDArray[np.int64], FloatArray]] = {}
        self.kept: dict[Layout, Copies] = {}
        plan = plan_of(self.setup, self.setup.T)
        self.trace = Trace(plan, np.dtype(dtype), self.problem.arrays)
        self.trace.start()
        for first in range(0, self.setup.T, plan.extent.chunk):
            self.trace.forward(first, min(self.setup.T, first + plan.extent.chunk))
        self.met = FREE
        self.held = {node: self._held(node) for node in self.graph.previous.values()}

    def _held(self, node: int) -> Values:
        """A state before every step, (T + 1, batch, size)."""
        size, batch = self.graph.nodes[node].size, self.setup.batch
        values = self.trace.value(node, (self.setup.T + 1) * batch * size)
        return np.asarray(values.reshape(self.setup.T + 1, batch, size))

    def losses(self, tensor: Tensor, entries: NDArray[np.int64], deltas: Values) -> Values:
        """Losses (C, batch) of C copies; copy c has entry `entries[c]` of the tensor's array changed by `deltas[c]`.

        The weights of `over_time` and `over_batch` are included: the sum over the batch is the loss. For a parameter or
        a state shared by all samples entries are flat indices into its shape; for inputs (T, batch, *shape) and states
        (batch, *shape) they are flat indices into (T, *shape) and (*shape), and every sample is changed at once: no
        sample's loss depends on another's.
        """
        return self.followed(tensor, entries, deltas)[0]

    def followed(self, tensor: Tensor, entries: NDArray[np.int64], deltas: Values) -> tuple[Values, FloatArray]:
        """The same, and the kinks that were met, (C, batch): how many steps away, `FREE` where there are none."""
        losses = np.zeros((len(entries), self.setup.batch), self.trace.V.dtype)
        met = np.full(losses.shape, FREE)
        deltas = np.asarray(deltas, losses.dtype)
        work = list(self._pieces(tensor, entries, deltas))
        parts: Iterable[Found] = (self.piece(tensor, piece) for _, piece in work)
        if self.elsewhere is not None and sum(piece.flops for _, piece in work) >= FAR_FLOPS:
            asked = Asked(tensor, self.windows, self.label, self.kinks is not NONE)
            parts = self.elsewhere.losses(asked, [piece for _, piece in work])
        for (block, _), (part, far) in zip(work, parts, strict=True):
            losses[block] += part
            met[block] = np.maximum(met[block], far)
        return losses, met

    def spots(self, lasting: bool) -> list[Spot]:
        """Where a node is changed once in everything that windows see of it; what is not `lasting` moves no state."""
        if not lasting:
            return [Spot(0, 0, tuple(w.start for w in self.groups[0]))]
        lengths = [(length, windows) for length, windows in self.groups.items() if length]
        return [Spot(n, j, tuple(w.start + j for w in windows)) for n, windows in lengths for j in range(n)]

    def impulses(
        self, node: int, spots: Sequence[Spot], entries: NDArray[np.int64], deltas: Values
    ) -> Iterator[tuple[Values, Values, FloatArray]]:
        """What happens to the losses of C copies when copy c has entry `entries[c]` of the value of `node` changed by
        `deltas[c]`, at each of `spots` in turn, in all windows and samples at once.

        Changes (C, windows · batch) of each window's losses from there on, weighted as in `losses`; these losses as
        they are without it, (windows · batch,); and the kinks that were met, as of `followed`.
        """
        deltas = np.asarray(deltas, self.trace.V.dtype)
        work = [list(self._impulses(node, spot, entries, deltas)) for spot in spots]
        parts: Iterator[Found] = (self.piece(_NOTHING, piece) for pieces in work for piece in pieces)
        if self.elsewhere is not None and sum(piece.flops for pieces in work for piece in pieces) >= FAR_FLOPS:
            asked = Asked(_NOTHING, self.windows, self.label, self.kinks is not NONE)
            parts = iter(self.elsewhere.losses(asked, [piece for pieces in work for piece in pieces]))
        for pieces in work:
            found = [next(parts) for _ in pieces]
            changes, met = (np.concatenate([part[i][1:] for part in found]) for i in (0, 1))
            yield changes, found[0][0][0], met

    def piece(self, tensor: Tensor, piece: Piece) -> Found:
        """The losses (C, batch) of one piece of the work, and the kinks met; the same bits wherever it is done."""
        static = np.full(len(piece.entries), self.met)
        change = Change(tensor, piece.entries, piece.deltas, static, piece.node, piece.step)
        return self._run(change, piece.length)

    def moved(self, tensor: Tensor, change: Values) -> Perturbed:
        """The same windows, from the same states, with one whole array moved by `change (size,)`."""
        array = np.asarray(self.problem.array(tensor))
        moved = np.asarray(array.reshape(-1) + change, self.trace.V.dtype).reshape(array.shape)
        other = copy.copy(self)
        other.elsewhere, other.kept = None, {}  # these arrays are known here alone
        other.problem = self.problem.with_array(tensor, moved)
        other.trace = Trace(plan_of(self.setup, 1), self.trace.dtype, other.problem.arrays)
        other.met = self.kinks.met_static(lambda n: other.trace.value(n, self.graph.nodes[n].size))
        if tensor.kind == "state":
            node = self.graph.previous[tensor.name]
            start = np.broadcast_to(moved.reshape(-1, self.graph.nodes[node].size), self.held[node].shape[1:])
            other.held = {**self.held, node: np.concatenate([start[None], self.held[node][1:]])}
        return other

    def here(self) -> tuple[Values, FloatArray]:
        """Losses (batch,) of the arrays as they are, and the kinks that were met."""
        nothing = np.zeros(1, dtype=np.int64)
        losses, met = self.followed(_NOTHING, nothing, nothing)
        return losses[0], met[0]

    def _node(self, tensor: Tensor) -> int:
        group = self.graph.previous if tensor.kind == "state" else self.graph.leaf
        return group.get(tensor.name, -1)

    def _size(self, length: int) -> tuple[int, int]:
        """Rows and steps of the windows of one length."""
        return len(self.groups[length]) * self.setup.batch, max(1, length)

    def _pieces(self, tensor: Tensor, entries: NDArray[np.int64], deltas: Values) -> Iterator[tuple[slice, Piece]]:
        """The work, block by block of copies, for each length of windows."""
        for length in filter(None, self.groups):
            rows, steps = self._size(length)
            own = reach(self.setup, self._node(tensor))
            size = max(1, BLOCK_ENTRIES // max(1, own.entries(rows, steps)))
            for start in range(0, len(entries), size):
                block = slice(start, min(len(entries), start + size))
                flops = own.flops * rows * steps * (block.stop - start)
                yield block, Piece(length, entries[block], deltas[block], flops)

    def _impulses(self, node: int, spot: Spot, entries: NDArray[np.int64], deltas: Values) -> Iterator[Piece]:
        """The same for changes of a node's value; the first copy of each block is not changed."""
        rows, steps = self._size(spot.length)
        own = reach(self.setup, node)
        blocks = max(1, -(-len(entries) * own.entries(rows, steps) // BLOCK_ENTRIES))
        for some, by in zip(np.array_split(entries, blocks), np.array_split(deltas, blocks), strict=True):
            if len(some):
                some, by = (np.concatenate([np.zeros(1, a.dtype), a]) for a in (some, by))
                flops = own.flops * rows * (steps - spot.step) * len(some)
                yield Piece(spot.length, some, by, flops, node, spot.step)

    def _weighted(self, length: int) -> tuple[NDArray[np.int64], FloatArray]:
        """The steps (length, windows) of windows of one length, and the weights (length, rows) of the losses there."""
        if length not in self.weighted:
            windows = self.groups[length]
            steps = np.array([w.start for w in windows]) + np.arange(max(1, length))[:, None]
            counted = np.where(steps >= [w.loss_from for w in windows], 1.0, 0.0)
            self.weighted[length] = steps, (self.weights[steps] * counted[:, :, None]).reshape(len(steps), -1)
        return self.weighted[length]

    def _run(self, change: Change, length: int) -> tuple[Values, FloatArray]:
        """The losses (copies, batch) of one block over windows of equal length, and the kinks that were met."""
        leaf = self._node(change.tensor) if change.node < 0 else change.node
        layout = layout_of(self.setup, leaf, len(change.entries), *self._size(length))
        steps, weights = self._weighted(length)
        copies = self._copies(layout, change, steps)
        enter(self, copies, change, steps[change.step])
        met = self._go(copies, change, steps)
        losses = copies.losses(change.step, layout.steps)
        if change.node >= 0:
            total = changes_of(losses, weights[change.step :])
            return marked(total, met), met
        total = marked(total_of(losses, weights), met)
        shape = (layout.copies, -1, self.setup.batch)
        return np.asarray(total.reshape(shape).sum(axis=1)), np.asarray(met.reshape(shape).max(axis=1))

    def _go(self, copies: Copies, change: Change, steps: NDArray[np.int64]) -> FloatArray:
        """Run all steps, and find the kinks that are met (copies, rows).

        One step at a time where something has to be looked at, or fed, in between.
        """
        layout = copies.layout
        met = np.zeros((layout.copies, layout.rows)) + change.met[:, None]
        change_value = partial(add_impulse, copies, change) if change.node >= 0 else None
        if not self.kinks.steps and change.tensor.kind != "input":
            copies.run(change.step, layout.steps, change_value)
            return met
        earlier = set(self.graph.previous.values()) & set(self.kinks.steps)
        later = set(self.kinks.steps) - earlier
        for j in range(change.step, layout.steps):
            feed(self, copies, change, steps[j], j)
            # Before the step, which puts the new state in the place of the earlier one.
            met = np.maximum(met, self.kinks.met(copies, earlier, steps, j))
            copies.run(j, j + 1, change_value if j == change.step else None)
            met = np.maximum(met, self.kinks.met(copies, later, steps, j))
        return met

    def _copies(self, layout: Layout, change: Change, steps: NDArray[np.int64]) -> Copies:
        """The block's values, with the change made where it concerns a parameter."""
        if change.node >= 0 and layout in self.kept:
            return self.kept[layout]
        static = {
            n.index: self.trace.value(n.index, n.size)
            for n in self.graph.nodes
            if n.phase is Phase.STATIC and layout.places.table[n.index, BASE] >= 0
        }
        inputs = {}
        for node, rows in self.trace.inputs.items():
            inputs[node] = rows.reshape(self.setup.T, self.setup.batch, -1)[steps].reshape(
                layout.steps, layout.rows, -1
            )
        copies = Copies(layout, self.trace.V.dtype, inputs, static)
        if change.node >= 0:
            # Blocks of one spot come in two sizes, and the next spot's are the same.
            self.kept = {**dict([*self.kept.items()][-1:]), layout: copies}
        elif change.tensor.kind == "param" and layout.reach.leaf >= 0:
            change_parameter(self, copies, change)
        return copies
