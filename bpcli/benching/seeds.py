"""Rows that differ by their seed alone, taken together: the middle of each figure, and its range over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bpcli.benching.store import Row

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
    }


def _plain(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k != "seed"}
