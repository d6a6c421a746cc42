"""Rows made of what measuring processes tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.benching import clock, control
from bpcli.benching.roofline import GEMM, Rates, limit, usual_shares
from bpcli.benching.store import OURS, Row

if TYPE_CHECKING:
    from bpcli.benching.rounds import Item

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
