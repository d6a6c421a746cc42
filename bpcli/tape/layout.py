"""Layout: the places of every node's value and cotangent, from sizes alone, before anything is allocated.

What is read later is held for the window or the chunk of steps that reads it; the rest shares the storage of one step.
A matrix that several rows are multiplied with gets packed copies, one that single vectors are multiplied with may get
gaps between its rows. `bpcli.tape.instructions` has the fields of a table of places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.tape.instructions import (
    ADDEND,
    APART,
    BASE,
    EPOCH,
    LEAST_MATRIX,
    MATMUL,
    MODE_B,
    MOST_COLUMNS,
    NONE,
    OP,
    OUT,
    PACKED,
    PACKED_T,
    PLACE_FIELDS,
    SIZE,
    SIZE_B,
    STEP,
    TURNED,
    VECTORS,
    ZERO,
    A,
    Alias,
    B,
    Forward,
    Integers,
    Reverse,
)
from bpcli.tape.lowering import LEAVES, SLOTS

_WIDEST = VECTORS * 64 // 4
"""Columns of the widest tile of any processor, so that sizes are the same on all of them."""
GAP, GAP_COLUMNS = 16, 512
"""Entries between the rows of a matrix whose columns are a multiple of this many. Without gaps, entries of a column are
pages apart and a cache keeps few of them; with gaps it can keep half of the columns that a thread works on."""
ALIGN = 16
"""Entries to which storage is aligned: two cache lines of float64."""
LANE_ENTRIES, LANES_ENTRIES = 1 << 14, 1 << 18
"""Most entries of a matrix of whose gradient every shard has its own share, and of all shares together. Reading what
another core has written takes as long as some ten multiplications, and a larger matrix has more of these."""
CHUNK, WINDOW = 1, 2
"""Epochs: steps count from the first one of the chunk, or of the window."""
FARTHEST = 1 << 61
"""Largest offset, beyond any memory: a layout that reaches it is asked for its size alone, and never filled."""


def packed_entries(k: int, n: int) -> int:
    """Most entries that a packed matrix (k, n) takes, in any dtype."""
    return -(-n // _WIDEST) * _WIDEST * k


def packed_shape(shape: tuple[int, ...], field: int) -> tuple[int, ...]:
    """The shape (k, n) of a matrix as it is packed at PACKED, or transposed at PACKED_T."""
    return shape if field == PACKED else shape[::-1]


def packed_copies(code: Integers) -> set[tuple[int, int]]:
    """The matrices that instructions multiply rows with, each with the field of the packed copy they read."""
    return {(int(row[A]), PACKED if row[TURNED] else PACKED_T) for row in code if row[OP] == MATMUL}


def without_packed(places: Integers, dtype: np.dtype) -> Integers:
    """`places` as kernels of a dtype use them: complex products read no packed copies."""
    if dtype.kind != "c":
        return places
    plain = places.copy()
    plain[:, [PACKED, PACKED_T]] = -1
    return plain


def _packed(forward: Forward, reverse: Reverse, extent: Extent) -> set[tuple[int, int]]:
    """The matrices that the time loop multiplies several rows with, each with the field of the copy it reads."""
    first, last = (Phase.INPUT, Phase.OUTPUT) if extent.stepwise else (Phase.RECURRENT, Phase.RECURRENT)
    if extent.batch == 1 and not extent.apart:
        return set()
    there = forward.code[forward.bounds[first] : forward.bounds[last + 1] if extent.batch > 1 else 0]
    back = reverse.code[reverse.bounds[3 - last] : reverse.bounds[4 - first]]
    found = packed_copies(there)
    found |= {(int(r[A]), PACKED_T if r[TURNED] else PACKED) for r in back if r[OP] == MATMUL and r[MODE_B] != NONE}
    return {(n, field) for n, field in found if n not in forward.alias}


def _with_gaps(graph: Graph, forward: Forward, reverse: Reverse) -> set[int]:
    """Parameters with gaps between their rows: large, and used only in products with one vector at a time."""
    recurrent = forward.code[forward.bounds[Phase.RECURRENT] : forward.bounds[Phase.RECURRENT + 1]]
    found = {int(row[A]) for row in recurrent if row[OP] == MATMUL and row[SIZE] * row[SIZE_B] >= LEAST_MATRIX}
    for row in (*forward.code, *reverse.code[reverse.code[:, OP] != ZERO]):
        found -= {int(row[slot]) for slot in ((B, ADDEND, OUT) if row[OP] == MATMUL else (A, B, ADDEND, OUT))}
    owners = {alias.owner for alias in forward.alias.values()} | set(forward.alias)
    nodes = (graph.nodes[n] for n in found - owners)
    return {n.index for n in nodes if n.op == "param" and n.shape[1] % GAP_COLUMNS == 0}


@dataclass(frozen=True, eq=False)
class Places:
    """A table of places, (nodes, PLACE_FIELDS), and the entries that they take in all (`size`)."""

    table: Integers
    size: int


class Allocator:
    """Hands out aligned ranges of one flat array, and writes the table of places."""

    def __init__(self, nodes: int) -> None:
        self.table = np.zeros((nodes, PLACE_FIELDS), dtype=np.int64)
        self.table[:, [BASE, PACKED, PACKED_T]] = -1
        self.size = 0

    def take(self, entries: int) -> int:
        """The offset of a new range."""
        base = self.size
        self.size += -(-entries // ALIGN) * ALIGN
        return base

    def place(self, node: int, base: int, strides: tuple[int, int, int, int] = (0, 0, 0, 0), epoch: int = 0) -> None:
        """Write one line up to its epoch; `strides` are step, outer, inner, lane."""
        self.table[node, : EPOCH + 1] = [min(entries, FARTHEST) for entries in (base, *strides, epoch)]

    def pack(self, node: Node, field: int) -> None:
        """Storage for a packed copy of a matrix: `field` is PACKED or PACKED_T."""
        self.table[node.index, field] = min(self.take(packed_entries(*packed_shape(node.shape, field))), FARTHEST)

    def space(self, node: Node) -> None:
        """Storage for a matrix with gaps between its rows."""
        rows, columns = node.shape
        self.place(node.index, self.take(rows * (columns + GAP)))
        self.table[node.index, APART] = columns + GAP

    def rows(self, node: Node, steps: int, batch: int, epoch: int) -> None:
        """Storage for one row a step and sample; at epoch 0 every step uses that of the first."""
        step = node.size * batch if epoch else 0
        self.place(node.index, self.take(steps * batch * node.size), (step, 0, node.size, 0), epoch)

    def finish(self, alias: Mapping[int, Alias]) -> Places:
        """Give aliases the places of their owners; the finished table."""
        for node, target in alias.items():
            if self.table[target.owner, BASE] >= 0:
                self.table[node, : EPOCH + 1] = self.table[target.owner, : EPOCH + 1]
                self.table[node, BASE] += target.shift
        return Places(self.table, self.size)


@dataclass(frozen=True)
class Extent:
    """Sizes of a trace: steps held (`window`) and worked on at a time (`chunk`), samples, and accumulators (`lanes`).

    `stepwise`: each shard runs all phases of a step together, while its rows are in cache and without waiting for
    others. With few samples a step has too few rows for fast products; then a phase runs many steps at once. `apart`:
    the reverse pass takes all steps at once, each by itself: a state's cotangents before and after a step have separate
    places, and whoever runs the pass adds what connects the steps.
    """

    window: int
    chunk: int
    batch: int
    lanes: int
    stepwise: bool
    apart: bool = False


def value_places(graph: Graph, forward: Forward, reverse: Reverse, reads: Collection[int], extent: Extent) -> Places:
    """Places of values: what the reverse program and others (`reads`) read lasts for the window, the rest for less."""
    allocator = Allocator(len(graph.nodes))
    held = {owner(forward.alias, n) for n in reverse.reads | set(reads)}
    gaps = _with_gaps(graph, forward, reverse) if extent.batch == 1 and not extent.apart else set()
    lasting = {owner(forward.alias, graph.loss)} | {n.index for n in graph.nodes if n.op == "input"}
    if not extent.stepwise:
        output = forward.code[forward.bounds[Phase.OUTPUT] :, [A, B, ADDEND]]
        lasting |= {owner(forward.alias, n) for n in output[output >= 0].tolist()}
    _place_states(graph, allocator, extent.window, extent.batch, WINDOW)
    states = {*graph.previous.values(), *graph.new.values()}
    written = set(forward.code[:, OUT].tolist())
    for node in graph.nodes:
        if node.index in forward.alias or node.index in states or not (node.op in LEAVES or node.index in written):
            continue
        if node.index in gaps:
            allocator.space(node)
        elif node.phase is Phase.STATIC:
            allocator.place(node.index, allocator.take(node.size))
        else:
            chunk = node.index in lasting or (node.phase is not Phase.RECURRENT and not extent.stepwise)
            _place_rows(node, allocator, extent, node.index in held and node.op != "input", chunk)
    for n, field in sorted(_packed(forward, reverse, extent)):
        allocator.pack(graph.nodes[n], field)
    return allocator.finish(forward.alias)


def cotangent_places(graph: Graph, reverse: Reverse, extent: Extent, inputs: Collection[int]) -> Places:
    """Places of cotangents: those of the differentiated `inputs` last for the window, the rest for a chunk or a step.

    Of static nodes that several lanes contribute to, each lane collects its own share; the sum ends up in the first.
    """
    allocator = Allocator(len(graph.nodes))
    laned = _laned_sums(graph, reverse, extent)
    lasting = {owner(reverse.alias, graph.loss)}
    if extent.stepwise:
        lasting |= {owner(reverse.alias, product.delta) for product in reverse.products}
    else:
        lasting |= reverse.kept
    states = {*graph.previous.values(), *graph.new.values()}
    if extent.apart:
        for n in sorted(states):
            allocator.rows(graph.nodes[n], extent.chunk, extent.batch, CHUNK)
    else:
        _place_states(graph, allocator, extent.chunk, extent.batch, CHUNK)
    at_once = {phase for phase in Phase if extent.apart or not (extent.stepwise or phase is Phase.RECURRENT)}
    for node in graph.nodes:
        if node.index not in reverse.touched or node.index in reverse.alias or node.index in states:
            continue
        if node.index in laned:
            share = -(-node.size // ALIGN) * ALIGN
            allocator.place(node.index, allocator.take(share * extent.lanes), (0, 0, 0, share))
        elif node.phase is Phase.STATIC:
            allocator.place(node.index, allocator.take(node.size))
        else:
            _place_rows(node, allocator, extent, node.index in inputs, node.index in lasting or node.phase in at_once)
    return allocator.finish(reverse.alias)


def _laned_sums(graph: Graph, reverse: Reverse, extent: Extent) -> set[int]:
    """The static nodes that each lane collects a share of; where every shard has a lane, small matrices too."""
    if extent.lanes == 1:
        return set()
    shared, most = shared_arguments(graph, reverse), min(LANE_ENTRIES, LANES_ENTRIES // extent.lanes)
    if extent.stepwise and not extent.apart:
        nodes = (graph.nodes[product.matrix] for product in reverse.products)
        small = (n for n in nodes if n.size <= most and n.shape[1] <= MOST_COLUMNS)
        shared |= {owner(reverse.alias, n.index) for n in small}
    return shared


def shared_arguments(graph: Graph, reverse: Reverse) -> set[int]:
    """Static vectors and scalars that the rows of other phases contribute to."""
    rows = reverse.code[: reverse.bounds[3]].tolist()
    targets = {row[slot] for row in rows for slot, mode in SLOTS if row[mode]}
    return {owner(reverse.alias, n) for n in targets if graph.nodes[n].phase is Phase.STATIC}


def owner(alias: Mapping[int, Alias], node: int) -> int:
    """The node that owns a node's storage."""
    return alias[node].owner if node in alias else node


def _place_states(graph: Graph, allocator: Allocator, steps: int, batch: int, epoch: int) -> None:
    """A state has one slot more than there are steps: slot t holds a(t-1), slot t + 1 holds a(t)."""
    for name, previous in graph.previous.items():
        size = graph.nodes[previous].size
        base = allocator.take((steps + 1) * batch * size)
        strides = (batch * size, 0, size, 0)
        allocator.place(previous, base, strides, epoch)
        allocator.place(graph.new[name], base + batch * size, strides, epoch)


def _place_rows(node: Node, allocator: Allocator, extent: Extent, window: bool, chunk: bool) -> None:
    """Storage for a node's rows that lasts for the window, the chunk, or one step."""
    steps, epoch = (extent.window, WINDOW) if window else (extent.chunk, CHUNK) if chunk else (1, 0)
    allocator.rows(node, steps, extent.batch, epoch)


def settle(places: Integers, chunk_start: int, window_start: int) -> Integers:
    """The table with all steps counted from 0, for a chunk and a window that begin at given steps."""
    settled = places.copy()
    starts = np.array((0, chunk_start, window_start))[places[:, EPOCH]]
    settled[:, BASE] -= starts * places[:, STEP]
    return settled
