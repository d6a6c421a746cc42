"""Unbiased online recurrent optimisation (Tallec & Ollivier, ICLR 2018): a random influence of rank one.

With a fresh vector ν of random signs at every step,

    ã(t) = ρ₀ J ã(t-1) + ρ₁ ν,        θ̃(t) = θ̃(t-1) / ρ₀ + νᵀ M̄ / ρ₁,

the expectation of the outer product ã θ̃ᵀ is the influence M(t), since E ν νᵀ = 1 and the terms that are mixed
vanish; so the expectation of the gradient is exact. The norms are balanced to keep the variance low: ρ₀ = (‖θ̃‖ / ‖J
ã‖)^½ and ρ₁ = (‖νᵀ M̄‖ / ‖ν‖)^½ are even in the signs. Every sample has signs of its own. Where initial states are
differentiated, ã(0) and θ̃(0) have random signs at their entries. The rule takes O(N² + P) a step in plain NumPy, on
any recurrent graph whose gates and nonlinearities are elementwise; where a step mixes units before it ends, as in
stacked layers, the local derivatives that it is given take up to N reverse passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bpcli.methods._online import Online
from bpcli.methods._random import balance, signs
from bpcli.methods.base import NoOptions, StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives, influence_layout


@dataclass(frozen=True)
class Factors:
    """ã (batch, N) and θ̃ (batch, P) after a step, both before it, and the source of signs."""

    a: Array
    theta: Array
    before: tuple[Array, Array]
    rng: np.random.Generator


class UORO:
    """One random direction of the state, and of the parameters."""

    def start(self, setup: Setup, options: NoOptions, rng: np.random.Generator) -> Factors:
        """ã(0) and θ̃(0), whose product has the expectation M(0)."""
        layout = influence_layout(setup)
        a, theta = np.zeros((setup.batch, layout.N), setup.dtype), np.zeros((setup.batch, layout.P), setup.dtype)
        for name, rows in layout.states.items():
            if name in layout.columns:
                a[:, rows] = theta[:, layout.columns[name]] = signs(rng, (setup.batch, rows.stop - rows.start))
        return Factors(a, theta, (a, theta), rng)

    def step(self, state: Factors, local: LocalDerivatives) -> Factors:
        """Carry both on, and add a random direction to both."""
        nu = signs(state.rng, state.a.shape).astype(state.a.dtype)
        carried = local.jacobian.times(state.a)  # J ã
        entered = np.zeros_like(state.theta)  # νᵀ M̄
        for factor in local.factors:
            entered[:, factor.columns] += factor.times(nu)
        rho0, rho1 = balance(state.theta, carried), balance(entered, nu)
        a = rho0 * carried + rho1 * nu
        theta = state.theta / rho0 + entered / rho1
        return replace(state, a=a, theta=theta, before=(state.a, state.theta))

    def credit(self, state: Factors, local: LocalDerivatives) -> StepGradient:
        """(q ã) θ̃ for the states after and before the step, and the direct part."""
        a, theta = state.before
        g = (local.q * state.a).sum(axis=1, keepdims=True) * state.theta
        return StepGradient(g + (local.q_before * a).sum(axis=1, keepdims=True) * theta, local.direct)


PER_STEP = ("2 N P + 2 N² + 2 N F", "9 P")
METHOD = Online(
    name="uoro",
    summary="unbiased random influence of rank one: correct on average over seeds; in plain NumPy",
    tags=frozenset({"online", "random", "recurrent", "unbiased"}),
    Options=NoOptions,
    rule=UORO(),
    flops=lambda layout, options: 2.0 * layout.local_entries + 8.0 * layout.P,
    entries=lambda layout, options: 9 * layout.P + 6 * layout.N,
    reads_jacobian=False,
)
