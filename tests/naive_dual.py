"""Numbers that carry their partial derivatives, and the language's operations on them, in plain loops.

Every number is a `Dual`: a value and its partials by (kind, name, flat index), kind being one of "param", "input",
"previous" (the state at t-1) and "now" (the state at t, where it is cut off from what made it). Vectors are lists,
matrices lists of rows. A partial is kept even when it is zero, so the keys are the structural dependences.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Scalar = Any  # float or complex
Key = tuple[str, str, int]
Value = Any  # Dual, or list of Dual, or list of lists of Dual


@dataclass(frozen=True)
class Dual:
    """value + Σ parts[key] · d(key)."""

    value: Scalar
    parts: Mapping[Key, Scalar] = field(default_factory=dict)


def chain(value: Scalar, *terms: tuple[Scalar, Dual]) -> Dual:
    """The chain rule: dy = Σ ∂y/∂u_k du_k, for terms (∂y/∂u_k, u_k)."""
    parts: dict[Key, Scalar] = {}
    known = parts.get
    for slope, dual in terms:
        for key, part in dual.parts.items():
            parts[key] = known(key, 0.0) + slope * part
    return Dual(value, parts)


def flat(value: Value) -> list[Dual]:
    """All entries in C order; a scalar counts as a vector of one."""
    if not isinstance(value, list):
        return [value]
    entries = []
    for item in value:
        entries += flat(item)
    return entries


def each(rule: Callable[[Dual], Dual], value: Value) -> Value:
    return [each(rule, v) for v in value] if isinstance(value, list) else rule(value)


def pairs(rule: Callable[[Dual, Dual], Dual], left: Value, right: Value) -> Value:
    """Elementwise: equal shapes, or a scalar with anything."""
    if isinstance(left, list) and isinstance(right, list):
        return [pairs(rule, u, v) for u, v in zip(left, right, strict=True)]
    if isinstance(left, list):
        return [pairs(rule, u, right) for u in left]
    if isinstance(right, list):
        return [pairs(rule, left, v) for v in right]
    return rule(left, right)


def matmul(matrix: list[list[Dual]], right: Value) -> Value:
    """y_i = Σ_k A_ik v_k, and column by column where the right side is a matrix."""
    if isinstance(right[0], list):
        columns = [matmul(matrix, [row[j] for row in right]) for j in range(len(right[0]))]
        return [[column[i] for column in columns] for i in range(len(matrix))]
    return [_dot(row, right) for row in matrix]


def _dot(u: list[Dual], v: list[Dual]) -> Dual:
    """Σ_k u_k v_k."""
    total: Scalar = 0.0
    terms = []
    for a, b in zip(u, v, strict=True):
        total += a.value * b.value
        terms += [(b.value, a), (a.value, b)]
    return chain(total, *terms)


def _power(u: Dual, exponent: Dual) -> Dual:
    """u**p with constant p; the derivative p u**(p-1), which is 0 for p = 0."""
    p = exponent.value
    return chain(_raise(u.value, p), (p * _raise(u.value, p - 1.0) if p != 0.0 else 0.0, u))


def _raise(x: Scalar, p: float) -> Scalar:
    if p != int(p):
        return cmath.exp(p * cmath.log(x)) if isinstance(x, complex) else math.pow(x, p)
    product: Scalar = 1.0
    for _ in range(abs(int(p))):
        product *= x
    return product if p >= 0 else 1.0 / product


BINARY: dict[str, Callable[[Dual, Dual], Dual]] = {
    "+": lambda u, v: chain(u.value + v.value, (1.0, u), (1.0, v)),
    "-": lambda u, v: chain(u.value - v.value, (1.0, u), (-1.0, v)),
    "*": lambda u, v: chain(u.value * v.value, (v.value, u), (u.value, v)),
    "/": lambda u, v: chain(u.value / v.value, (1.0 / v.value, u), (-u.value / v.value**2, v)),
    "**": _power,
}


def _extreme(taken: Callable[[float, float], bool]) -> Callable[[Dual, Dual], Dual]:
    """u where it is taken, else v: where both are equal, v; the other one's slope is 0."""

    def rule(u: Dual, v: Dual) -> Dual:
        first = taken(u.value.real, v.value.real)
        return chain(u.value if first else v.value, (float(first), u), (float(not first), v))

    return rule


MAX, MIN = _extreme(lambda u, v: u > v), _extreme(lambda u, v: u < v)


def _lib(x: Scalar) -> Any:
    return cmath if isinstance(x, complex) else math


def _size(x: Scalar) -> Scalar:
    """|x|, continued to complex x as x or -x by the sign of the real part."""
    return x if x.real >= 0 else -x


def _tanh(x: Scalar) -> tuple[Scalar, Scalar]:
    """tanh' = 1 / cosh² = 4e / (1 + e)², e = exp(-2|x|)."""
    e = _lib(x).exp(-2.0 * _size(x))
    return _lib(x).tanh(x), 4.0 * e / (1.0 + e) ** 2


def _sigmoid(x: Scalar) -> tuple[Scalar, Scalar]:
    """σ = 1 / (1 + exp(-x)), σ' = e / (1 + e)², e = exp(-|x|)."""
    e = _lib(x).exp(-_size(x))
    return (1.0 if x.real >= 0 else e) / (1.0 + e), e / (1.0 + e) ** 2


