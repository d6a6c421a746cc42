"""Where a trace's arrays hold what is loaded before a pass, cleared, added up and collected after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bpcli.graph.nodes import Phase
from bpcli.kernels.jit import APART, BASE, LANE
from bpcli.tape.instructions import Integers
from bpcli.tape.layout import ALIGN
from bpcli.tape.plan import Plan


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches of the values and of the cotangents of one plan; `places` are those of its values."""

    plan: Plan
    places: Integers

    @cached_property
    def params(self) -> Sequence[tuple[str, slice, tuple[int, ...], int]]:
        """Of each parameter where its values stand, and its shape; how many numbers its rows are apart, if any lie
        between them, else 0."""
        found = []
        for n in self.plan.graph.nodes:
            if n.op == "param":
                base, apart = self.places[n.index, [BASE, APART]].tolist()
                found.append((n.name, _stretch(base, n.shape[0] * apart if apart else n.size), n.shape, apart))
        return found

    @cached_property
    def inputs(self) -> Sequence[tuple[int, str, int, int]]:
        """Of each input: its node, its name, where a chunk's rows begin, and the entries of a row."""
        nodes = (n for n in self.plan.graph.nodes if n.op == "input")
        return [(n.index, n.name, int(self.places[n.index, BASE]), n.size) for n in nodes]

    @cached_property
    def states(self) -> Sequence[tuple[str, slice, int]]:
        """Of each state: its name, where its values before the first step of the window stand, and a row's entries."""
        graph, found = self.plan.graph, []
        for name, n in graph.previous.items():
            size = graph.nodes[n].size
            found.append((name, _stretch(self.places[n, BASE], size * self.plan.extent.batch), size))
        return found

    @cached_property
    def carried(self) -> Sequence[tuple[int, int]]:
        """Of each state: where its cotangents before the first step of the chunk stand, and how many there are."""
        graph, places, batch = self.plan.graph, self.plan.cotangents.table, self.plan.extent.batch
        return [(int(places[n, BASE]), graph.nodes[n].size * batch) for n in graph.previous.values()]

    @cached_property
    def constants(self) -> Sequence[tuple[int, float]]:
        """Where each constant stands, and its value."""
        return [(int(self.places[n.index, BASE]), n.numbers[0]) for n in self.plan.graph.nodes if n.op == "constant"]

    @cached_property
    def sums(self) -> Sequence[slice]:
        """Stretches of cotangents that contributions are only ever added to: all but where a first one is stored."""
        plan, found = self.plan, list[tuple[int, int]]()
        for n, node in enumerate(plan.graph.nodes):
            line = plan.cotangents.table[n]
            if line[BASE] >= 0 and (node.phase is Phase.STATIC or node.op == "input"):
                steps = 1 if node.phase is Phase.STATIC else plan.extent.window * plan.extent.batch
                entries = max(node.size * steps, line[LANE] * plan.extent.lanes)
                found.append((line[BASE], line[BASE] + entries))
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(found):
            # Only what pads one stretch to the next lies between them.
            if joined and start - joined[-1][1] < ALIGN:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        return [slice(*ends) for ends in joined]

    @cached_property
    def lanes(self) -> Sequence[tuple[slice, Sequence[slice]]]:
        """For each static node that lanes collect shares of: the first, where the sum ends up, and the others."""
        plan, found = self.plan, []
        for n, line in enumerate(plan.cotangents.table):
            if line[LANE] and n not in plan.reverse.alias:
                size, lanes = plan.graph.nodes[n].size, range(plan.extent.lanes)
                first, *others = (_stretch(line[BASE] + lane * line[LANE], size) for lane in lanes)
                found.append((first, others))
        return found

    @cached_property
    def leaves(self) -> Sequence[tuple[int, slice | None, int]]:
        """For each leaf where its gradient ends up (None: it has none), and how many entries that has."""
        plan, found = self.plan, []
        for n in plan.leaves:
            node, base = plan.graph.nodes[n], plan.cotangents.table[n, BASE]
            if node.op != "previous":
                entries = node.size * (1 if node.op == "param" else plan.extent.window * plan.extent.batch)
                found.append((n, _stretch(base, entries) if base >= 0 else None, entries))
        return found


def _stretch(start: int, entries: int) -> slice:
    return slice(int(start), int(start + entries))
