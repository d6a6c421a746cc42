"""Plots of a page: error against cost, cost against size, errors by step of a failed check, and V-curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.render.page.figure import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    PAPER,
    Figure,
    at_line_ends,
    brief,
    grid,
    legend_above,
    log_axes,
    measured_ticks,
    place,
    round_ticks,
    set_ticks,
    short,
    ticks,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
EXACT = {"float64": 1e-7, "float32": 1e-3}
"""Relative errors up to which a method counts as exact and stands on a line of its own: they are rounding."""
LINES_AT_MOST = 8
ROWS_AT_MOST = 24
LEAST_ERROR = 1e-17
"""Error drawn where a difference equals the reference to the last bit: a logarithm has no zero."""
_COSTS = (("time_s", "s", "time"), ("allocated_bytes", "B", "memory"))
_ERROR = ("error", "", "error")
_EXACT_METHODS = ("bptt", "backprop")
_MARKERS = "os^Dv<>P"
KINDS = {"exact": ("exact", "o"), "truncated": ("truncated", "^"), "approximate": ("approximate", "s"),
         "unbiased": ("unbiased", "D")}  # fmt: skip
"""The word in a legend and the mark of each kind of method."""
_UNKNOWN = ("unknown kind", "X")


def _cost(row: Row, key: str) -> float | None:
    """Seconds, a relative error, or bytes: as allocated, or as predicted where nothing was measured."""
    found = row["allocated_bytes"] or row["predicted_bytes"] if key == "allocated_bytes" else row[key]
    return float(found) if _positive(found) else None


def _limit(row: Row) -> float:
    """The error up to which a row is exact."""
    return EXACT.get(row["dtype"], 1e-7)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _of_backend(name: str, backend: str) -> str:
    return name if backend == "bp" else f"{name} ({brief(backend)})"


@dataclass(frozen=True)
class Dot:
    """A method with its price (seconds or bytes) and its relative error, 0 where it is exact.

    The error of a random method is that of a draw, and `mean` that of the mean of several; None of others.
    """

    name: str
    price: float
    error: float
    kind: tuple[str, str] = _UNKNOWN
    mean: float | None = None


def trades(rows: Sequence[Row], where: str) -> list[Figure]:
    """Error against time and memory at one point of a sweep; no figure for a single method.

    Rows have the `error` of one gradient beside the columns of a bench.
    """
    found = ((_dots(rows, key), unit, word) for key, unit, word in _COSTS)
    return [_trade(dots, unit, word, where) for dots, unit, word in found if len(dots) > 1]


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The dots that no other dot beats in price and error, cheapest first."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda d: (d.price, d.error)):
        if not best or dot.error < best[-1].error:
            best.append(dot)
    return best


def _dots(rows: Sequence[Row], key: str) -> list[Dot]:
    names = short([r["method"] for r in rows])
    dots = []
    for row in rows:
        price, error = _cost(row, key), row["error"]
        if price and error is not None and math.isfinite(error):
            name, kind = _of_backend(names[row["method"]], row["backend"]), KINDS.get(str(row.get("kind")), _UNKNOWN)
            exact = error <= _limit(row)
            mean = float(row["bias"]) if row["bias"] != error and not exact and _positive(row["bias"]) else None
            dots.append(Dot(name, price, 0.0 if exact else float(error), kind, mean))
    return dots


def _trade(dots: Sequence[Dot], unit: str, word: str, where: str) -> Figure:
    best = frontier(dots)
    named = ", ".join(f"{d.name} ({_error(d)})" for d in best)
    random = " The line below a random method reaches to the error of the mean of its draws."
    caption = f"{where}Filled: the frontier, beaten by none in both. Lower left is better."
    caption += random if any(d.mean for d in dots) else ""
    kinds = ", ".join(f"{d.name} {d.kind[0]}" for d in dots if d.kind is not _UNKNOWN)
    alt = f"{len(dots)} methods by relative error and {word}. On the frontier, from the cheapest: {named}."
    alt += f" Kinds: {kinds}." if kinds else ""
    return Figure(f"Error against {word}", caption, alt, lambda axes: _draw_trade(axes, dots, best, unit, word))


def _error(dot: Dot) -> str:
    if not dot.error:
        return "exact"
    return f"error {dot.error:.2g}" + (f", of the mean {dot.mean:.2g}" if dot.mean else "")


def _draw_trade(axes: Axes, dots: Sequence[Dot], best: Sequence[Dot], unit: str, word: str) -> None:
    from matplotlib.ticker import EngFormatter

    biased = [e for d in dots for e in (d.error, d.mean) if e]
    top = max(biased, default=1.0)
    low = 10.0 ** math.floor(math.log10(min(biased, default=0.1)))
    floor = low / (10 ** max(0.35, 0.16 * math.log10(top / low)))
    height = {d: d.error or floor for d in dots}
    prices = [d.price for d in dots]
    wide = max(prices) / min(prices)
    log_axes(axes, word, "relative error")
    axes.set_xlim(min(prices) / (1.15 * wide**0.06), max(prices) * 1.3 * wide**0.28)
    axes.set_ylim(floor / (low / floor) ** 0.5, top * (top / floor) ** 0.12)
    round_ticks(axes.xaxis, unit)
    _error_ticks(axes, low, floor, biased)
    grid(axes)
    if any(not d.error for d in dots):
        axes.axhline(floor, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.step([d.price for d in best], [height[d] for d in best], where="post", color=ACCENT, linewidth=1.1)
    for number, dot in enumerate(dots):
        on, price = dot in best, EngFormatter(unit=unit, places=2)(dot.price)
        if dot.mean:
            axes.plot([dot.price] * 2, [dot.mean, dot.error], "-_", color=MUTED, linewidth=0.8, markevery=[0])
        axes.plot(
            dot.price, height[dot], dot.kind[1], color=ACCENT if on else PAPER, markeredgecolor=ACCENT if on else MUTED,
            markeredgewidth=1.1, gid=f"tip:{dot.name}: {price}, {_error(dot)}:{number}", zorder=3,
        )  # fmt: skip
    present = dict.fromkeys(d.kind for d in dots)
    if len(present) > 1:
        legend_above(axes, dict(sorted(present, key=lambda k: [*KINDS.values(), _UNKNOWN].index(k))))
    bars = [[(d.price, d.mean), (d.price, d.error)] for d in dots if d.mean]
    place(axes, [(d.price, height[d], d.name, d in best) for d in dots], _steps(best, height), bars)


def _steps(best: Sequence[Dot], height: Mapping[Dot, float]) -> list[tuple[float, float]]:
    """The corners of the frontier's line."""
    corners = [(d.price, height[d]) for d in best]
    level = [(b[0], a[1]) for a, b in itertools.pairwise(corners)]
    return [corner for pair in itertools.zip_longest(corners, level) for corner in pair if corner]


