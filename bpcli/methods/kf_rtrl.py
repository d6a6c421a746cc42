"""Kronecker-factored RTRL (Mujika, Meier & Steger, NeurIPS 2018): of each product one random term A ⊗ u.

With a fresh random sign c at every step, x and D (N, m) of a product as in `_kronecker`, and each pair scaled to equal
norms, (u, J A) by ρ₀ = (‖J A‖ / ‖u‖)^½ and (x, D) by ρ₁ = (‖D‖ / ‖x‖)^½,

    u ← ρ₀ u + c ρ₁ x                                                                            (1)
    A ← J A / ρ₀ + c D / ρ₁                                                                      (2)

has the mean A ⊗ u ← J A ⊗ u + D ⊗ x, as c² = 1 and the terms that are mixed have mean zero. The norms are even in c.
The paper has one matrix for all inputs of a vanilla RNN; here every product of every matrix has its own A and u, and
vectors are exact. N² m a step and product for J A, and N m + n numbers held for it; the local derivatives take N
reverse passes of single steps. In plain NumPy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bpcli.methods import _kronecker
from bpcli.methods._online import Online
from bpcli.methods._random import balanced
from bpcli.methods.base import NoOptions
from bpcli.problem.definition import Array
from bpcli.runtime.local_derivatives import Factor


def mixed(terms: tuple[Factor, ...], entered: Factor, signs: Array, options: Any) -> tuple[Factor, ...]:
    """One term for two; the first step has one alone."""
    x, D = balanced(np.asarray(entered.vector), entered.delta)
    u, A = signs * x, signs[:, :, None] * D
    for old in terms:
        carried = balanced(np.asarray(old.vector), old.delta)
        u, A = carried[0] + u, carried[1] + A  # Eq. (1), (2)
    return (replace(entered, vector=u, delta=A),)


PER_STEP = ("Σ 2 N² m + 2 N F", "Σ (N m + n)")
METHOD = Online(
    name="kf-rtrl",
    summary="unbiased random Kronecker factors of the influence, inputs times (states, units); in plain NumPy",
    tags=frozenset({"online", "random", "recurrent", "unbiased"}),
    Options=NoOptions,
    rule=_kronecker.Kronecker(mixed, lambda products, options: 1),
    flops=lambda layout, options: _kronecker.flops(layout, 1),
    entries=lambda layout, options: _kronecker.entries(layout, 1),
    unfit=_kronecker.unfit,
)
