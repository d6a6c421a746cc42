"""One step of one sample: the equations of a Spec, by recursion over their expressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from naive_dual import BINARY, Dual, Value, call, chain, each, flat, matmul, pairs, rules

from bpcli.spec.specification import Binary, Call, Expr, Item, Negate, Number, Ref, Slice, Spec, Transpose

Array = np.ndarray[Any, Any]
Entry = tuple[str, int]  # a state's name and a flat index
Arrays = Mapping[str, Mapping[str, Any]]
Leaves = dict[tuple[str, int], Any]


def seeded(kind: str, name: str, array: Any, wanted: Array | bool) -> Value:
    """The array as nested lists of Duals; entries that are `wanted` have the partial 1 w.r.t. themselves."""
    numbers = np.asarray(array, dtype=complex if np.iscomplexobj(array) else float)
    return _seeded((kind, name), numbers.tolist(), np.broadcast_to(wanted, numbers.shape).tolist(), 0)


def _seeded(owner: tuple[str, str], numbers: Any, wanted: Any, index: int) -> Value:
    if not isinstance(numbers, list):
        return Dual(numbers, {(*owner, index): 1.0} if wanted else {})
    index *= len(numbers)
    return [_seeded(owner, numbers[i], wanted[i], index + i) for i in range(len(numbers))]


def values(value: Value) -> Array:
    """The numbers alone, as an array of the value's shape."""
    return np.array(_plain(value))


def _plain(value: Value) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list) else value.value


