"""Which rows nothing beats: the frontier of error, time and memory at each point of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from bpcli.benching.store import EXACT, OURS, Row, memory


def frontier(rows: Sequence[Row]) -> list[bool | None]:
    """For each row whether it is on the frontier of its point; None where it can't be placed (a peer, no figures).

    A row is off it when another of the same spec and settings is no worse in all three figures and better in one, the
    time being better only where the intervals lie apart. Errors below what rounding does count as none.
    """
    points: dict[str, list[Row]] = {}
    for row in rows:
        if _placed(row):
            points.setdefault(_point(row), []).append(row)
    return [not any(_beats(o, row) for o in points[_point(row)]) if _placed(row) else None for row in rows]


def _placed(row: Row) -> bool:
    return row["backend"] == OURS and row["time_s"] is not None and row["bias"] is not None


def _point(row: Row) -> str:
    return repr((row["spec"], row["threads"], sorted(row["settings"].items())))


def _beats(other: Row, row: Row) -> bool:
    theirs, own = (_error(other), memory(other)), (_error(row), memory(row))
    no_worse = all(a <= b for a, b in zip(theirs, own, strict=True)) and other["time_s"] <= row["time_s"]
    return no_worse and (theirs != own or other["time_high_s"] < row["time_low_s"])


def _error(row: Row) -> float:
    return float(row["bias"]) if row["bias"] > EXACT[row["dtype"]] else 0.0
