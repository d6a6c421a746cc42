"""Reverse mode over NumPy arrays in the arrays' own dtype, for right gradients of black boxes; and the same functions
under one set of names for NumPy, PyTorch and JAX.

The rules of products, sums, broadcasting and elementwise functions are those of any textbook; `Var` follows the types
of its arguments, so that a float32 loss has a float32 gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def _sum_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The adjoint of broadcasting."""
    while array.ndim > len(shape):
        array = array.sum(axis=0)
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and array.shape[i] != 1)
    return array.sum(axis=axes, keepdims=True) if axes else array


class Var:
    """An array on the tape; `pulls` are pairs of a parent and the function from this cotangent to the parent's."""

    __array_priority__ = 100

    def __init__(self, data: np.ndarray, *pulls: tuple[Var, Callable[[np.ndarray], np.ndarray]]) -> None:
        self.data, self.pulls, self.grad = data, pulls, None

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.data)

    @property
    def T(self) -> Var:
        return Var(self.data.T, (self, lambda g: g.T))

    def reshape(self, *shape: int) -> Var:
        return Var(self.data.reshape(*shape), (self, lambda g: g.reshape(self.shape)))

    def __getitem__(self, where: Any) -> Var:
        def pull(g: np.ndarray) -> np.ndarray:
            out = np.zeros_like(self.data)
            np.add.at(out, where, g)
            return out

        return Var(self.data[where], (self, pull))

    def __add__(self, other: Any) -> Var:
        other = as_var(other)
        sides = (self, lambda g: _sum_to(g, self.shape)), (other, lambda g: _sum_to(g, other.shape))
        return Var(self.data + other.data, *sides)

    def __mul__(self, other: Any) -> Var:
        other = as_var(other)
        left = self, lambda g: _sum_to(g * other.data, self.shape)
        return Var(self.data * other.data, left, (other, lambda g: _sum_to(g * self.data, other.shape)))

    def __matmul__(self, other: Any) -> Var:
        other = as_var(other)
        left = self, lambda g: _sum_to(g @ other.data.swapaxes(-1, -2), self.shape)
        right = other, lambda g: _sum_to(self.data.swapaxes(-1, -2) @ g, other.shape)
        return Var(self.data @ other.data, left, right)

    def __rmatmul__(self, other: Any) -> Var:
        return as_var(other) @ self

    def __pow__(self, power: float) -> Var:
        return Var(self.data**power, (self, lambda g: g * power * self.data ** (power - 1)))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Var:
        return self * -1.0

    def __sub__(self, other: Any) -> Var:
        return self + -as_var(other)

    def __rsub__(self, other: Any) -> Var:
        return -self + other

    def __truediv__(self, other: Any) -> Var:
        other = as_var(other)
        ratio = self.data / other.data
        left = self, lambda g: _sum_to(g / other.data, self.shape)
        return Var(ratio, left, (other, lambda g: _sum_to(-g * ratio / other.data, other.shape)))

    def __rtruediv__(self, other: Any) -> Var:
        return as_var(other) / self


def as_var(value: Any) -> Var:
    """A constant, or the variable itself; Python numbers take part without a type, as in NumPy."""
    return value if isinstance(value, Var) else Var(value)


def gradient(loss: Var, leaves: list[Var]) -> list[np.ndarray]:
    """d loss / d leaf."""
    order: list[Var] = []
    seen: set[int] = set()
    stack: list[tuple[Var, bool]] = [(loss, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in node.pulls]
    loss.grad = np.ones_like(loss.data)
    for node in reversed(order):
        if node.grad is None:
            continue
        for parent, pull in node.pulls:
            given = np.asarray(pull(node.grad))
            parent.grad = given if parent.grad is None else parent.grad + given
    return [np.zeros_like(leaf.data) if leaf.grad is None else leaf.grad for leaf in leaves]


def _elementwise(
    value: Callable[[np.ndarray], np.ndarray], slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        if not isinstance(x, Var):
            return value(x)
        y = value(x.data)
        return Var(y, (x, lambda g: g * slope(x.data, y)))

    return apply


def _total(x: Any, axis: int | None = None) -> Any:
    """The sum over an axis, which is kept, or over all."""
    keep = axis is not None
    if not isinstance(x, Var):
        return x.sum(axis=axis, keepdims=keep)
    return Var(x.data.sum(axis=axis, keepdims=keep), (x, lambda g: np.broadcast_to(g, x.shape)))


def _largest(x: Any, axis: int) -> Any:
    """The maximum over an axis, which is kept; its slope goes to the first of equal entries."""
    if not isinstance(x, Var):
        return x.max(axis=axis, keepdims=True)
    first = np.expand_dims(x.data.argmax(axis=axis), axis)
    chosen = np.zeros(x.shape, x.data.dtype)
    np.put_along_axis(chosen, first, 1.0, axis)
    return Var(x.data.max(axis=axis, keepdims=True), (x, lambda g: g * chosen))


def _join(parts: list[Any]) -> Any:
    """Matrices one below the other."""
    if not any(isinstance(part, Var) for part in parts):
        return np.concatenate(parts, axis=0)
    ends = np.cumsum([0, *(part.shape[0] for part in parts)])
    pulls = [(p, lambda g, i=i: g[ends[i] : ends[i + 1]]) for i, p in enumerate(parts) if isinstance(p, Var)]
    return Var(np.concatenate([as_var(part).data for part in parts], axis=0), *pulls)


@dataclass(frozen=True)
class Functions:
    """Functions of one library: elementwise, `total` and `largest` over an axis that is kept, and `join` of rows."""

    tanh: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    relu: Callable[[Any], Any]
    abs: Callable[[Any], Any]
    total: Callable[..., Any]
    largest: Callable[[Any, int], Any]
    join: Callable[[list[Any]], Any]


NUMPY = Functions(
    _elementwise(np.tanh, lambda x, y: 1 - y * y),
    _elementwise(np.exp, lambda x, y: y),
    _elementwise(np.log, lambda x, y: 1 / x),
    _elementwise(np.sqrt, lambda x, y: 0.5 / y),
    _elementwise(np.sin, lambda x, y: np.cos(x)),
    _elementwise(lambda x: np.maximum(x, 0), lambda x, y: (x > 0).astype(x.dtype)),
    _elementwise(np.abs, lambda x, y: np.sign(x)),
    _total,
    _largest,
    _join,
)


def torch_functions() -> Functions:
    """The same of PyTorch."""
    import torch

    def total(x: Any, axis: int | None = None) -> Any:
        return x.sum() if axis is None else x.sum(dim=axis, keepdim=True)

    return Functions(
        torch.tanh, torch.exp, torch.log, torch.sqrt, torch.sin, torch.relu, torch.abs, total,
        lambda x, axis: x.amax(dim=axis, keepdim=True), lambda parts: torch.cat(parts, dim=0),
    )  # fmt: skip


def jax_functions() -> Functions:
    """The same of JAX."""
    import jax
    import jax.numpy as jnp

    def total(x: Any, axis: int | None = None) -> Any:
        return jnp.sum(x, axis=axis, keepdims=axis is not None)

    return Functions(
        jnp.tanh, jnp.exp, jnp.log, jnp.sqrt, jnp.sin, jax.nn.relu, jnp.abs, total,
        lambda x, axis: jnp.max(x, axis=axis, keepdims=True), lambda parts: jnp.concatenate(parts, axis=0),
    )  # fmt: skip
