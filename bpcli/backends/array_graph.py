"""The nodes of a Graph as functions over a library of arrays.

A value is an array `(…, *shape)`: static ones have no leading axes, those of a step `(batch,)`, those of all steps
`(T, batch)`. Products are written for rows, `v @ M.T`, so that a batch is one GEMM and not a batch of matrix-vector
products.

The loss of a Graph in a library of arrays, as reverse mode goes through it.

The phases of the graph are kept: what is static or depends on inputs alone is computed before the scan over all steps
at once, what no state depends on after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.backends.base import Arrays, Function, Library
from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Setup

Values = dict[int, Any]
Rule = Callable[[Library, Node, tuple[Node, ...]], Function]


@dataclass(frozen=True)
class Program:
    """Nodes to compute, in order: the index of each, what computes it, and the indices of its arguments."""

    lines: tuple[tuple[int, Function, tuple[int, ...]], ...]

    def run(self, values: Values) -> Values:
        """`values`, which holds the leaves, and all that is computed from them."""
        known = dict(values)
        for index, function, args in self.lines:
            known[index] = function(*[known[a] for a in args])
        return known


def program(library: Library, graph: Graph, indices: Iterable[int], read: Iterable[int] = ()) -> Program:
    """What computes the nodes `indices`; those of `read` are wanted later.

    A product that is only added to something is one call with the sum.
    """
    own = tuple(indices)
    readers = Counter(a for i in own for a in graph.nodes[i].args)
    inner = {i for i in own if graph.nodes[i].op == "matmul" and readers[i] == 1} - set(read)
    lines: dict[int, tuple[int, Function, tuple[int, ...]]] = {}
    for index in own:
        node = graph.nodes[index]
        one = next((a for a in node.args if a in inner), None) if node.op == "add" else None
        if one is not None and all(graph.nodes[a].shape == node.shape for a in node.args):
            (other,) = (a for a in node.args if a != one)
            del lines[one]
            lines[index] = (index, library.product_sum, (*graph.nodes[one].args, other))
        else:
            lines[index] = (index, _RULES[node.op](library, node, tuple(graph.nodes[a] for a in node.args)), node.args)
    return Program(tuple(lines.values()))


def _elementwise(function: Function) -> Rule:
    """A rule that lines up scalars with vectors and matrices: leading axes stay in front, the shape's go to the end."""

    def rule(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
        axes = [len(node.shape) - len(a.shape) for a in args]
        return lambda *values: function(*map(_widen, values, axes)) if any(axes) else function(*values)

    return rule


def _widen(value: Any, axes: int) -> Any:
    return value if axes == 0 else value.reshape((*value.shape, *(1,) * axes))


def _of_one(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    """An elementwise function that the library has, or has under another name."""
    found: Function = library.special.get(node.op) or getattr(library.xp, node.op)
    return found


def _flat(node: Node, value: Any) -> Any:
    """A scalar as a vector of one, a vector as it is, a static matrix in a row."""
    return value.reshape((*value.shape[: value.ndim - len(node.shape)], -1))


def _sum(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    return lambda v: _flat(args[0], v).sum(-1)


def _dot(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    return lambda u, v: (_flat(args[0], u) * _flat(args[1], v)).sum(-1)


def _logsumexp(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    return lambda v: library.special[node.op](_flat(args[0], v))


def _normalised(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    return lambda v: library.special[node.op](_flat(args[0], v)).reshape(v.shape)


def _power(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    (exponent,) = node.numbers
    power = int(exponent) if exponent.is_integer() else exponent
    return lambda v: v**power


def _leaky_relu(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    (slope,) = node.numbers
    return lambda v: library.xp.where(v > 0, v, slope * v)


def _concat(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    xp = library.xp

    def joined(*values: Any) -> Any:
        parts = [_flat(a, v) for a, v in zip(args, values, strict=True)]
        lead = xp.broadcast_shapes(*(p.shape[:-1] for p in parts))
        return xp.concatenate([xp.broadcast_to(p, (*lead, p.shape[-1])) for p in parts], -1)

    return joined


def _slice(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    start, stop = (int(number) for number in node.numbers)
    return (lambda v: v[..., start:stop]) if node.shape else (lambda v: v[..., start])


_RULES: Mapping[str, Rule] = {
    "copy": _elementwise(lambda v: v),
    "negate": _elementwise(lambda v: -v),
    "add": _elementwise(lambda u, v: u + v),
    "subtract": _elementwise(lambda u, v: u - v),
    "multiply": _elementwise(lambda u, v: u * v),
    "divide": _elementwise(lambda u, v: u / v),
    "power": _power,
    "leaky_relu": _leaky_relu,
    **dict.fromkeys(("tanh", "sigmoid", "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs"), _of_one),
    "matmul": lambda library, node, args: library.product,
    "matmat": lambda library, node, args: lambda A, B: A @ B,
    "transpose": lambda library, node, args: lambda M: M.T,
    "sum": _sum,
    "dot": _dot,
    "logsumexp": _logsumexp,
    "softmax": _normalised,
    "log_softmax": _normalised,
    "concat": _concat,
    "slice": _slice,
}


def loss(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The objective as a function of all arrays: the loss of every step and sample, reduced over time and batch."""
    losses, objective = _losses(library, setup), setup.spec.objective
    over_time = {"sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0), "last": lambda x: x[-1]}

    def total(arrays: Arrays) -> Any:
        each = losses(arrays)
        if setup.graph.recurrent:
            each = over_time[objective.over_time](each)
        return each.mean() if objective.over_batch == "mean" else each.sum()

    return total


def masks(setup: Setup) -> dict[str, NDArray[np.bool_]]:
    """For each tensor that a density thins out, which of its entries exist."""
    found = {}
    for tensor in setup.wrt:
        if tensor.pattern is not None:
            found[tensor.name] = mask = np.zeros(tensor.shape, dtype=np.bool_)
            mask.reshape(-1)[tensor.pattern] = True
    return found


def leaves(library: Library, setup: Setup, arrays: Arrays) -> Values:
    """The values of a step that are given: arrays and constants."""
    graph = setup.graph
    constants = {n.index: library.constant(setup.dtype.type(n.numbers[0])) for n in graph.nodes if n.op == "constant"}
    return constants | {i: arrays[name] for name, i in graph.leaf.items()}


def _losses(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The loss of every step and sample, `(T, batch)`, or `(batch,)` when feed-forward."""
    graph = setup.graph
    lines = {phase: program(library, graph, _phase(graph, phase), _wanted(graph, phase)) for phase in Phase}
    scan = _scan(library, setup, lines[Phase.RECURRENT])
    lead = (setup.T, setup.batch) if graph.recurrent else (setup.batch,)

    def losses(arrays: Arrays) -> Any:
        values = lines[Phase.STATIC].run(leaves(library, setup, arrays))
        values = lines[Phase.INPUT].run(values)
        if graph.recurrent:
            values = lines[Phase.OUTPUT].run(scan(arrays, values))
        return library.xp.broadcast_to(values[graph.loss], lead)

    return losses


def _scan(library: Library, setup: Setup, lines: Program) -> Callable[[Arrays, Values], Values]:
    """The recurrent phase: `values` and, for all steps, what the output phase reads of states and recurrent values."""
    graph, xp = setup.graph, library.xp
    inside, after = _phase(graph, Phase.RECURRENT), _phase(graph, Phase.OUTPUT)
    feeding = _read(graph, inside, Phase.INPUT) | {i for i in graph.new.values() if graph.nodes[i].phase is Phase.INPUT}
    wanted = _read(graph, after, Phase.RECURRENT) | ({graph.loss} & set(inside))
    # A state that no state is computed from is read after the scan alone.
    earlier = {name: i for name, i in graph.previous.items() if any(i in graph.nodes[n].args for n in after)}
    kept = sorted(wanted - set(earlier.values()))

    def rows(i: int, value: Any) -> Any:
        shape = (setup.batch, *graph.nodes[i].shape)
        return value if value.shape == shape else xp.broadcast_to(value, shape)

    def scan(arrays: Arrays, values: Values) -> Values:
        fixed = {i: v for i, v in values.items() if graph.nodes[i].phase is Phase.STATIC}
        fed = {i: xp.broadcast_to(values[i], (setup.T, setup.batch, *graph.nodes[i].shape)) for i in sorted(feeding)}

        def step(state: Arrays, inputs: Values) -> tuple[Arrays, Values]:
            before = {i: state[name] for name, i in graph.previous.items()}
            now = lines.run(fixed | inputs | before)
            new = {name: rows(i, now[i]) for name, i in graph.new.items()}
            return new, {i: rows(i, now[i]) for i in kept} | {i: new[name] for name, i in earlier.items()}

        first = {name: rows(i, arrays[name]) for name, i in graph.previous.items()}
        found: Values = library.scan(step, first, fed, setup.T)[1]
        before = {i: xp.concatenate([first[name][None], found[i][:-1]]) for name, i in earlier.items()}
        return values | found | before

    return scan


def _phase(graph: Graph, phase: Phase) -> list[int]:
    """The nodes of a phase that are computed, not given."""
    return [n.index for n in graph.nodes if n.phase is phase and n.args]


def _wanted(graph: Graph, phase: Phase) -> set[int]:
    """The nodes of `phase` that are the loss, a state's new value, or read in another phase."""
    others = [n.index for n in graph.nodes if n.phase is not phase]
    return _read(graph, others, phase) | {graph.loss, *graph.new.values()}


def _read(graph: Graph, readers: list[int], phase: Phase) -> set[int]:
    """The nodes of `phase` that `readers` take as arguments."""
    return {a for i in readers for a in graph.nodes[i].args if graph.nodes[a].phase is phase}
