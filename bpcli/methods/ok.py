"""Optimal Kronecker-sum approximation of RTRL (Benzing et al., ICML 2019): of each product r terms A ⊗ u.

A step makes r + 1 terms, A_1 ⊗ u_1 to A_r ⊗ u_r times J and D ⊗ x. As a matrix (n, N m) their sum has a singular value
decomposition Σ d_i l_i r_iᵀ, which needs no more than the QR decompositions of the factors. The diagonal matrix of d is
replaced by a random one of rank r with that mean and the least variance: the m largest d_i are kept, m the least such
that with k = r − m and s = Σ_{i>m} d_i

    k d_{m+1} ≤ s,                                                                               (1)

and of the k + 1 others, with random signs c and the unit vector z, z_i = (1 − k d_i / s)^½,

    diag(d) ≈ (s / k) C (1 − z zᵀ) C,        C = diag(c),                                        (2)

has the diagonal (s / k)(1 − z_i²) = d_i, and entries beside it of mean zero. So the mean is the sum; the variance is
s² / k − Σ_{i>m} d_i², the least of all unbiased approximations of rank r. Until r terms are there nothing is random,
nor where the sum has no more than rank r. A pair l_i, r_i has the sign that makes Σ_j j l_ij positive.
r N² m a step and product for J A, r² (N m + n) for the decompositions, and r (N m + n) numbers held; the local
derivatives take N reverse passes of single steps. In plain NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bpcli.methods import _kronecker
from bpcli.methods._online import Online
from bpcli.problem.definition import Array
from bpcli.runtime.local_derivatives import Factor, InfluenceLayout

_ROUNDING = 64
"""Singular values up to so many units of roundoff of the largest are zero."""


@dataclass(frozen=True)
class Options:
    """A sum of `r` >= 1 terms."""

    r: int

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r must be at least 1, not {self.r}")


def mixed(terms: tuple[Factor, ...], entered: Factor, signs: Array, options: Options) -> tuple[Factor, ...]:
    """r terms for r + 1."""
    found = (*terms, entered)
    if len(found) <= options.r:
        return found
    batch, N, m = entered.delta.shape
    U = np.stack([np.asarray(f.vector) for f in found], axis=2)
    A = np.stack([f.delta.reshape(batch, -1) for f in found], axis=2)
    finite = np.isfinite(U).all(axis=(1, 2)) & np.isfinite(A).all(axis=(1, 2))
    U[~finite], A[~finite] = 0, 0
    left, d, right = _decomposed(U, A)
    root = roots(d, signs, options.r)
    root[~finite] = np.nan
    u, A = left @ root, right @ root
    return tuple(replace(entered, vector=u[:, :, i], delta=A[:, :, i].reshape(batch, N, m)) for i in range(options.r))


def _decomposed(U: Array, A: Array) -> tuple[Array, Array, Array]:
    """Singular vectors and values of U Aᵀ, sample by sample."""
    (left, R), (right, S) = np.linalg.qr(U), np.linalg.qr(A)
    inner, d, outer = np.linalg.svd(R @ S.swapaxes(1, 2), full_matrices=False)
    left, right = left @ inner, right @ outer.swapaxes(1, 2)
    positive = np.arange(1, left.shape[1] + 1, dtype=left.dtype) @ left >= 0
    turn = np.where(positive, 1, -1).astype(left.dtype)[:, None]
    d[d <= _ROUNDING * np.finfo(d.dtype).eps * d[:, :1]] = 0
    return left * turn, d, right * turn


def roots(d: Array, signs: Array, r: int) -> Array:
    """R (batch, len(d), r) with the mean of R Rᵀ the diagonal matrix of descending d (batch, up to r + 1)."""
    count = d.shape[1]
    if count <= r:
        return np.sqrt(d)[:, :, None] * np.eye(count, r, dtype=d.dtype)
    rests = np.cumsum(d[:, ::-1], axis=1)[:, ::-1]
    m = np.argmax((r - np.arange(r)) * d[:, :r] <= rests[:, :r], axis=1)[:, None]  # Eq. (1)
    s, k, kept = np.take_along_axis(rests, m, axis=1), r - m, np.arange(count) < m
    z = np.where(kept, 0, np.sqrt(np.maximum(0, 1 - k * d / np.where(s > 0, s, 1)))).astype(d.dtype)
    scale = np.where(kept, np.sqrt(d), np.sqrt(s / k)).astype(d.dtype)
    v = z + np.eye(count, dtype=d.dtype)[-1]  # a reflection that takes the last unit vector to -z: the others span
    plane = np.eye(count, r, dtype=d.dtype) - 2 * v[:, :, None] * v[:, None, :r] / (v * v).sum(axis=1)[:, None, None]
    return np.asarray((scale * signs)[:, :, None] * plane)  # Eq. (2): 1 - z zᵀ is plane planeᵀ


PER_STEP = ("Σ 2 r N² m + r² (N m + n) + 2 N F", "Σ r (N m + n)")
METHOD = Online(
    name="ok",
    summary="unbiased random Kronecker sum of r terms of least variance for the influence; in plain NumPy",
    tags=frozenset({"online", "random", "recurrent", "unbiased"}),
    Options=Options,
    rule=_kronecker.Kronecker(mixed, lambda products, options: options.r + 1),
    flops=lambda layout, options: _kronecker.flops(layout, options.r) + _decomposition(layout, options.r),
    entries=lambda layout, options: _kronecker.entries(layout, options.r) + _decomposed_entries(layout, options.r),
    unfit=_kronecker.unfit,
)


def _decomposition(layout: InfluenceLayout, r: int) -> float:
    """Operations of the QR decompositions and of the products with their factors."""
    return sum(8.0 * (r + 1) ** 2 * (layout.N * m + n) for m, n in _kronecker.product_sizes(layout))


def _decomposed_entries(layout: InfluenceLayout, r: int) -> int:
    """Numbers of the decomposition of the largest product."""
    return 3 * r * max((layout.N * m + n for m, n in _kronecker.product_sizes(layout)), default=0)
