"""Kernel RNN learning (Roth, Kanitscheider & Fiete, ICLR 2019): a learned kernel in place of powers of J.

The influence of a change of unit j on unit i, τ steps later, is taken to be A_ij κ_j^τ, with a matrix A (N, N) and a
decay κ (N), e^-γ in the paper, that are learned while the sequence runs:

    Ε(t) = κ Ε(t-1) + M̄(t)                        eligibility, row by row, on the pattern of one step           (1)
    g(t) = q(t) A Ε(t) + direct                                                                                 (2)

They are fitted to the response d of the network to random signs ν that are added to all states at every step,

    d(t) = J(t) d(t-1) + ν(t),      Ω(t) = κ Ω(t-1) + ν(t),      e = A Ω(t) − d(t),                             (3)

by gradient descent on |e|² / 2, with Λ = ∂Ω/∂κ, Λ(t) = κ Λ(t-1) + Ω(t-1), and the mean over samples:

    A ← A − η e Ωᵀ / s,      κ ← κ − η (Aᵀ e) ∘ Λ / s,      s = 1 + |Ω|² + Σ_j |A_·j|² Λ_j².                   (4)

The paper takes d from a second network with small noise: here it is the limit of small noise, so that neither the size
of the noise nor that of the states matters; and s, the squared norm of the derivatives of A Ω, makes any rate 0 < η < 2
one that converges, whatever the number of units. κ stays within 0 and 1. A(0) = 1, and κ(0) is the option `decay`. Of
several states all have one kernel; M̄ is exact within its step. With rate 0 and the leak as the decay this is `rflo`
where the leak is the same at every step.

Cost: 5 c a column of M with c rows, and N² for each of A Ω, A e and e Ωᵀ; J d takes no J. In plain NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bpcli.methods._online import Online
from bpcli.methods._patterned import Pattern, pattern_of, terms_of
from bpcli.methods._random import signs
from bpcli.methods.base import StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives, influence_layout
from bpcli.runtime.sparse_plan import Sparsity

_ONE_STEP = Sparsity(1, None)


@dataclass(frozen=True)
class Options:
    """The `rate` η of the kernel, 0 to hold it fixed, and its `decay` at the start, 0 <= decay <= 1."""

    rate: float = 0.1
    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 2:
            raise ValueError(f"rate must be at least 0 and less than 2, not {self.rate}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be at least 0 and at most 1, not {self.decay}")


@dataclass(frozen=True)
class Kernel:
    """A (N, N), κ (N), Ε (batch, entries), and d, Ω and Λ (batch, N) after a step; A and Ε before it; and signs."""

    A: Array
    kappa: Array
    E: Array
    d: Array
    Omega: Array
    Lambda: Array
    before: tuple[Array, Array]
    pattern: Pattern
    rate: float
    rng: np.random.Generator


class KeRNL:
    """Eligibilities that decay, credited through a matrix, both of which learn how the states respond to noise."""

    def start(self, setup: Setup, options: Options, rng: np.random.Generator) -> Kernel:
        """A = 1; M(0) for Ε(0); no noise yet."""
        layout = influence_layout(setup)
        pattern = pattern_of(layout, _ONE_STEP)
        E = layout.initial(1, setup.dtype)[:, pattern.rows, pattern.columns].repeat(setup.batch, axis=0)
        A, zero = np.eye(layout.N, dtype=setup.dtype), np.zeros((setup.batch, layout.N), setup.dtype)
        kappa = np.full(layout.N, options.decay, setup.dtype)
        return Kernel(A, kappa, E, zero, zero, zero, (A, E), pattern, options.rate, rng)

    def step(self, state: Kernel, local: LocalDerivatives) -> Kernel:
        """Carry on the eligibility, the response and its model, and fit them."""
        p, E = state.pattern, state.kappa[state.pattern.rows] * state.E  # Eq. (1)
        for factor in local.factors:
            inside = slice(*np.searchsorted(p.columns, [factor.columns.start, factor.columns.stop]))
            E[:, inside] += factor.at(p.rows[inside], p.columns[inside] - factor.columns.start)
        nu = signs(state.rng, state.d.shape).astype(state.d.dtype)
        Lambda = state.kappa * state.Lambda + state.Omega
        Omega, d = state.kappa * state.Omega + nu, local.jacobian.times(state.d) + nu  # Eq. (3)
        carried = replace(state, E=E, d=d, Omega=Omega, Lambda=Lambda, before=(state.A, state.E))
        return fitted(carried) if state.rate else carried

    def credit(self, state: Kernel, local: LocalDerivatives) -> StepGradient:
        """(q A) Ε for the states after and before the step, and the direct part."""
        p, (A, E) = state.pattern, state.before
        g = np.zeros((len(E), p.P), E.dtype)
        if len(p.rows):
            parts = (local.q @ state.A)[:, p.rows] * state.E + (local.q_before @ A)[:, p.rows] * E  # Eq. (2)
            g[:, p.columns[p.starts]] = np.add.reduceat(parts, p.starts, axis=1)
        return StepGradient(g, local.direct)


def fitted(state: Kernel) -> Kernel:
    """Equation (4)."""
    A, Omega, Lambda = state.A, state.Omega, state.Lambda
    e = Omega @ A.T - state.d
    s = 1 + (Omega * Omega).sum(axis=1) + (Lambda * Lambda) @ (A * A).sum(axis=0)
    share = e * (state.rate / (s * len(e)))[:, None].astype(e.dtype)
    kappa = state.kappa - ((share @ A) * Lambda).sum(axis=0)
    return replace(state, A=A - share.T @ Omega, kappa=np.clip(kappa, 0, 1))


def _entries(layout: InfluenceLayout) -> int:
    return terms_of(layout, _ONE_STEP)[0]


PER_STEP = ("5 Σ c + 8 N² + 4 F", "Σ c + N²")
METHOD = Online(
    name="kernl",
    summary="influence by a decaying kernel that learns how states respond to noise; in plain NumPy",
    tags=frozenset({"biased", "online", "random", "recurrent"}),
    Options=Options,
    rule=KeRNL(),
    flops=lambda layout, options: 5.0 * _entries(layout) + 8.0 * layout.N * layout.N + 2.0 * layout.local_entries,
    entries=lambda layout, options: 6 * _entries(layout) + 2 * layout.P + 12 * layout.N,
    shared=lambda layout, options: 8 * _entries(layout) + 4 * terms_of(layout, _ONE_STEP)[1] + 4 * layout.N**2,
    reads_jacobian=False,
)
