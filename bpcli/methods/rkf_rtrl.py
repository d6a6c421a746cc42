"""Reverse Kronecker-factored RTRL (Marschall, Cho & Savin, JMLR 2020): of each product one random term, A over units.

The factors change places against `kf-rtrl`: A (m) is of the units that a product feeds, B (N, n) of states and inputs,
M = A_i B_kj. With a fresh vector ν of m random signs at every step and D (N, m), x (n) of a product as in `_kronecker`,

    A ← ρ₀ A + ρ₁ ν                                                                              (1)
    B ← J B / ρ₀ + (D ν) xᵀ / ρ₁                                                                 (2)

has the mean A_i B_kj ← A_i (J B)_kj + D_ki x_j, since E ν νᵀ = 1 and the terms that are mixed have mean zero. Norms are
balanced, ρ₀ = (‖J B‖ / ‖A‖)^½ and ρ₁ = (‖(D ν) xᵀ‖ / ‖ν‖)^½, and even in ν. Where a step's D is diagonal, as in a
vanilla RNN, this is the paper's rule; here every product has its own A and B, and all take their signs from one ν.
N² n a step and product for J B, and N n + m numbers held for it; the local derivatives take N reverse passes of single
steps. In plain NumPy.
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
    """One term for two."""
    x, nu = np.asarray(entered.vector), signs[:, : entered.delta.shape[2]]
    along = (entered.delta @ nu[:, :, None]) * x[:, None]  # (D ν) xᵀ
    A, B = balanced(nu, along)
    for old in terms:
        carried = balanced(np.asarray(old.vector), old.delta)
        A, B = carried[0] + A, carried[1] + B  # Eq. (1), (2)
    return (replace(entered, vector=A, delta=B, turned=not entered.turned),)


PER_STEP = ("Σ 2 N² n + 2 N F", "Σ (N n + m)")
METHOD = Online(
    name="rkf-rtrl",
    summary="unbiased random Kronecker factors of the influence, units times (states, inputs); in plain NumPy",
    tags=frozenset({"online", "random", "recurrent", "unbiased"}),
    Options=NoOptions,
    rule=_kronecker.Kronecker(mixed, lambda products, options: max(f.delta.shape[2] for f in products)),
    flops=lambda layout, options: _kronecker.flops(layout, 1, by_inputs=True),
    entries=lambda layout, options: _kronecker.entries(layout, 1, by_inputs=True),
    unfit=_kronecker.unfit,
)
