"""A plan: a graph lowered and laid out for a reverse-mode gradient over a window of steps; no array exists yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.tape.instructions import LANE, Forward, Integers, Reverse
from bpcli.tape.layout import Extent, Places, cotangent_places, owner, value_places
from bpcli.tape.lowering import fuse, lower_forward
from bpcli.tape.reverse_lowering import active_nodes, lower_reverse

CHUNK_ROWS = 2048
"""Rows (steps × samples) worked on at a time outside the recurrent phase: their cotangents should stay in cache."""
CHUNK_ENTRIES = 3 << 18
"""Where each shard takes all phases of a step together: entries of all factors of matrix gradients in the rows that are
worked on at a time, 6 MB of float64, so that they are still in the shared cache when gradients are made of them."""
LEAST_CHUNK_ROWS = 128
"""Rows of them in any case: for each chunk all of a matrix's gradient is read and written."""
SHARD_ROWS = 16
"""Samples in a shard of the recurrent phase: fewer make slow products, more leave threads idle."""
LANE_FLOPS = 1e6
"""Work below which a phase is not cut: starting threads costs some ten microseconds."""
TASK_ROWS, LEAST_TASK_ROWS = 64, 16
"""Rows of a matrix gradient in one task, as every task packs the other factor anew; in one of two, at least."""
STEPWISE_ROWS = 8
"""Samples in a shard from which a step's rows are worked on by themselves in every phase."""
LANE_ROWS = 64
"""Rows that a lane has at least."""
MOST_LANES = 16
"""Parts that any work but that of shards is cut into at most; a fixed number, whatever the machine."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Tapes and places; `leaves` are differentiated."""

    graph: Graph
    forward: Forward
    reverse: Reverse
    extent: Extent
    shards: int
    values: Places
    cotangents: Places
    leaves: frozenset[int]

    @cached_property
    def _flops(self) -> dict[Phase, float]:
        return {phase: phase_flops(self.graph, phase) for phase in Phase}

    def lanes(self, phase: Phase, steps: int) -> int:
        """Into how many lanes the rows of some steps are cut."""
        return lanes_for(self._flops[phase], steps * self.extent.batch)

    @property
    def entries(self) -> int:
        """Numbers held by a trace of this plan."""
        return self.values.size + self.cotangents.size

    @cached_property
    def tasks(self) -> Integers:
        """Stretches of matrix gradients: matrix, delta, vector, turned, columns, first and last row, whose turn, shard.

        A matrix in several products takes their gradients in turns; -1 stands for all shards at once.
        """
        tasks, shares, turns = [], [], Counter[int]()
        for product in self.reverse.products:
            rows, columns = self.graph.nodes[product.matrix].shape
            ends = (product.matrix, product.delta, product.vector, int(product.turned), columns)
            turn = turns[product.matrix]
            turns[product.matrix] += 1
            if self.cotangents.table[product.matrix, LANE]:  # every shard collects its own share
                shares += [(*ends, 0, rows, turn, shard) for shard in range(self.shards)]
                continue
            flops = 2.0 * rows * columns * self.extent.chunk * self.extent.batch
            pieces = max(rows // TASK_ROWS, min(2, rows // LEAST_TASK_ROWS))
            parts = max(1, min(MOST_LANES, pieces, int(flops / LANE_FLOPS)))
            stretches = ((rows * part // parts, rows * (part + 1) // parts) for part in range(parts))
            tasks += [(*ends, *stretch, turn, -1) for stretch in stretches]
        tasks.sort(key=lambda task: -task[4] * (task[6] - task[5]))
        shares.sort(key=lambda task: task[-1])
        # Threads take even stretches of the list: large tasks stand at both ends, and a shard's with each other.
        return np.array([*tasks[::2], *shares, *tasks[1::2][::-1]], dtype=np.int64).reshape(-1, 9)


def make_plan(
    graph: Graph,
    leaves: Collection[int],
    batch: int,
    window: int,
    seeds: Collection[int],
    reads: Collection[int] = (),
    apart: bool = False,
    stops: Collection[int] = (),
) -> Plan:
    """Lower `graph` for the gradient with respect to `leaves` (node indices) of cotangents entering at `seeds`.

    The values of `reads` are held too; `apart` as in `Extent`. Cotangents go no further than the nodes of `stops`.
    """
    fusion = fuse(graph)
    forward = lower_forward(graph, fusion)
    active = active_nodes(graph, {*leaves, *graph.previous.values(), *stops})
    shards = max(1, -(-batch // SHARD_ROWS))
    stepwise = graph.recurrent and batch // shards >= STEPWISE_ROWS
    # What a state brings to the step before it comes first where a step's phases are taken together.
    fresh = graph.previous.values() if stepwise and not apart else ()
    reverse = lower_reverse(_ending_at(graph, stops), fusion, active, [n for n in seeds if n in active], fresh=fresh)
    chunk = chunk_steps(window, batch)
    if stepwise and not apart and reverse.products:
        rows = max(LEAST_CHUNK_ROWS, CHUNK_ENTRIES // factor_entries(graph, forward, reverse))
        chunk = max(1, min(window, rows // batch))
    lanes = shards
    if apart or not stepwise:
        phases = tuple(Phase) if apart else (Phase.INPUT, Phase.OUTPUT)
        lanes = max(shards, *(lanes_for(phase_flops(graph, phase), chunk * batch) for phase in phases))
    extent = Extent(window, chunk, batch, lanes, stepwise, apart)
    inputs = [n for n in leaves if graph.nodes[n].op == "input"]
    values = value_places(graph, forward, reverse, reads, extent)
    cotangents = cotangent_places(graph, reverse, extent, inputs)
    return Plan(graph, forward, reverse, extent, shards, values, cotangents, frozenset(leaves))


def _ending_at(graph: Graph, stops: Collection[int]) -> Graph:
    """The graph with leaves in place of some nodes, as the reverse program is to see it."""
    if not stops:
        return graph
    return replace(graph, nodes=tuple(replace(n, op="previous") if n.index in stops else n for n in graph.nodes))


def factor_entries(graph: Graph, forward: Forward, reverse: Reverse) -> int:
    """Entries of the vectors, of one step and sample, that all matrix gradients are made of, each counted once."""
    deltas = {owner(reverse.alias, product.delta) for product in reverse.products}
    vectors = {owner(forward.alias, product.vector) for product in reverse.products}
    return sum(graph.nodes[n].size for owners in (deltas, vectors) for n in owners)


def chunk_steps(window: int, batch: int) -> int:
    """Steps that are worked on at a time."""
    return max(1, min(window, -(-CHUNK_ROWS // batch)))


def lanes_for(flops: float, rows: int) -> int:
    """Into how many lanes `rows` rows are cut of a phase that takes `flops` for one."""
    return max(1, min(MOST_LANES, rows // LANE_ROWS, int(flops * rows / LANE_FLOPS)))


def phase_flops(graph: Graph, phase: Phase) -> float:
    """Floating-point operations of one row of a phase, forwards."""
    return sum(node_flops(graph, node) for node in graph.nodes if node.phase is phase)


def node_flops(graph: Graph, node: Node) -> float:
    """Floating-point operations of one value of a node, forwards."""
    if node.op not in OPERATIONS:
        return 0.0
    return OPERATIONS[node.op].flops(tuple(graph.nodes[a].shape for a in node.args), node.shape)
