"""A row of results: one measured cell, flat and with units in the names of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

OURS = "bp"

EXACT = {"float64": 1e-7, "float32": 1e-3}
"""The bias up to which a gradient counts as the true one, by dtype."""

HEAD = ("spec", "method", "backend")
TAIL = (
    "T", "batch", "dtype", "threads", "time_s", "time_low_s", "time_high_s", "compile_s",
    "predicted_bytes", "allocated_bytes", "peak_bytes", "forward_steps", "flops", "gemm_fraction", "bias", "cosine",
    "limit",
)  # fmt: skip


def grid_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """The keys of the rows' grids that have no column of their own anyway, each once, in order of appearance."""
    return tuple(dict.fromkeys(k for row in rows for k in row["grid"] if not _has_column(row, k)))


def _has_column(row: Row, key: str) -> bool:
    """Whether a column says what a grid key does; a dim or constant may be called like a column and differ."""
    return key in ("T", "batch", "dtype", "threads") and row.get(key) == row["grid"][key]


def csv_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The columns of a CSV file with these grid keys; one called like another column gets `grid_` before its name."""
    return (*HEAD, *(column_name(k) for k in keys), *TAIL)


def column_name(key: str) -> str:
    """The column of a grid key."""
    return f"grid_{key}" if key in HEAD or key in TAIL else key


def memory(row: Row) -> float:
    """Bytes that a method holds: measured where they were, at least one."""
    return max(1.0, float(row["allocated_bytes"] or row["predicted_bytes"] or 1))


def by_spec(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each spec."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["spec"], []).append(row)
    return groups
