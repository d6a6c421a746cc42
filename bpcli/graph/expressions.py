"""Expressions to nodes: names looked up, functions composed of operations, identities applied, sums regrouped.

The terms of a sum are regrouped so that those that do not change from step to step are added before the time loop:
`W @ a[t-1] + W_in @ x + b` becomes `W @ a[t-1] + (W_in @ x + b)`, with the bracket computed for all steps at once.
A function returns None where an argument is in error, which has been reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from bpcli.errors import Collector, Place, nearest
from bpcli.graph.node_builder import AbstractValue, NodeBuilder
from bpcli.graph.nodes import Phase
from bpcli.spec.equations import evaluate
from bpcli.spec.specification import Binary, Call, Expr, Item, Negate, Number, Ref, Slice, Spec, Transpose

COMPOSED: Mapping[str, str] = {
    "mean": "mean of all entries",
    "cross_entropy": "cross_entropy(z, p) = -dot(p, log_softmax(z))",
    "clip": "clip(v, lo, hi) = min(max(v, lo), hi); its derivative at lo and hi is 0",
}
"""The functions without an operation of their own, with their definitions."""

_EARLIER = re.compile(r"(?:prev|previous|old|last)_(.+)|(.+?)(?:_prev|_previous|_old|_last|_?tm1|_t_?1)")


@dataclass(frozen=True)
class Scope:
    """The meaning of names.

    `leaf` holds the nodes of parameters and inputs, `previous` those of states at t-1, `defined` those of equations.
    `defined` fills as equations are read, each after those that it uses; None stands for an equation in error.
    """

    spec: Spec
    builder: NodeBuilder
    leaf: Mapping[str, int]
    previous: Mapping[str, int]
    defined: dict[str, int | None]

    @property
    def collector(self) -> Collector:
        """Where mistakes are reported."""
        return self.builder.collector

    def names(self) -> list[str]:
        """Every name that an equation can use."""
        spec = self.spec
        groups = (spec.dims, spec.constants, spec.inputs, spec.params, spec.states, spec.equations)
        return [name for group in groups for name in group]


def translate(scope: Scope, expr: Expr) -> int | None:
    """The node of an expression; None where it is in error, which is then reported."""
    builder = scope.builder
    match expr:
        case Number(value, place):
            return builder.constant(float(value), place)
        case Ref():
            return _look_up(scope, expr)
        case Negate() | Binary("+" | "-"):
            found = _terms(scope, expr, negative=False)
            return _add_terms(builder, found[0]) if found else None
        case Binary(op, left, right):
            return _binary(scope, op, translate(scope, left), translate(scope, right), expr)
        case Transpose(operand, place):
            return _transpose(builder, translate(scope, operand), place)
        case Call(_, args):
            return _call(builder, expr, [translate(scope, arg) for arg in args])
        case Item() | Slice():
            return _cut(scope, expr)


def _look_up(scope: Scope, ref: Ref) -> int | None:
    name, spec = ref.name, scope.spec
    if ref.lag:
        return _look_up_previous(scope, name, ref.place)
    if name in spec.dims or name in spec.constants:
        value = spec.dims[name] if name in spec.dims else spec.constants[name]
        return scope.builder.constant(float(value), ref.place)
    if name in scope.leaf:
        return scope.leaf[name]
    if name in spec.equations or name in spec.states:
        # A state in error still has its declared shape, so that its uses can be checked.
        node = scope.defined.get(name)
        return scope.previous.get(name) if node is None else node
    if name not in spec.refused:
        scope.collector.add("unknown-name", f'unknown name "{name}"', ref.place, help=_spelling(scope, name))
    return None


def _spelling(scope: Scope, name: str) -> str:
    """Help for an unknown name, which may be a known one with the step, or a transpose, in its name."""
    earlier = _EARLIER.fullmatch(name)
    if earlier and (state := earlier[1] or earlier[2]) in scope.spec.states:
        return f"the value one step earlier is written {state}[t-1]"
    if name.endswith("_t") and name[:-2] in scope.names():
        return f"the value of this step is written {name[:-2]}"
    if name.endswith("T") and name[:-1].rstrip("_") in scope.spec.params:
        return f"a transpose is written {name[:-1].rstrip('_')}.T"
    return nearest(name, scope.names())


def _look_up_previous(scope: Scope, name: str, place: Place) -> int | None:
    if name in scope.previous:
        return scope.previous[name]
    if name in scope.spec.refused:
        return None
    if name in scope.names():
        what = f'only states have an earlier value, and "{name}" is not a state'
        states = ", ".join(scope.spec.states)
        help_ = f"states: {states}" if states else "declare it in [state] to make it one"
        scope.collector.add("lag", what, place, help=help_)
    else:
        help_ = nearest(name, scope.spec.states or scope.names())
        scope.collector.add("unknown-name", f'unknown name "{name}"', place, help=help_)
    return None


def _binary(scope: Scope, op: str, left: int | None, right: int | None, expr: Binary) -> int | None:
    builder, place = scope.builder, expr.place
    match op:
        case "*":
            return _multiply(builder, left, right, place)
        case "/":
            return _divide(builder, left, right, place)
        case "**":
            return _power(builder, left, right, expr)
    matrices = right is not None and len(builder.nodes[right].shape) > 1
    return builder.apply("matmat" if matrices else "matmul", (left, right), place)


def _multiply(builder: NodeBuilder, left: int | None, right: int | None, place: Place) -> int | None:
    """left * right: a constant comes first, 1 is dropped, and constants of nested products are multiplied."""
    if left is None or right is None:
        return None
    if builder.value(left) is None and builder.value(right) is not None:
        left, right = right, left
    value = builder.value(left)
    if value is None or builder.value(right) is not None:
        return builder.apply("multiply", (left, right), place)
    inner = builder.nodes[right]
    if inner.op == "multiply" and not builder.names[right]:
        scale = builder.value(inner.args[0])
        product = value * scale if scale is not None else 0.0
        # An underflow or overflow of the constants alone must not change the result.
        if product and math.isfinite(product):
            return _multiply(builder, builder.constant(product, place), inner.args[1], place)
    return right if value == 1 else builder.apply("multiply", (left, right), place)


def _divide(builder: NodeBuilder, left: int | None, right: int | None, place: Place) -> int | None:
    """left / right; a division by 1 is dropped, one by the constant 0 refused."""
    value = None if left is None or right is None else builder.value(right)
    if value == 0:
        builder.collector.add("not-finite", "division by zero", place, help="divide by a number that is not zero")
        return None
    return left if value == 1 else builder.apply("divide", (left, right), place)


def _power(builder: NodeBuilder, base: int | None, exponent: int | None, expr: Binary) -> int | None:
    """base ** exponent; the exponent is a constant, and 1 is dropped."""
    if exponent is None:
        return None
    value = builder.value(exponent)
    if value is None:
        what = "an exponent may contain only numbers, constants and dims"
        help_ = "if both vary, write `exp(v * log(u))` for u**v"
        builder.collector.add("not-constant", what, expr.right.place, help=help_)
        return None
    return base if value == 1 else builder.apply("power", (base,), expr.place, (value,))


def _transpose(builder: NodeBuilder, matrix: int | None, place: Place) -> int | None:
    """matrix.T; the transpose of a transpose is the matrix itself."""
    if matrix is not None and builder.nodes[matrix].op == "transpose":
        return builder.nodes[matrix].args[0]
    return builder.apply("transpose", (matrix,), place)


def _call(builder: NodeBuilder, expr: Call, args: Sequence[int | None]) -> int | None:
    given = [arg for arg in args if arg is not None]
    if len(given) < len(args):
        return None
    place = expr.place
    match expr.function:
        case "sum":
            return _sum(builder, given[0], place)
        case "mean":
            scale = builder.constant(1.0 / math.prod(builder.nodes[given[0]].shape), place)
            return _multiply(builder, scale, _sum(builder, given[0], place), place)
        case "cross_entropy":
            log_q = builder.apply("log_softmax", (given[0],), place)
            return builder.apply("negate", (builder.apply("dot", (given[1], log_q), place),), place)
        case "leaky_relu":
            return _leaky_relu(builder, expr, given)
        case "stop_gradient" if builder.nodes[given[0]].op == "stop_gradient":
            return given[0]
        case "step":
            return _step(builder, expr, given)
        case "max" | "min":
            return _extreme(builder, expr.function, given[0], given[1], place)
        case "clip":
            return _clip(builder, expr, given)
        case name:
            return builder.apply(name, given, place)


def _sum(builder: NodeBuilder, value: int, place: Place) -> int | None:
    return value if builder.nodes[value].shape == () else builder.apply("sum", (value,), place)


def _leaky_relu(builder: NodeBuilder, expr: Call, args: Sequence[int]) -> int | None:
    slope = builder.value(args[1])
    if slope is None:
        what = "the slope of leaky_relu may contain only numbers, constants and dims"
        help_ = "for a learned slope, write `relu(v) - s * relu(-v)`"
        builder.collector.add("not-constant", what, expr.args[1].place, help=help_)
        return None
    return builder.apply("leaky_relu", (args[0],), expr.place, (slope,))


def _extreme(builder: NodeBuilder, op: str, u: int, v: int, place: Place) -> int | None:
    """max(u, v) or min(u, v), with the difference whose sign decides; one of two constants or equal nodes."""
    first, second = builder.value(u), builder.value(v)
    if u == v:
        return u
    if first is not None and second is not None:
        return u if (first > second) == (op == "max") else v
    difference = builder.apply("subtract", (u, v) if op == "max" else (v, u), place)
    return builder.apply(op, (u, v, difference), place)


def _step(builder: NodeBuilder, expr: Call, args: Sequence[int]) -> int | None:
    """step(v) + m (v - v), of which the second v and the surrogate slope m = k max(0, 1 - |v|) are held constant."""
    v, place = args[0], expr.place
    value = builder.apply("step", (v,), place)
    k = builder.value(args[1]) if len(args) > 1 else 0.0
    if k is None:
        what = "the slope of step may contain only numbers, constants and dims"
        help_ = "for a surrogate with your own slope g, write `step(v) + stop_gradient(g) * (v - stop_gradient(v))`"
        builder.collector.add("not-constant", what, expr.args[1].place, help=help_)
        return None
    if k == 0 or value is None or builder.value(v) is not None:
        return value
    size = builder.apply("abs", (v,), place)
    hat = builder.apply("relu", (builder.apply("subtract", (builder.constant(1.0, place), size), place),), place)
    slope = builder.apply("multiply", (builder.constant(k, place), hat), place)
    still = builder.apply("subtract", (v, builder.apply("stop_gradient", (v,), place)), place)
    moved = builder.apply("multiply", (builder.apply("stop_gradient", (slope,), place), still), place)
    return builder.apply("add", (value, moved), place)


def _clip(builder: NodeBuilder, expr: Call, args: Sequence[int]) -> int | None:
    v, low, high = args
    least, most = builder.value(low), builder.value(high)
    if least is not None and most is not None and least > most:
        what = f"clip(v, lo, hi) has lo = {least:g} above hi = {most:g}"
        builder.collector.add("out-of-range", what, expr.args[1].place, help="write the smaller bound first")
        return None
    raised = _extreme(builder, "max", v, low, expr.place)
    return None if raised is None else _extreme(builder, "min", raised, high, expr.place)


def _cut(scope: Scope, expr: Item | Slice) -> int | None:
    vector = translate(scope, expr.vector)
    dims, refused, collector = scope.spec.dims, scope.spec.refused, scope.collector
    place = expr.index.place if isinstance(expr, Item) else (expr.start or expr.stop or expr).place
    if vector is not None and len(scope.builder.nodes[vector].shape) == 2:
        scope.builder.check("slice", [scope.builder.abstract(vector)], place, (0.0, 1.0))
        return None
    if isinstance(expr, Item) and isinstance(expr.index, Ref) and expr.index.name in (*scope.leaf, *scope.previous):
        what = f'"{expr.index.name}" is not a dim: an index consists of numbers and dims'
        help_ = "for an entry chosen by data, write `dot(onehot, v)` with the one-hot vector as an input"
        collector.add("not-constant", what, place, help=help_)
        return None
    if isinstance(expr, Item):
        index = evaluate(expr.index, dims, collector, refused)
        if vector is None or index is None:
            return None
        return _slice(scope.builder, vector, (index, index + 1), place, element=True)
    start = 0 if expr.start is None else evaluate(expr.start, dims, collector, refused)
    stop = None if expr.stop is None else evaluate(expr.stop, dims, collector, refused)
    if vector is None or start is None or (stop is None and expr.stop is not None):
        return None
    if stop is None:
        stop = next(iter(scope.builder.nodes[vector].shape), 1)
    return _slice(scope.builder, vector, (start, stop), place)


def _slice(
    builder: NodeBuilder, vector: int, bounds: tuple[int, int], place: Place, element: bool = False
) -> int | None:
    """vector[start:stop], or the scalar vector[start]; a slice of a slice is one slice, all of a vector the vector."""
    start, stop = bounds
    node = builder.nodes[vector]
    if builder.check("slice", [builder.abstract(vector)], place, (start, stop)) is None:
        return None
    if start == 0 and stop == node.shape[0] and not element:
        return vector
    if node.op == "slice" and not builder.names[vector]:
        offset = int(node.numbers[0])
        vector, start, stop = node.args[0], start + offset, stop + offset
    return builder.apply("slice", (vector,), place, (float(start), float(stop)), element)


@dataclass(frozen=True)
class _Term:
    """A node that is added, or subtracted where `negative`; the place is that of the operator in front of it."""

    node: int
    negative: bool
    place: Place


def _terms(scope: Scope, expr: Expr, negative: bool) -> tuple[list[_Term], AbstractValue] | None:
    """The signed terms of a sum, brackets opened, and its shape and phase; shapes are checked at each operator."""
    chain: list[Binary] = []
    while isinstance(expr, Binary) and expr.op in ("+", "-"):
        chain.append(expr)
        expr = expr.left
    if isinstance(expr, Negate):
        found = _terms(scope, expr.operand, not negative)
    else:
        node = translate(scope, expr)
        found = None if node is None else ([_Term(node, negative, expr.place)], scope.builder.abstract(node))
    for operator in reversed(chain):
        right = _terms(scope, operator.right, negative != (operator.op == "-"))
        if found is None or right is None:
            found = None
            continue
        total = scope.builder.check("add", [found[1], right[1]], operator.place)
        first, *others = right[0]
        terms = [*found[0], _Term(first.node, first.negative, operator.place), *others]
        found = None if total is None else (terms, total)
    return found


def _add_terms(builder: NodeBuilder, terms: Sequence[_Term]) -> int | None:
    """The node of a sum whose terms are known to fit each other.

    Constants are added to one; then static terms, input terms and the rest are added, each group to the sum of the
    last, within a group scalars before vectors and positive terms before negative ones.
    """
    total, groups = 0.0, dict[Phase, list[_Term]]()
    for term in terms:
        value = builder.value(term.node)
        if value is None:
            groups.setdefault(builder.nodes[term.node].phase, []).append(term)
        else:
            total += -value if term.negative else value
    if not groups or not math.isfinite(total):
        return builder.constant(total, terms[-1].place)
    if total and (node := builder.constant(abs(total), terms[0].place)) is not None:
        groups.setdefault(Phase.STATIC, []).append(_Term(node, total < 0, terms[-1].place))
    sums = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda term: (builder.nodes[term.node].shape != (), term.negative))
        sums.append(reduce(lambda left, right: _join(builder, left, right), group))
    result = reduce(lambda earlier, later: _join(builder, later, earlier), sums)
    return builder.apply("negate", (result.node,), result.place) if result.negative else result.node


def _join(builder: NodeBuilder, left: _Term, right: _Term) -> _Term:
    """left + right with their signs; the sign of the result is kept apart, so that -u - v is one addition."""
    place = max(left.place, right.place, key=lambda place: (place.line, place.column))
    op, negative = "add", left.negative
    if left.negative != right.negative:
        op, negative = "subtract", False
        left, right = (right, left) if left.negative else (left, right)
    node = builder.apply(op, (left.node, right.node), place)
    assert node is not None, "terms of a sum fit each other"
    return _Term(node, negative, place)
