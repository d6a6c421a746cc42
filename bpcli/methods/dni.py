"""Decoupled neural interfaces (Jaderberg et al., ICML 2017), linear as in Marschall et al. (JMLR 2020): learned credit.

The credit of a state is what all losses from its step on owe to it,

    λ(t) = q(t) + φ(t),      φ(t) = ∂L_{>t}/∂a(t) = q_before(t+1) + λ(t+1) J(t+1),                              (1)

of which the losses yet to come, φ, are not known. A linear model of the state stands for them, the synthetic gradient

    φ̂(t) = B [a(t), 1],      B (N, N + 1),                                                                      (2)

which is learned from its own value a step later, with v = [a(t-1), 1] and the mean over samples:

    B ← B − η (B v − q_before(t) − (q(t) + φ̂(t)) J(t)) vᵀ / |v|².                                               (3)

The gradient is g(t) = (q(t) + φ̂(t)) M̄(t) + direct, with the φ̂ of B before (3): nothing is carried forwards but B. An
initial state has the credit of (1) at the first step. With the true φ in place of (2) the sum of g(t) is that of BPTT.
In the paper φ̂ takes in q, and the targets of the losses as well; here a spec's losses need no targets, and q is exact.
Division by |v|² makes the rate 0 < η < 2 that of a step towards the target, whatever the size of the states. B(0) = 0:
the first gradient is that of losses by their own step alone.

Cost: N m for M̄ of a product with a matrix (m, n), and m n for its gradient; N² for each of φ̂, λ J and (3). In plain
NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bpcli.methods._online import Online
from bpcli.methods.base import StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives, influence_layout


@dataclass(frozen=True)
class Options:
    """The `rate` η of the synthetic gradient; 0 leaves it at zero."""

    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 2:
            raise ValueError(f"rate must be at least 0 and less than 2, not {self.rate}")


@dataclass(frozen=True)
class Synthetic:
    """B (N, N + 1), [a(t), 1] (batch, N + 1) or None before the first step, λ and λ J + q_before (batch, N)."""

    B: Array
    v: Array | None
    credit: Array
    earlier: Array
    rate: float


class DNI:
    """The credit of a state: by its own losses, and by a linear model of those to come."""

    def start(self, setup: Setup, options: Options, rng: np.random.Generator) -> Synthetic:
        """No credit by later losses is known."""
        N = influence_layout(setup).N
        zero = np.zeros((setup.batch, N), setup.dtype)
        return Synthetic(np.zeros((N, N + 1), setup.dtype), None, zero, zero, options.rate)

    def step(self, state: Synthetic, local: LocalDerivatives) -> Synthetic:
        """The credit of the step by the model as it is, and the model learned from it."""
        v = np.concatenate([local.a, np.ones_like(local.a[:, :1])], axis=1)
        credit = local.q + v @ state.B.T  # Eq. (2)
        earlier = local.q_before + (credit[:, None] @ local.J)[:, 0]  # Eq. (1)
        B = state.B
        if state.v is not None:
            off = (state.v @ B.T - earlier) / (state.v * state.v).sum(axis=1, keepdims=True)
            B = B - (state.rate / len(v) * off).astype(B.dtype).T @ state.v  # Eq. (3)
        return replace(state, B=B, v=v, credit=credit, earlier=earlier)

    def credit(self, state: Synthetic, local: LocalDerivatives) -> StepGradient:
        """λ M̄, and of initial states what the first step leaves for them."""
        g = np.zeros((len(local.q), local.layout.P), local.q.dtype)
        for factor in local.factors:
            g[:, factor.columns] += factor.times(state.credit)
        if local.t == 0:
            for column, row in local.layout.initial_rows.items():
                g[:, column] = state.earlier[:, row]
        return StepGradient(g, local.direct)


PER_STEP = ("2 P + Σ 2 N m + 8 N² + 2 N F", "P + N²")
METHOD = Online(
    name="dni",
    summary="immediate influence times credit, in which a learned linear model stands for later losses; in plain NumPy",
    tags=frozenset({"biased", "online", "recurrent"}),
    Options=Options,
    rule=DNI(),
    flops=lambda layout, options: 2.0 * layout.local_entries + 2.0 * layout.P + 8.0 * layout.N * layout.N,
    entries=lambda layout, options: 6 * layout.P + 10 * layout.N,
    shared=lambda layout, options: 3 * layout.N * (layout.N + 1),
)
