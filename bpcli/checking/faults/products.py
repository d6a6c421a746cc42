"""Faults in matrix products, biases and in how contributions are added up."""

from __future__ import annotations

import numpy as np

from bpcli.checking.faults.model import Fault, advise
from bpcli.checking.faults.slopes import where
from bpcli.checking.interpreter.hooks import Edge, Hooks
from bpcli.graph.nodes import Phase
from bpcli.references.base import FloatArray


def _square(e: Edge, slot: int) -> bool:
    matrix = e.walk.graph.nodes[e.node.args[0]].shape
    return e.node.op == "matmul" and e.slot == slot and matrix[0] == matrix[-1]


def _bias(e: Edge) -> bool:
    """Whether the edge adds a vector or scalar of parameters to something that varies."""
    static = e.source.phase is Phase.STATIC and e.node.phase is not Phase.STATIC
    return static and e.node.op in ("add", "subtract") and e.node.args[0] != e.node.args[-1]


def _product(e: Edge, slot: int) -> bool:
    return e.node.op == "matmul" and e.slot == slot


def _untransposed(e: Edge) -> FloatArray:
    return np.asarray(e.cotangent @ e.args[0][0].T)


def _entrywise(e: Edge) -> FloatArray:
    return np.asarray(np.einsum("ij,bi->bj", e.args[0][0], e.cotangent))


def _outer(e: Edge) -> FloatArray:
    return np.asarray(
        np.einsum("bi,bj->bij", e.cotangent, np.broadcast_to(e.args[1], (len(e.cotangent), e.args[1].shape[1])))
    )


def _first_sample(e: Edge, given: FloatArray) -> FloatArray:
    return np.asarray(given[:1] if _bias(e) else given.sum(axis=0, keepdims=True))


def _half(e: Edge, given: FloatArray) -> FloatArray:
    """Two threads add to one sum at a time, and what one of them adds is lost: which, changes from call to call."""
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


def _other_order(e: Edge, before: FloatArray, given: FloatArray) -> FloatArray:
    return given + before


def _once(e: Edge, before: FloatArray, given: FloatArray) -> FloatArray:
    return given if e.source.phase is Phase.STATIC else before + given


def _mixed(e: Edge) -> FloatArray:
    """The cotangent of each sample meets the values of the next one."""
    v = np.broadcast_to(e.args[1], (len(e.cotangent), e.args[1].shape[1]))
    return e.pull([e.args[0], np.roll(v, 1, axis=0)])


def _reordered(e: Edge) -> FloatArray:
    """All samples backwards, and back again."""
    v = np.broadcast_to(e.args[1], (len(e.cotangent), e.args[1].shape[1]))
    return e.pull([e.args[0], v[::-1]], e.cotangent[::-1])[::-1]


def _of_parameters(e: Edge) -> bool:
    """Whether the edge brings a term of parameters alone into the loss."""
    source, node = e.source, e.node
    static = source.phase is Phase.STATIC and source.op not in ("param", "constant") and source.shape == ()
    return static and node.shape == () and node.op in ("add", "subtract", "multiply") and e.factor in ("q", "static")


FAULTS = (
    Fault("weight-untransposed", "W is used where Wᵀ is due", "",
          advise("no square matrix passes a cotangent on (with any other this fault is an error of shapes); make two "
                 "dims equal, n above 1"),
          where(lambda e: _square(e, 1), _untransposed), where(lambda e: _product(e, 1), _entrywise)),
    Fault("outer-product-transposed", "a gradient is transposed: v δᵀ in place of δ vᵀ", "",
          advise("no square matrix is trained; make two dims equal, n above 1"),
          where(lambda e: _square(e, 0), lambda e: e.pull().swapaxes(1, 2)), where(lambda e: _product(e, 0), _outer)),
    Fault("bias-missing", "the gradient of a bias is missing", "M̄",
          advise("nothing trainable is added to a varying value: no bias"),
          where(_bias, lambda e: 0.0 * e.pull()), where(_bias, lambda e: e.pull() + 0.0)),
    Fault("bias-unreduced", "the gradient of a bias is that of the first sample, not summed over the batch", "M̄",
          advise("nothing trainable is added to a varying value: no bias", batch="the sum over samples"),
          Hooks(gather=_first_sample), Hooks(gather=_one_by_one)),
    Fault("samples-mixed", "samples of the batch are mixed: the cotangent of one meets the values of another", "M̄",
          advise("no matrix product, or all samples have the same values", batch="which sample is which"),
          where(lambda e: _product(e, 0), _mixed), where(lambda e: _product(e, 0), _reordered)),
    Fault("race", "a race: part of the sum over the batch is lost, another one at each call", "",
          advise("no parameter", batch="the sum over samples"),
          Hooks(gather=_half), Hooks(gather=_two_halves)),
    Fault("fan-out-overwritten", "the cotangents of a value that is used twice are overwritten rather than added", "",
          advise("no varying value is used twice within a step"),
          Hooks(add=_overwritten), Hooks(add=_other_order)),
    Fault("tied-weight-once", "a parameter that is used twice gets the gradient of one use alone", "",
          advise("no parameter is used twice within a step"),
          Hooks(add=_once), Hooks(add=_other_order)),
    Fault("weight-decay-dropped", "a term of parameters alone is left out of the gradient", "q",
          advise("the loss has no term of parameters alone, such as weight decay"),
          where(_of_parameters, lambda e: 0.0 * e.pull()), where(_of_parameters, lambda e: e.pull() * 1.0)),
)  # fmt: skip