def _softplus(x: Scalar) -> tuple[Scalar, Scalar]:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)); its derivative is σ."""
    e = _lib(x).exp(-_size(x))
    tail = cmath.log(1.0 + e) if isinstance(x, complex) else math.log1p(e)
    return (x if x.real >= 0 else 0.0) + tail, _sigmoid(x)[0]


def _leaky(x: Scalar, slope: float) -> tuple[Scalar, Scalar]:
    """x for x > 0, else slope · x; at the kink the left derivative."""
    return (x, 1.0) if x.real > 0 else (slope * x, slope)


def _erf(x: Scalar) -> tuple[Scalar, Scalar]:
    """erf' = 2/√π exp(-x²); erf of complex x is that times Σ_n 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n + 1)), which does not cancel."""
    slope = 2.0 / math.sqrt(math.pi) * _lib(x).exp(-x * x)
    if not isinstance(x, complex):
        return math.erf(x), slope
    term, total, n = x, 0.0j, 0
    while abs(term) > 1e-20 * abs(total):
        n, total, term = n + 1, total + term, term * 2.0 * x * x / (2 * n + 3)
    return slope * total, slope


def _exp(x: Scalar) -> tuple[Scalar, Scalar]:
    y = _lib(x).exp(x)
    return y, y


def _sqrt(x: Scalar) -> tuple[Scalar, Scalar]:
    y = _lib(x).sqrt(x)
    return y, 0.5 / y


ELEMENTWISE: dict[str, Callable[[Scalar], tuple[Scalar, Scalar]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "relu": lambda x: _leaky(x, 0.0),
    "erf": _erf,
    "exp": _exp,
    "log": lambda x: (_lib(x).log(x), 1.0 / x),
    "sqrt": _sqrt,
    "sin": lambda x: (_lib(x).sin(x), _lib(x).cos(x)),
    "cos": lambda x: (_lib(x).cos(x), -_lib(x).sin(x)),
    "abs": lambda x: (_size(x), float(x.real > 0) - float(x.real < 0)),
}


def call(function: str, args: list[Value]) -> Value:
    """A function of the language."""
    first = args[0]
    if function in ELEMENTWISE:
        return each(lambda u: _apply(ELEMENTWISE[function], u), first)
    if function == "stop_gradient":  # of a complex number the real part, as in a complex step
        return each(lambda u: chain(u.value.real, (0.0, u)), first)
    if function == "step":  # the slope is the surrogate's
        k = args[1].value if len(args) > 1 else 0.0
        return each(lambda u: chain(float(u.value.real > 0), (k * max(0.0, 1.0 - abs(u.value.real)), u)), first)
    if function == "leaky_relu":
        return each(lambda u: _apply(lambda x: _leaky(x, args[1].value), u), first)
    if function in ("max", "min"):
        return pairs(MAX if function == "max" else MIN, first, args[1])
    if function == "clip":
        return pairs(MIN, pairs(MAX, first, args[1]), args[2])
    if function == "concat":
        return flat(args)
    if function in ("softmax", "log_softmax"):
        result = (_softmax if function == "softmax" else _log_softmax)(flat(first))
        return result if isinstance(first, list) else result[0]
    entries = flat(first)
    if function in ("sum", "mean"):
        weight = 1.0 if function == "sum" else 1.0 / len(entries)
        return _dot([Dual(weight)] * len(entries), entries)
    if function == "logsumexp":
        return _logsumexp(entries)
    if function == "dot":
        return _dot(entries, flat(args[1]))
    if function == "cross_entropy":  # -Σ p_k log softmax(z)_k
        inner = _dot(flat(args[1]), _log_softmax(entries))
        return chain(-inner.value, (-1.0, inner))
    raise KeyError(function)


def rules() -> tuple[Callable[..., Any], ...]:
    """The rules that tests replace, as they are now."""
    return (*ELEMENTWISE.values(), _leaky, MAX, MIN)


def _apply(rule: Callable[[Scalar], tuple[Scalar, Scalar]], u: Dual) -> Dual:
    value, slope = rule(u.value)
    return chain(value, (slope, u))


def _shares(z: list[Dual]) -> tuple[float, Scalar, list[Scalar]]:
    """m = max z, log Σ exp(z - m) and softmax(z), as numbers."""
    shift = max(u.value.real for u in z)
    exps = [_lib(u.value).exp(u.value - shift) for u in z]
    total = sum(exps)
    return shift, _lib(total).log(total), [e / total for e in exps]


def _logsumexp(z: list[Dual]) -> Dual:
    """∂/∂z_k = softmax(z)_k."""
    shift, log, s = _shares(z)
    return chain(shift + log, *zip(s, z, strict=True))


def _softmax(z: list[Dual]) -> list[Dual]:
    """∂s_k/∂z_j = s_k (δ_kj - s_j)."""
    *_, s = _shares(z)
    return [chain(s[k], *((s[k] * ((j == k) - s[j]), z[j]) for j in range(len(z)))) for k in range(len(z))]


def _log_softmax(z: list[Dual]) -> list[Dual]:
    """∂/∂z_j = δ_kj - s_j."""
    shift, log, s = _shares(z)
    each = range(len(z))
    return [chain((z[k].value - shift) - log, *(((j == k) - s[j], z[j]) for j in each)) for k in each]
