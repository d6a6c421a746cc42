"""Anticipated reweighted truncated BPTT (Tallec & Ollivier, 2017): the way back is cut at random, and reweighted.

Between any two steps it is cut with probability p. With λ(t) = dL/da(t), by the losses of step t and later, and the
local derivatives J and q of a step,

    λ(t-1) = q(t-1) + (0 where it is cut, else 1 / (1 − p)) J(t)ᵀ λ(t),                          (1)

of which the mean over all cuts is that of BPTT, as a derivative that crosses r steps is there with probability
(1 − p)^r. What a loss owes to the state before its own step crosses too. Cuts are the same for all samples. As much is
held as the longest piece between two cuts has. A large p has a large variance: the weights grow like (1 − p)^-r.

The pieces are windows of BPTT in a network with the same values, whose states enter a step weighted on the way back,

    a(t-1)   becomes   stop_gradient(a(t-1)) + (a(t-1) − stop_gradient(a(t-1))) / (1 − p).       (2)

The definition of a draw is the same in forward mode: M(t-1) is weighted like λ(t) before it enters step t.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.rewriting import Rewrite, Rewriting, rewritten
from bpcli.methods._online import drawing
from bpcli.methods.base import Cost, Exact, Expectation, Gradient, NoOptions, Recursion, StepGradient
from bpcli.methods.rtrl_dense import DenseRTRL, Influence
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives
from bpcli.runtime.reverse_mode import Unrolled, Window, memory_traffic, unrolled

_DENSE = DenseRTRL()


@dataclass(frozen=True)
class Cutting:
    """Cut between any two steps with probability `p`, 0 <= p < 1."""

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p must be at least 0 and less than 1, not {self.p}")


def cuts(T: int, options: Cutting, rng: np.random.Generator) -> Array:
    """1 where the way back is cut before steps 1 to T - 1, else 0."""
    return np.asarray(rng.binomial(1, options.p, T - 1))


@dataclass(frozen=True)
class Weighted:
    """An influence, and the weights (T - 1) of the ways between steps."""

    influence: Influence
    weights: Array


class CutInfluence:
    """Equation (1) in forward mode: M ← J (w M) + M̄."""

    def start(self, setup: Setup, options: Cutting, rng: np.random.Generator) -> Weighted:
        """M(0), and the cuts."""
        kept = 1 - cuts(setup.T, options, rng)
        return Weighted(_DENSE.start(setup, NoOptions(), rng), (kept / (1 - options.p)).astype(setup.dtype))

    def step(self, state: Weighted, local: LocalDerivatives) -> Weighted:
        """The dense recursion from the weighted influence."""
        before = state.influence.M if local.t == 0 else state.weights[local.t - 1] * state.influence.M
        return replace(state, influence=_DENSE.step(Influence(before, before), local))

    def credit(self, state: Weighted, local: LocalDerivatives) -> StepGradient:
        """As in `rtrl-dense`."""
        return _DENSE.credit(state.influence, local)


_RULE = CutInfluence()


class ARTBP:
    """BPTT in random pieces, from compiled kernels."""

    name: ClassVar[str] = "artbp"
    summary: ClassVar[str] = "bptt cut between steps with probability p, and reweighted by 1 / (1 - p): unbiased"
    tags: ClassVar[frozenset[str]] = frozenset({"random", "recurrent", "reverse", "unbiased"})
    Options: ClassVar[type[Cutting]] = Cutting

    def refusal(self, graph: Graph) -> str | None:
        """The graph needs a state."""
        return None if graph.recurrent else "there is no way back through time to cut; `backprop` applies"

    def definition(self, setup: Setup, options: Cutting) -> Expectation:
        """The total derivative in the mean; given its cuts, the recursion (1)."""
        return Expectation(Exact(), Recursion(setup, _RULE, options, self.name))

    def cost(self, setup: Setup, options: Cutting) -> Cost:
        """One forward pass and one reverse pass; memory for the longest piece between the cuts of this seed."""
        plan = _pieces(setup, options)
        return Cost(plan.flops, plan.bytes, setup.T, memory_traffic(plan))

    def gradient(self, problem: Problem, options: Cutting) -> Gradient:
        """One forward pass, with a reverse pass from every cut."""
        setup, pieces = problem.setup, _pieces(problem.setup, options)
        loss, arrays = pieces.gradient(replace(problem, setup=pieces.setup))
        # No way between steps leads to an initial state, but one through (2).
        kept = {x.name: setup.dtype.type(1 - options.p) for x in setup.wrt if x.kind == "state"}
        return Gradient(loss, {name: kept[name] * a if name in kept else a for name, a in arrays.items()})


def _pieces(setup: Setup, options: Cutting) -> Unrolled:
    """The steps between cuts of the network (2)."""
    at = np.flatnonzero(cuts(setup.T, options, drawing(setup, ARTBP.name))) + 1
    ends = [0, *at.tolist(), setup.T]
    windows = tuple(Window(start, start, stop) for start, stop in itertools.pairwise(ends))
    return unrolled(_weighted(setup, 1 / (1 - options.p)), windows)


@lru_cache(maxsize=8)
def _weighted(setup: Setup, weight: float) -> Setup:
    """The network (2)."""
    return setup if weight == 1 else replace(setup, graph=rewritten(setup.graph, _weighting(weight)))


def _weighting(weight: float) -> Rewrite:
    """Equation (2) for every state."""

    def weigh(made: Rewriting, node: Node, args: tuple[int, ...]) -> int:
        n = made.add(node, args)
        if node.op != "previous":
            return n
        w = made.add(node, (), op="constant", shape=(), numbers=(weight,), name="", phase=Phase.STATIC)
        still = made.add(node, (n,), op="stop_gradient", name="")
        moving = made.add(node, (n, still), op="subtract", name="")
        return made.add(node, (still, made.add(node, (w, moving), op="multiply", name="")), op="add", name="")

    return weigh


PER_STEP = ("3 F", "V / p")
METHOD = ARTBP()
