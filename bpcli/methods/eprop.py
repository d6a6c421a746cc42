"""E-prop (Bellec et al., Nature Communications 2020): learning signals times local eligibility traces.

    ε(t) = Ε(t) ε(t-1) + M̄(t)          eligibility (N, P)                             (1)
    g(t) = q(t) ε(t) + direct           learning signal q = ∂l(t)/∂a(t)                (2)

Ε is the derivative of a unit's state by its own state before, ∂a_j(t)/∂a_j(t-1) at fixed activity of the others. On any
graph that is J along elementwise paths, which go through gates and nonlinearities, but through no product with a
matrix and no sum over units; M̄ is exact within its step. Ε is

    leaky RNN   (1 - α) I, as in `rflo`         vanilla RNN   0
    GRU         diag(z)                         IndRNN, LRU   J itself: the rule is exact there
    LSTM        diag(f) from c(t-1) to c(t), and diag(f o (1 - tanh²(c))) from there to h(t): the paper's traces of LSTM

The learning signal is symmetric feedback: losses are differentiated through the matrices that read the states. With the
total derivative in place of it, along all paths that (1) leaves out,

    λ(t) = q(t) + q_before(t+1) + (J(t+1) - Ε(t+1))ᵀ c(t+1),   c(t) = λ(t) + Ε(t+1)ᵀ c(t+1),

Σ λ(t) ε(t) is the gradient of BPTT: equation (1) of the paper.

Cost: 6 P operations a step on the pattern of M̄, closed under Ε, which needs no product; a reverse pass of a step for q.
"""

from __future__ import annotations

from bpcli.methods._patterned import patterned
from bpcli.methods.base import NoOptions
from bpcli.runtime.sparse_plan import Sparsity

PER_STEP = ("Σ c² + 4 F", "Σ c")
METHOD = patterned(
    name="eprop",
    summary="learning signal times local eligibility: the influence along elementwise paths from step to step",
    tags=frozenset({"biased", "online", "recurrent"}),
    Options=NoOptions,
    sparsity=lambda options: Sparsity(None, "elementwise"),
)
