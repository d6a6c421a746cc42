"""Growth laws: time ~ n^a T^b, fitted over a sweep by least squares of logarithms, with what the fit leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bpcli.bench.rows import Row

FITTED = ("time_s", "allocated_bytes")
LEAST_VALUES = 3
"""Distinct values of a setting that make a law: two always lie on one."""
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Law:
    """`figure` ~ Π key^exponent for one method of a spec; `margins` are half widths of 95% intervals.

    `residual` is the root mean square of what the law misses, in natural logarithms, over `points` rows.
    """

    spec: str
    method: str
    backend: str
    figure: str
    exponents: dict[str, float]
    margins: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    residual: float
    points: int

    def plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def laws(rows: Sequence[Row]) -> list[Law]:
    """The laws that the rows of each method support, options that are swept among the settings."""
    families: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row["spec"], _family(row), row["backend"]), []).append(row)
    found = []
    for (spec, method, backend), family in families.items():
        for figure in FITTED:
            law = _fitted([r for r in family if r[figure]], figure)
            if law is not None:
                found.append(Law(spec, method, backend, figure, *law))
    return found


def _family(row: Row) -> str:
    """The row's method without the options that were swept: `tbptt:k1=1` over k2."""
    name, _, options = str(row.get("base", row["method"])).partition(":")
    kept = [option for option in options.split(",") if option and option.partition("=")[0].strip() not in row["grid"]]
    return f"{name}:{','.join(kept)}" if kept else name


def _fitted(
    rows: Sequence[Row], figure: str
) -> tuple[dict[str, float], dict[str, float], dict[str, tuple[float, float]], float, int] | None:
    """Exponents, margins and ranges by key, residual and number of rows; None where there are too few for a law."""
    keys = _keys(rows)
    others = {_rest(row, keys) for row in rows}  # words and single steps of other settings: a factor for each
    count, unknowns = len(rows), len(keys) + len(others)
    if not keys or count <= unknowns:
        return None
    order = {rest: i for i, rest in enumerate(sorted(others))}
    A = np.zeros((count, unknowns))
    for i, row in enumerate(rows):
        A[i, : len(keys)] = [np.log(row["grid"][k]) for k in keys]
        A[i, len(keys) + order[_rest(row, keys)]] = 1.0
    b = np.log([float(row[figure]) for row in rows])
    if np.linalg.matrix_rank(A) < unknowns:
        return None
    x, margins, residual = _least_squares(A, b)
    ranges = {k: (min(r["grid"][k] for r in rows), max(r["grid"][k] for r in rows)) for k in keys}
    named = zip(keys, x, margins, strict=False)
    exponents, halves = {}, {}
    for key, value, half in named:
        exponents[key], halves[key] = float(value), float(half)
    return exponents, halves, ranges, residual, count


def _least_squares(A: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any, float]:
    """Solution of A x ≈ b, half widths of its 95% intervals (Student's t), and the root mean square of A x − b."""
    x, *_ = np.linalg.lstsq(A, b, rcond=None)
    freedom = len(b) - A.shape[1]
    squares = float(((A @ x - b) ** 2).sum())
    covariance = np.linalg.inv(A.T @ A) * squares / freedom
    margins = stdtrit(freedom, 0.5 + _CONFIDENCE / 2.0) * np.sqrt(np.diag(covariance))
    return x, margins, float(np.sqrt(squares / len(b)))


def _keys(rows: Sequence[Row]) -> list[str]:
    """The keys of the grids that all rows have, as positive numbers, with enough values among them."""
    return [k for k in dict.fromkeys(k for r in rows for k in r["grid"]) if k != "seed" and _numeric(rows, k)]


def _numeric(rows: Sequence[Row], key: str) -> bool:
    values = set(_values(rows, key))
    return len(values) >= LEAST_VALUES and all(isinstance(v, int | float) and v > 0 for v in values)


def _values(rows: Sequence[Row], key: str) -> Iterator[Any]:
    return (row["grid"].get(key) for row in rows)


def _rest(row: Row, keys: Sequence[str]) -> str:
    """What a row's grid says beside the fitted keys and the seed."""
    return repr(sorted((k, str(v)) for k, v in row["grid"].items() if k not in keys and k != "seed"))
