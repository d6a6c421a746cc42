"""Sparse n-step approximation of RTRL (Menick et al., ICLR 2021): M ← mask ∘ (J M + M̄), on the entries alone.

    M(t) = mask ∘ (J(t) M(t-1) + M̄(t))        (1)
    g(t) = q(t) M(t) + direct                  (2)

The mask has the entries of M that may differ from zero within k steps of a parameter's use. It is read off the
equations, with densities, on any recurrent graph: of a vanilla RNN and k = 1 each weight influences its own unit, and
M has P entries; where a step mixes all units, as the reset gate of a GRU that is applied before the product does, the
mask of some parameters is full. From some k on the mask is that of M itself, and the gradient exact.

Cost: columns with the same r rows are advanced by their r × r block of J. With k = 1 a vanilla RNN takes 6 P operations
a step and as many entries of J as it has units, computed from their parts. With k = 2 and a full W, r is N: that is
RTRL.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpcli.methods._patterned import patterned
from bpcli.runtime.sparse_plan import Sparsity


@dataclass(frozen=True)
class Options:
    """The pattern of `k` >= 1 steps."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")


PER_STEP = ("2 Σ c² + 4 F", "Σ c")
METHOD = patterned(
    name="snap",
    summary="rtrl on the pattern of k steps, exact where J is diagonal",
    tags=frozenset({"biased", "online", "recurrent"}),
    Options=Options,
    sparsity=lambda options: Sparsity(options.k, None),
)
