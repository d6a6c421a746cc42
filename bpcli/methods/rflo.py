"""Random feedback local online learning (Murray, eLife 2019), the influence of it: J is replaced by the leak.

    M(t) = Λ(t) M(t-1) + M̄(t)        (1)
    g(t) = q(t) M(t) + direct         (2)

The leak Λ is the factor of a(t-1) outside of any nonlinearity and any product with a matrix. Defined for any graph:
hold fixed the values of all operations of a step that are not affine in a(t-1), and of those that mix units (products
with matrices, sums over units); Λ is the Jacobian of what is left. So of two factors that both vary with a(t-1), the
product is held fixed; of `z * h[t-1]` with a gate z, that is a nonlinearity, the factor z counts. Λ is

    leaky RNN             (1 - α) I
    vanilla RNN, IndRNN   0: all of a(t-1) is inside a nonlinearity
    GRU                   diag(z)
    LSTM                  diag(f) from c(t-1) to c(t), and 0 from there to h(t) = o tanh(c(t)), a nonlinearity: a loss
                          of h alone learns nothing from the traces of c (`eprop` does)
    LRU                   J itself: the rule is exact there

Learning signals are q = ∂l(t)/∂a(t) here, where the paper feeds errors back by random weights. The immediate influence
M̄ is exact within its step. Exact where W_rec = 0; on a leaky or vanilla RNN the same as `snap:k=1` where the diagonal
of W_rec is zero.

Cost: 6 P operations a step on the pattern of M̄, closed under Λ, and no entry of J; a reverse pass of a step for q.
"""

from __future__ import annotations

from bpcli.methods._patterned import patterned
from bpcli.methods.base import NoOptions
from bpcli.runtime.sparse_plan import Sparsity

PER_STEP = ("Σ c² + 4 F", "Σ c")
METHOD = patterned(
    name="rflo",
    summary="influence with J replaced by the leak, the factor of a[t-1] outside of nonlinearities and products",
    tags=frozenset({"biased", "online", "recurrent"}),
    Options=NoOptions,
    sparsity=lambda options: Sparsity(None, "affine"),
)
