"""Where the interpreter lets itself be changed: each hook replaces one rule, and None is the right rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bpcli.checking.interpreter.rules import pull
from bpcli.checking.interpreter.walk import States, Walk
from bpcli.graph.nodes import Node
from bpcli.problem.definition import Array, Problem
from bpcli.references.base import FloatArray

if TYPE_CHECKING:
    from bpcli.checking.interpreter.reverse import Sweep

Factor = Literal["q", "J", "M", "static"]
"""What a pass through one step computes: ∂l/∂(a(t), a(t-1), w, x), cᵀ ∂a(t)/∂a(t-1), cᵀ ∂a(t)/∂(w, x).

"static" is the pass through what is computed once, from parameters and constants alone.
"""


@dataclass(frozen=True, eq=False)
class Edge:
    """One use of a value: argument `slot` of `node`, at step `t`, with the cotangent (B or 1, *shape) of the node.

    `at` is the step whose values are used, `t` itself unless a hook says otherwise; `call` counts the gradients that
    were asked for before this one.
    """

    walk: Walk
    node: Node
    slot: int
    factor: Factor
    t: int
    at: int
    cotangent: FloatArray
    call: int

    @property
    def source(self) -> Node:
        """The node that is used."""
        return self.walk.graph.nodes[self.node.args[self.slot]]

    @property
    def args(self) -> Sequence[FloatArray]:
        """The values of the node's arguments."""
        return [self.walk.values[self.at][a] for a in self.node.args]

    @property
    def value(self) -> FloatArray:
        """The node's own value."""
        return self.walk.values[self.at][self.node.index]

    def pull(self, args: Sequence[FloatArray] | None = None, cotangent: FloatArray | None = None) -> FloatArray:
        """The right contribution to the argument (B or 1, *shape), before it is summed over samples."""
        c = self.cotangent if cotangent is None else cotangent
        return pull(self.node.op, self.slot, c, self.args if args is None else args, self.value, self.node.numbers)


@dataclass(frozen=True)
class Hooks:
    """The rules that can be replaced.

    - `edge(edge)`: a contribution, as `Edge.pull` gives it.
    - `gather(edge, contribution)`: its sum over samples (1, *shape), for an argument that is the same for all of them.
    - `add(edge, before, contribution)`: the cotangent of an argument that has one already.
    - `weights(walk)`: ∂L/∂l(t, b), (T, B).
    - `at(factor, t)`: the step whose values the derivatives of `factor` at step t are taken at.
    - `carry(sweep, t, credit)`: J(t)ᵀ c(t), the cotangents of the states at t-1 that pass through those at t.
    - `end(sweep)`: cotangents of the states after the last step.
    - `answer(problem, arrays, call)`: the gradient by name, from the right one.
    """

    edge: Callable[[Edge], FloatArray] | None = None
    gather: Callable[[Edge, FloatArray], FloatArray] | None = None
    add: Callable[[Edge, FloatArray, FloatArray], FloatArray] | None = None
    weights: Callable[[Walk], FloatArray] | None = None
    at: Callable[[Factor, int], int] | None = None
    carry: Callable[[Sweep, int, States], States] | None = None
    end: Callable[[Sweep], States] | None = None
    answer: Callable[[Problem, Mapping[str, Array], int], dict[str, Array]] | None = None


RIGHT = Hooks()
