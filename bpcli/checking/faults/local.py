"""Faults in local derivatives: of functions, products and slices, and in sums over samples and over uses of a value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bpcli.checking.faults.fault import Fault, advise, on_edges
from bpcli.checking.interpreter import Edge, Hooks
from bpcli.checking.rules import SLOPES, apply
from bpcli.graph.nodes import Phase
from bpcli.references.base import FloatArray

_FLOOR = 0.05
_OFF = 1.0005
_BRANCHING = frozenset({"relu", "leaky_relu", "abs"})
_SQUASHING = frozenset({"tanh", "sigmoid", "softplus"})
_OWN_SLOPE = frozenset(SLOPES) - {"power", "abs", "sqrt", "log"}


def _op(*ops: str) -> Callable[[Edge], bool]:
    """A test for edges of these operations."""
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
    """Multiply by slopes computed from the function's value."""
    y = e.value
    slope = {"tanh": (1 - y) * (1 + y), "sigmoid": y - y * y, "softplus": -np.expm1(-y)}[e.node.op]
    return slope * e.cotangent


def _floored(e: Edge) -> FloatArray:
    return e.cotangent * np.maximum(_slope(e, e.args[0], e.value), _FLOOR)


def _missing(op: str, advice: str) -> Fault:
    """The fault that the slope of a function is omitted."""
    what = f"the derivative of {op} is missing: the cotangent passes through unchanged"
    return Fault(f"{op}-slope-missing", what, "", advise(advice),
                 on_edges(_op(op), lambda e: e.cotangent), on_edges(_op(op), _recomputed))  # fmt: skip


def _in_masked_branch(e: Edge) -> FloatArray:
    v = e.args[0]
    return np.where(v > 0, e.vjp(), np.nan * v)


def _constant(e: Edge) -> bool:
    """Whether the edge multiplies or divides by a constant of the spec."""
    graph = e.forward.graph
    others = [graph.nodes[a] for i, a in enumerate(e.node.args) if i != e.slot]
    return e.node.op in ("multiply", "divide") and any(n.op == "constant" for n in others)


def _factor(e: Edge) -> bool:
    """Whether the edge belongs to the second of two factors that both vary."""
    graph = e.forward.graph
    return e.node.op == "multiply" and e.slot == 1 and all(graph.nodes[a].op != "constant" for a in e.node.args)


def _moved(e: Edge) -> FloatArray:
    """Shift a slice's cotangent by one entry, cyclically."""
    return np.roll(e.vjp(), 1, axis=1)


def _scattered(e: Edge) -> FloatArray:
    out = np.zeros((len(e.cotangent), *e.source.shape))
    start, stop = (int(n) for n in e.node.numbers)
    out[:, start:stop] += e.cotangent.reshape(len(out), -1)
    return out


def _exponent_dropped(e: Edge) -> FloatArray:
    return e.cotangent * e.args[0] ** (e.node.numbers[0] - 1.0)


def _as_product(e: Edge) -> FloatArray:
    p = e.node.numbers[0]
    return e.cotangent * (e.args[0] ** (p - 1.0) * p) if p else e.vjp()


def _without_cross_term(e: Edge) -> FloatArray:
    return e.cotangent * e.value if e.node.op == "softmax" else e.cotangent


def _by_jacobian(e: Edge) -> FloatArray:
    """Multiply by the full Jacobian of softmax or log_softmax."""
    y: FloatArray = np.exp(e.value) if e.node.op == "log_softmax" else e.value
    y, c = y.reshape(len(y), -1), e.cotangent.reshape(len(e.cotangent), -1)
    unit = np.eye(y.shape[1])
    jacobian = unit - y[:, None] if e.node.op == "log_softmax" else y[:, :, None] * (unit - y[:, None])
    return np.asarray(np.einsum("bi,bij->bj", c, jacobian).reshape(e.cotangent.shape))


def _zero(e: Edge) -> FloatArray:
    return 0.0 * e.vjp()


def _same(e: Edge) -> FloatArray:
    return 0.0 - (0.0 - e.vjp())


def _square(e: Edge, slot: int) -> bool:
    matrix = e.forward.graph.nodes[e.node.args[0]].shape
    return e.node.op == "matmul" and e.slot == slot and matrix[0] == matrix[-1]


