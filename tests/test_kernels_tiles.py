"""Products with a packed matrix, and of factors as they stand, against NumPy: every remainder of rows and columns."""

from __future__ import annotations

import numpy as np
import pytest

from bpcli.kernels import forward
from bpcli.kernels import matrix_gradients as products
from bpcli.kernels.tiles import pack, width
from bpcli.runtime.jobs import Call, forward_job, no_updates
from bpcli.tape.instructions import (
    ADDEND,
    BASE,
    FIELDS,
    INNER_ROW,
    MATMUL,
    OP,
    OUT,
    PACKED_T,
    PLACE_FIELDS,
    SIZE,
    SIZE_A,
    SIZE_B,
    A,
    B,
    Forward,
)
from bpcli.tape.layout import packed_entries

MATRIX, VECTOR, RESULT, FIRST = range(4)
SIZES = (
    [(1, n, 3) for n in range(1, 40)]
    + [(1, 13, k) for k in range(1, 40)]
    + [(1, 70, 70), (1, 130, 65)]
    + [(2, n, 3) for n in range(1, 50)]
    + [(m, 13, 5) for m in range(2, 18)]
    + [(5, 12, 1), (16, 32, 32), (7, 30, 130)]
)


def product(
    W: np.ndarray, x: np.ndarray, first: np.ndarray | None, packed: np.ndarray, inside: bool = False
) -> np.ndarray:
    """`first` + x Wᵀ by the forward kernel, with `packed (k, n)` as the packed copy of Wᵀ.

    `first` is (m, n) or one row for all, (n,); where the sum goes if `inside`.
    """
    (n, k), m = W.shape, len(x)
    starts = np.cumsum([0, W.size, x.size, m * n, m * n])
    values = np.full(starts[-1] + packed_entries(k, n), 0.5, W.dtype)
    values[: starts[1]], values[starts[1] : starts[2]] = W.ravel(), x.ravel()
    if first is not None:
        values[starts[2 if inside else 3] :][: first.size] = first.ravel()
    pack(packed, values[starts[4] :])
    places = np.zeros((4, PLACE_FIELDS), np.int64)
    places[:, BASE], places[:, INNER_ROW] = starts[:4], (0, k, n, 0 if first is not None and first.ndim == 1 else n)
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
    code[0, ADDEND] = -1 if first is None else RESULT if inside else FIRST
    numbers, bounds = np.zeros(4, W.dtype), np.array([0, 0, 0, 1, 1])
    job = forward_job(Forward(code, bounds, numbers, {}), numbers, places, values.size, no_updates(4, W.dtype))
    job[forward.LAST], job[forward.STEP1], job[forward.I1] = 1, 1, m
    Call("forward", job[None]).run(values, values.ctypes.data)
    return values[starts[2] : starts[3]].reshape(m, n)


