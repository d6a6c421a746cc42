"""E-prop with random feedback (Bellec et al., Nature Communications 2020): learning signals by fixed random matrices.

    ε(t) = Ε(t) ε(t-1) + M̄(t)          eligibility (N, P), as in `eprop`              (1)
    g(t) = q̃(t) ε(t) + direct           learning signal (N)                            (2)

Where a matrix W reads the states after the recurrence, y = W h, the loss goes back by a fixed random matrix B in its
place (Lillicrap et al. 2016), so that no synapse has to know another one: of one read-out

    q = ∂l/∂y W   becomes   q̃ = ∂l/∂y B,      B of the shape of W, of mean 0 and variance 1 / columns.          (3)

Values, ∂l/∂y and the gradient of W are those of the network. Of several products in a row each has its B, and one that
is used twice has one. All else, such as what a loss owes to a state without a matrix, goes back as it is. On any graph
this is `eprop` of a network with the same values,

    y = W stop_gradient(h) + B h − stop_gradient(B h).                                                          (4)

B is drawn by the seed of the spec, once for all sequences. With B = W this is `eprop`. Cost: that of `eprop`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from bpcli.graph.nodes import Graph, Node, Phase, ancestors
from bpcli.graph.rewriting import Rewrite, Rewriting, rewritten
from bpcli.methods._online import drawing
from bpcli.methods._patterned import patterned
from bpcli.methods.base import NoOptions
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.sparse_plan import Sparsity

NAME = "eprop-random"


def readouts(graph: Graph) -> tuple[int, ...]:
    """The products after the recurrence, of a static matrix with a vector that depends on a state."""
    args, states = [n.args for n in graph.nodes], {*graph.new.values(), *graph.previous.values()}
    products = (n for n in graph.nodes if n.op == "matmul" and n.phase is Phase.OUTPUT)
    return tuple(n.index for n in products if states & ancestors(n.args[1:], args))


def feedback_of(matrix: int) -> str:
    """The name of the random matrix in place of a static node."""
    return f"feedback {matrix}"


@lru_cache(maxsize=8)
def with_feedback(setup: Setup) -> tuple[Setup, Mapping[str, Array]]:
    """The network (4) of a setup, and its random matrices by name."""
    rng, matrices = drawing(setup, NAME), dict[str, Array]()
    for n in sorted({setup.graph.nodes[p].args[0] for p in readouts(setup.graph)}):
        shape = setup.graph.nodes[n].shape
        matrices[feedback_of(n)] = (rng.standard_normal(shape) / math.sqrt(shape[1])).astype(setup.dtype)
    return replace(setup, graph=rewritten(setup.graph, _split(frozenset(readouts(setup.graph))))), matrices


def _split(reads: frozenset[int]) -> Rewrite:
    """Equation (4) for every read-out."""

    def split(made: Rewriting, node: Node, args: tuple[int, ...]) -> int:
        if node.index not in reads:
            return made.add(node, args)
        W, h = args
        name = feedback_of(node.args[0])
        if name not in made.params:
            made.params[name] = made.add(made.nodes[W], (), op="param", numbers=(), name=name)
        still = made.add(made.nodes[h], (h,), op="stop_gradient", numbers=(), name="", phase=Phase.OUTPUT)
        read = made.add(node, (W, still), name="")
        back = made.add(node, (made.params[name], h), name="")
        held = made.add(node, (back,), op="stop_gradient", name="")
        return made.add(node, (read, made.add(node, (back, held), op="subtract", name="")), op="add")

    return split


def unfit(graph: Graph) -> str | None:
    """Graphs in which no matrix reads the states have no feedback to replace."""
    if readouts(graph):
        return None
    return "no matrix reads the states after the recurrence: there is no feedback to replace; `eprop` applies"


PER_STEP = ("Σ c² + 4 F", "Σ c")
METHOD = replace(
    patterned(
        name=NAME,
        summary="eprop with fixed random matrices in place of those that read the states, on the way back",
        tags=frozenset({"biased", "online", "recurrent"}),
        Options=NoOptions,
        sparsity=lambda options: Sparsity(None, "elementwise"),
    ),
    rewrite=with_feedback,
    unfit=unfit,
)
