"""Conclusions from the rows of a sweep: the Pareto frontier, growth laws, and a summary in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bpcli.bench.measurement import EXACT, OURS, Row, by_spec, held_bytes, one_error, over_seeds
from bpcli.methods import by_reverse_mode

MIN_VALUES = 3
"""Distinct values of a setting that a growth law needs, since any two lie on one."""
GOOD_COSINE = 0.99
BIAS = 0.05
"""The bias within which the cheapest method is named, unless another one is asked for."""
FAMILIES = 6
"""Methods up to which each has a sentence; of more, only those on the Pareto frontier."""
MIN_GROWTH = 1.5
"""The factor from which growth along a setting is reported."""
MAX_MARGIN = 1.0
"""The margin of an exponent from which a law is not reported: it does not tell n from n²."""
_FIGURES = ("time_s", "allocated_bytes")
_CONFIDENCE = 0.95


def frontier(rows: Sequence[Row]) -> list[bool | None]:
    """Whether each row is Pareto-optimal in error, memory and time at its point; None for peers and rows without these.

    A row is dominated by another of the same spec and settings that is no worse in any figure and better in one.
    The error is that of one gradient, so of a single draw where it is random. Times differ only where their intervals
    do not overlap, and an error of rounding counts as zero.
    """
    points: dict[str, list[Row]] = {}
    for row in rows:
        if _comparable(row):
            points.setdefault(_point(row), []).append(row)
    return [not any(_dominates(o, row) for o in points[_point(row)]) if _comparable(row) else None for row in rows]


def _comparable(row: Row) -> bool:
    return row["backend"] == OURS and row["time_s"] is not None and row["bias"] is not None


def _point(row: Row) -> str:
    return repr((row["spec"], row["threads"], sorted(row["settings"].items())))


def _dominates(other: Row, row: Row) -> bool:
    theirs, own = ((0.0 if _is_exact(r) else one_error(r) or 0.0, held_bytes(r)) for r in (other, row))
    no_worse = all(a <= b for a, b in zip(theirs, own, strict=True)) and other["time_s"] <= row["time_s"]
    return no_worse and (theirs != own or other["time_high_s"] < row["time_low_s"])


@dataclass(frozen=True)
class Law:
    """A growth law of a method: `figure` ~ Π key^exponent, fitted by least squares of logarithms.

    `margins` are half widths of the exponents' 95% intervals, `ranges` the fitted values of each key, and `residual`
    the root mean square of natural logarithms over `points` rows.
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

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def laws(rows: Sequence[Row]) -> list[Law]:
    """The growth laws of time and memory of each method; swept options are among the settings."""
    families: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row["spec"], family(row), row["backend"]), []).append(row)
    fits = [_fit(names, f, [r for r in own if r[f]]) for names, own in families.items() for f in _FIGURES]
    return [law for law in fits if law is not None]


def slopes(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], float]:
    """The exponents of the growth laws that sentences tell, by family, backend, figure and key."""
    return {(law.method, law.backend, law.figure, k): law.exponents[k] for law in laws(rows) for k in _sure(law)}


def family(row: Row) -> str:
    """The row's method without the options that were swept: `tbptt:k1=1` over k2."""
    name, _, options = str(row.get("base", row["method"])).partition(":")
    kept = [option for option in options.split(",") if option and option.partition("=")[0].strip() not in row["grid"]]
    return f"{name}:{','.join(kept)}" if kept else name


