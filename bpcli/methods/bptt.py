"""Backpropagation through time: the reverse pass of the unrolled graph (Werbos 1990).

c(t) = q(t) + J(t+1)ᵀ c(t+1) backwards from the last loss, g = Σ_t c(t) M̄(t). All T steps are held.
"""

from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Exact, NoOptions

PER_STEP = ("3 F", "T V")
METHOD = Unrolling(
    name="bptt",
    summary="reverse pass of the unrolled graph; keeps all steps in memory",
    tags=frozenset({"default", "exact", "offline", "recurrent", "reverse"}),
    Options=NoOptions,
    defined=lambda T, options: Exact(),
)
