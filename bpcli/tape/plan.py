"""A plan: a graph lowered and laid out for a reverse-mode gradient over a window of steps. No array exists yet."""

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
from bpcli.tape.lowering import active_nodes, fuse, lower_forward, lower_reverse

CHUNK_ROWS = 2048
"""Rows (steps × samples) worked on at a time outside the recurrent phase, so that their cotangents stay in cache."""
CHUNK_ENTRIES = 3 << 18
"""The same where shards run all phases of a step together: entries of all factors of matrix gradients, 6 MB of float64,
so that they are still in the shared cache when the gradients are formed."""
LEAST_CHUNK_ROWS = 128
"""Least rows of them: every chunk reads and writes the whole of a matrix's gradient."""
SHARD_ROWS = 16
"""Samples in a shard of the recurrent phase: fewer make products slow, more leave threads idle."""
STEPWISE_ROWS = 8
"""Samples in a shard from which its steps run all phases together."""
LANE_FLOPS = 1e6
"""Operations below which a phase is not cut into lanes: starting threads takes some ten microseconds."""
LANE_ROWS = 64
"""Least rows of a lane."""
MOST_LANES = 16
"""Most parts that any work but that of shards is cut into; fixed, so that results do not depend on the machine."""
TASK_ROWS, LEAST_TASK_ROWS = 64, 16
"""Rows of a matrix gradient in a task, as every task packs the other factor anew; and the least, in one of two."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Both programs and the places of values and cotangents; `leaves` are the nodes differentiated."""

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
        """Lanes that the rows of some steps of a phase are cut into."""
        return _lanes(self._flops[phase], steps * self.extent.batch)

    @property
    def entries(self) -> int:
        """Entries of a trace of this plan."""
        return self.values.size + self.cotangents.size

    @cached_property
    def tasks(self) -> Integers:
        """Parts of matrix gradients, (tasks, 9): matrix, delta, vector, turned, columns, rows from and to, turn, shard.

        A matrix in several products takes their gradients in turns; shard -1 stands for all shards at once.
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
            tasks += [(*ends, rows * part // parts, rows * (part + 1) // parts, turn, -1) for part in range(parts)]
        tasks.sort(key=lambda task: -task[4] * (task[6] - task[5]))
        shares.sort(key=lambda task: task[-1])
        # Each thread takes an equal part of the list: large tasks stand at both ends, those of a shard side by side.
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
    """Lower `graph` for the gradient with respect to the nodes `leaves`, with cotangents entering at `seeds`.

    The values of `reads` are held for the window too; `apart` as in `Extent`. Cotangents go no further than `stops`.
    """
    fusion = fuse(graph)
    forward = lower_forward(graph, fusion)
    active = active_nodes(graph, {*leaves, *graph.previous.values(), *stops})
    shards = max(1, -(-batch // SHARD_ROWS))
    stepwise = graph.recurrent and batch // shards >= STEPWISE_ROWS
    # Where a step's phases run together, what a state passes to the step before is its first contribution.
    fresh = graph.previous.values() if stepwise and not apart else ()
    reverse = lower_reverse(_ending_at(graph, stops), fusion, active, [n for n in seeds if n in active], fresh=fresh)
    chunk = chunk_steps(window, batch)
    if stepwise and not apart and reverse.products:
        rows = max(LEAST_CHUNK_ROWS, CHUNK_ENTRIES // factor_entries(graph, forward, reverse))
        chunk = max(1, min(window, rows // batch))
    lanes = shards
    if apart or not stepwise:
        phases = tuple(Phase) if apart else (Phase.INPUT, Phase.OUTPUT)
        lanes = max(shards, *(_lanes(phase_flops(graph, phase), chunk * batch) for phase in phases))
    extent = Extent(window, chunk, batch, lanes, stepwise, apart)
    inputs = [n for n in leaves if graph.nodes[n].op == "input"]
    values = value_places(graph, forward, reverse, reads, extent)
    cotangents = cotangent_places(graph, reverse, extent, inputs)
    return Plan(graph, forward, reverse, extent, shards, values, cotangents, frozenset(leaves))


def _ending_at(graph: Graph, stops: Collection[int]) -> Graph:
    """The graph with leaves in place of the nodes `stops`, for the reverse program."""
    if not stops:
        return graph
    return replace(graph, nodes=tuple(replace(n, op="previous") if n.index in stops else n for n in graph.nodes))


def factor_entries(graph: Graph, forward: Forward, reverse: Reverse) -> int:
    """Entries of all vectors that matrix gradients are made of, for one step and sample; shared ones count once."""
    deltas = {owner(reverse.alias, product.delta) for product in reverse.products}
    vectors = {owner(forward.alias, product.vector) for product in reverse.products}
    return sum(graph.nodes[n].size for n in (*deltas, *vectors))


def chunk_steps(window: int, batch: int) -> int:
    """Steps worked on at a time."""
    return max(1, min(window, -(-CHUNK_ROWS // batch)))


def _lanes(flops: float, rows: int) -> int:
    """Lanes that rows of a phase are cut into, each of which takes `flops`."""
    return max(1, min(MOST_LANES, rows // LANE_ROWS, int(flops * rows / LANE_FLOPS)))


def phase_flops(graph: Graph, phase: Phase) -> float:
    """Floating-point operations of the forward pass of a phase, for one step and sample."""
    return sum(node_flops(graph, node) for node in graph.nodes if node.phase is phase)


def node_flops(graph: Graph, node: Node) -> float:
    """Floating-point operations of one value of a node."""
    if node.op not in OPERATIONS:
        return 0.0
    return OPERATIONS[node.op].flops(tuple(graph.nodes[a].shape for a in node.args), node.shape)
