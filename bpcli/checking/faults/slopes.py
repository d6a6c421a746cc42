"""Faults in local derivatives: of functions, of products, of sums and of joints."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bpcli.checking.faults.model import Fault, advise
from bpcli.checking.interpreter.hooks import Edge, Hooks
from bpcli.checking.interpreter.rules import SLOPES, apply
from bpcli.references.base import FloatArray

_FLOOR = 0.05
_OFF = 1.0005
_BRANCHING = frozenset({"relu", "leaky_relu", "abs"})
_SQUASHING = frozenset({"tanh", "sigmoid", "softplus"})
_OWN_SLOPE = frozenset(SLOPES) - {"power", "abs", "sqrt", "log"}


def where(test: Callable[[Edge], bool], rule: Callable[[Edge], FloatArray]) -> Hooks:
    """Hooks that follow `rule` on the edges that pass the test."""
    return Hooks(edge=lambda e: rule(e) if test(e) else e.pull())


def of(*ops: str) -> Callable[[Edge], bool]:
    """Whether an edge belongs to one of these operations."""
    return lambda e: e.node.op in ops


def _slope(e: Edge, v: FloatArray, y: FloatArray) -> FloatArray:
    return SLOPES[e.node.op](v, y, e.node.numbers)


def _at_output(e: Edge) -> FloatArray:
    y = e.value
    return e.cotangent * _slope(e, y, apply(e.node.op, [y], e.node.numbers, e.node.shape))


def _recomputed(e: Edge) -> FloatArray:
    v = e.args[0]
    return _slope(e, v, apply(e.node.op, [v + 0.0], e.node.numbers, e.node.shape)) * e.cotangent


def _from_output(e: Edge) -> FloatArray:
    """The slopes of functions that have one in terms of their value."""
    y = e.value
    slope = {"tanh": (1 - y) * (1 + y), "sigmoid": y - y * y, "softplus": -np.expm1(-y)}[e.node.op]
    return slope * e.cotangent


def _floored(e: Edge) -> FloatArray:
    return e.cotangent * np.maximum(_slope(e, e.args[0], e.value), _FLOOR)


def _missing(op: str, advice: str) -> Fault:
    """The fault that a function's slope is forgotten."""
    return Fault(f"{op}-slope-missing", f"the derivative of {op} is missing: its cotangent goes through as it is", "",
                 advise(advice), where(of(op), lambda e: e.cotangent), where(of(op), _recomputed))  # fmt: skip


def _in_masked_branch(e: Edge) -> FloatArray:
    v = e.args[0]
    return np.where(v > 0, e.pull(), np.nan * v)


def _selected(e: Edge) -> FloatArray:
    v = e.args[0]
    return np.where(v > 0, e.pull(), e.pull())


def _constant(e: Edge) -> bool:
    """Whether the edge multiplies by, or divides by, a number of the spec."""
    graph = e.walk.graph
    others = [graph.nodes[a] for i, a in enumerate(e.node.args) if i != e.slot]
    return e.node.op in ("multiply", "divide") and any(n.op == "constant" for n in others)


def _factor(e: Edge) -> bool:
    """Whether the edge is that of one of two factors that both vary, the second one."""
    graph = e.walk.graph
    return e.node.op == "multiply" and e.slot == 1 and all(graph.nodes[a].op != "constant" for a in e.node.args)


def _swapped(e: Edge) -> FloatArray:
    """The product with its factors exchanged."""
    return np.multiply(e.pull(), 1.0)


def _moved(e: Edge) -> FloatArray:
    """A slice's cotangent put back one entry further on, wrapped around."""
    return np.roll(e.pull(), 1, axis=1)


def _scattered(e: Edge) -> FloatArray:
    out = np.zeros((len(e.cotangent), *e.source.shape))
    start, stop = (int(n) for n in e.node.numbers)
    out[:, start:stop] += e.cotangent.reshape(len(out), -1)
    return out


def _exponent_dropped(e: Edge) -> FloatArray:
    return e.cotangent * e.args[0] ** (e.node.numbers[0] - 1.0)


