"""The language's functions in terms of operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bpcli.errors import Place
from bpcli.graph.algebra import multiply
from bpcli.graph.drafts import Drafts
from bpcli.spec.specification import Call

COMPOSED: Mapping[str, str] = {
    "mean": "sum of all entries over how many there are",
    "cross_entropy": "cross_entropy(z, p) = -dot(p, log_softmax(z))",
}
"""The functions that are no operation, with what each stands for."""


def call(drafts: Drafts, expr: Call, args: Sequence[int | None]) -> int | None:
    """The node of a call on the nodes of its arguments; None where an argument is in error."""
    given = [arg for arg in args if arg is not None]
    if len(given) < len(args):
        return None
    match expr.function:
        case "sum":
            return _sum(drafts, given[0], expr.place)
        case "mean":
            scale = drafts.constant(1.0 / math.prod(drafts.nodes[given[0]].shape), expr.place)
            return multiply(drafts, scale, _sum(drafts, given[0], expr.place), expr.place)
        case "cross_entropy":
            log_q = drafts.apply("log_softmax", (given[0],), expr.place)
            return drafts.apply("negate", (drafts.apply("dot", (given[1], log_q), expr.place),), expr.place)
        case "leaky_relu":
            return _leaky_relu(drafts, expr, given)
        case name:
            return drafts.apply(name, given, expr.place)


def _sum(drafts: Drafts, value: int, place: Place) -> int | None:
    return value if drafts.nodes[value].shape == () else drafts.apply("sum", (value,), place)


def _leaky_relu(drafts: Drafts, expr: Call, args: Sequence[int]) -> int | None:
    slope = drafts.value(args[1])
    if slope is None:
        what = "the slope of leaky_relu is an expression of numbers, constants and dims alone"
        help_ = "for a slope that is learned write `relu(v) - s * relu(-v)`"
        drafts.collector.add("not-constant", what, expr.args[1].place, help=help_)
        return None
    return drafts.apply("leaky_relu", (args[0],), expr.place, (slope,))
