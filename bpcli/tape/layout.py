"""How matrices stand in a trace: in packed copies for products with several rows, with gaps for those with one.

Layouts: where each node's value and cotangent are stored, worked out from sizes alone, before anything is allocated.

A table of places has a line per node (see `bpcli.kernels.jit`): base, step, outer, inner, lane, epoch, where packed
copies of a matrix stand, and how far its rows are apart. The epoch says from where steps are counted: 0 from nowhere
(static values and the scratch of one step), 1 from the first step of the chunk, 2 from the first step of the window.
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
    MODE_A,
    MODE_ADDEND,
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
from bpcli.tape.lowering import LEAVES

_WIDEST = VECTORS * 64 // 4  # of any processor: what is held does not depend on where it is held


def packed_entries(k: int, n: int) -> int:
    """Numbers that a packed matrix (k, n) takes at most, in any dtype."""
    return -(-n // _WIDEST) * _WIDEST * k


GAP, GAP_COLUMNS = 16, 512
"""Numbers between the rows of a matrix with a multiple of so many columns: a cache keeps entries of a column that are
pages apart in few of its places, and so no more than half of the columns that a thread has to do with."""


def packed_shape(shape: tuple[int, ...], field: int) -> tuple[int, ...]:
    """(k, n) of the copy of a matrix at PACKED or PACKED_T."""
    return shape if field == PACKED else shape[::-1]


def packed_copies(code: Integers) -> set[tuple[int, int]]:
    """The matrices that instructions multiply rows with, each with the field of the copy that it takes."""
    return {(int(row[A]), PACKED if row[TURNED] else PACKED_T) for row in code if row[OP] == MATMUL}


def without_packed(places: Integers, dtype: np.dtype) -> Integers:
    """`places` as a dtype can use them: complex products have no tile."""
    if dtype.kind != "c":
        return places
    plain = places.copy()
    plain[:, [PACKED, PACKED_T]] = -1
    return plain


def packed(forward: Forward, reverse: Reverse, batch: int, stepwise: bool, apart: bool) -> set[tuple[int, int]]:
    """The matrices that the time loop multiplies several rows with, each with the field of the copy that it takes."""
    first, last = (Phase.INPUT, Phase.OUTPUT) if stepwise else (Phase.RECURRENT, Phase.RECURRENT)
    if batch == 1 and not apart:
        return set()
    there = forward.code[forward.bounds[first] : forward.bounds[last + 1] if batch > 1 else 0]
    back = reverse.code[reverse.bounds[3 - last] : reverse.bounds[4 - first]]
    found = packed_copies(there)
    found |= {(int(r[A]), PACKED_T if r[TURNED] else PACKED) for r in back if r[OP] == MATMUL and r[MODE_B] != NONE}
    return {(n, field) for n, field in found if n not in forward.alias}


def with_gaps(graph: Graph, forward: Forward, reverse: Reverse) -> set[int]:
    """Parameters between whose rows there are gaps: one vector at a time is multiplied with them, and nothing else."""
    recurrent = forward.code[forward.bounds[Phase.RECURRENT] : forward.bounds[Phase.RECURRENT + 1]]
    found = {int(row[A]) for row in recurrent if row[OP] == MATMUL and row[SIZE] * row[SIZE_B] >= LEAST_MATRIX}
    for row in (*forward.code, *reverse.code[reverse.code[:, OP] != ZERO]):
        found -= {int(row[slot]) for slot in ((B, ADDEND, OUT) if row[OP] == MATMUL else (A, B, ADDEND, OUT))}
    owners = {alias.owner for alias in forward.alias.values()} | set(forward.alias)
    nodes = (graph.nodes[n] for n in found - owners)
    return {n.index for n in nodes if n.op == "param" and n.shape[1] % GAP_COLUMNS == 0}


ALIGN = 16  # entries: two cache lines of float64
LANE_ENTRIES, LANES_ENTRIES = 1 << 14, 1 << 18
"""Entries of a matrix of whose gradient every shard takes its own share, and of all shares: what another core has
written takes as long to get at as some ten multiplications, and in that of a larger matrix there are more of them."""
CHUNK, WINDOW = 1, 2
FARTHEST = 1 << 61
"""Entries beyond any memory: a layout that goes so far is never filled, its size alone is asked for."""


@dataclass(frozen=True, eq=False)
class Places:
    """A table of places and the number of entries that they take in all. Nodes without storage have base -1."""

    table: Integers
    size: int


class Allocator:
    """Hands out aligned stretches of one flat array."""

    def __init__(self, nodes: int) -> None:
        self.table = np.zeros((nodes, PLACE_FIELDS), dtype=np.int64)
        self.table[:, [BASE, PACKED, PACKED_T]] = -1
        self.size = 0

    def take(self, entries: int) -> int:
        """The offset of a new stretch."""
        base = self.size
        self.size += -(-entries // ALIGN) * ALIGN
        return base

    def place(self, node: int, base: int, strides: tuple[int, int, int, int] = (0, 0, 0, 0), epoch: int = 0) -> None:
        """Write one line but for what is said of matrices: strides are step, outer, inner, lane."""
        self.table[node, : EPOCH + 1] = [min(entries, FARTHEST) for entries in (base, *strides, epoch)]

    def pack(self, node: Node, field: int) -> None:
        """Storage for the packed copy of a matrix that `field` stands for."""
        self.table[node.index, field] = min(self.take(packed_entries(*packed_shape(node.shape, field))), FARTHEST)

    def space(self, node: Node) -> None:
        """Storage for a matrix with gaps between its rows."""
        rows, columns = node.shape
        self.place(node.index, self.take(rows * (columns + GAP)))
        self.table[node.index, APART] = columns + GAP

    def rows(self, node: Node, steps: int, batch: int, epoch: int) -> None:
        """Storage for one value a step and sample; one step's worth, used again every step, where epoch is 0."""
        step = node.size * batch if epoch else 0
        self.place(node.index, self.take(steps * batch * node.size), (step, 0, node.size, 0), epoch)

    def finish(self, alias: Mapping[int, Alias]) -> Places:
        """Give aliases their owners' places, and close."""
        for node, target in alias.items():
            if self.table[target.owner, BASE] >= 0:
                self.table[node, : EPOCH + 1] = self.table[target.owner, : EPOCH + 1]
                self.table[node, BASE] += target.shift
        return Places(self.table, self.size)


