"""The derivative of every operation with respect to each of its arguments: a linear map, as a matrix and transposed.

    contribution to ∂L/∂argument = (∂value/∂argument)ᵀ ∂L/∂value

`RULES` is the derivation's own table of rules: neither the kernels nor the references know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bpcli.graph.operations import Numbers
from bpcli.lecture.terms import (
    ONE,
    Term,
    add,
    apply_matrix,
    call,
    chain,
    collect,
    column,
    diag,
    divide,
    dot,
    eye,
    full,
    negate,
    number,
    outer,
    power,
    row,
    subtract,
    times,
    total,
    transpose,
)


@dataclass(frozen=True)
class Use:
    """One argument of an operation: all `args` and the `value` as terms, its `slot`, the operation's fixed numbers."""

    args: tuple[Term, ...]
    value: Term
    slot: int
    numbers: Numbers

    @property
    def own(self) -> Term:
        """The argument itself."""
        return self.args[self.slot]

    @property
    def rows(self) -> int:
        """Entries of the value."""
        return math.prod(self.value.shape)

    @property
    def columns(self) -> int:
        """Entries of the argument."""
        return math.prod(self.own.shape)


@dataclass(frozen=True)
class LinearMap:
    """`pull(c)` is the transposed map of a cotangent; `matrix` (entries of the value, of the argument) or None where
    the argument is a matrix; `because` names the rule."""

    pull: Callable[[Term], Term]
    matrix: Term | None
    because: str


Rule = Callable[[Use], LinearMap | None]


def entrywise(use: Use, slope: Term, because: str) -> LinearMap:
    """The map of an operation that acts entry by entry, from its slope; a scalar argument is used by every entry."""
    if use.own.shape == use.value.shape:
        matrix = diag(slope, use.rows) if len(use.own.shape) < 2 else None
        return LinearMap(lambda c: times(c, full(slope, c.shape) if slope.shape == () else slope), matrix, because)
    spread = full(slope, use.value.shape) if slope.shape == () else slope
    matrix = column(spread) if len(spread.shape) < 2 else None
    return LinearMap(lambda c: dot(c, spread), matrix, "a scalar that is used by every entry: their contributions add")


def _unary(slope: Callable[[Term, Term, Numbers], Term], because: str) -> Rule:
    return lambda use: entrywise(use, slope(use.own, use.value, use.numbers), because)


def _binary(slope: Callable[[Term, Term], Term], because: str) -> Rule:
    return lambda use: entrywise(use, slope(use.args[0], use.args[1]), because)


def _square(v: Term) -> Term:
    return power(v, 2.0)


def _positive(v: Term) -> Term:
    return call("positive", v)


def _leaky(v: Term, y: Term, numbers: Numbers) -> Term:
    return add(_positive(v), times(number(numbers[0]), subtract(ONE, _positive(v))))


def _erf(v: Term, y: Term, numbers: Numbers) -> Term:
    return times(number(2.0 / math.sqrt(math.pi)), call("exp", negate(_square(v))))


SUM = "every term of a sum receives the whole derivative"
RESCALE = "entry by entry, a diagonal Jacobian: rescale columns by "
_ELEMENTWISE: Mapping[str | tuple[str, int], Rule] = {
    "copy": _unary(lambda v, y, n: ONE, "the same value"),
    "negate": _unary(lambda v, y, n: number(-1.0), "a change of sign"),
    "power": _unary(lambda v, y, n: times(number(n[0]), power(v, n[0] - 1.0)), RESCALE + "p vᵖ⁻¹"),
    "tanh": _unary(lambda v, y, n: subtract(ONE, _square(y)), RESCALE + "tanh' = 1 − tanh²"),
    "sigmoid": _unary(lambda v, y, n: times(y, subtract(ONE, y)), RESCALE + "σ' = σ (1 − σ)"),
    "relu": _unary(lambda v, y, n: _positive(v), RESCALE + "relu' = [v > 0]"),
    "leaky_relu": _unary(_leaky, RESCALE + "1 where v > 0, else the slope"),
    "softplus": _unary(lambda v, y, n: call("sigmoid", v), RESCALE + "softplus' = σ"),
    "exp": _unary(lambda v, y, n: y, RESCALE + "exp' = exp"),
    "log": _unary(lambda v, y, n: divide(ONE, v), RESCALE + "log' = 1/v"),
    "sqrt": _unary(lambda v, y, n: divide(number(0.5), y), RESCALE + "sqrt' = 1/(2 sqrt)"),
    "sin": _unary(lambda v, y, n: call("cos", v), RESCALE + "sin' = cos"),
    "cos": _unary(lambda v, y, n: negate(call("sin", v)), RESCALE + "cos' = −sin"),
    "abs": _unary(lambda v, y, n: call("sign", v), RESCALE + "the sign"),
    "erf": _unary(_erf, RESCALE + "erf' = 2/√π exp(−v²)"),
}


def _left(use: Use) -> LinearMap:
    """W v with respect to v: the matrix itself."""
    W = use.args[0]
    return LinearMap(lambda c: apply_matrix(transpose(W), c), W, "a product with a matrix: its transpose goes back")


def _weights(use: Use) -> LinearMap:
    """W v with respect to W: c vᵀ."""
    v = use.args[1]
    return LinearMap(lambda c: outer(c, v), None, "a matrix in a product: column times row")


def _matmat(use: Use) -> LinearMap:
    left, right = use.args

    def pull(c: Term) -> Term:
        pair = (c, transpose(right)) if use.slot == 0 else (transpose(left), c)
        return Term("matmat", pair, use.own.shape)

    return LinearMap(pull, None, "a product of two matrices")


