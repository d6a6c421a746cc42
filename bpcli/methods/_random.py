"""Random signs, and the balance of two factors of a random product."""

from __future__ import annotations

import numpy as np

from bpcli.problem.definition import Array


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Independent fair signs, 1.0 or -1.0."""
    return 2.0 * rng.integers(0, 2, shape) - 1.0


def balance(one: Array, other: Array) -> Array:
    """(‖one‖ / ‖other‖)^½ of samples, (batch, 1); 1 where either is zero or not finite."""
    return _root(_norm(one), _norm(other)).astype(one.dtype)


def balanced(one: Array, other: Array) -> tuple[Array, Array]:
    """Two factors of one product, scaled to equal norms sample by sample; both are zero where either is."""
    first, second = _norm(one), _norm(other)
    by = _root(second, first)
    nothing = (first == 0) | (second == 0)
    scales = np.where(nothing, 0, by), np.where(nothing, 0, 1 / by)
    found = [x * s.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype) for x, s in zip((one, other), scales, strict=True)]
    return found[0], found[1]


def _root(one: Array, other: Array) -> Array:
    """The square root of a ratio of norms; 1 where either is zero or not finite."""
    root = np.sqrt(one / np.where(other > 0, other, 1))
    return np.where((other > 0) & (root > 0) & np.isfinite(root), root, 1)


def _norm(x: Array) -> Array:
    """The norm of each sample, (batch, 1)."""
    flat = x.reshape(len(x), -1)
    return np.asarray(np.sqrt((flat * flat).sum(axis=1, keepdims=True)))