@dataclass(frozen=True)
class Extent:
    """Sizes of a trace: `window` steps held, `chunk` steps worked on at a time, samples, and accumulators (lanes).

    `stepwise`: each shard takes all phases of a step together, while its rows are in cache and without waiting for
    others. With few samples a step's rows are too few for products to be quick: then a phase takes many steps at once.
    `apart`: the reverse pass takes every step by itself, all at once; a state's cotangents before and after a step
    stand in places of their own, and what connects steps is added from outside.
    """

    window: int
    chunk: int
    batch: int
    lanes: int
    stepwise: bool
    apart: bool = False


def value_places(graph: Graph, forward: Forward, reverse: Reverse, reads: Collection[int], extent: Extent) -> Places:
    """Values: what the reverse program and others (`reads`) read is held for the window, the rest a chunk or a step."""
    allocator = Allocator(len(graph.nodes))
    held = {owner(forward.alias, n) for n in reverse.reads | set(reads)}
    gaps = with_gaps(graph, forward, reverse) if extent.batch == 1 and not extent.apart else set()
    lasting = {owner(forward.alias, graph.loss)} | {n.index for n in graph.nodes if n.op == "input"}
    if not extent.stepwise:
        lasting |= {owner(forward.alias, n) for n in crossings(forward)}
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
        elif node.index in held and node.op != "input":
            allocator.rows(node, extent.window, extent.batch, WINDOW)
        elif node.index in lasting or (node.phase is not Phase.RECURRENT and not extent.stepwise):
            allocator.rows(node, extent.chunk, extent.batch, CHUNK)
        else:
            allocator.rows(node, 1, extent.batch, 0)
    for n, field in sorted(packed(forward, reverse, extent.batch, extent.stepwise, extent.apart)):
        allocator.pack(graph.nodes[n], field)
    return allocator.finish(forward.alias)


def cotangent_places(graph: Graph, reverse: Reverse, extent: Extent, inputs: Collection[int]) -> Places:
    """Cotangents.

    Of the `inputs` differentiated for the window, of what outlives its step for a chunk, else for a step. Of static
    nodes that several lanes contribute to, each lane collects its own share; sums end up in the first lane's.
    """
    allocator = Allocator(len(graph.nodes))
    laned = laned_sums(graph, reverse, extent)
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
        elif node.index in inputs:
            allocator.rows(node, extent.window, extent.batch, WINDOW)
        elif node.index in lasting or node.phase in at_once:
            allocator.rows(node, extent.chunk, extent.batch, CHUNK)
        else:
            allocator.rows(node, 1, extent.batch, 0)
    return allocator.finish(reverse.alias)


def laned_sums(graph: Graph, reverse: Reverse, extent: Extent) -> set[int]:
    """The static nodes that lanes collect shares of: of small matrices too where every shard has a lane."""
    if extent.lanes == 1:
        return set()
    shared, most = shared_arguments(graph, reverse), min(LANE_ENTRIES, LANES_ENTRIES // extent.lanes)
    if extent.stepwise and not extent.apart:
        nodes = (graph.nodes[product.matrix] for product in reverse.products)
        small = (n for n in nodes if n.size <= most and n.shape[1] <= MOST_COLUMNS)
        shared |= {owner(reverse.alias, n.index) for n in small}
    return shared


def shared_arguments(graph: Graph, reverse: Reverse) -> set[int]:
    """Static vectors and scalars that rows contribute to while they run."""
    shared = set()
    for row in reverse.code[: reverse.bounds[3]]:
        for slot, mode in ((A, MODE_A), (B, MODE_B), (ADDEND, MODE_ADDEND)):
            if row[mode] and graph.nodes[row[slot]].phase is Phase.STATIC:
                shared.add(owner(reverse.alias, int(row[slot])))
    return shared


def crossings(forward: Forward) -> set[int]:
    """Nodes that the output phase reads."""
    rows = forward.code[forward.bounds[Phase.OUTPUT] :]
    return {int(n) for slot in (A, B, ADDEND) for n in rows[:, slot] if n >= 0}


def owner(alias: Mapping[int, Alias], node: int) -> int:
    """The node whose storage a node's numbers stand in."""
    return alias[node].owner if node in alias else node


def _place_states(graph: Graph, allocator: Allocator, steps: int, batch: int, epoch: int) -> None:
    """A state has one slot more than steps: its value at t-1 is slot t, at t slot t + 1."""
    for name, previous in graph.previous.items():
        size = graph.nodes[previous].size
        base = allocator.take((steps + 1) * batch * size)
        strides = (batch * size, 0, size, 0)
        allocator.place(previous, base, strides, epoch)
        allocator.place(graph.new[name], base + batch * size, strides, epoch)


def settle(places: Integers, chunk_start: int, window_start: int) -> Integers:
    """The table with steps counted from 0."""
    settled = places.copy()
    starts = np.array((0, chunk_start, window_start))[places[:, EPOCH]]
    settled[:, BASE] -= starts * places[:, STEP]
    return settled
