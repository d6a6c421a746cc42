"""The forward and reverse rules of every operation in NumPy, independent of the kernels, for a batch of samples.

Values and cotangents have a leading axis, `(B, *shape)`, or `(1, *shape)` if they are the same for all samples. A
contribution to an argument is `(B or 1, *argument's shape)`, not summed over samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bpcli.graph.operations import Numbers, Shape
from bpcli.references.base import FloatArray

Args = Sequence[FloatArray]


def _sigmoid(v: FloatArray) -> FloatArray:
    e = np.exp(-np.abs(v))
    return np.where(v >= 0, 1.0, e) / (1.0 + e)


_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _log_softmax(v: FloatArray) -> FloatArray:
    shifted = v - v.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _flat(v: FloatArray) -> FloatArray:
    """(L, *shape) as (L, size)."""
    return v.reshape(len(v), -1)


def _raised(v: FloatArray, like: FloatArray) -> FloatArray:
    """A scalar with as many axes, of length one, as a vector or matrix has."""
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def _pair(args: Args) -> tuple[FloatArray, FloatArray]:
    u, v = args[:2]
    return _raised(u, v), _raised(v, u)


def _joined(args: Args) -> FloatArray:
    lead = max(len(a) for a in args)
    return np.concatenate([np.broadcast_to(_flat(a), (lead, a[0].size)) for a in args], axis=1)


def _cut(v: FloatArray, start: float, stop: float) -> FloatArray:
    return v[:, int(start) : int(stop)]


_FORWARD: dict[str, Callable[[Args, Numbers], FloatArray]] = {
    **dict.fromkeys(("copy", "stop_gradient"), lambda a, n: a[0].copy()),
    "step": lambda a, n: np.where(a[0] > 0, 1.0, 0.0),
    "negate": lambda a, n: -a[0],
    "add": lambda a, n: np.add(*_pair(a)),
    "subtract": lambda a, n: np.subtract(*_pair(a)),
    "multiply": lambda a, n: np.multiply(*_pair(a)),
    "divide": lambda a, n: np.divide(*_pair(a)),
    "max": lambda a, n: np.maximum(*_pair(a)),
    "min": lambda a, n: np.minimum(*_pair(a)),
    "power": lambda a, n: a[0] ** n[0],
    "tanh": lambda a, n: np.tanh(a[0]),
    "sigmoid": lambda a, n: _sigmoid(a[0]),
    "relu": lambda a, n: np.maximum(a[0], 0.0),
    "leaky_relu": lambda a, n: np.where(a[0] > 0, a[0], n[0] * a[0]),
    "softplus": lambda a, n: np.logaddexp(0.0, a[0]),
    "exp": lambda a, n: np.exp(a[0]),
    "log": lambda a, n: np.log(a[0]),
    "sqrt": lambda a, n: np.sqrt(a[0]),
    "sin": lambda a, n: np.sin(a[0]),
    "cos": lambda a, n: np.cos(a[0]),
    "abs": lambda a, n: np.abs(a[0]),
    "erf": lambda a, n: _ERF(a[0]),
    "matmul": lambda a, n: a[1] @ a[0][0].T,
    "matmat": lambda a, n: a[0] @ a[1],
    "transpose": lambda a, n: a[0].swapaxes(1, 2),
    "sum": lambda a, n: _flat(a[0]).sum(axis=1),
    "dot": lambda a, n: (_flat(a[0]) * _flat(a[1])).sum(axis=1),
    "logsumexp": lambda a, n: np.logaddexp.reduce(_flat(a[0]), axis=1),
    "softmax": lambda a, n: np.exp(_log_softmax(_flat(a[0]))),
    "log_softmax": lambda a, n: _log_softmax(_flat(a[0])),
    "concat": lambda a, n: _joined(a),
    "slice": lambda a, n: _cut(a[0], *n),
}


def apply(op: str, args: Args, numbers: Numbers, shape: Shape) -> FloatArray:
    """The value (L, *shape) of one operation."""
    value = np.asarray(_FORWARD[op](args, numbers))
    return value.reshape(len(value), *shape)


Slope = Callable[[FloatArray, FloatArray, Numbers], FloatArray]
SLOPES: dict[str, Slope] = {
    "power": lambda v, y, n: n[0] * v ** (n[0] - 1.0) if n[0] else 0.0 * v,
    "tanh": lambda v, y, n: 1.0 - y * y,
    "sigmoid": lambda v, y, n: y * _sigmoid(-v),
    "relu": lambda v, y, n: np.where(v > 0, 1.0, 0.0),
    "leaky_relu": lambda v, y, n: np.where(v > 0, 1.0, n[0]),
    "softplus": lambda v, y, n: _sigmoid(v),
    "exp": lambda v, y, n: y,
    "log": lambda v, y, n: 1.0 / v,
    "sqrt": lambda v, y, n: 0.5 / y,
    "sin": lambda v, y, n: np.cos(v),
    "cos": lambda v, y, n: -np.sin(v),
    "abs": lambda v, y, n: np.sign(v),
    "erf": lambda v, y, n: 2.0 / np.sqrt(np.pi) * np.exp(-v * v),
}
"""The derivative of each elementwise function of one argument, from its argument v and its value y."""

# From (cotangent c, arguments a, value y, numbers n) to the contribution to an argument, before it is reshaped.
Vjp = Callable[[FloatArray, Args, FloatArray, Numbers], FloatArray]


def _softmax_vjp(c: FloatArray, y: FloatArray) -> FloatArray:
    c, y = _flat(c), _flat(y)
    return np.asarray(y * (c - (c * y).sum(axis=1, keepdims=True)))


def _log_softmax_vjp(c: FloatArray, y: FloatArray) -> FloatArray:
    c, y = _flat(c), _flat(y)
    return np.asarray(c - np.exp(y) * c.sum(axis=1, keepdims=True))


def _placed(c: FloatArray, v: FloatArray, start: float, stop: float) -> FloatArray:
    out = np.zeros((len(c), v.shape[1]))
    out[:, int(start) : int(stop)] = _flat(c)
    return out


_VJPS: dict[tuple[str, int], Vjp] = {
    ("copy", 0): lambda c, a, y, n: c,
    **dict.fromkeys((("stop_gradient", 0), ("step", 0)), lambda c, a, y, n: np.zeros_like(c)),
    ("negate", 0): lambda c, a, y, n: -c,
    ("add", 0): lambda c, a, y, n: c,
    ("add", 1): lambda c, a, y, n: c,
    ("subtract", 0): lambda c, a, y, n: c,
    ("subtract", 1): lambda c, a, y, n: -c,
    ("multiply", 0): lambda c, a, y, n: c * _pair(a)[1],
    ("multiply", 1): lambda c, a, y, n: c * _pair(a)[0],
    ("divide", 0): lambda c, a, y, n: c / _pair(a)[1],
    ("divide", 1): lambda c, a, y, n: -c * y / _pair(a)[1],
    ("max", 0): lambda c, a, y, n: np.where(np.greater(*_pair(a)), c, 0.0),
    ("max", 1): lambda c, a, y, n: np.where(np.greater(*_pair(a)), 0.0, c),
    ("max", 2): lambda c, a, y, n: np.zeros_like(c),
    ("min", 0): lambda c, a, y, n: np.where(np.less(*_pair(a)), c, 0.0),
    ("min", 1): lambda c, a, y, n: np.where(np.less(*_pair(a)), 0.0, c),
    ("min", 2): lambda c, a, y, n: np.zeros_like(c),
    ("matmul", 0): lambda c, a, y, n: c[:, :, None] * a[1][:, None, :],
    ("matmul", 1): lambda c, a, y, n: c @ a[0][0],
    ("matmat", 0): lambda c, a, y, n: c @ a[1].swapaxes(1, 2),
    ("matmat", 1): lambda c, a, y, n: a[0].swapaxes(1, 2) @ c,
    ("transpose", 0): lambda c, a, y, n: c.swapaxes(1, 2),
    ("sum", 0): lambda c, a, y, n: np.repeat(c[:, None], a[0][0].size, axis=1),
    ("dot", 0): lambda c, a, y, n: c[:, None] * _flat(a[1]),
    ("dot", 1): lambda c, a, y, n: c[:, None] * _flat(a[0]),
    ("logsumexp", 0): lambda c, a, y, n: c[:, None] * np.exp(_log_softmax(_flat(a[0]))),
    ("softmax", 0): lambda c, a, y, n: _softmax_vjp(c, y),
    ("log_softmax", 0): lambda c, a, y, n: _log_softmax_vjp(c, y),
    ("slice", 0): lambda c, a, y, n: _placed(c, a[0], *n),
}


def vjp(op: str, slot: int, cotangent: FloatArray, args: Args, value: FloatArray, numbers: Numbers) -> FloatArray:
    """The contribution of the cotangent (L, *shape) of an operation's `value` to argument `slot`."""
    target = args[slot]
    if op in SLOPES:
        return cotangent * SLOPES[op](args[0], value, numbers)
    if op == "concat":
        first = sum(a[0].size for a in args[:slot])
        found = cotangent[:, first : first + target[0].size]
    else:
        found = _VJPS[op, slot](cotangent, args, value, numbers)
        if target.ndim == 1 and found.ndim > 1:  # a scalar that was broadcast
            found = _flat(found).sum(axis=1)
    return found.reshape(len(found), *target.shape[1:])
