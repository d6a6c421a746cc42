"""The nodes of a Graph as functions over a library of arrays.

A value is an array `(…, *shape)`: static ones have no leading axes, those of a step `(batch,)`, those of all steps
`(T, batch)`. Products are written for rows, `v @ M.T`, so that a batch is one GEMM and not a batch of matrix-vector
products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bpcli.graph.nodes import Graph, Node
from bpcli.peers.array_library import Function, Library

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
