"""A row of results: one measured cell, flat and with units in the names of its fields.

Rows made of what measuring processes tell.

Rows that differ by their seed alone, taken together: the middle of each figure, and its range over the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.bench import clock
from bpcli.bench import machine as control
from bpcli.bench.machine import GEMM, Rates, limit, usual_shares
from bpcli.bench.sweep import OURS, Item

Row = Mapping[str, Any]


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


_SIZES = ("T", "batch", "dtype", "parameters")
_COSTS = ("predicted_bytes", "forward_steps", "flops", "moved_bytes")


@dataclass(frozen=True)
class Timed:
    """One backend of a cell: its process's report, and its samples round by round (seconds a call).

    `floor` is by how many bytes the process grew when it did nothing; `rates` are the machine's in each round, none for
    a peer.
    """

    backend: str
    report: Mapping[str, Any]
    samples: Sequence[Sequence[float]]
    floor: int
    rates: Sequence[Rates]

    @property
    def flat(self) -> list[float]:
        """All samples, as taken."""
        return [s for one in self.samples for s in one]


def rows_of(item: Item, backends: Sequence[Timed], movement: Mapping[str, float]) -> list[Row]:
    """A row for each backend of a cell; `movement` says by how much the control kernels moved."""
    about = {
        "cell": item.index,
        "spec": item.target.name,
        "method": item.cell.method,
        "base": item.cell.base,
        "grid": dict(item.cell.grid),
        "settings": dict(item.settings),
    }
    quiet = {"control_moved": dict(movement), "contaminated": control.contaminated(movement)}
    ours = next((b for b in backends if b.backend == OURS), None)
    return [{**about, **_row(timed), "ratio": _ratio(timed, ours), **quiet} for timed in backends]


def _row(timed: Timed) -> dict[str, Any]:
    report = timed.report
    return {
        "backend": timed.backend,
        "threads": report["threads"],
        **{k: report[k] for k in _SIZES},
        **_time(timed),
        **{k: report[k] for k in _COSTS},
        **_roofline(timed),
        **_memory(timed),
        "bias": report["bias"],
        "cosine": report["cosine"],
        "check": report["check"],
    }


def _time(timed: Timed) -> dict[str, Any]:
    """Seconds; all None where nothing was timed."""
    flat, report = timed.flat, timed.report
    timing = clock.summarise(flat, report["calls_per_block"]) if flat else None
    return {
        "time_s": timing and timing.median,
        "time_low_s": timing and timing.low,
        "time_high_s": timing and timing.high,
        "time_min_s": timing and timing.minimum,
        "compile_s": timing and report["compile_s"],
        "first_s": timing and report["first_s"],
        "calls_per_block": timing and timing.calls_per_block,
        "samples_s": flat,
        "rounds": [len(one) for one in timed.samples],
    }


def _roofline(timed: Timed) -> dict[str, Any]:
    """What the machine could do, beside what was measured."""
    rates = {
        "gemm_flops_per_s": [r.gemm for r in timed.rates],
        "copy_bytes_per_s": [r.copy for r in timed.rates],
    }
    if not timed.flat or not timed.rates:
        return {"gemm_fraction": None, "limit": None, **rates}
    shares = usual_shares(timed.rates, timed.samples, timed.report["flops"], timed.report["moved_bytes"])
    return {"gemm_fraction": shares[GEMM], "limit": limit(shares), **rates}


def _memory(timed: Timed) -> dict[str, Any]:
    """Measured memory; Python's allocator does not see a peer's."""
    growth = timed.report.get("peak_growth") if timed.flat else None
    return {
        "allocated_bytes": timed.report.get("allocated_bytes") if timed.flat else None,
        "peak_bytes": None if growth is None else max(0, growth - timed.floor),
    }


def _ratio(timed: Timed, ours: Timed | None) -> dict[str, float] | None:
    """A peer's time over ours, from blocks of the same round, with its interval."""
    if ours is None or timed is ours or not timed.flat or not ours.flat:
        return None
    pairs = [
        pair
        for theirs, own in zip(timed.samples, ours.samples, strict=True)
        for pair in zip(theirs, own, strict=False)  # a backend whose block is longer has fewer
    ]
    median, low, high = clock.ratio(*zip(*pairs, strict=True))
    return {"median": median, "low": low, "high": high}


SPREAD = ("time_s", "allocated_bytes", "peak_bytes", "bias", "cosine", "gemm_fraction")
_MIDDLE = (*SPREAD, "time_min_s", "compile_s", "first_s")
_WORST = ("wrong", "inconclusive", "pass")


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """A row for all that differ by their seed alone, in the order of the first of each; others stay as they are.

    Such a row has `seeds`, the list of them, and `spread`, which takes a figure to its [lowest, highest] value; its
    figures are medians, its interval holds those of all seeds, and its check is the worst.
    """
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(without_seed(row), []).append(row)
    return [_together(group) if "seed" in group[0]["settings"] else group[0] for group in alike.values()]


def without_seed(row: Row) -> str:
    """What tells a row from others, the seed left out."""
    settings = {k: v for k, v in row["settings"].items() if k != "seed"}
    return repr((row["spec"], row["method"], row["backend"], row["threads"], sorted(settings.items())))


def _together(group: Sequence[Row]) -> Row:
    def values(key: str) -> list[float]:
        return [r[key] for r in group if r.get(key) is not None]

    middle = {k: statistics.median(values(k)) for k in _MIDDLE if values(k)}
    interval = {k: pick(values(k)) for k, pick in (("time_low_s", min), ("time_high_s", max)) if values(k)}
    return {
        **group[0],
        **middle,
        **interval,
        "settings": _plain(group[0]["settings"]),
        "grid": _plain(group[0]["grid"]),
        "seeds": [r["settings"]["seed"] for r in group],
        "spread": {k: [min(values(k)), max(values(k))] for k in SPREAD if values(k)},
        "check": min((r["check"] for r in group), key=lambda c: _WORST.index(c["verdict"])),
        "samples_s": [s for r in group for s in r["samples_s"]],
        "ratio": _over_seeds([r["ratio"] for r in group if r["ratio"]]),
    }


def _over_seeds(ratios: Sequence[Any]) -> dict[str, float] | None:
    """A peer's times over ours: the middle one, and what holds all intervals."""
    if not ratios:
        return None
    middle = statistics.median(r["median"] for r in ratios)
    return {"median": middle, "low": min(r["low"] for r in ratios), "high": max(r["high"] for r in ratios)}


def _plain(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k != "seed"}
