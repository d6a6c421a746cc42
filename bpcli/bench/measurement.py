"""Cells and their measurements, and the table of a run: a flat row for each, with units in the names of its figures.

`table` gives the rows as a DataFrame with the columns of the CSV files. `over_seeds` aggregates rows that differ by
their seed alone.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpcli.bench import intervals
from bpcli.bench.profiling import GEMM, Rates, contaminated, limit, usual_shares
from bpcli.errors import BpError, Diagnostic
from bpcli.problem.setup import SpecFile

if TYPE_CHECKING:
    from pandas import DataFrame

OURS = "bp"
"""The name of bp itself among the backends of a cell."""
PROTOCOL = 1
"""The version of the requests and answers of workers, and of the cells in them."""
SLOW_SECONDS = 1.0
"""A call that takes as long counts as a block: there is no calibration, and no call before a block to warm up."""
THREADS = "threads"
"""A grid key that is a setting of the run rather than of the spec."""
Value = int | float | str
Row = Mapping[str, Any]

EXACT = {"float64": 1e-7, "float32": 1e-3}
"""The bias up to which a gradient counts as exact, by dtype."""
HEAD = ("spec", "method", "backend")
TAIL = (
    "T", "batch", "dtype", "threads", "time_s", "time_low_s", "time_high_s", "compile_s",
    "predicted_bytes", "allocated_bytes", "peak_bytes", "forward_steps", "flops", "gemm_fraction", "bias", "cosine",
    "limit", "kind", "kernel_error", "variance", "draws",
)  # fmt: skip
_REPORTED = ("T", "batch", "dtype", "parameters")
_PREDICTED = ("predicted_bytes", "forward_steps", "flops", "moved_bytes")
_JUDGED = ("kind", "kernel_error", "bias", "cosine", "variance", "draws")
_SPREAD = ("time_s", "allocated_bytes", "peak_bytes", "kernel_error", "bias", "cosine", "variance", "gemm_fraction")
_MEDIANS = (*_SPREAD, "time_min_s", "compile_s", "first_s")
_WORST_FIRST = ("wrong", "inconclusive", "pass")


@dataclass(frozen=True)
class Cell:
    """The subject of a measurement: one method at one point of a sweep, on given threads and backends.

    `base` is the method before grid options replaced its own. `settings` are values of the spec's keys; `grid` holds
    the swept keys that apply, options and threads included, in the grid's order. `sha256` is the spec's digest when
    the run was planned. `index` numbers the cells of a run. The mean and variance of a random method are over `draws`.
    `backends`, `dtype` and the predictions `seconds` and
    `bytes`, for all backends together, are set when the cell is admitted to a run (`sweep.admit`).
    """

    spec: SpecFile
    sha256: str
    threads: int
    method: str
    base: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    grid: Mapping[str, Value] = field(default_factory=dict)
    index: int = 0
    draws: int = 1
    backends: tuple[str, ...] = (OURS,)
    dtype: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def key(self) -> str:
        """A text that no other cell of the run has; the journal finds finished cells by it."""
        threads = {k: v for k, v in self.grid.items() if k == THREADS}
        return json.dumps([self.spec.name, self.method, {**threads, **self.settings}], sort_keys=True)

    @property
    def label(self) -> str:
        """A short description: spec, method and settings."""
        return f"{self.spec.name} {self.method}" + "".join(f" {k}={v}" for k, v in self.settings.items())

    def to_json(self) -> dict[str, Any]:
        """The cell as workers of all versions of bp read it: the fields of its spec beside its own."""
        own = {k: getattr(self, k) for k in ("sha256", "threads", "method", "draws")}
        return {**self.spec.to_json(), **own, "settings": dict(self.settings), "grid": dict(self.grid)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Cell:
        """A cell that another process sent; an older bp sends no digest and no draws."""
        sha256, threads = given.get("sha256", ""), int(given["threads"])
        names = {k: given[k] for k in ("method", "settings", "grid")}
        return cls(SpecFile.from_json(given), sha256, threads, **names, draws=int(given.get("draws", 1)))


@dataclass(frozen=True)
class Measurement:
    """The outcome of one backend of a cell.

    `report` is the worker's description, `samples` are seconds a call by round, `floor` is the resident growth in
    bytes of a call that does nothing, `rates` are the machine's in each round (bp only), and `moved` says by how much
    the control kernels moved.
    """

    cell: Cell
    backend: str
    report: Mapping[str, Any]
    samples: Sequence[Sequence[float]]
    floor: int
    rates: Sequence[Rates]
    moved: Mapping[str, float]

    def row(self, ours: Measurement) -> Row:
        """The row of the table; a peer's has its time relative to `ours`, bp's own measurement of the cell."""
        cell, report, timed = self.cell, self.report, any(self.samples)
        growth = report.get("peak_growth") if timed else None
        return {
            "cell": cell.index, "spec": cell.spec.name, "method": cell.method, "base": cell.base,
            "grid": dict(cell.grid), "settings": dict(cell.settings),
            "backend": self.backend, "threads": report["threads"], **{k: report[k] for k in _REPORTED},
            **self._time(),
            **{k: report[k] for k in _PREDICTED},
            **self._roofline(),
            "allocated_bytes": report.get("allocated_bytes") if timed else None,
            "peak_bytes": None if growth is None else max(0, growth - self.floor),
            **{k: report.get(k) for k in _JUDGED}, "check": report["check"], "ratio": self._ratio(ours),
            "control_moved": dict(self.moved), "contaminated": contaminated(self.moved),
        }  # fmt: skip

    def _time(self) -> dict[str, Any]:
        """Seconds of the first and of steady calls; all None where nothing was timed."""
        flat = [s for one in self.samples for s in one]
        low, high = intervals.interval(flat) if flat else (None, None)
        return {
            "time_s": statistics.median(flat) if flat else None,
            "time_low_s": low, "time_high_s": high, "time_min_s": min(flat, default=None),
            **{k: self.report[k] if flat else None for k in ("compile_s", "first_s", "calls_per_block")},
            "samples_s": flat, "rounds": [len(one) for one in self.samples],
        }  # fmt: skip

    def _roofline(self) -> dict[str, Any]:
        """Rates of the machine, and the limit that they set to the time."""
        rates = {"gemm_flops_per_s": [r.gemm for r in self.rates], "copy_bytes_per_s": [r.copy for r in self.rates]}
        if not any(self.samples) or not self.rates:
            return {"gemm_fraction": None, "limit": None, **rates}
        shares = usual_shares(self.rates, self.samples, self.report["flops"], self.report["moved_bytes"])
        return {"gemm_fraction": shares[GEMM], "limit": limit(shares), **rates}

    def _ratio(self, ours: Measurement) -> dict[str, float] | None:
        """Time relative to bp's, from blocks of the same round, with its interval."""
        if ours is self or not any(self.samples) or not any(ours.samples):
            return None
        pairs = [
            pair
            for theirs, own in zip(self.samples, ours.samples, strict=True)
            for pair in zip(theirs, own, strict=False)  # a backend whose block is longer has fewer
        ]
        median, low, high = intervals.ratio(*zip(*pairs, strict=True))
        return {"median": median, "low": low, "high": high}


