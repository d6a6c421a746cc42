"""Real-time recurrent learning (Williams & Zipser 1989) in plain, dense NumPy: the rule to read and to copy.

M(t) = J(t) M(t-1) + M̄(t), g(t) = q(t) M(t) + the derivative of the loss within its own step. `rtrl` computes the same
with compiled code, in blocks, and skips products with structural zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bpcli.methods._online import Online
from bpcli.methods.base import Exact, NoOptions, StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives, influence_layout


@dataclass(frozen=True)
class Influence:
    """M(t) and M(t-1), (batch, N, P)."""

    M: Array
    before: Array


class DenseRTRL:
    """The exact influence of all parameters on all states."""

    def start(self, setup: Setup, options: NoOptions, rng: np.random.Generator) -> Influence:
        """M(0): zero, but for the influence of initial states on themselves."""
        M = influence_layout(setup).initial(setup.batch, setup.dtype)
        return Influence(M, M)

    def step(self, state: Influence, local: LocalDerivatives) -> Influence:
        """Advance the influence by one step."""
        M = local.J @ state.M + local.Mbar  # M ← J M + M̄
        return Influence(M, state.M)

    def credit(self, state: Influence, local: LocalDerivatives) -> StepGradient:
        """The gradient of the step's losses: through the states after and before the step, and directly."""
        g = _times(local.q, state.M) + _times(local.q_before, state.before)  # g = q M + q_before M(t-1)
        return StepGradient(g, local.direct)


def _times(q: Array, M: Array) -> Array:
    """Row vectors q (batch, N) by M (batch, N, P)."""
    return np.asarray((q[:, None] @ M)[:, 0])


PER_STEP = ("2 N² P + 2 N F", "5 N P")
METHOD = Online(
    name="rtrl-dense",
    summary="rtrl in plain NumPy, M <- J M + Mbar with dense arrays: written to be read, not to be fast",
    tags=frozenset({"exact", "online", "recurrent", "teaching"}),
    Options=NoOptions,
    rule=DenseRTRL(),
    flops=lambda layout, options: 2.0 * layout.N * layout.N * layout.P + 6.0 * layout.N * layout.P,
    entries=lambda layout, options: 5 * layout.N * layout.P + 2 * layout.P,
    defined=lambda setup, options: Exact(),
)
