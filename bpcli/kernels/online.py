"""Forward-mode gradients over time: the one-step ingredients J, M̄ and q of any graph, and the influence matrix.

A chunk of steps is run forwards. The reverse program from the new states, seeded with one unit vector per state entry,
gives J(t) = ∂a(t)/∂a(t-1) and, at every product and shared vector, the cotangents that M̄(t) is made of. The reverse
program from the loss, every step by itself, gives q(t) = ∂l(t)/∂a(t-1) and what the loss owes to the parameters of its
own step.
"""

from __future__ import annotations

import numpy as np

from bpcli.kernels.influence import BIRTH
from bpcli.kernels.online_plan import OnlinePlan
from bpcli.kernels.online_stages import online_stages
from bpcli.kernels.trace import Array, Arrays, Trace


class Online:
    """A trace and the influence matrices of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: OnlinePlan, dtype: np.dtype, arrays: tuple[Arrays, Arrays, Arrays]) -> None:
        self.plan, self.stages = plan, online_stages(plan, dtype)
        self.trace = Trace(plan.trace, dtype, arrays, room=plan.room.entries)
        room, numbers, N, width = plan.room, self.trace.room, plan.size, self.stages.width
        panels = len(self.stages.panels)
        self.M = numbers[room.influence :][: plan.batch * panels * N * width].reshape(plan.batch, panels, N, width)
        self.G = numbers[room.gradient :][: plan.batch * panels * width].reshape(plan.batch, panels * width)
        self.C = numbers[room.seeds :][: plan.seeds.size]
        self.G[:] = 0
        if plan.states:
            self._begin()

    def _begin(self) -> None:
        """M(0): the identity where initial states are differentiated; elsewhere M begins with its first M̄."""
        self.M[:, self.stages.panels[:, BIRTH] < 0] = 0
        offset = 0
        for stretch in self.plan.stretches:
            if self.plan.graph.nodes[stretch.node].op == "previous":
                panel, column = np.divmod(stretch.start + np.arange(stretch.columns), self.stages.width)
                self.M[:, panel, offset + np.arange(stretch.columns), column] = 1
                offset += stretch.columns

    def advance(self, first: int, last: int) -> None:
        """Take the influence through steps `first` to `last`; the trace has just run them in both directions."""
        self.C[: self.plan.cleared] = 0
        self.C[self.stages.units] = 1
        self.trace.run((self.stages.jacobians(last - first), self.stages.influence(first, last)))

    def gradient(self, node: int) -> Array:
        """What has been collected for a stretch: (batch, columns)."""
        stretch = next(s for s in self.plan.stretches if s.node == node)
        return self.G[:, stretch.start : stretch.start + stretch.columns]

    def close(self) -> None:
        """Let the next trace have the memory; nothing can be read any more."""
        del self.M, self.G, self.C
        self.trace.close()