def _fit(names: tuple[str, str, str], figure: str, rows: Sequence[Row]) -> Law | None:
    """The law of a figure, or None where the rows do not determine one; `names` are spec, method and backend.

    Settings that are no numbers, or have too few values, get a factor for each of their combinations.
    """
    from scipy.special import stdtrit

    values = {k: [r["grid"].get(k) for r in rows] for k in dict.fromkeys(k for r in rows for k in r["grid"])}
    positive = {k: all(isinstance(v, int | float) and v > 0 for v in of) for k, of in values.items()}
    keys = [k for k, of in values.items() if k != "seed" and positive[k] and len(set(of)) >= MIN_VALUES]
    if not keys:
        return None
    groups, factor = np.unique([_other_settings(row, keys) for row in rows], return_inverse=True)
    A = np.column_stack([*(np.log(values[k]) for k in keys), np.eye(len(groups))[factor]])
    b = np.log([float(row[figure]) for row in rows])
    freedom = len(rows) - A.shape[1]
    if freedom <= 0 or np.linalg.matrix_rank(A) < A.shape[1]:
        return None
    x, *_ = np.linalg.lstsq(A, b, rcond=None)
    squares = float(((A @ x - b) ** 2).sum())
    covariance = np.linalg.inv(A.T @ A) * squares / freedom
    margins = stdtrit(freedom, 0.5 + _CONFIDENCE / 2.0) * np.sqrt(np.diag(covariance))
    exponents, halves = (dict(zip(keys, map(float, of), strict=False)) for of in (x, margins))
    ranges = {k: (min(values[k]), max(values[k])) for k in keys}
    return Law(*names, figure, exponents, halves, ranges, float(np.sqrt(squares / len(b))), len(rows))


def _other_settings(row: Row, keys: Sequence[str]) -> str:
    """The row's grid without the fitted keys and the seed."""
    return repr(sorted((k, str(v)) for k, v in row["grid"].items() if k not in keys and k != "seed"))


def sentences(rows: Sequence[Row]) -> list[str]:
    """A summary: the number of rows measured, then for each spec its trade-offs, its growth and its peers."""
    said = [_counts(rows), *_noise(rows)] if rows else []
    specs = by_spec(rows)
    for spec, own in specs.items():
        timed = [r for r in own if r["time_s"] is not None]
        aggregated = over_seeds(timed)
        about = [*_trade_offs(aggregated), *(_law_sentences(timed) or _growth(aggregated)), *_peers(timed)]
        said += [f"{spec}: {s}" if len(specs) > 1 else s for s in about]
    return said


def _counts(rows: Sequence[Row]) -> str:
    wrong = {f"{r['method']}{by(r)}" for r in rows if r["check"]["verdict"] == "wrong"}
    if wrong:
        measured = sum(r["time_s"] is not None for r in rows)
        bad = f"the gradient of {', '.join(sorted(wrong))} is wrong, so it was not timed"
        return f"{measured} of {len(rows)} rows measured; {bad}."
    unsure = sum(r["check"]["verdict"] == "inconclusive" for r in rows)
    ways = {r["check"]["how"] for r in rows}
    how = f" ({ways.pop()})" if len(ways) == 1 else ""
    checked = f"; the check of {unsure} was inconclusive" if unsure else f", all gradients checked first{how}"
    return f"{len(rows)} row{'s' * (len(rows) > 1)} measured{checked}."


def by(row: Row) -> str:
    """` by PEER` after the name of a method that a peer runs."""
    return "" if row["backend"] == OURS else f" by {row['backend']}"


def _noise(rows: Sequence[Row]) -> list[str]:
    """A warning where the control kernels varied."""
    moved = [max(r["control_moved"].values()) for r in rows if r.get("contaminated")]
    if not moved:
        return []
    some = f" of {len(moved)} of {len(rows)} rows" if len(moved) < len(rows) else ""
    most = f"a reference kernel timed beside each row varied by up to {100 * max(moved):.0f}%"
    return [f"Timings{some} unreliable: {most}."]


