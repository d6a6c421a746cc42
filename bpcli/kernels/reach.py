"""What a change of one node reaches, and the instructions that follow: what copies share and what they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bpcli.graph.lower_reverse import active_nodes
from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.tape import ADDEND, FIELDS, NUMBER, OP, OUT, SIZE, SIZE_A, A, Alias, B, Forward
from bpcli.kernels.codes import COPY
from bpcli.kernels.library import Jobs
from bpcli.kernels.matrices import packed_copies
from bpcli.kernels.plan import node_flops


@dataclass(frozen=True, eq=False)
class Reach:
    """A graph of which some nodes differ from copy to copy: leaves, or any whose values are given.

    `single`: every step is taken by itself, from states that are known, so that a copy is one from where it is changed
    on alone.
    """

    graph: Graph
    forward: Forward
    changed: frozenset[int]
    single: bool = False

    @cached_property
    def reached(self) -> frozenset[int]:
        """Nodes that differ between copies: what is changed and what follows, and all of a time loop."""
        late = (Phase.RECURRENT, Phase.OUTPUT) if not self.single else ()
        return active_nodes(self.graph, self.changed) | {n.index for n in self.graph.nodes if n.phase in late}

    @cached_property
    def before(self) -> Jobs:
        """The instructions that all copies share."""
        return self._select(lambda out: out not in self.reached and self.graph.nodes[out].phase is not Phase.STATIC)

    @cached_property
    def each(self) -> Jobs:
        """The instructions of one step that every copy runs for itself; at its end the state moves on."""
        given = self.changed if self.single else frozenset()
        own = self._select(lambda out: out in self.reached - given and self.graph.nodes[out].phase is not Phase.STATIC)
        if self.single:
            return own
        moves = np.zeros((len(self.graph.previous), FIELDS), np.int64)
        moves[:, [B, ADDEND]] = -1
        for row, (name, previous) in zip(moves, self.graph.previous.items(), strict=True):
            row[[OP, OUT, A, NUMBER]] = COPY, previous, self.graph.new[name], previous
            row[[SIZE, SIZE_A]] = self.graph.nodes[previous].size
        return np.concatenate([own, moves])

    def _select(self, wanted) -> Jobs:  # type: ignore[no-untyped-def]
        code = self.forward.code
        chosen = np.array([bool(wanted(int(out))) for out in code[:, OUT]], dtype=bool)
        return np.ascontiguousarray(code[chosen])

    @cached_property
    def crossing(self) -> tuple[int, ...]:
        """Static nodes that differ between copies and are read in the time loop or are the loss."""
        read = {int(n) for field in (A, B, ADDEND) for n in self.each[:, field] if n >= 0} | {self.graph.loss}
        owners = {self.slices[n].owner if n in self.slices else n for n in read}
        return tuple(sorted(n for n in owners & self.reached if self.graph.nodes[n].phase is Phase.STATIC))

    @cached_property
    def slices(self) -> Mapping[int, Alias]:
        """Nodes without storage of their own, and where their values are."""
        return {n: a for n, a in self.forward.alias.items() if self.graph.nodes[n].op == "slice"}

    @cached_property
    def packed(self) -> tuple[tuple[int, int], ...]:
        """The matrices that every copy's rows are multiplied with, each with the field of the packed copy it takes."""
        return tuple(sorted((n, field) for n, field in packed_copies(self.each) if n not in self.slices))

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of a row's step."""
        own = self.reached - self.changed if self.single else range(len(self.graph.nodes))
        nodes = (self.graph.nodes[n] for n in own)
        return sum(node_flops(self.graph, node) for node in nodes if node.phase is not Phase.STATIC)

    def entries(self, rows: int, steps: int) -> int:
        """Numbers that a copy takes; of a matrix that is computed as many as may change, else one."""
        late = [n for n in self.graph.nodes if n.index in self.reached and n.phase is not Phase.STATIC]
        crossing = (self.graph.nodes[n] for n in self.crossing)
        static = [n for n in crossing if n.index not in self.changed or len(n.shape) < 2]
        return rows * (steps + sum(n.size for n in late)) + sum(n.size for n in static)
