"""Products with a packed matrix, against NumPy: every remainder of rows and columns, whole and added to."""

from __future__ import annotations

import numpy as np
import pytest

from bpcli.graph.tape import ADDEND, FIELDS, OP, OUT, SIZE, SIZE_A, SIZE_B, A, B, Forward
from bpcli.kernels import forward
from bpcli.kernels.calls import Call
from bpcli.kernels.codes import MATMUL
from bpcli.kernels.fixes import no_fixes
from bpcli.kernels.jobs import forward_job
from bpcli.kernels.rows import BASE, INNER_ROW, PACKED_T, PLACE_FIELDS
from bpcli.kernels.tiles import pack, packed_entries, width

MATRIX, VECTOR, RESULT, FIRST = range(4)
SIZES = (
    [(1, n, 3) for n in range(1, 40)]
    + [(1, 13, k) for k in range(1, 40)]
    + [(1, 70, 70), (1, 130, 65)]
    + [(2, n, 3) for n in range(1, 50)]
    + [(m, 13, 5) for m in range(2, 18)]
    + [(5, 12, 1), (16, 32, 32), (7, 30, 130)]
)


def product(W: np.ndarray, x: np.ndarray, first: np.ndarray | None, packed: np.ndarray) -> np.ndarray:
    """`first` + x Wᵀ by the forward kernel, with `packed (k, n)` as the packed copy of Wᵀ."""
    (n, k), m = W.shape, len(x)
    starts = np.cumsum([0, W.size, x.size, m * n, m * n])
    values = np.full(starts[-1] + packed_entries(k, n), 0.5, W.dtype)
    values[: starts[1]], values[starts[1] : starts[2]] = W.ravel(), x.ravel()
    if first is not None:
        values[starts[3] : starts[4]] = first.ravel()
    pack(packed, values[starts[4] :])
    places = np.zeros((4, PLACE_FIELDS), np.int64)
    places[:, BASE], places[:, INNER_ROW] = starts[:4], (0, k, n, n)
    places[:, PACKED_T] = (starts[4], -1, -1, -1)
    code = np.zeros((1, FIELDS), np.int64)
    for field, entry in (
        (OP, MATMUL),
        (OUT, RESULT),
        (A, MATRIX),
        (B, VECTOR),
        (SIZE, n),
        (SIZE_A, n * k),
        (SIZE_B, k),
    ):
        code[0, field] = entry
    code[0, ADDEND] = -1 if first is None else FIRST
    numbers, bounds = np.zeros(4, W.dtype), np.array([0, 0, 0, 1, 1])
    job = forward_job(Forward(code, bounds, numbers, {}), numbers, places, values.size, no_fixes(4, W.dtype))
    job[forward.LAST], job[forward.STEP1], job[forward.I1] = 1, 1, m
    Call("forward", job[None]).run(values, values.ctypes.data)
    return values[starts[2] : starts[3]].reshape(m, n)


@pytest.mark.parametrize("added", [False, True], ids=["whole", "added"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_products(m: int, n: int, k: int, dtype: type, added: bool) -> None:
    """Equal to NumPy's; with another matrix packed they are not; a row is the same bits whatever stands beside it."""
    rng = np.random.default_rng(m + 100 * n + k)
    W, x = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((m, k)).astype(dtype)
    first = rng.standard_normal((m, n)).astype(dtype) if added else None
    found = product(W, x, first, W.T)
    expected = x.astype(np.float64) @ W.T.astype(np.float64) + (0 if first is None else first)
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * k * np.finfo(dtype).eps)
    assert not np.allclose(product(W + 1, x, first, W.T + 1), expected, rtol=0, atol=1e-3)
    assert (found[:2] == product(W, x[:2], None if first is None else first[:2], W.T)).all()


def test_packing() -> None:
    """Panels of `width` columns, the last one filled up with zeros; several matrices one after another."""
    columns = width(np.dtype(np.float64))
    matrices = np.arange(2.0 * 3 * (columns + 1)).reshape(2, 3, columns + 1)
    out = np.full(2 * packed_entries(3, columns + 1), np.nan)
    apart = pack(matrices, out)
    panels = out[apart : 2 * apart].reshape(2, 3, columns)
    assert (matrices[1, :, :columns] == panels[0]).all()
    assert (matrices[1, :, columns] == panels[1, :, 0]).all() and not panels[1, :, 1:].any()
