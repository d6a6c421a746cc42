"""Bytes that a pass over windows of the unrolled graph reads and writes, from sizes alone."""

from __future__ import annotations

from bpcli.graph.nodes import Phase
from bpcli.problem.unrolled import Unrolled


def moved(unrolled: Unrolled) -> float:
    """Bytes read and written.

    Of what is held, a step's part is written on the way forwards and read on the way back; and every step of the time
    loop reads its matrices anew, once for each shard of the batch. Windows side by side go back as one.
    """
    T, plan = unrolled.setup.T, unrolled.plan
    blocks = list(unrolled.blocks()) if unrolled.side_by_side else [[window] for window in unrolled.windows]
    spans = sum(block[-1].stop - block[0].start for block in blocks)
    lags = sum(max(w.stop - w.start for w in block) for block in blocks)
    held = plan.entries * (T + spans) / plan.extent.window
    read = _loop_matrices(unrolled) * plan.shards * (T + lags)
    return (held + read) * unrolled.setup.dtype.itemsize


def _loop_matrices(unrolled: Unrolled) -> int:
    """Entries of the matrices that the time loop multiplies by: where it takes whole steps, those of all phases."""
    graph, stepwise = unrolled.setup.graph, unrolled.plan.extent.stepwise
    phases = set(Phase) - {Phase.STATIC} if stepwise else {Phase.RECURRENT}
    products = [n for n in graph.nodes if n.op == "matmul" and n.phase in phases]
    return sum(graph.nodes[m].size for m in {n.args[0] for n in products}) if graph.recurrent else 0