@pytest.mark.parametrize("added", ["", "rows", "row", "inside"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products(dtype: type, added: str) -> None:
    """Equal to NumPy's; with another matrix packed they are not; a row is the same bits whatever stands beside it."""
    for m, n, k in SIZES:
        rng = np.random.default_rng(m + 100 * n + k)
        W, x = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((m, k)).astype(dtype)
        first = rng.standard_normal(n if added == "row" else (m, n)).astype(dtype) if added else None
        inside = added == "inside"
        found = product(W, x, first, W.T, inside)
        expected = x.astype(np.float64) @ W.T.astype(np.float64) + (0 if first is None else first)
        np.testing.assert_allclose(found, expected, rtol=0, atol=8 * k * np.finfo(dtype).eps, err_msg=f"{m, n, k}")
        assert not np.allclose(product(W + 1, x, first, W.T + 1, inside), expected, rtol=0, atol=1e-3), (m, n, k)
        above = first if first is None or first.ndim == 1 else first[:2]
        assert (found[:2] == product(W, x[:2], above, W.T, inside)).all(), (m, n, k)


def matrix_gradient(delta: np.ndarray, vector: np.ndarray, turned: bool, apart: int) -> np.ndarray:
    """0.5 + Σ Δᵀ v, or Σ vᵀ Δ where turned, over `(times, k, entries)` rows; `apart` numbers lie between two times."""
    (times, k, rows), columns = delta.shape, vector.shape[2]
    shape = (columns, rows) if turned else (rows, columns)
    spans = [k * each.shape[2] + apart for each in (delta, vector)]
    starts = np.cumsum([0, times * spans[0], times * spans[1]])
    values = np.full(starts[-1] + rows * columns, 0.5, delta.dtype)
    for start, span, each in zip(starts, spans, (delta, vector), strict=False):
        values[start : start + times * span].reshape(times, span)[:, : each[0].size] = each.reshape(times, -1)
    job = np.zeros(products.JOB, np.int64)
    job[[products.LENGTH_V, products.LENGTH_C]], job[products.TRANSPOSED] = values.size, turned
    job[products.ROWS], job[products.COLUMNS] = shape
    job[products.DEPTH], job[products.TIMES], job[products.SUM] = k, times, starts[-1]
    job[[products.DELTA, products.VECTOR]], job[[products.DELTA_JUMP, products.VECTOR_JUMP]] = starts[:2], spans
    job[[products.DELTA_STRIDE, products.VECTOR_STRIDE]] = rows, columns
    Call("products", job[None]).run(values, values.ctypes.data)
    return values[starts[-1] :].reshape(shape)


# Rows, columns, rows of one time, and times.
GRADIENT_SIZES = (
    [(9, n, 3, 1) for n in range(1, 50)] + [(m, 13, 3, 1) for m in range(1, 18)] + [(20, n, 16, 21) for n in (2, 3, 31)]
    # few columns, few rows, more of them than a vector's, and more than are taken as they stand
    + [(60, 2, 130, 3), (2, 60, 130, 3), (7, 260, 5, 4), (1, 1, 1, 7)]
)  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_matrix_gradients(dtype: type, turned: bool) -> None:
    """Equal to NumPy's, whatever stands between the rows of one time and the next; with other rows it is not."""
    for rows, columns, k, times in GRADIENT_SIZES:
        rng = np.random.default_rng(rows + 100 * columns + k)
        delta = rng.standard_normal((times, k, rows)).astype(dtype)
        vector = rng.standard_normal((times, k, columns)).astype(dtype)
        expected = 0.5 + np.einsum("tkr,tkc->rc", *(each.astype(np.float64) for each in (delta, vector)))
        found = matrix_gradient(delta, vector, turned, 16)
        atol, size = 8 * k * times * np.finfo(dtype).eps, (rows, columns, k, times)
        np.testing.assert_allclose(found, expected.T if turned else expected, rtol=0, atol=atol, err_msg=str(size))
        other = matrix_gradient(delta[::-1] + 1, vector, turned, 16)
        assert not np.allclose(other, found, rtol=0, atol=1e-3), size


@pytest.mark.parametrize("columns", [2, 13])
def test_matrix_gradients_of_thousands_of_rows(columns: int) -> None:
    """float32 loses digits with the rows that are summed in one go, which are few, in thin gradients too."""
    rng = np.random.default_rng(columns)
    delta = rng.uniform(0.5, 1.0, (1, 1 << 14, 8)).astype(np.float32)
    vector = rng.uniform(0.5, 1.0, (1, 1 << 14, columns)).astype(np.float32)
    found = matrix_gradient(delta, vector, False, 0)
    expected = 0.5 + delta[0].astype(np.float64).T @ vector[0].astype(np.float64)
    assert np.abs(found / expected - 1).max() < 20 * np.finfo(np.float32).eps


def test_packing() -> None:
    """Panels of `width` columns, the last one filled up with zeros; several matrices one after another."""
    columns = width(np.dtype(np.float64))
    matrices = np.arange(2.0 * 3 * (columns + 1)).reshape(2, 3, columns + 1)
    out = np.full(2 * packed_entries(3, columns + 1), np.nan)
    apart = pack(matrices, out)
    panels = out[apart : 2 * apart].reshape(2, 3, columns)
    assert (matrices[1, :, :columns] == panels[0]).all()
    assert (matrices[1, :, columns] == panels[1, :, 0]).all() and not panels[1, :, 1:].any()