@dataclass
class BenchResults:
    """The results of a run so far: `found` maps cell numbers to rows, `notes` and `errors` say what is missing and why.

    `planned` holds the keys of the cells that were to be measured. `rates` are those of the machine under their names
    in the JSON document; `machines` maps the hosts of a cluster to their descriptions and rates.
    """

    found: dict[int, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The rows in the order of the sweep."""
        return [row for index in sorted(self.found) for row in self.found[index]]

    def refuse(self, error: BpError) -> None:
        """Add the diagnostics of an error, each once."""
        self.errors += [d for d in error.diagnostics if d not in self.errors]

    def note(self, text: str) -> None:
        """Add a note on something left out, once."""
        if text not in self.notes:
            self.notes.append(text)


def table(rows: Sequence[Row]) -> DataFrame:
    """The rows as a DataFrame with the columns of the CSV files; the column `grid_KEY` avoids a clash of names."""
    import pandas as pd

    keys = grid_keys(rows)
    grid = pd.DataFrame([row["grid"] for row in rows], columns=list(keys), dtype=object).infer_objects()
    frame = pd.DataFrame(rows, columns=[*HEAD, *TAIL])
    return pd.concat([frame, grid.rename(columns=column_name)], axis=1)[list(csv_keys(keys))]


def grid_keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """The grid keys of the rows that have no column of their own, in order of appearance."""
    own = ("T", "batch", "dtype", "threads")  # a dim or constant may have the name of a column, and another value
    keys = ((row, k) for row in rows for k in row["grid"])
    return tuple(dict.fromkeys(k for row, k in keys if k not in own or row.get(k) != row["grid"][k]))


def csv_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The column names of a CSV file with these grid keys."""
    return (*HEAD, *(column_name(k) for k in keys), *TAIL)


def column_name(key: str) -> str:
    """The column of a grid key: `grid_KEY` where another column has its name."""
    return f"grid_{key}" if key in HEAD or key in TAIL else key


def held_bytes(row: Row) -> float:
    """Bytes that a method holds, measured where possible and at least 1."""
    return max(1.0, float(row["allocated_bytes"] or row["predicted_bytes"] or 1))


def one_error(row: Row) -> float | None:
    """The relative error of one gradient: the bias, or of a random method the root mean square error of its draws.

    The mean of N draws is off by the bias, and a draw from that mean by the variance, which was divided by N - 1.
    """
    bias, variance, draws = row["bias"], row.get("variance"), row.get("draws")
    if bias is None or not variance or not draws:
        return None if bias is None else float(bias)
    return math.sqrt(float(bias) ** 2 + float(variance) * (draws - 1) / draws)


def by_spec(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows grouped by spec, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["spec"], []).append(row)
    return groups


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for each group that differs by its seed alone; rows without a seed stay as they are.

    An aggregated row has medians of figures, the union of intervals, the worst check, the list `seeds`, and `spread`,
    which maps figures to [lowest, highest].
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(without_seed(row), []).append(row)
    return [_aggregated(group) if "seed" in group[0]["settings"] else group[0] for group in groups.values()]


def without_seed(row: Row) -> str:
    """An identifier that rows of different seeds share."""
    settings = {k: v for k, v in row["settings"].items() if k != "seed"}
    return repr((row["spec"], row["method"], row["backend"], row["threads"], sorted(settings.items())))


def _aggregated(group: Sequence[Row]) -> Row:
    values = {k: v for k in (*_MEDIANS, "time_low_s", "time_high_s") if (v := _values(group, k))}
    ratios = [r["ratio"] for r in group if r["ratio"]]
    ratio = ratios and {
        "median": statistics.median(r["median"] for r in ratios),
        "low": min(r["low"] for r in ratios),
        "high": max(r["high"] for r in ratios),
    }
    return {
        **group[0],
        **{k: statistics.median(values[k]) for k in _MEDIANS if k in values},
        **{k: pick(values[k]) for k, pick in (("time_low_s", min), ("time_high_s", max)) if k in values},
        **{key: {k: v for k, v in group[0][key].items() if k != "seed"} for key in ("settings", "grid")},
        "seeds": [r["settings"]["seed"] for r in group],
        "spread": {k: [min(values[k]), max(values[k])] for k in _SPREAD if k in values},
        "check": min((r["check"] for r in group), key=lambda c: _WORST_FIRST.index(c["verdict"])),
        "samples_s": [s for r in group for s in r["samples_s"]],
        "ratio": ratio or None,
    }


def _values(group: Sequence[Row], key: str) -> list[float]:
    return [r[key] for r in group if r.get(key) is not None]
