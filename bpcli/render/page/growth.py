"""Time and memory against a setting, on logarithmic axes, with the slope of each method's fitted line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.render.page.figure import ACCENT, MUTED, Figure
from bpcli.render.page.labels import at_line_ends, brief, grid, numbers, scale, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
AT_MOST = 8
_EXACT = ("bptt", "backprop")
_MARKERS = "os^Dv<>P"


@dataclass(frozen=True)
class Line:
    """A method's cost `y` (seconds or bytes) at each `x`, ascending; `slope` of the fit in log-log."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    slope: float


def growths(rows: Sequence[Row]) -> list[Figure]:
    """For each number that was swept, time and memory against it, all else as in the most expensive cell."""
    figures = []
    for key in dict.fromkeys(k for r in rows for k, v in r["grid"].items() if _number(v) and k != "seed"):
        swept = [r for r in rows if _number(r["grid"].get(key))]
        base = max(swept, key=lambda r: (r["flops"] or 0.0, r["time_s"]))
        alike = [r for r in swept if _others(r, key) == _others(base, key)]
        for cost, unit, word in (("time_s", "s", "time"), ("memory", "B", "memory")):
            lines = _lines(alike, key, cost)
            if lines:
                figures.append(_figure(lines, brief(key), (unit, word), _where(_others(base, key))))
    return figures


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent p of the least-squares fit y ~ x^p."""
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - mean_u) ** 2 for a in u)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _others(row: Row, key: str) -> dict[str, Any]:
    return {k: v for k, v in row["settings"].items() if k != key}


def _where(settings: Mapping[str, Any]) -> str:
    return f"At {', '.join(f'{k}={v}' for k, v in settings.items())}. " if settings else ""


def _lines(rows: Sequence[Row], key: str, cost: str) -> list[Line]:
    """A line for each method with two points, `AT_MOST` of them, the dearest and the cheapest among them."""
    points: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        value = (row["allocated_bytes"] or row["predicted_bytes"]) if cost == "memory" else row["time_s"]
        if _number(value):
            points.setdefault((_without(row["method"], key), row["backend"]), {})[float(row["grid"][key])] = float(
                value
            )
    named = short([method for method, _ in points])
    lines = []
    for (method, backend), found in points.items():
        if len(found) > 1:
            x, y = zip(*sorted(found.items()), strict=True)
            lines.append(Line(named[method] + ("" if backend == "bp" else f" ({brief(backend)})"), x, y, slope(x, y)))
    lines.sort(key=lambda line: line.y[-1])
    step = (len(lines) - 1) / (AT_MOST - 1)
    return lines if len(lines) <= AT_MOST else [lines[round(i * step)] for i in range(AT_MOST)]


def _without(method: str, key: str) -> str:
    """A method's text without the option that is swept."""
    name, _, options = method.partition(":")
    kept = [o for o in options.split(",") if o and o.partition("=")[0].strip() != key]
    return f"{name}:{','.join(kept)}" if kept else name


def _figure(lines: Sequence[Line], key: str, what: tuple[str, str], where: str) -> Figure:
    unit, word = what
    slopes = ", ".join(f"{line.name} {_signed(line.slope)}" for line in lines)
    caption = f"{where}The number after a name is the slope of its fit: {word} grows as {key} to that power."
    alt = f"{word.capitalize()} against {key} on logarithmic axes. Fitted slopes: {slopes}."
    return Figure(f"{word.capitalize()} against {key}", caption, alt, lambda axes: _draw(axes, lines, key, unit, word))


def _signed(slope: float) -> str:
    """Two decimals; what rounds to nothing has no sign."""
    return f"{round(slope, 2) + 0.0:.2f}".replace("-", "−")


def _draw(axes: Axes, lines: Sequence[Line], key: str, unit: str, word: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = []
    for line, marker in zip(lines, _MARKERS, strict=False):
        color = ACCENT if line.name in _EXACT else MUTED
        axes.plot(
            line.x,
            line.y,
            marker,
            color=color,
            markersize=4.5 if len(line.x) <= 12 else 2.0,
            gid=f"tip:{line.name}: slope {line.slope:.2f}:{marker}",
        )
        middle = [sum(math.log(v) for v in values) / len(values) for values in (line.x, line.y)]
        fit = [math.exp(middle[1] + line.slope * (math.log(x) - middle[0])) for x in line.x]
        axes.plot(line.x, fit, color=color, linewidth=1.1)
        ends.append((line.x[-1], fit[-1], f"{line.name}  {_signed(line.slope)}", color))
    numbers(axes.xaxis, [x for line in lines for x in line.x])
    scale(axes.yaxis, unit)
    grid(axes)
    axes.set_xlabel(key)
    axes.set_ylabel(word)
    at_line_ends(axes, ends)