def _as_product(e: Edge) -> FloatArray:
    p = e.node.numbers[0]
    return e.cotangent * (e.args[0] ** (p - 1.0) * p) if p else e.pull()


def _without_cross_term(e: Edge) -> FloatArray:
    return e.cotangent * e.value if e.node.op == "softmax" else e.cotangent


def _by_jacobian(e: Edge) -> FloatArray:
    """softmax and log_softmax through their Jacobian, entry by entry."""
    y: FloatArray = np.exp(e.value) if e.node.op == "log_softmax" else e.value
    y, c = y.reshape(len(y), -1), e.cotangent.reshape(len(e.cotangent), -1)
    unit = np.eye(y.shape[1])
    jacobian = unit - y[:, None] if e.node.op == "log_softmax" else y[:, :, None] * (unit - y[:, None])
    return np.asarray(np.einsum("bi,bij->bj", c, jacobian).reshape(e.cotangent.shape))


def _zero(e: Edge) -> FloatArray:
    return 0.0 * e.pull()


def _same(e: Edge) -> FloatArray:
    return 0.0 - (0.0 - e.pull())


FAULTS = (
    Fault("slope-at-output", "the derivative is taken at the output rather than at the preactivation", "",
          advise("the functions used here have the same slope at both, or none is used"),
          where(lambda e: e.node.op in _OWN_SLOPE, _at_output), where(lambda e: e.node.op in _OWN_SLOPE, _recomputed)),
    Fault("slope-floored", f"the slope of a saturated unit is held at {_FLOOR:g} or more", "",
          advise("no unit of tanh, sigmoid or softplus saturates; take a larger scale for weights or inputs"),
          where(lambda e: e.node.op in _SQUASHING, _floored), where(lambda e: e.node.op in _SQUASHING, _from_output)),
    _missing("tanh", "no tanh"), _missing("sigmoid", "no sigmoid"),
    Fault("nan-in-masked-branch", "the branch that is not taken turns the cotangent into NaN", "",
          advise("no relu, leaky_relu or abs has an argument below zero; use one, or larger inputs"),
          where(lambda e: e.node.op in _BRANCHING, _in_masked_branch),
          where(lambda e: e.node.op in _BRANCHING, _selected)),
    Fault("constant-off", "a constant is off by 0.05%", "",
          advise("no value is multiplied by a constant other than 1", constant="the constant factor"),
          where(_constant, lambda e: e.pull() * _OFF), where(_constant, lambda e: e.pull() * 2 * 0.5)),
    Fault("factor-held-constant", "one factor of a product is treated as a constant", "",
          advise("no product of two varying values; a gate would make one"),
          where(_factor, _zero), where(_factor, _swapped)),
    Fault("denominator-ignored", "the denominator of a quotient is treated as a constant", "",
          advise("nothing divides by a varying value"),
          where(lambda e: e.node.op == "divide" and e.slot == 1, _zero), where(of("divide"), _same)),
    Fault("subtrahend-sign", "what is subtracted gets the sign of what is added", "",
          advise("nothing varying is subtracted"),
          where(lambda e: e.node.op == "subtract" and e.slot == 1, lambda e: -e.pull()), where(of("subtract"), _same)),
    Fault("exponent-dropped", "the exponent is missing in the derivative of a power", "",
          advise("no power, such as a square in the loss"),
          where(of("power"), _exponent_dropped), where(of("power"), _as_product)),
    Fault("gate-misplaced", "the cotangent of a slice is put back one entry off, into the next block", "",
          advise("no slice of a vector of two or more"),
          where(of("slice"), _moved), where(of("slice"), _scattered)),
    Fault("softmax-cross-term", "the cross term of softmax or log_softmax is dropped", "",
          advise("no softmax, log_softmax or cross_entropy"),
          where(of("softmax", "log_softmax"), _without_cross_term), where(of("softmax", "log_softmax"), _by_jacobian)),
)  # fmt: skip
