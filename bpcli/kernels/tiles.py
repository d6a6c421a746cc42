"""Products of few rows with a matrix that is used again and again, packed for it once.

A library packs a factor anew in every call, which for the 16 rows of a shard takes as long as a good part of the
product. Here `op(W) (k, n)` stands in panels of columns, `(panels, k, width)`, the last one filled up with zeros,
and a tile of ROWS × `width` sums stays in registers while a panel passes by (Goto & van de Geijn 2008).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli.kernels import mode
from bpcli.kernels.blas import gemm, plain_gemm
from bpcli.kernels.jit import inner
from bpcli.kernels.simd import VECTOR_BYTES
from bpcli.kernels.tile import FEW, ROWS, VECTORS

DEPTH, MOST_COLUMNS = 128, 256
"""Rows of a factor that is taken as it stands, so many at a time that they stay in cache, and how long these may be:
entries of a column that are pages apart are better packed, as the BLAS does."""
_WIDEST = VECTORS * 64 // 4  # of any processor: what is held does not depend on where it is held


def width(dtype: np.dtype) -> int:
    """Columns of a panel."""
    return VECTORS * VECTOR_BYTES // dtype.itemsize


def packed_entries(k: int, n: int) -> int:
    """Numbers that a packed matrix (k, n) takes at most, in any dtype."""
    return -(-n // _WIDEST) * _WIDEST * k


def pack(matrices: NDArray, out: NDArray) -> int:
    """Write matrices op(W) `(…, k, n)` to the flat array `out`, in panels; how far apart they stand there."""
    *lead, k, n = matrices.shape
    columns = width(out.dtype)
    whole, each = n // columns, -(-n // columns) * columns * k
    panels = out[: each * math.prod(lead)].reshape(*lead, -1, k, columns)
    panels[..., :whole, :, :] = matrices[..., : whole * columns].reshape(*lead, k, whole, columns).swapaxes(-3, -2)
    if n > whole * columns:
        panels[..., whole, :, : n - whole * columns] = matrices[..., whole * columns :]
        panels[..., whole, :, n - whole * columns :] = 0
    return each


if mode.compiling:
    from bpcli.kernels.simd import lanes_of
    from bpcli.kernels.tile import tile, turned_tile

    @inner
    def packed_product(m, n, k, A, a, lda, P, p, add, d, ldd, C, c, ldc):
        """C (m, n) = A (m, k) op(W), plus what C has at d where `add`; op(W) (k, n) is packed at p in P.

        Rows of A are lda apart, those at d ldd (0: one for all), those of C ldc; what is at d may be C itself. Each
        row's sums are taken in the same order, whatever the rows beside it.
        """
        columns = VECTORS * lanes_of(C)
        for j in range(0, n, columns):
            panel, wanted = p + j * k, min(columns, n - j)
            for i in range(0, m, ROWS):
                above, held, out = a + i * lda, d + i * ldd + j, c + i * ldc + j
                tile(m - i, k, 1, A, above, lda, 1, 0, P, panel, columns, 0, wanted, add, held, ldd, C, out, ldc)

    @inner
    def transposed_product(m, n, k, times, A, a, lda, ja, B, b, ldb, jb, C, c):
        """C (m, n) += Aᵀ B for A (k, m) and B (k, n), `times` of each, ja and jb numbers apart; C is whole."""
        if n > MOST_COLUMNS:
            for time in range(times):
                gemm(True, False, m, n, k, A, a + time * ja, lda, B, b + time * jb, ldb, True, C, c, n)
            return
        columns = VECTORS * lanes_of(C)
        together = max(1, DEPTH // k)
        for time in range(0, times, together):
            for start in range(0, k, DEPTH):
                depth, most = min(DEPTH, k - start), min(together, times - time)
                above, beside = a + time * ja + start * lda, b + time * jb + start * ldb
                if n <= FEW:
                    for i in range(0, m, columns):
                        wanted, left, out = min(columns, m - i), above + i, c + i * n
                        turned_tile(n, depth, most, B, beside, ldb, jb, A, left, lda, ja, wanted, C, out)
                    continue
                for j in range(0, n, columns):
                    wanted = min(columns, n - j)
                    for i in range(0, m, ROWS):
                        left, right, out = above + i, beside + j, c + i * n + j
                        tile(
                            m - i, depth, most, A, left, 1, lda, ja, B, right, ldb, jb, wanted, True, out, n, C, out, n
                        )  # fmt: skip

else:

    def transposed_product(m, n, k, times, A, a, lda, ja, B, b, ldb, jb, C, c):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled."""
        for time in range(times):
            plain_gemm(True, False, m, n, k, A, a + time * ja, lda, B, b + time * jb, ldb, True, C, c, n)

    def packed_product(m, n, k, A, a, lda, P, p, add, d, ldd, C, c, ldc):  # type: ignore[no-untyped-def]
        """The same where nothing is compiled."""
        view = np.lib.stride_tricks.as_strided
        left = view(A[a:], (m, k), (lda * A.itemsize, A.itemsize))
        columns = width(P.dtype)
        panels = P[p : p + -(-n // columns) * columns * k].reshape(-(-n // columns), k, columns)
        product = np.concatenate([left @ panel for panel in panels], axis=1)[:, :n]
        held, out = (view(C[i:], (m, n), (ld * C.itemsize, C.itemsize)) for i, ld in ((d, ldd), (c, ldc)))
        out[...] = held + product if add else product