def _error_ticks(axes: Axes, low: float, floor: float, biased: Sequence[float]) -> None:
    """Ticks of the errors, and the word "exact" on the line of the exact."""
    decades = range(round(math.log10(low)), math.floor(math.log10(max(biased, default=low))) + 1) if biased else ()
    values = [10.0**k for k in list(decades)[:: max(1, len(decades) // 6)]]
    if 0 < len(values) < 3:
        values = sorted({t * s for t in values for s in (1, 2, 5)})
    top = axes.get_ylim()[1]
    shown = [floor, *(t for t in values if t <= top)]
    set_ticks(axes.yaxis, shown, lambda v: "exact" if v <= floor * 1.001 else tidy(v))


@dataclass(frozen=True)
class Line:
    """A method's `y` (seconds, bytes or errors) at each `x`, ascending; `slope` of a fit in log-log, if there is one.

    A line with one x is a method that does not have the option that x is.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    slope: float | None


Slopes = Mapping[tuple[str, str, str, str], float]
"""Fitted exponents by family (a method without the options that are swept), backend, figure and key."""


def growths(rows: Sequence[Row], slopes: Slopes) -> list[Figure]:
    """For each number that was swept, time and memory against it, all else as in the most expensive cell.

    Against an option of methods, such as k2, the error comes first. Rows have `error` and `family` beside the columns
    of a bench; `slopes` are those that the sentences tell.
    """
    figures = []
    for key in dict.fromkeys(k for r in rows for k, v in r["grid"].items() if _positive(v) and k != "seed"):
        swept = [r for r in rows if _positive(r["grid"].get(key))]
        others = _others(max(swept, key=lambda r: (r["flops"] or 0.0, r["time_s"])), key)
        where = f"At {', '.join(f'{k}={v}' for k, v in others.items())}. " if others else ""
        there = [r for r in rows if _others(r, key) == others]
        option = all(key not in r["settings"] and key != "threads" for r in swept)
        for cost, unit, word in (_ERROR, *_COSTS) if option else _COSTS:
            lines = _lines([r for r in there if key in r["grid"]], key, cost, slopes)
            if option and lines and cost != "error":
                lines += _levels([r for r in there if key not in r["grid"]], cost)
            if lines:
                figures.append(_growth(lines, brief(key), unit, word, where))
    return figures


def _others(row: Row, key: str) -> dict[str, Any]:
    return {k: v for k, v in row["settings"].items() if k != key}


def _lines(rows: Sequence[Row], key: str, cost: str, slopes: Slopes) -> list[Line]:
    """A line for each method with two points, at most `LINES_AT_MOST`, the dearest and the cheapest among them."""
    points: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        value = _cost(row, cost)
        if value and (cost != "error" or value > _limit(row)):
            names = (_without(row["method"], key), row["family"], row["backend"])
            points.setdefault(names, {})[float(row["grid"][key])] = value
    named = short([method for method, _, _ in points])
    lines = []
    for (method, family, backend), found in points.items():
        if len(found) > 1:
            x, y = zip(*sorted(found.items()), strict=True)
            lines.append(Line(_of_backend(named[method], backend), x, y, slopes.get((family, backend, cost, key))))
    lines.sort(key=lambda line: line.y[-1])
    step = (len(lines) - 1) / (LINES_AT_MOST - 1)
    return lines if len(lines) <= LINES_AT_MOST else [lines[round(i * step)] for i in range(LINES_AT_MOST)]


def _levels(rows: Sequence[Row], cost: str) -> list[Line]:
    """The exact methods to compare with, which do not have the option."""
    own = [r for r in rows if r["method"] in _EXACT_METHODS and r["backend"] == "bp"]
    return [Line(r["method"], (1.0,), (value,), None) for r in own[:1] if (value := _cost(r, cost))]


def _without(method: str, key: str) -> str:
    """A method's text without the option that is swept."""
    name, _, options = method.partition(":")
    kept = [o for o in options.split(",") if o and o.partition("=")[0].strip() != key]
    return f"{name}:{','.join(kept)}" if kept else name


def _growth(lines: Sequence[Line], key: str, unit: str, word: str, where: str) -> Figure:
    told = [line for line in lines if line.slope is not None]
    named = ", ".join(f"{line.name} {_signed(line.slope or 0.0)}" for line in told)
    caption = where
    if told:
        caption += f"The number after a name is a slope, fitted to all cells: {word} grows as {key} to that power. "
    if levels := [line.name for line in lines if len(line.x) == 1]:
        caption += f"Dotted: {levels[0]}."
    alt = f"{word.capitalize()} against {key} on logarithmic axes, of {', '.join(line.name for line in lines)}."
    alt += f" Fitted slopes: {named}." if told else ""
    title = f"{word.capitalize()} against {key}"
    return Figure(title, caption.strip(), alt, lambda axes: _draw_growth(axes, lines, key, unit, word))


def _signed(slope: float) -> str:
    """Two decimals; a slope that rounds to zero has no sign."""
    return f"{round(slope, 2) + 0.0:.2f}".replace("-", "−")


def _draw_growth(axes: Axes, lines: Sequence[Line], key: str, unit: str, word: str) -> None:
    log_axes(axes, key, "relative error" if word == "error" else word)
    ends = []
    right = max(x for line in lines for x in line.x)
    for line, marker in zip(lines, _MARKERS + _MARKERS, strict=False):
        if len(line.x) == 1:
            axes.axhline(line.y[0], color=ACCENT, linewidth=1.0, linestyle=(0, (2, 3)), gid=f"tip:{line.name}:level")
            ends.append((right, line.y[0], line.name, ACCENT))
            continue
        color, size = ACCENT if line.name in _EXACT_METHODS else MUTED, 4.5 if len(line.x) <= 12 else 2.0
        tip = f"tip:{line.name}{'' if line.slope is None else f': slope {line.slope:.2f}'}:{marker}"
        drawn = _fit(line) if line.slope is not None else line.y
        axes.plot(line.x, line.y, marker, color=color, markersize=size, gid=tip)
        axes.plot(line.x, drawn, color=color, linewidth=1.1)
        said = line.name if line.slope is None else f"{line.name}  {_signed(line.slope)}"
        ends.append((line.x[-1], drawn[-1], said, color))
    measured_ticks(axes.xaxis, [x for line in lines for x in line.x if len(line.x) > 1])
    if word == "error":
        set_ticks(axes.yaxis, ticks(*axes.get_ylim()), tidy)
    else:
        round_ticks(axes.yaxis, unit)
    grid(axes)
    at_line_ends(axes, ends)


def _fit(line: Line) -> list[float]:
    """The line of the fitted slope through the middle of the points."""
    middle = [sum(math.log(v) for v in values) / len(values) for values in (line.x, line.y)]
    return [math.exp(middle[1] + (line.slope or 0.0) * (math.log(x) - middle[0])) for x in line.x]


Cells = Mapping[str, Mapping[int, float]]


def heat_maps(findings: Sequence[Row]) -> list[Figure]:
    """A map of errors, tensors by steps, for each spec and method with a wrong finding that knows its step."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for finding in findings:
        if finding["verdict"] == "wrong" and (cells := errors_by_step(finding)):
            groups.setdefault((brief(finding["spec"]), brief(finding["method"])), {})[brief(finding["tensor"])] = cells
    return [_heat_map(spec, method, cells) for (spec, method), cells in groups.items()]


def errors_by_step(finding: Row) -> dict[int, float]:
    """Step, from 1, to relative error: `blame.errors`, a number a step, or the kernel error at the step to blame."""
    blame = finding["blame"] or {}
    errors, step = blame.get("errors"), blame.get("step")
    if isinstance(errors, list):
        found = {t: _float(e) for t, e in enumerate(errors, start=1)}
        return {t: e for t, e in found.items() if e is not None}
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 100_000:
        return {}
    error = _float(finding["kernel_error"])
    return {step: 1.0 if error is None else error}


def _float(value: Any) -> float | None:
    """The size of a number in a document: infinity where it is not finite, None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return abs(number) if math.isfinite(number) else math.inf


def bias_map(spec: str, method: str, errors: Mapping[str, Sequence[float]]) -> Figure:
    """A map of the bias of a right method, tensors by steps, from an error for each step of each tensor."""
    cells = {brief(name): dict(enumerate(values, start=1)) for name, values in errors.items()}
    worst = ", ".join(f"{name} at step {max(row, key=lambda t: row[t])}" for name, row in cells.items())
    caption = (
        f"{spec}, {method}. Distance of the gradient of each step's loss from the exact one, relative to the whole "
        "gradient of the tensor. The stronger the colour, the larger; blank: none."
    )
    alt = f"Heat map of the bias of {method} on {spec}, tensors by steps. Largest: {worst}."
    return Figure("Where the gradient is biased", caption, alt, lambda axes: _draw_heat_map(axes, cells))


def _heat_map(spec: str, method: str, cells: Cells) -> Figure:
    worst = ", ".join(f"{name} at step {max(row, key=lambda t: row[t])}" for name, row in cells.items())
    caption = (
        f"{spec}, {method}. The stronger the colour, the larger the error of that step; blank: none, or not known."
    )
    alt = f"Heat map of the wrong gradients of {spec} by {method}, tensors by steps. Worst: {worst}."
    return Figure("Where the gradient is wrong", caption, alt, lambda axes: _draw_heat_map(axes, cells))


def _draw_heat_map(axes: Axes, cells: Cells) -> None:
    from matplotlib.ticker import MaxNLocator

    names = list(cells)[:ROWS_AT_MOST]
    last = max(t for name in names for t in cells[name])
    finite = [e for name in names for e in cells[name].values() if 0 < e < math.inf]
    top = math.log10(max(finite, default=1.0))
    low = min(top - 3.0, math.log10(min(finite, default=1.0)))
    for row, name in enumerate(names):
        for step, error in cells[name].items():
            level = 1.0 if error == math.inf else (math.log10(error) - low) / (top - low) if error > 0 else 0.0
            if level > 0.02:
                axes.bar(
                    step, 0.86, 0.92, row - 0.43, color=ACCENT, alpha=0.12 + 0.88 * min(level, 1.0), linewidth=0,
                    gid=f"tip:{name}, step {step}: {error:.2g}:{row}",
                )  # fmt: skip
    axes.set_xlim(0.5, max(last, 2) + 0.5)
    axes.set_ylim(max(len(names), 3) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hlines([r + 0.5 for r in range(len(names))], 0.5, last + 0.5, color=FAINT, linewidth=0.5)
    axes.set_xlabel("step", color=MUTED)


Curve = Sequence[float]


def v_curve(spec: str, steps: Curve, errors: Mapping[str, Curve], overall: Curve, judge: str) -> Figure:
    """The error of a central difference of one spec at each step: rounding on the left, truncation on the right.

    `errors` are relative, one at each of `steps`, for each tensor, and `overall`; they are measured against `judge`.
    """
    best = min(range(len(steps)), key=lambda i: overall[i])
    found = f"smallest at h = {steps[best]:.1g}, where it is {overall[best]:.1g}"
    caption = f"{spec}: h is relative to the entry; error against {judge}. Thin: each tensor; bold: their median."
    alt = (
        f"Error of the central difference of {spec} against its step h, a V: rounding grows as 1/h to the left, "
        f"truncation as h squared to the right. The median error is {found}."
    )
    title = "Central difference: error against step"
    return Figure(title, caption, alt, lambda axes: _draw_curve(axes, steps, errors, overall, best))


def _draw_curve(axes: Axes, steps: Curve, errors: Mapping[str, Curve], overall: Curve, best: int) -> None:
    from matplotlib.ticker import LogLocator

    log_axes(axes, "step h", "relative error")
    for number, (name, values) in enumerate(errors.items()):
        shown = [max(v, LEAST_ERROR) for v in values]
        axes.plot(steps, shown, color=MUTED, linewidth=0.7, alpha=0.55, gid=f"tip:{brief(name)}:{number}")
    shown = [max(v, LEAST_ERROR) for v in overall]
    axes.plot(steps, shown, color=ACCENT, linewidth=1.8)
    axes.plot(steps[best], shown[best], "o", color=ACCENT, markersize=5)
    axes.annotate(
        f"h = {tidy(steps[best])}", (steps[best], shown[best]), (-4, -4), textcoords="offset points",
        ha="right", va="top", color=ACCENT, fontsize=8.5,
    )  # fmt: skip
    every = [max(v, LEAST_ERROR) for values in errors.values() for v in values] + shown
    axes.set_ylim(min(every) / 100, max(100.0, shown[0] * 100))
    for axis in (axes.xaxis, axes.yaxis):
        set_ticks(axis, LogLocator(numticks=7), tidy)
    grid(axes)
    axes.text(0.24, 0.86, "rounding, as 1/h", transform=axes.transAxes, color=MUTED, fontsize=8.5)
    axes.text(0.97, 0.94, "truncation, as h²", transform=axes.transAxes, color=MUTED, fontsize=8.5, ha="right")