def _trade_offs(rows: Sequence[Row]) -> list[str]:
    """At the most expensive point, every other method compared with the exact one."""
    points: dict[str, list[Row]] = {}
    for row in rows:
        if row["backend"] == OURS:
            points.setdefault(repr(sorted(row["settings"].items())), []).append(row)
    exact = {key: base for key, group in points.items() if (base := _baseline(group))}
    if not exact:
        return []
    largest = max(exact, key=lambda key: (exact[key]["flops"], exact[key]["time_s"]))
    base = exact[largest]
    families: dict[str, list[Row]] = {}
    for row in points[largest]:
        families.setdefault(row["method"].partition(":")[0], []).append(row)
    settings = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in base["settings"].items())
    where = f"At {', '.join(settings)}, " if len(points) > 1 else ""
    best = [_best(family) for family in families.values()]
    if len(families) > FAMILIES:
        marked = zip(points[largest], frontier(points[largest]), strict=True)
        kept = [row for row, on in marked if on]
        best = [row for row in best if any(row is other for other in kept)]
    return [f"{where}{_trade_off(row, base)}" for row in best if row is not base and row["cosine"] is not None]


def _trade_off(row: Row, base: Row) -> str:
    bytes_, seconds = held_bytes(row) / held_bytes(base), row["time_s"] / base["time_s"]
    memory, time = _times(bytes_), _times(seconds)
    apart = f"{memory} as much memory and {time} as much time"
    price = f"needs {apart if memory != time else f'{time} as much memory and time'} as {base['method']}"
    if _is_exact(row):
        return f"{row['method']} gives the same gradient; it {price}."
    only = "" if row["cosine"] >= GOOD_COSINE else "only "
    cosine, draws = _cosine(row["cosine"]), row.get("draws")
    if draws:  # the cosine is that of the mean, which takes as many times the time
        return f"{row['method']} reaches a cosine of {only}{cosine} in the mean of {draws} draws; each draw {price}."
    return f"{row['method']} reaches a cosine of {only}{cosine}; it {price}."


def _best(family: Sequence[Row]) -> Row:
    """Of one method's rows the good one with the least memory times time, else the one with the largest cosine."""
    judged = [r for r in family if r["cosine"] is not None]
    good = [r for r in judged if _is_exact(r) or r["cosine"] >= GOOD_COSINE]
    if good:
        return min(good, key=lambda r: held_bytes(r) * r["time_s"])
    return max(judged, key=lambda r: r["cosine"], default=family[0])


def _baseline(rows: Sequence[Row]) -> Row | None:
    """The exact method that others are compared with: plain reverse mode, else the quickest."""
    exact = [r for r in rows if _is_exact(r)]
    return min(exact, key=lambda r: (r["method"] not in by_reverse_mode(), r["time_s"]), default=None)


def _is_exact(row: Row) -> bool:
    error = one_error(row)
    return error is not None and error <= EXACT[row["dtype"]]


@dataclass(frozen=True)
class Cheapest:
    """Of the methods within a bias, the quickest and the one that holds the least, at the settings of a point.

    Where no method is within it, both are the row that comes nearest; `several`: the sweep has other points.
    """

    settings: dict[str, Any]
    several: bool
    quickest: Row
    smallest: Row


def cheapest(rows: Sequence[Row], bias: float = BIAS) -> Cheapest | None:
    """The cheapest methods of bp at the most expensive point of one spec; None for fewer than two methods there."""
    points: dict[str, list[Row]] = {}
    for row in over_seeds([r for r in rows if _comparable(r) and not math.isnan(r["bias"])]):
        points.setdefault(_point(row), []).append(row)
    point = max(points.values(), key=lambda p: max((r["flops"], r["time_s"]) for r in p), default=[])
    if len(point) < 2:
        return None
    near = min(one_error(r) or 0.0 for r in point)
    good = [r for r in point if _is_exact(r) or (one_error(r) or 0.0) <= max(bias, near)]
    quickest = min(good, key=lambda r: (r["time_s"], held_bytes(r)))
    smallest = min(good, key=lambda r: (held_bytes(r), r["time_s"]))
    return Cheapest(dict(point[0]["settings"]), len(points) > 1, quickest, smallest)


