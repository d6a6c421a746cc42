"""The nodes of a Graph as JAX expressions.

A value is an array `(…, *shape)`: static ones have no leading axes, those of a step `(batch,)`, those of all steps
`(T, batch)`. Products are written for rows, `v @ M.T`, so that a batch is one GEMM and not a batch of matrix-vector
products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bpcli.graph.model import Graph, Node

Values = dict[int, Any]
Rule = Callable[[Node, tuple[Node, ...], list[Any]], Any]


def evaluate(graph: Graph, indices: Iterable[int], values: Values) -> Values:
    """Compute the nodes `indices`, in order, from `values`, which holds the leaves; return both together."""
    known = dict(values)
    for index in indices:
        node = graph.nodes[index]
        args = tuple(graph.nodes[a] for a in node.args)
        if index not in known:
            known[index] = _RULES[node.op](node, args, [known[a] for a in node.args])
    return known


def _elementwise(function: Callable[..., Any]) -> Rule:
    """A rule that lines up scalars with vectors and matrices: leading axes stay in front, the shape's go to the end."""

    def rule(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
        lined = (_widen(v, len(node.shape) - len(a.shape)) for a, v in zip(args, values, strict=True))
        return function(*lined)

    return rule


def _widen(value: Any, axes: int) -> Any:
    return value if axes == 0 else jnp.reshape(value, (*jnp.shape(value), *(1,) * axes))


def _flat(node: Node, value: Any) -> Any:
    """A scalar as a vector of one, a vector as it is, a static matrix in a row."""
    return jnp.reshape(value, (*jnp.shape(value)[: jnp.ndim(value) - len(node.shape)], -1))


def _reduction(function: Callable[..., Any]) -> Rule:
    """A rule over the last axis of vectors; a scalar counts as a vector of one."""
    return lambda node, args, values: function(*(_flat(a, v) for a, v in zip(args, values, strict=True)))


def _normalised(function: Callable[..., Any]) -> Rule:
    def rule(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
        return jnp.reshape(function(_flat(args[0], values[0]), axis=-1), jnp.shape(values[0]))

    return rule


def _power(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
    (exponent,) = node.numbers
    return values[0] ** (int(exponent) if exponent.is_integer() else exponent)


def _leaky_relu(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
    return jnp.where(values[0] > 0, values[0], node.numbers[0] * values[0])


def _concat(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
    parts = [_flat(a, v) for a, v in zip(args, values, strict=True)]
    lead = jnp.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return jnp.concatenate([jnp.broadcast_to(p, lead + p.shape[-1:]) for p in parts], axis=-1)


def _slice(node: Node, args: tuple[Node, ...], values: list[Any]) -> Any:
    start, stop = (int(number) for number in node.numbers)
    return values[0][..., start:stop] if node.shape else values[0][..., start]


_RULES: Mapping[str, Rule] = {
    "copy": _elementwise(lambda v: v),
    "negate": _elementwise(lambda v: -v),
    "add": _elementwise(lambda u, v: u + v),
    "subtract": _elementwise(lambda u, v: u - v),
    "multiply": _elementwise(lambda u, v: u * v),
    "divide": _elementwise(lambda u, v: u / v),
    "power": _power,
    "tanh": _elementwise(jnp.tanh),
    "sigmoid": _elementwise(jax.nn.sigmoid),
    "relu": _elementwise(jax.nn.relu),
    "leaky_relu": _leaky_relu,
    "softplus": _elementwise(jax.nn.softplus),
    "exp": _elementwise(jnp.exp),
    "log": _elementwise(jnp.log),
    "sqrt": _elementwise(jnp.sqrt),
    "sin": _elementwise(jnp.sin),
    "cos": _elementwise(jnp.cos),
    "abs": _elementwise(jnp.abs),
    "matmul": lambda node, args, values: values[1] @ values[0].T,
    "matmat": lambda node, args, values: values[0] @ values[1],
    "transpose": lambda node, args, values: values[0].T,
    "sum": _reduction(lambda v: jnp.sum(v, axis=-1)),
    "dot": _reduction(lambda u, v: jnp.sum(u * v, axis=-1)),
    "logsumexp": _reduction(lambda v: logsumexp(v, axis=-1)),
    "softmax": _normalised(jax.nn.softmax),
    "log_softmax": _normalised(jax.nn.log_softmax),
    "concat": _concat,
    "slice": _slice,
}