@dataclass(frozen=True)
class Step:
    """The leaves of one step by (name, lag) and the equations' values found so far."""

    spec: Spec
    leaves: Mapping[tuple[str, int], Value]
    known: dict[str, Value] = field(default_factory=dict)

    def named(self, name: str, lag: int = 0) -> Value:
        """The value of a name: a leaf, a dim or constant, or an equation that is evaluated when first asked for."""
        if (name, lag) in self.leaves:
            return self.leaves[name, lag]
        if name in self.spec.dims:
            return Dual(float(self.spec.dims[name]))
        if name in self.spec.constants:
            return Dual(float(self.spec.constants[name]))
        if name not in self.known:
            self.known[name] = self.value(self.spec.equations[name].expr)
        return self.known[name]

    def value(self, expr: Expr) -> Value:
        """The value of an expression, by recursion."""
        match expr:
            case Number():
                return Dual(float(expr.value))
            case Ref():
                return self.named(expr.name, expr.lag)
            case Negate():
                return each(lambda u: chain(-u.value, (-1.0, u)), self.value(expr.operand))
            case Binary(op="@"):
                return matmul(self.value(expr.left), self.value(expr.right))
            case Binary():
                return pairs(BINARY[expr.op], self.value(expr.left), self.value(expr.right))
            case Transpose():
                matrix = self.value(expr.operand)
                return [[row[j] for row in matrix] for j in range(len(matrix[0]))]
            case Item():
                return self.value(expr.vector)[self.integer(expr.index)]
            case Slice():
                vector = self.value(expr.vector)
                start = self.integer(expr.start) if expr.start else 0
                stop = self.integer(expr.stop) if expr.stop else len(vector)
                return [vector[i] for i in range(start, stop)]
            case Call():
                return call(expr.function, [self.value(arg) for arg in expr.args])

    def integer(self, expr: Expr) -> int:
        """A slice bound: integers and dims under + - * //."""
        match expr:
            case Number():
                return int(expr.value)
            case Ref():
                return self.spec.dims[expr.name]
            case Negate():
                return -self.integer(expr.operand)
            case Binary():
                left, right = self.integer(expr.left), self.integer(expr.right)
                return {"+": left + right, "-": left - right, "*": left * right}.get(expr.op, left // (right or 1))
        raise TypeError(expr)


@dataclass(frozen=True)
class Local:
    """One step of one sample, linearised.

    `new` is a(t) as a function of (a(t-1), x, w); `loss` is l(t) as a function of the same; `direct` is l(t) as a
    function of (a(t), a(t-1), x, w) taken as independent, so its partials by a(t) are q.
    """

    values: dict[str, Array]
    new: dict[Entry, Dual]
    loss: Dual
    direct: Dual


def evaluate(
    spec: Spec, params: Mapping[str, Any], inputs_t: Mapping[str, Any], prev: Mapping[str, Any]
) -> dict[str, Array]:
    """All equations at one step of one sample, by name, from the inputs (*shape) and the states (*shape) at t-1."""
    step = Step(spec, leaves(spec, params, inputs_t, prev, None))
    return {name: values(step.named(name)) for name in spec.equations}


def leaves(
    spec: Spec,
    params: Mapping[str, Any],
    inputs_t: Mapping[str, Any],
    prev: Mapping[str, Any],
    masks: Mapping[str, Any] | None,
) -> Leaves:
    """Leaves of one step by (name, lag); with `masks` None nothing carries partials, else what is in no mask does."""
    found: Leaves = {}
    for name, p in spec.params.items():
        wanted: Array | bool = masks is not None and p.trainable
        if masks and wanted and name in masks:
            wanted = np.asarray(masks[name])
        found[name, 0] = seeded("param", name, params[name], wanted)
    for name in spec.inputs:
        found[name, 0] = seeded("input", name, inputs_t[name], masks is not None)
    for name in spec.states:
        found[name, 1] = seeded("previous", name, prev[name], masks is not None)
    return found


_paths: dict[tuple[object, ...], tuple[Spec, list[Local]]] = {}
"""Paths by spec, numbers and rules: tests of several methods, and checks, ask for the same ones again and again."""
_MOST_PATHS = 64


def sample_path(spec: Spec, arrays: Arrays, b: int, partials: bool = True) -> list[Local]:
    """The steps of sample b, from its initial state on; one step when feed-forward."""
    given = [(kind, n, np.asarray(a)) for kind, group in arrays.items() for n, a in group.items()]
    numbers = tuple((kind, n, a.dtype.str, a.shape, a.tobytes()) for kind, n, a in given)
    key = (id(spec), b, partials, numbers, rules())
    if key not in _paths:
        if len(_paths) == _MOST_PATHS:
            _paths.clear()
        _paths[key] = spec, _path(spec, arrays, b, partials)  # with the spec, so that no other one has its id
    return _paths[key][1]


def _path(spec: Spec, arrays: Arrays, b: int, partials: bool) -> list[Local]:
    masks = arrays.get("mask", {}) if partials else None
    prev = {name: _of_sample(arrays["state"][name], len(s.shape), b) for name, s in spec.states.items()}
    steps = len(arrays["inputs"][next(iter(spec.inputs))]) if spec.inputs else spec.data.T or 20
    path = []
    for t in range(steps if spec.states else 1):
        inputs = {
            n: np.asarray(arrays["inputs"][n])[t, b] if spec.states else arrays["inputs"][n][b] for n in spec.inputs
        }
        path.append(_local(spec, leaves(spec, arrays["params"], inputs, prev, masks), partials))
        prev = {name: path[-1].values[name] for name in spec.states}
    return path


def _of_sample(array: Array, dims: int, b: int) -> Array:
    """The initial state of sample b, from one for each or one for all."""
    return array[b] if np.ndim(array) > dims else array


def _local(spec: Spec, at: Leaves, partials: bool) -> Local:
    whole = Step(spec, at)
    found = {name: whole.named(name) for name in spec.equations}
    loss = found[spec.objective.loss]
    direct = loss
    if partials:
        now = {(n, 0): seeded("now", n, values(found[n]), True) for n in spec.states}
        direct = Step(spec, at | now).named(spec.objective.loss)
    new = {(name, i): dual for name in spec.states for i, dual in enumerate(flat(found[name]))}
    return Local({n: values(v) for n, v in found.items()}, new, loss, direct)