def _law_sentences(rows: Sequence[Row]) -> list[str]:
    """The laws of bp's time, in one sentence."""
    found = [
        (law, keys) for law in laws(rows) if (law.figure, law.backend) == ("time_s", OURS) and (keys := _sure(law))
    ]
    if not found:
        return []
    ranges: dict[str, list[tuple[float, float]]] = {}
    for law, keys in found:
        for key in keys:
            ranges.setdefault(key, []).append(law.ranges[key])
    over = ", ".join(f"{k} from {min(r)[0]:g} to {max(high for _, high in r):g}" for k, r in ranges.items())
    parts = [
        " ".join(f"{k}^({law.exponents[k]:.2f} ± {law.margins[k]:.2f})" for k in keys) + f" ({law.method})"
        for law, keys in found
    ]
    return [f"For {over}, time grows as {', '.join(parts)}."]


def _sure(law: Law) -> list[str]:
    """The settings whose exponent is certainly not zero; none where one of them is uncertain by `MAX_MARGIN`."""
    sure = [k for k, exponent in law.exponents.items() if law.margins[k] < abs(exponent)]
    return sure if all(law.margins[k] < MAX_MARGIN for k in sure) else []


def _growth(rows: Sequence[Row]) -> list[str]:
    """Growth of time along the setting that changes it most, the others as in the last row."""
    own = [r for r in rows if r["backend"] == OURS]
    keys = dict.fromkeys(k for r in own for k, v in r["settings"].items() if isinstance(v, int | float) and k != "seed")
    along = {key: ratios for key in keys if (ratios := _growth_along(own, key))}
    if not along:
        return []
    key = max(along, key=lambda k: max(along[k].values()))
    if max(along[key].values()) < MIN_GROWTH:
        return []
    values = [r["settings"][key] for r in own]
    ordered = sorted(along[key].items(), key=lambda item: item[1])
    few = ordered if len(ordered) <= 4 else [ordered[0], ordered[-1]]
    parts = ", ".join(f"{_plain(ratio)} ({method})" for method, ratio in few)
    return [f"From {key}={min(values):g} to {key}={max(values):g}, time grows by a factor of {parts}."]


def _growth_along(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Each method's time at the largest value of a setting over its time at the smallest."""
    first, last = (pick(r["settings"][key] for r in rows) for pick in (min, max))
    last_row = {**rows[-1]["settings"], key: None}
    alike = [r for r in rows if {**r["settings"], key: None} == last_row]
    times = {(r["method"], r["settings"][key]): r["time_s"] for r in alike}
    both = [m for m in dict.fromkeys(r["method"] for r in alike) if {(m, first), (m, last)} <= times.keys()]
    return {m: times[m, last] / times[m, first] for m in both} if first < last else {}


def _peers(rows: Sequence[Row]) -> list[str]:
    """Each peer's time relative to bp's, by method: the geometric mean, and the range over cells."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["ratio"]:
            ratios.setdefault((row["backend"], row["method"]), []).append(row["ratio"]["median"])
    said = []
    for (backend, method), own in ratios.items():
        cells = f" (geometric mean of {len(own)} cells, {_plain(min(own))} to {_plain(max(own))})"
        mean = _plain(statistics.geometric_mean(own))
        said.append(f"{method}: bp is {mean} times as fast as {backend}{cells if len(own) > 1 else ''}.")
    return said


def _cosine(value: float) -> str:
    """Two digits, and as many nines as there are: 0.87, 0.9998; never rounded up to 1."""
    if value < 0.9:
        return f"{value:.2f}"
    digits = 2 if value >= 1.0 else min(12, 2 + int(-math.log10(1.0 - value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _times(ratio: float) -> str:
    """A ratio before "as much": "1.2 times", "about"."""
    return "about" if 0.95 <= ratio < 1.05 else f"{_plain(ratio)} times"


def _plain(ratio: float) -> str:
    """Two digits, without an exponent between 0.01 and a million."""
    return f"{ratio:.0f}" if 10.0 <= ratio < 1e6 else f"{ratio:.2g}"
