"""Which rows nothing beats: the frontier of error, time and memory at each point of a sweep.

What a sweep says, in plain sentences: memory, time and truth traded between methods, growth with size, peers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from bpcli import methods
from bpcli.bench.rows import EXACT, Row, by_spec, memory, over_seeds
from bpcli.bench.scaling import Law, laws
from bpcli.bench.sweep import OURS


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


GOOD_COSINE = 0.99
WORTH_TELLING = 1.5
WIDEST_MARGIN = 1.0


def sentences(rows: Sequence[Row]) -> list[str]:
    """Sentences on all rows: how many were measured, then for each spec its trade-offs, its growth and its peers."""
    said = [_counted(rows), *_unrest(rows)] if rows else []
    several = len(by_spec(rows)) > 1
    for spec, own in by_spec(rows).items():
        timed = [r for r in own if r["time_s"] is not None]
        middle = over_seeds(timed)
        about = [*_trades(middle), *(_laws(timed) or _growth(middle)), *_peers(timed)]
        said += [f"{spec}: {s}" if several else s for s in about]
    return said


def _counted(rows: Sequence[Row]) -> str:
    wrong = [r for r in rows if r["check"]["verdict"] == "wrong"]
    unsure = sum(r["check"]["verdict"] == "inconclusive" for r in rows)
    measured = sum(r["time_s"] is not None for r in rows)
    text = (
        f"{measured} of {len(rows)} rows measured"
        if wrong
        else f"{len(rows)} row{'s' if len(rows) > 1 else ''} measured"
    )
    if wrong:
        text += f"; the gradient of {', '.join(sorted({_who(r) for r in wrong}))} is wrong and was not timed"
    elif unsure:
        text += f"; the check of {unsure} was inconclusive"
    else:
        text += ", all gradients checked first"
    return text + "."


def _unrest(rows: Sequence[Row]) -> list[str]:
    """What the control kernels say of the machine, where they moved."""
    moved = [max(r["control_moved"].values()) for r in rows if r.get("contaminated")]
    if not moved:
        return []
    cells = f"{len(moved)} of {len(rows)} rows" if len(moved) < len(rows) else "all rows"
    return [f"The machine was not quiet: control kernels moved by up to {100 * max(moved):.0f}% beside {cells}."]


def _laws(rows: Sequence[Row]) -> list[str]:
    """The laws of time that say something."""
    found = [law for law in laws(rows) if law.figure == "time_s" and law.backend == OURS and _told(law)]
    if not found:
        return []
    keys = dict.fromkeys(k for law in found for k in _told(law))
    ranges = [(min(r[k][0] for r in there), max(r[k][1] for r in there)) for k in keys if (there := _ranges(found, k))]
    over = ", ".join(f"{k} from {low:g} to {high:g}" for k, (low, high) in zip(keys, ranges, strict=True))
    parts = "; ".join(f"{law.method} {_power(law)}" for law in found)
    return [f"Over {over} the time grows like this: {parts}."]


def _ranges(found: Sequence[Law], key: str) -> list[dict[str, tuple[float, float]]]:
    return [law.ranges for law in found if key in _told(law)]


def _told(law: Law) -> list[str]:
    """The settings with which time surely grows or shrinks, if any.

    2 +- WIDEST_MARGIN may be of vectors or of products of matrices; then nothing is told of the others either.
    """
    sure = [k for k, exponent in law.exponents.items() if law.margins[k] < abs(exponent)]
    return sure if all(law.margins[k] < WIDEST_MARGIN for k in sure) else []


def _power(law: Law) -> str:
    return " ".join(f"{k}^({law.exponents[k]:.2f} +- {law.margins[k]:.2f})" for k in _told(law))


def _who(row: Row) -> str:
    return row["method"] if row["backend"] == OURS else f"{row['method']} by {row['backend']}"


def _trades(rows: Sequence[Row]) -> list[str]:
    """At the most expensive point: every other method beside the exact one."""
    own = [r for r in rows if r["backend"] == OURS]
    points = _points(own)
    exact = {key: base for key, group in points.items() if (base := _baseline(group))}
    if not exact:
        return []
    largest = max(exact, key=lambda key: (exact[key]["flops"], exact[key]["time_s"]))
    base = exact[largest]
    said = []
    for family in _families(points[largest]):
        chosen = _choice(family)
        if chosen is not base and chosen["cosine"] is not None:
            said.append(_trade(chosen, base))
    where = _where(base) if len(points) > 1 else ""
    return [f"{where}{s}" for s in said]


def _trade(row: Row, base: Row) -> str:
    bytes_, seconds = memory(row) / memory(base), row["time_s"] / base["time_s"]
    price = f"{_of(bytes_)} the memory of {base['method']} and {_of(seconds)} its time"
    if _is_exact(row):
        return f"{row['method']} gives the same gradient at {price}."
    if row["cosine"] >= GOOD_COSINE:
        return f"{row['method']} reaches cosine {_cosine(row['cosine'])} at {price}."
    return f"{row['method']} gets no nearer than cosine {_cosine(row['cosine'])}, at {price}."


def _choice(family: Sequence[Row]) -> Row:
    """Of one method's rows the good one that costs least in memory times time, else the nearest to the truth."""
    judged = [r for r in family if r["cosine"] is not None]
    good = [r for r in judged if _is_exact(r) or r["cosine"] >= GOOD_COSINE]
    if good:
        return min(good, key=lambda r: memory(r) * r["time_s"])
    return max(judged or family, key=lambda r: -1.0 if r["cosine"] is None else r["cosine"])