def _bias(e: Edge) -> bool:
    """Whether the edge adds a static value, such as a bias, to one that varies."""
    static = e.source.phase is Phase.STATIC and e.node.phase is not Phase.STATIC
    term = e.node.shape == () and of_parameters(e)
    return static and not term and e.node.op in ("add", "subtract") and e.node.args[0] != e.node.args[-1]


def _product(e: Edge, slot: int) -> bool:
    return e.node.op == "matmul" and e.slot == slot


def _untransposed(e: Edge) -> FloatArray:
    return np.asarray(e.cotangent @ e.args[0][0].T)


def _entrywise(e: Edge) -> FloatArray:
    return np.asarray(np.einsum("ij,bi->bj", e.args[0][0], e.cotangent))


def _samples(e: Edge) -> FloatArray:
    """The second argument of a product, for every sample."""
    return np.broadcast_to(e.args[1], (len(e.cotangent), e.args[1].shape[1]))


def _outer(e: Edge) -> FloatArray:
    return np.asarray(np.einsum("bi,bj->bij", e.cotangent, _samples(e)))


def _first_sample(e: Edge, given: FloatArray) -> FloatArray:
    return np.asarray(given[:1] if _bias(e) else given.sum(axis=0, keepdims=True))


def _half(e: Edge, given: FloatArray) -> FloatArray:
    """Half of the sum is lost, a different one at each call, as when two threads add to one sum without a lock."""
    lost = (e.call + e.t + e.node.index) % 2
    kept = given[: len(given) // 2] if lost else given[len(given) // 2 :]
    return np.asarray(kept.sum(axis=0, keepdims=True) if len(given) > 1 else given)


def _one_by_one(e: Edge, given: FloatArray) -> FloatArray:
    total = np.zeros((1, *given.shape[1:]))
    for sample in given[::-1]:
        total += sample
    return total


def _two_halves(e: Edge, given: FloatArray) -> FloatArray:
    cut = len(given) // 2
    return np.asarray(given[:cut].sum(axis=0, keepdims=True) + given[cut:].sum(axis=0, keepdims=True))


def _overwritten(e: Edge, before: FloatArray, given: FloatArray) -> FloatArray:
    return before + given if e.source.phase is Phase.STATIC else given


_OTHER_ORDER = Hooks(add=lambda e, before, given: given + before)


def _once(e: Edge, before: FloatArray, given: FloatArray) -> FloatArray:
    return given if e.source.phase is Phase.STATIC else before + given


def _mixed(e: Edge) -> FloatArray:
    """The cotangent of each sample meets the values of the next one."""
    return e.vjp([e.args[0], np.roll(_samples(e), 1, axis=0)])


def _reordered(e: Edge) -> FloatArray:
    """The samples in reverse order, restored afterwards."""
    return e.vjp([e.args[0], _samples(e)[::-1]], e.cotangent[::-1])[::-1]


def of_parameters(e: Edge) -> bool:
    """Whether the edge adds a term of parameters alone to the loss."""
    source, node = e.source, e.node
    static = source.phase is Phase.STATIC and source.op not in ("param", "constant") and source.shape == ()
    return static and node.shape == () and node.op in ("add", "subtract", "multiply") and e.factor in ("q", "static")


FAULTS = (
    Fault("weight-untransposed", "W is used where Wᵀ is needed", "",
          advise("no square matrix passes a cotangent on (with any other, shapes would not match); make two "
                 "dims equal, n above 1"),
          on_edges(lambda e: _square(e, 1), _untransposed), on_edges(lambda e: _product(e, 1), _entrywise)),
    Fault("outer-product-transposed", "a gradient is transposed: v δᵀ instead of δ vᵀ", "",
          advise("no square matrix is trained; make two dims equal, n above 1"),
          on_edges(lambda e: _square(e, 0), lambda e: e.vjp().swapaxes(1, 2)),
          on_edges(lambda e: _product(e, 0), _outer)),
    Fault("bias-missing", "the gradient of a bias is missing", "M̄",
          advise("nothing trainable is added to a varying value: no bias"),
          on_edges(_bias, lambda e: 0.0 * e.vjp()), on_edges(_bias, lambda e: e.vjp() + 0.0)),
    Fault("bias-unreduced", "the gradient of a bias is that of the first sample, not summed over the batch", "M̄",
          advise("nothing trainable is added to a varying value: no bias", batch="the sum over samples"),
          Hooks(gather=_first_sample), Hooks(gather=_one_by_one)),
    Fault("samples-mixed", "samples of the batch are mixed up: cotangents of one meet values of another", "M̄",
          advise("no matrix product, or all samples have the same values", batch="which sample is which"),
          on_edges(lambda e: _product(e, 0), _mixed), on_edges(lambda e: _product(e, 0), _reordered)),
    Fault("race", "a race: part of the sum over the batch is lost, a different part in each call", "",
          advise("no parameter", batch="the sum over samples"),
          Hooks(gather=_half), Hooks(gather=_two_halves)),
    Fault("fan-out-overwritten", "the cotangents of a value that is used twice are overwritten rather than added", "",
          advise("no varying value is used twice within a step"),
          Hooks(add=_overwritten), _OTHER_ORDER),
    Fault("tied-weight-once", "a parameter that is used twice gets the gradient of one use alone", "",
          advise("no parameter is used twice within a step"),
          Hooks(add=_once), _OTHER_ORDER),
    Fault("weight-decay-dropped", "a loss term that depends only on parameters is left out of the gradient", "q",
          advise("the loss has no term that depends only on parameters, such as weight decay"),
          on_edges(of_parameters, lambda e: 0.0 * e.vjp()), on_edges(of_parameters, lambda e: e.vjp() * 1.0)),
    Fault("slope-at-output", "the derivative is evaluated at the output rather than at the preactivation", "",
          advise("the functions used here have the same slope at both, or none is used"),
          on_edges(_op(*_OWN_SLOPE), _at_output), on_edges(_op(*_OWN_SLOPE), _recomputed)),
    Fault("slope-floored", f"the slope of a saturated unit is clamped to {_FLOOR:g} or more", "",
          advise("no tanh, sigmoid or softplus unit saturates; use a larger scale for weights or inputs"),
          on_edges(_op(*_SQUASHING), _floored), on_edges(_op(*_SQUASHING), _from_output)),
    _missing("tanh", "no tanh"), _missing("sigmoid", "no sigmoid"),
    Fault("nan-in-masked-branch", "the branch not taken turns the cotangent into NaN", "",
          advise("no relu, leaky_relu or abs has an argument below zero; use one, or larger inputs"),
          on_edges(_op(*_BRANCHING), _in_masked_branch),
          on_edges(_op(*_BRANCHING), lambda e: np.where(e.args[0] > 0, e.vjp(), e.vjp()))),
    Fault("constant-off", "a constant is off by 0.05%", "",
          advise("no value is multiplied by a constant other than 1", constant="the constant factor"),
          on_edges(_constant, lambda e: e.vjp() * _OFF), on_edges(_constant, lambda e: e.vjp() * 2 * 0.5)),
    Fault("factor-held-constant", "one factor of a product is treated as a constant", "",
          advise("no product of two varying values; a gate would make one"),
          on_edges(_factor, _zero), on_edges(_factor, lambda e: e.vjp() * 1.0)),
    Fault("denominator-ignored", "the denominator of a quotient is treated as a constant", "",
          advise("nothing divides by a varying value"),
          on_edges(lambda e: e.node.op == "divide" and e.slot == 1, _zero), on_edges(_op("divide"), _same)),
    Fault("subtrahend-sign", "a subtracted term gets the sign of an added one", "",
          advise("nothing varying is subtracted"),
          on_edges(lambda e: e.node.op == "subtract" and e.slot == 1, lambda e: -e.vjp()),
          on_edges(_op("subtract"), _same)),
    Fault("exponent-dropped", "the exponent is missing in the derivative of a power", "",
          advise("no power, such as a square in the loss"),
          on_edges(_op("power"), _exponent_dropped), on_edges(_op("power"), _as_product)),
    Fault("gate-misplaced", "the cotangent of a slice is put back one entry too far, into the next block", "",
          advise("no slice of a vector of two or more"),
          on_edges(_op("slice"), _moved), on_edges(_op("slice"), _scattered)),
    Fault("softmax-cross-term", "the cross term of softmax or log_softmax is dropped", "",
          advise("no softmax, log_softmax or cross_entropy"),
          on_edges(_op("softmax", "log_softmax"), _without_cross_term),
          on_edges(_op("softmax", "log_softmax"), _by_jacobian)),
)  # fmt: skip
