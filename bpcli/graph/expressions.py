"""The language's functions in terms of operations.

One expression to nodes: names looked up, functions put together from operations, every mistake reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpcli.errors import Collector, Place, nearest
from bpcli.graph import algebra
from bpcli.graph.algebra import Term, add_terms, multiply
from bpcli.graph.drafts import Drafts, Kind
from bpcli.spec.equations import evaluate
from bpcli.spec.specification import Binary, Call, Expr, Item, Negate, Number, Ref, Slice, Spec, Transpose

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


@dataclass(frozen=True)
class Scope:
    """What names mean.

    `leaf` holds the nodes of parameters and inputs, `previous` those of states at t-1, `defined` those of equations.
    `defined` fills as equations are read, each after those that it uses; None stands for an equation in error.
    """

    spec: Spec
    drafts: Drafts
    leaf: Mapping[str, int]
    previous: Mapping[str, int]
    defined: dict[str, int | None]

    @property
    def collector(self) -> Collector:
        """Where mistakes are reported."""
        return self.drafts.collector

    def names(self) -> list[str]:
        """Every name that an equation can use."""
        spec = self.spec
        groups = (spec.dims, spec.constants, spec.inputs, spec.params, spec.states, spec.equations)
        return [name for group in groups for name in group]


def translate(scope: Scope, expr: Expr) -> int | None:
    """The node of an expression; None where it is in error, which is then reported."""
    drafts = scope.drafts
    match expr:
        case Number(value, place):
            return drafts.constant(float(value), place)
        case Ref():
            return _look_up(scope, expr)
        case Negate() | Binary("+" | "-"):
            found = _terms(scope, expr, negative=False)
            return add_terms(drafts, found[0]) if found else None
        case Binary("**"):
            return _power(scope, expr)
        case Binary():
            return _binary(scope, expr)
        case Transpose(operand, place):
            return algebra.transpose(drafts, translate(scope, operand), place)
        case Call(_, args):
            return call(drafts, expr, [translate(scope, arg) for arg in args])
        case Item() | Slice():
            return _cut(scope, expr)


def _look_up(scope: Scope, ref: Ref) -> int | None:
    name, spec, drafts = ref.name, scope.spec, scope.drafts
    if ref.lag:
        return _look_up_previous(scope, ref)
    if name in spec.dims or name in spec.constants:
        return drafts.constant(float(spec.dims[name] if name in spec.dims else spec.constants[name]), ref.place)
    if name in scope.leaf:
        return scope.leaf[name]
    if name in spec.equations or name in spec.states:
        # A state in error still has its declared shape, so what uses it can be checked.
        node = scope.defined.get(name)
        return scope.previous.get(name) if node is None else node
    if name not in spec.refused:
        scope.collector.add("unknown-name", f'unknown name "{name}"', ref.place, help=nearest(name, scope.names()))
    return None


def _look_up_previous(scope: Scope, ref: Ref) -> int | None:
    if ref.name in scope.previous:
        return scope.previous[ref.name]
    if ref.name in scope.spec.refused:
        return None
    if ref.name in scope.names():
        what = f'only states have an earlier value, "{ref.name}" is none'
        states = ", ".join(scope.spec.states)
        help_ = f"states: {states}" if states else "declare it in [state] to make it one"
        scope.collector.add("lag", what, ref.place, help=help_)
    else:
        help_ = nearest(ref.name, scope.spec.states or scope.names())
        scope.collector.add("unknown-name", f'unknown name "{ref.name}"', ref.place, help=help_)
    return None


def _terms(scope: Scope, expr: Expr, negative: bool) -> tuple[list[Term], Kind] | None:
    """The signed terms of a sum, brackets opened, and the sum's kind; shapes are checked at each operator."""
    chain: list[Binary] = []
    while isinstance(expr, Binary) and expr.op in ("+", "-"):
        chain.append(expr)
        expr = expr.left
    if isinstance(expr, Negate):
        found = _terms(scope, expr.operand, not negative)
    else:
        node = translate(scope, expr)
        found = None if node is None else ([Term(node, negative, expr.place)], scope.drafts.kind(node))
    for operator in reversed(chain):
        right = _terms(scope, operator.right, negative != (operator.op == "-"))
        if found is None or right is None:
            found = None
            continue
        kind = scope.drafts.check("add", [found[1], right[1]], operator.place)
        joined = [*found[0], Term(right[0][0].node, right[0][0].negative, operator.place), *right[0][1:]]
        found = None if kind is None else (joined, kind)
    return found


def _power(scope: Scope, expr: Binary) -> int | None:
    base, exponent = translate(scope, expr.left), translate(scope, expr.right)
    if exponent is None:
        return None
    value = scope.drafts.value(exponent)
    if value is None:
        what = "an exponent is an expression of numbers, constants and dims alone"
        scope.collector.add(
            "not-constant", what, expr.right.place, help="where both vary write `exp(v * log(u))` for u**v"
        )
        return None
    return algebra.power(scope.drafts, base, value, expr.place)


def _binary(scope: Scope, expr: Binary) -> int | None:
    rules = {"*": algebra.multiply, "/": algebra.divide, "@": algebra.product}
    left, right = translate(scope, expr.left), translate(scope, expr.right)
    return rules[expr.op](scope.drafts, left, right, expr.place)


def _cut(scope: Scope, expr: Item | Slice) -> int | None:
    vector = translate(scope, expr.vector)
    dims, refused, collector = scope.spec.dims, scope.spec.refused, scope.collector
    if isinstance(expr, Item):
        index = evaluate(expr.index, dims, collector, refused)
        if vector is None or index is None:
            return None
        return algebra.cut(scope.drafts, vector, (index, index + 1), expr.index.place, element=True)
    start = 0 if expr.start is None else evaluate(expr.start, dims, collector, refused)
    stop = None if expr.stop is None else evaluate(expr.stop, dims, collector, refused)
    if vector is None or start is None or (stop is None and expr.stop is not None):
        return None
    if stop is None:
        stop = next(iter(scope.drafts.nodes[vector].shape), 1)
    return algebra.cut(scope.drafts, vector, (start, stop), (expr.start or expr.stop or expr).place)
