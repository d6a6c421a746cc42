"""RTRL a block of h steps at a time (Schmidhuber, Neural Computation 1992): exact, at O(n³) a step where h = n.

Within a block of steps t0 < t ≤ t1 reverse passes from the states at its end, one for each of the N, and one from its
losses, as in BPTT:

    L(t1) = 1,            L(t-1) = L(t) J(t)                                           (1)
    λ(t1) = q(t1),        λ(t-1) = q(t-1) + q_before(t) + λ(t) J(t)                     (2)

Between blocks the influence is carried as in RTRL:

    g ← g + (λ(t0+1) J(t0+1) + q_before(t0+1)) M(t0) + Σ_t λ(t) M̄(t)                   (3)
    M(t1) = L(t0) M(t0) + Σ_t L(t) M̄(t)                                               (4)

Memory does not grow with T, as that of BPTT does; M counts where that of RTRL does, on its structural pattern.

Cost a step of a vanilla RNN: n³ for (1), n P = n³ for the sums of (4), and n² P / h = n⁴ / h for its product, where
RTRL has n² P; memory n P + h n².
"""

from __future__ import annotations

from dataclasses import dataclass

from bpcli.methods._patterned import patterned
from bpcli.methods.base import Exact
from bpcli.runtime.sparse_plan import Sparsity


@dataclass(frozen=True)
class Options:
    """Blocks of `h` >= 1 steps; the last one may be shorter."""

    h: int

    def __post_init__(self) -> None:
        if self.h < 1:
            raise ValueError(f"h must be at least 1, not {self.h}")


PER_STEP = ("2 N F + 2 N P (1 + N / h)", "N P + h N²")
METHOD = patterned(
    name="rtrl-block",
    summary="rtrl in blocks of h steps, with N reverse passes each: O(n^3) per step at h = n",
    tags=frozenset({"exact", "online", "recurrent"}),
    Options=Options,
    sparsity=lambda options: Sparsity(None, None, options.h),
    defined=lambda setup, options: Exact(),
)
