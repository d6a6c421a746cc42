"""Losses of perturbed copies of a problem, from which finite differences and complex steps are computed.

Copies differ by one entry of a parameter, an initial state or an input. They run in blocks that fit into cache; an
`Executor` may compute large blocks remotely.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.problem.definition import FloatArray, Problem, Tensor, Values, cast
from bpcli.references.perturbation.frozen import frozen
from bpcli.references.perturbation.kinks import FREE, NO_KINKS, Kinks, find_kinks
from bpcli.runtime.copies import Copies, Layout, layout_of, plan_of, reach
from bpcli.runtime.evaluation import total_of
from bpcli.runtime.jobs import EntryChanges, joined, rank_one_updates
from bpcli.runtime.reverse_mode import Window, loss_weights, merged
from bpcli.runtime.trace import Trace
from bpcli.tape.dependency import Reach
from bpcli.tape.instructions import BASE

FAR_FLOPS = 1e9
"""Least operations to send to an executor: some tenths of a second."""

BlockLosses = tuple[Values, FloatArray]
"""Losses (C, batch) of copies and the distances of the kinks they meet, see `Perturbed.losses_and_kinks`."""


@dataclass(frozen=True)
class LossRequest:
    """Arguments of a `Perturbed`: losses of `windows` in `dtype`, float64 or complex128.

    `kinked`: losses that meet a kink of the problem are NaN.
    """

    windows: tuple[Window, ...]
    dtype: str
    kinked: bool


@dataclass(frozen=True, eq=False)
class CopyBlock:
    """A block of copies over the windows of one `length`, of about `flops` operations.

    Copy c has entry `entries[c]` of the leaf `nodes[c]` changed by `deltas[c]`; a node of -1 means no change.
    """

    length: int
    nodes: NDArray[np.int64]
    entries: NDArray[np.int64]
    deltas: Values
    flops: float

    @cached_property
    def leaves(self) -> frozenset[int]:
        """The leaves that are changed."""
        return frozenset(self.nodes.tolist()) - {-1}


class Executor(Protocol):
    """A remote executor that holds the same problem."""

    def losses(self, asked: LossRequest, pieces: Sequence[CopyBlock]) -> Iterable[BlockLosses]:
        """Results of `Perturbed.block_losses` for `pieces`, in order. Raises BpError if they cannot be computed."""


def marked(total: Values, met: FloatArray) -> Values:
    """Set losses, or their imaginary parts, to NaN where a kink was met."""
    (total.imag if total.dtype.kind == "c" else total)[met > FREE] = np.nan
    return total


def change_parameters(own: Perturbed, copies: Copies, piece: CopyBlock, met: FloatArray) -> None:
    """Perturb the parameters of each copy: matrices by rank-one updates, vectors in place."""
    layout, changed = copies.layout, dict[int, list[EntryChanges]]()
    for leaf in dict.fromkeys(piece.nodes.tolist()):
        if leaf < 0 or own.graph.nodes[leaf].op != "param":
            continue
        index, shape = np.flatnonzero(piece.nodes == leaf), own.graph.nodes[leaf].shape
        entries, deltas = piece.entries[index], piece.deltas[index]
        static = {n for n in reach(own.setup, frozenset({leaf})).reached if own.graph.nodes[n].phase is Phase.STATIC}
        if static != {leaf}:
            _through_static(own, copies, leaf, (index, entries, deltas), changed, met)
        elif len(shape) == 2:
            changed.setdefault(leaf, []).append(EntryChanges(index, entries // shape[1], entries % shape[1], deltas))
        elif leaf in layout.reach.crossing:
            copies.block(leaf)[index, entries] += deltas
    updates = {n: joined(lists) for n, lists in changed.items()}
    copies.updates = rank_one_updates(len(own.graph.nodes), layout.copies, updates, copies.V.dtype)


def _through_static(
    own: Perturbed,
    copies: Copies,
    leaf: int,
    change: tuple[NDArray[np.int64], NDArray[np.int64], Values],
    changed: dict[int, list[EntryChanges]],
    met: FloatArray,
) -> None:
    """Run the static phase for each copy of `change`, (copies, entries, deltas); add differences of matrices that the
    time loop reads to `changed`, and store vectors in place."""
    layout, nodes = copies.layout, own.graph.nodes
    plain = layout_of(own.setup, frozenset(), 1, 1, 1)
    single = Copies(plain, copies.V.dtype, {}, static_values(own, plain))
    changing = single.block(leaf)[0]
    crossing = [(n, single.block(n)[0], own.trace.value(n, nodes[n].size)) for n in layout.reach.crossing]
    for c, entry, delta in zip(*change, strict=True):
        before = changing[entry]
        changing[entry] += delta
        single.static_run()
        met[c] = own.kinks.met_static(lambda n: single.block(n)[0])
        for n, found, base in crossing:
            if len(nodes[n].shape) == 2:
                where = np.flatnonzero(found != base)
                columns = nodes[n].shape[1]
                copy, delta = np.full(len(where), c), found[where] - base[where]
                changed.setdefault(n, []).append(EntryChanges(copy, where // columns, where % columns, delta))
            else:
                copies.block(n)[c] = found
        changing[entry] = before


def static_values(own: Perturbed, layout: Layout) -> dict[int, Values]:
    """Unperturbed values of the static nodes that have a place in a layout."""
    static = (n for n in own.graph.nodes if n.phase is Phase.STATIC and layout.places.table[n.index, BASE] >= 0)
    return {n.index: own.trace.value(n.index, n.size) for n in static}


def enter(own: Perturbed, copies: Copies, piece: CopyBlock, steps: NDArray[np.int64]) -> None:
    """Set the state before the first of `steps (length, windows)` in every row, perturbed where that is step 0."""
    layout, batch = copies.layout, own.setup.batch
    for node in own.graph.previous.values():
        rows = copies.rows(node)
        rows[:] = own.held[node][steps[0]].reshape(1, layout.rows, -1)
    for node in piece.leaves & set(own.graph.previous.values()):
        rows, index = copies.rows(node), np.flatnonzero(piece.nodes == node)
        for row in np.flatnonzero(np.repeat(steps[0] == 0, batch)):
            rows[index, row, piece.entries[index]] += piece.deltas[index]


def feed(own: Perturbed, copies: Copies, piece: CopyBlock, steps: NDArray[np.int64], j: int) -> None:
    """Set the perturbed inputs of one step."""
    for leaf in piece.leaves & set(copies.inputs):
        rows = copies.rows(leaf)
        rows[:] = copies.inputs[leaf][j]
        size, batch = rows.shape[2], own.setup.batch
        for w, t in enumerate(steps):
            hit = np.flatnonzero((piece.nodes == leaf) & (piece.entries // size == t))
            for b in range(w * batch, (w + 1) * batch):
                rows[hit, b, piece.entries[hit] % size] += piece.deltas[hit]


BLOCK_ENTRIES = 1 << 18
"""Limit on the numbers held by the copies of a block: some megabytes."""


@dataclass(frozen=True, eq=False)
class Perturbation:
    """One copy per entry: copy c has `entries[c]` of the tensor's array changed by `deltas[c]`."""

    tensor: Tensor
    entries: NDArray[np.int64]
    deltas: Values