def _growth(rows: Sequence[Row]) -> list[str]:
    """How times grow along the setting that changes them most, all else as in the last row."""
    own = [r for r in rows if r["backend"] == OURS]
    keys = dict.fromkeys(k for r in own for k, v in r["settings"].items() if isinstance(v, int | float) and k != "seed")
    along = {key: ratios for key in keys if (ratios := _along(own, key))}
    if not along:
        return []
    key = max(along, key=lambda k: max(along[k].values()))
    if max(along[key].values()) < WORTH_TELLING:
        return []
    values = [r["settings"][key] for r in own]
    parts = ", ".join(f"{method} {_plain(ratio)}" for method, ratio in _few(along[key]))
    return [f"From {key}={min(values):g} to {key}={max(values):g} the time grows by these factors: {parts}."]


def _along(rows: Sequence[Row], key: str) -> dict[str, float]:
    """For each method its time at the largest value of a setting over that at the smallest."""
    first, last = (pick(r["settings"][key] for r in rows) for pick in (min, max))
    alike = [r for r in rows if _others(r, key) == _others(rows[-1], key)]
    times = {(r["method"], r["settings"][key]): r["time_s"] for r in alike}
    both = [m for m in dict.fromkeys(r["method"] for r in alike) if {(m, first), (m, last)} <= times.keys()]
    return {m: times[m, last] / times[m, first] for m in both} if first < last else {}


def _others(row: Row, key: str) -> dict[str, object]:
    return {k: v for k, v in row["settings"].items() if k != key}


def _few(ratios: Mapping[str, float]) -> list[tuple[str, float]]:
    """All of a few methods, else those at the ends."""
    ordered = sorted(ratios.items(), key=lambda item: item[1])
    return ordered if len(ordered) <= 4 else [ordered[0], ordered[-1]]


def _peers(rows: Sequence[Row]) -> list[str]:
    """For each peer and method, its time as a multiple of ours: the geometric mean, and the range over cells."""
    said = []
    for backend, method in dict.fromkeys((r["backend"], r["method"]) for r in rows if r["ratio"]):
        ratios = [r["ratio"]["median"] for r in rows if (r["backend"], r["method"]) == (backend, method) and r["ratio"]]
        cells = f" (geometric mean of {len(ratios)} cells, {_plain(min(ratios))} to {_plain(max(ratios))})"
        mean = statistics.geometric_mean(ratios)
        said.append(f"{method}: bp is {_plain(mean)} times as fast as {backend}{cells if len(ratios) > 1 else ''}.")
    return said


def _points(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr(sorted(row["settings"].items())), []).append(row)
    return groups


def _families(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same method, whatever its options."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"].partition(":")[0], []).append(row)
    return list(groups.values())


def _baseline(rows: Sequence[Row]) -> Row | None:
    """The exact method that others are compared with: plain reverse mode, else the quickest exact one."""
    exact = [r for r in rows if _is_exact(r)]
    return min(exact, key=lambda r: (r["method"] not in methods.by_reverse_mode(), r["time_s"]), default=None)


def _is_exact(row: Row) -> bool:
    return row["bias"] is not None and row["bias"] <= EXACT[row["dtype"]]


def _where(row: Row) -> str:
    settings: Mapping[str, object] = row["settings"]
    return f"At {', '.join(f'{k}={v:g}' if isinstance(v, float) else f'{k}={v}' for k, v in settings.items())}, "


def _cosine(value: float) -> str:
    """Two digits, and as many nines as there are: 0.87, 0.9998; never rounded up to 1."""
    if value < 0.9:
        return f"{value:.2f}"
    digits = 2 if value >= 1.0 else min(12, 2 + int(-math.log10(1.0 - value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _of(ratio: float) -> str:
    """A ratio in front of a noun: "1.2 times", "0.3 of"."""
    if 0.95 <= ratio < 1.05:
        return "about"
    return f"{_plain(ratio)} of" if ratio < 1.0 else f"{_plain(ratio)} times"


def _plain(ratio: float) -> str:
    """Two digits, without an exponent between 0.01 and a million."""
    if 10.0 <= ratio < 1e6:
        return f"{ratio:.0f}"
    return f"{ratio:.2g}"
