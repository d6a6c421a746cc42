"""Seeded draws: initial values and density patterns, each from a generator of its own.

All draws are made in float64 and rounded once, so the numbers of a float32 spec are those of the float64 one, rounded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Array
from bpcli.spec.specification import ArrayDecl

Label = Literal["inputs", "params", "states", "patterns", "task", "method"]
Float64 = NDArray[np.float64]
CHUNK = 1 << 16
GROUP: dict[str, Label] = {"input": "inputs", "param": "params", "state": "states"}


def generator(seed: int, kind: Label, name: str) -> np.random.Generator:
    """The generator of one array; a function of (seed, kind, name) alone, so that adding an array changes no other."""
    digest = hashlib.sha256(f"{seed}\0{kind}\0{name}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(word) for word in words])))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.floating], scale: float = 1.0) -> Array:
    """Normal with standard deviation `scale`, drawn in pieces so that float32 needs no float64 copy."""
    return _in_pieces(shape, dtype, lambda count: scale * rng.standard_normal(count))


def pattern(decl: ArrayDecl, seed: int) -> NDArray[np.int64] | None:
    """Sorted flat indices of the round(density * size) entries that exist; None where the array is dense."""
    if decl.density is None or decl.density == 1.0:
        return None
    count = round(decl.density * decl.size)
    rng = generator(seed, "patterns", decl.name)
    kept = rng.choice(decl.size, size=count, replace=False, shuffle=False)
    return np.sort(kept.astype(np.int64, copy=False))


def outside(decl: ArrayDecl, seed: int) -> NDArray[np.bool_] | None:
    """A mask `(*shape)` of the entries that a density leaves out; None where the array is dense."""
    kept = pattern(decl, seed)
    if kept is None:
        return None
    mask = np.ones(decl.size, dtype=np.bool_)
    mask[kept] = False
    return mask.reshape(decl.shape)


def initial(decl: ArrayDecl, seed: int, dtype: np.dtype[np.floating]) -> Array:
    """The array that `init`, `scale` and `value` describe, before any density: `(*shape)`, of `dtype`."""
    if decl.init == "value":
        return rounded(np.array(decl.value, dtype=np.float64).reshape(decl.shape), dtype)
    rng = generator(seed, GROUP[decl.kind], decl.name)
    return INITIALISERS[decl.init or "normal"](decl, rng, dtype)


def rounded(values: Array, dtype: np.dtype[np.floating]) -> Array:
    """`values` in `dtype`, C-contiguous; what overflows is infinite, for the caller to refuse."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype, order="C")


Initialiser = Callable[[ArrayDecl, np.random.Generator, np.dtype[np.floating]], Array]


def _in_pieces(shape: tuple[int, ...], dtype: np.dtype[np.floating], draw: Callable[[int], Float64]) -> Array:
    flat = np.empty(math.prod(shape), dtype=dtype)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, CHUNK):
            stop = min(start + CHUNK, flat.size)
            flat[start:stop] = draw(stop - start)
    return flat.reshape(shape)


def _uniform(decl: ArrayDecl, rng: np.random.Generator, dtype: np.dtype[np.floating], bound: float) -> Array:
    return _in_pieces(decl.shape, dtype, lambda count: bound * (2.0 * rng.random(count) - 1.0))


def _fill(decl: ArrayDecl, dtype: np.dtype[np.floating], value: float) -> Array:
    return _in_pieces(decl.shape, dtype, lambda count: np.full(count, value))


def _identity(decl: ArrayDecl, dtype: np.dtype[np.floating]) -> Array:
    rows, columns = decl.shape
    matrix = np.zeros((rows, columns), dtype=dtype)
    with np.errstate(over="ignore"):
        np.fill_diagonal(matrix, decl.scale)
    return matrix


def _orthogonal(decl: ArrayDecl, rng: np.random.Generator, dtype: np.dtype[np.floating]) -> Array:
    """Orthonormal columns, or rows of a wide matrix; Haar measure (Mezzadri 2007, arXiv:math-ph/0609050)."""
    rows, columns = decl.shape
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    # The signs of R's diagonal make the factorisation unique; without them the draw is not uniform.
    q *= np.where(np.diagonal(r) < 0.0, -decl.scale, decl.scale)
    return rounded(q if rows >= columns else q.T, dtype)


def _glorot_bound(decl: ArrayDecl) -> float:
    """Glorot and Bengio 2010, equation (16): uniform in ± sqrt(6 / (fan in + fan out))."""
    return decl.scale * math.sqrt(6.0 / sum(decl.shape))


INITIALISERS: dict[str, Initialiser] = {
    "zeros": lambda decl, rng, dtype: np.zeros(decl.shape, dtype=dtype),
    "ones": lambda decl, rng, dtype: _fill(decl, dtype, decl.scale),
    "identity": lambda decl, rng, dtype: _identity(decl, dtype),
    "orthogonal": _orthogonal,
    "glorot": lambda decl, rng, dtype: _uniform(decl, rng, dtype, _glorot_bound(decl)),
    "normal": lambda decl, rng, dtype: normal(rng, decl.shape, dtype, decl.scale),
    "uniform": lambda decl, rng, dtype: _uniform(decl, rng, dtype, decl.scale),
}