UNPERTURBED = Perturbation(Tensor("", "param", ()), np.zeros(1, np.int64), np.zeros(1))
"""One copy without a change."""


class Perturbed:
    """Losses of perturbed copies, restricted to windows; `dtype` is float64 or complex128.

    A loss that meets one of the `kinks` is NaN after a real step, and has an imaginary part of NaN after an imaginary
    one. Large blocks go to the `executor`, if there is one.
    """

    def __init__(
        self,
        problem: Problem,
        windows: Sequence[Window],
        dtype: np.dtype[Any],
        kinks: Kinks = NO_KINKS,
        executor: Executor | None = None,
    ) -> None:
        complex_ = np.dtype(dtype).kind == "c"
        self.problem, self.kinks = cast(problem, np.dtype(dtype)) if complex_ else frozen(problem), kinks
        self.setup = problem.setup if complex_ else self.problem.setup
        self.graph, self.windows = self.setup.graph, tuple(windows)
        self.executor = executor
        self.weights = loss_weights(problem.setup)
        self.groups: dict[int, list[Window]] = defaultdict(list)
        for window in merged(windows):
            self.groups[window.stop - window.start].append(window)
        self.weighted: dict[int, tuple[NDArray[np.int64], FloatArray]] = {}
        plan = plan_of(self.setup, self.setup.T)
        self.trace = Trace(plan, np.dtype(dtype), self.problem.arrays)
        for _ in self.trace.chunks(self.setup.T):
            pass
        self.met = FREE
        self.held = {node: self._held(node) for node in self.graph.previous.values()}

    def _held(self, node: int) -> Values:
        """A state before every step, (T + 1, batch, size)."""
        size, batch = self.graph.nodes[node].size, self.setup.batch
        values = self.trace.value(node, (self.setup.T + 1) * batch * size)
        return np.asarray(values.reshape(self.setup.T + 1, batch, size))

    def losses(self, tensor: Tensor, entries: NDArray[np.int64], deltas: Values) -> Values:
        """Losses (C, batch) of C copies; copy c has `entries[c]` of the tensor's array changed by `deltas[c]`.

        The weights of `over_time` and `over_batch` are included: the sum over the batch is the loss. For a parameter or
        a state shared by all samples entries are flat indices into its shape; for inputs (T, batch, *shape) and states
        (batch, *shape) they are flat indices into (T, *shape) and (*shape), and every sample is changed at once: no
        sample's loss depends on another's.
        """
        return self.losses_and_kinks(tensor, entries, deltas)[0]

    def losses_and_kinks(self, tensor: Tensor, entries: NDArray[np.int64], deltas: Values) -> tuple[Values, FloatArray]:
        """The losses of `losses`, and the distance in steps of the kinks they meet, (C, batch); `FREE` for none."""
        return self.evaluate([Perturbation(tensor, entries, deltas)])[0]

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def evaluate(self, changes: Sequence[Perturbation]) -> list[tuple[Values, FloatArray]]:
        """`losses_and_kinks` of each of `changes`, batched."""
        nodes = np.concatenate([np.full(len(c.entries), self._node(c.tensor)) for c in changes])
        entries = np.concatenate([c.entries for c in changes])
        deltas = np.concatenate([np.asarray(c.deltas, self.trace.V.dtype) for c in changes])
        own = reach(self.setup, frozenset(self._node(c.tensor) for c in changes) - {-1})
        losses = np.zeros((len(entries), self.setup.batch), self.trace.V.dtype)
        met = np.full(losses.shape, FREE)
        work = list(self._blocks(own, nodes, entries, deltas))
        for (block, _), (part, far) in zip(work, self._found([piece for _, piece in work]), strict=True):
            losses[block] += part
            met[block] = np.maximum(met[block], far)
        ends = np.cumsum([len(c.entries) for c in changes])[:-1]
        return list(zip(np.split(losses, ends), np.split(met, ends), strict=True))

    def _found(self, pieces: Sequence[CopyBlock]) -> Iterable[BlockLosses]:
        """Results of the blocks, from the executor if there is one and the work is large enough."""
        if self.executor is not None and sum(piece.flops for piece in pieces) >= FAR_FLOPS:
            return self.executor.losses(
                LossRequest(self.windows, self.trace.V.dtype.name, self.kinks is not NO_KINKS), pieces
            )
        return (self.block_losses(piece) for piece in pieces)

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def with_shift(self, tensor: Tensor, change: Values) -> Perturbed:
        """The same windows, from the same states, with one whole array shifted by `change (size,)`."""
        array = np.asarray(self.problem.array(tensor))
        moved = np.asarray(array.reshape(-1) + change, self.trace.V.dtype).reshape(array.shape)
        other = copy.copy(self)
        other.executor = None  # which does not have these arrays
        other.problem = self.problem.with_array(tensor, moved)
        other.trace = Trace(plan_of(self.setup, 1), self.trace.dtype, other.problem.arrays)
        other.met = self.kinks.met_static(lambda n: other.trace.value(n, self.graph.nodes[n].size))
        if tensor.kind == "state":
            node = self.graph.previous[tensor.name]
            start = np.broadcast_to(moved.reshape(-1, self.graph.nodes[node].size), self.held[node].shape[1:])
            other.held = {**self.held, node: np.concatenate([start[None], self.held[node][1:]])}
        return other

    def unperturbed(self) -> tuple[Values, FloatArray]:
        """Losses (batch,) without a change, and the kinks that were met."""
        ((losses, met),) = self.evaluate([UNPERTURBED])
        return losses[0], met[0]

    def _node(self, tensor: Tensor) -> int:
        group = self.graph.previous if tensor.kind == "state" else self.graph.leaf
        return group.get(tensor.name, -1)

    def _blocks(
        self, own: Reach, nodes: NDArray[np.int64], entries: NDArray[np.int64], deltas: Values
    ) -> Iterator[tuple[slice, CopyBlock]]:
        """Divide copies into blocks that fit into cache; yields the copies' slice and the block."""
        for length, windows in self.groups.items():
            rows = len(windows) * self.setup.batch
            most = max(1, BLOCK_ENTRIES // max(1, own.entries(rows, length)))
            for start in range(0, len(entries), most):
                block = slice(start, min(len(entries), start + most))
                flops = own.flops * rows * length * (block.stop - start)
                yield block, CopyBlock(length, nodes[block], entries[block], deltas[block], flops)

    def _weighted(self, length: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Steps (length, windows) of the windows of one length, and the weights (length, rows) of their losses."""
        if length not in self.weighted:
            windows = self.groups[length]
            steps = np.array([w.start for w in windows]) + np.arange(length)[:, None]
            counted = np.where(steps >= [w.loss_from for w in windows], 1.0, 0.0)
            self.weighted[length] = steps, (self.weights[steps] * counted[:, :, None]).reshape(len(steps), -1)
        return self.weighted[length]

    def block_losses(self, piece: CopyBlock) -> BlockLosses:
        """Losses (C, batch) of one block, and the kinks met; bitwise equal in any process."""
        steps, weights = self._weighted(piece.length)
        layout = layout_of(self.setup, piece.leaves, len(piece.nodes), weights.shape[1], piece.length)
        static = np.full(layout.copies, self.met)
        copies = self._copies(layout, piece, steps, static)
        enter(self, copies, piece, steps)
        met = self._go(copies, piece, steps, static)
        total = marked(total_of(copies.losses(), weights), met)
        shape = (layout.copies, -1, self.setup.batch)
        return np.asarray(total.reshape(shape).sum(axis=1)), np.asarray(met.reshape(shape).max(axis=1))

    def _go(self, copies: Copies, piece: CopyBlock, steps: NDArray[np.int64], static: FloatArray) -> FloatArray:
        """Run all steps; returns the kinks that are met (copies, rows), including those of the `static` phase.

        Runs one step at a time if kinks have to be checked or inputs changed in between.
        """
        layout = copies.layout
        met = np.zeros((layout.copies, layout.rows)) + static[:, None]
        if not self.kinks.steps and not piece.leaves & set(copies.inputs):
            copies.run(0, layout.steps)
            return met
        earlier = set(self.graph.previous.values()) & set(self.kinks.steps)
        later = set(self.kinks.steps) - earlier
        for j in range(layout.steps):
            feed(self, copies, piece, steps[j], j)
            # Before the step, which puts the new state in the place of the earlier one.
            met = np.maximum(met, self.kinks.met(copies, earlier, steps, j))
            copies.run(j, j + 1)
            met = np.maximum(met, self.kinks.met(copies, later, steps, j))
        return met

    def _copies(self, layout: Layout, piece: CopyBlock, steps: NDArray[np.int64], met: FloatArray) -> Copies:
        """The copies of a block, with parameters perturbed; `met` collects kinks of the static phase."""
        every, shape = (self.setup.T, self.setup.batch, -1), (layout.steps, layout.rows, -1)
        inputs = {n: rows.reshape(every)[steps].reshape(shape) for n, rows in self.trace.inputs.items()}
        copies = Copies(layout, self.trace.V.dtype, inputs, static_values(self, layout))
        change_parameters(self, copies, piece, met)
        return copies


def perturbed_for(problem: Problem, asked: LossRequest) -> Perturbed:
    """The `Perturbed` of a request, for an executor that holds the same problem."""
    kinks = find_kinks(problem) if asked.kinked else NO_KINKS
    return Perturbed(problem, asked.windows, np.dtype(asked.dtype), kinks)