def _sum(use: Use) -> LinearMap:
    shape = use.own.shape
    matrix = row(full(ONE, shape)) if len(shape) == 1 else eye(1) if shape == () else None
    return LinearMap(lambda c: full(c, shape), matrix, "a sum passes the same to every entry")


def _dot(use: Use) -> LinearMap:
    other = use.args[1 - use.slot]
    if use.own.shape == ():
        return entrywise(use, other if other.shape == () else total(other), "a product: times the other factor")
    spread = full(other, use.own.shape) if other.shape == () else other
    return LinearMap(lambda c: times(c, spread), row(spread), "a product: times the other factor")


def _logsumexp(use: Use) -> LinearMap:
    if use.own.shape == ():
        return entrywise(use, ONE, "logsumexp of one number is the number")
    p = call("softmax", use.own)
    return LinearMap(lambda c: times(c, p), row(p), "the derivative of logsumexp is softmax")


def _softmax(use: Use) -> LinearMap | None:
    if use.own.shape == ():
        return None
    y = use.value
    matrix = add(diag(y, use.rows), times(number(-1.0), chain(column(y), row(y))))
    because = "softmax: diag(y) − y yᵀ, which takes the weighted mean off"
    return LinearMap(lambda c: times(y, subtract(c, full(dot(y, c), y.shape))), matrix, because)


def _log_softmax(use: Use) -> LinearMap | None:
    if use.own.shape == ():
        return None
    p = call("softmax", use.own)
    matrix = add(eye(use.rows), times(number(-1.0), chain(column(full(ONE, p.shape)), row(p))))
    because = "log_softmax: I − 1 softmax(v)ᵀ"
    return LinearMap(lambda c: collect([c, negate(times(full(total(c), p.shape), p))]), matrix, because)


def _selection(start: int, stop: int, size: int) -> Term:
    return Term("select", (), (stop - start, size), numbers=(float(start), float(stop)))


def _slice(use: Use) -> LinearMap:
    start, stop = int(use.numbers[0]), int(use.numbers[1])

    def pull(c: Term) -> Term:
        return Term("pad", (c,), use.own.shape, numbers=use.numbers)

    return LinearMap(pull, _selection(start, stop, use.columns), "a slice: put back in its place, zeros elsewhere")


def _concat(use: Use) -> LinearMap:
    start = sum(math.prod(arg.shape) for arg in use.args[: use.slot])
    numbers = (float(start), float(start + use.columns))

    def pull(c: Term) -> Term:
        return Term("slice", (c,), use.own.shape, numbers=numbers)

    matrix = transpose(_selection(start, start + use.columns, use.rows))
    return LinearMap(pull, matrix, "joined vectors: cut out one's own part")


def _transpose(use: Use) -> LinearMap:
    return LinearMap(transpose, None, "transposed back")


def _chosen(use: Use) -> LinearMap | None:
    """max and min: their last argument, a difference, is positive where they take the first one."""
    first = _positive(use.args[2])
    slope = first if use.slot == 0 else subtract(ONE, first)
    return entrywise(use, slope, "only the entry that is chosen passes it on") if use.slot < 2 else None


def _constant(use: Use) -> None:
    """A function whose derivative is 0 by definition."""
    return None


_SLOTS: Mapping[str | tuple[str, int], Rule] = {
    ("add", 0): _binary(lambda u, v: ONE, SUM),
    ("add", 1): _binary(lambda u, v: ONE, SUM),
    ("subtract", 0): _binary(lambda u, v: ONE, SUM),
    ("subtract", 1): _binary(lambda u, v: number(-1.0), "subtracted: a change of sign"),
    ("multiply", 0): _binary(lambda u, v: v, "a product entry by entry: times the other factor"),
    ("multiply", 1): _binary(lambda u, v: u, "a product entry by entry: times the other factor"),
    ("divide", 0): _binary(lambda u, v: divide(ONE, v), "a quotient: divided by the same"),
    ("divide", 1): _binary(lambda u, v: negate(divide(u, power(v, 2.0))), "a quotient: −u/v²"),
    ("matmul", 0): _weights,
    ("matmul", 1): _left,
}
_ALIKE: Mapping[str | tuple[str, int], Rule] = {
    "matmat": _matmat,
    "transpose": _transpose,
    "sum": _sum,
    "dot": _dot,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "concat": _concat,
    "slice": _slice,
    "max": _chosen,
    "min": _chosen,
    "stop_gradient": _constant,
    "step": _constant,
}
RULES: dict[str | tuple[str, int], Rule] = {**_ELEMENTWISE, **_ALIKE, **_SLOTS}
"""By operation, or by operation and argument where these differ; None is a derivative of zero."""


def derivative(op: str, use: Use) -> LinearMap | None:
    """The derivative of an operation with respect to one argument; None where it is zero by definition."""
    rule = RULES[op] if op in RULES else RULES[op, use.slot]
    return rule(use)


def written(op: str, args: tuple[Term, ...], numbers: Numbers, shape: tuple[int, ...]) -> Term:
    """The operation itself as a term."""
    u = args[0]
    match op:
        case "copy":
            return u
        case "negate":
            return negate(u)
        case "add":
            return full(add(*args), shape)
        case "subtract":
            return full(subtract(*args), shape)
        case "multiply":
            return full(times(*args), shape)
        case "divide":
            return full(divide(*args), shape)
        case "power":
            return power(u, numbers[0])
        case "matmul":
            return apply_matrix(u, args[1])
        case "matmat":
            return Term("matmat", args, shape)
        case "transpose":
            return transpose(u)
        case "sum":
            return total(u)
        case "dot":
            return dot(*args)
        case "slice":
            return Term("slice", args, shape, numbers=numbers)
        case "max" | "min":
            return call(op, *args[:2], shape=shape)
        case _:
            return call(op, *args, shape=shape, numbers=numbers)
