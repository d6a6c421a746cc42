"""RTRL (Williams & Zipser, 1989) on the structural pattern of M: exact, and as cheap as J is sparse.

    M(t) = J(t) M(t-1) + M̄(t) on the entries that ever differ from zero        (1)
    g(t) = q(t) M(t) + direct                                                  (2)

The pattern is closed under J, so nothing is left out: it is that of `snap:k=…` for any k from the diameter of the
network on. Read off the equations, never off values; densities count.

Cost: columns that reach the same r states are advanced by an r × r block of J, many steps at a time as in `rtrl-block`.
Where units do not feed each other, as in IndRNN or LRU, r is the states of one unit, and a step takes O(P) in time and
memory; with a density, r is what a unit reaches in any number of steps. Of a full W that is all N: then M is full, and
the cost that of `rtrl-block`.
"""

from __future__ import annotations

from bpcli.methods._patterned import patterned
from bpcli.methods.base import Exact, NoOptions
from bpcli.runtime.sparse_plan import Sparsity

PER_STEP = ("2 Σ c² + 4 F", "Σ c")
METHOD = patterned(
    name="rtrl-sparse",
    summary="rtrl on the structural pattern of M: for diagonal or sparse recurrences; M is never dense",
    tags=frozenset({"exact", "online", "recurrent"}),
    Options=NoOptions,
    sparsity=lambda options: Sparsity(None, None),
    defined=lambda setup, options: Exact(),
)
