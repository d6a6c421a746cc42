"""Error against time and against memory: the frontier is what no other method beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.render.page.figure import ACCENT, FAINT, MUTED, PAPER, Figure
from bpcli.render.page.labels import brief, grid, place, scale, short, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Errors below this are rounding: such methods are exact, and stand on a line of their own.
EXACT = {"float64": 1e-7, "float32": 1e-3}


@dataclass(frozen=True)
class Dot:
    """A method with its price (seconds or bytes) and its relative error, 0 where it is exact."""

    name: str
    price: float
    error: float


def trades(rows: Sequence[Mapping[str, Any]], where: str) -> list[Figure]:
    """The figures of one point of a sweep, as far as there are two methods to compare."""
    figures = []
    for key, unit, word in (("time_s", "s", "time"), ("memory", "B", "memory")):
        dots = _dots(rows, key)
        if len(dots) > 1:
            figures.append(_figure(dots, unit, word, where))
    return figures


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The dots that no other dot beats in price and error, cheapest first."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda d: (d.price, d.error)):
        if not best or dot.error < best[-1].error:
            best.append(dot)
    return best


def _dots(rows: Sequence[Mapping[str, Any]], key: str) -> list[Dot]:
    names = short([r["method"] for r in rows])
    dots = []
    for row in rows:
        price = (row["allocated_bytes"] or row["predicted_bytes"]) if key == "memory" else row["time_s"]
        error = row["bias"]
        if price and error is not None and math.isfinite(error) and math.isfinite(price):
            by = "" if row["backend"] == "bp" else f" ({brief(row['backend'])})"
            exact = error <= EXACT.get(row["dtype"], 1e-7)
            dots.append(Dot(names[row["method"]] + by, float(price), 0.0 if exact else float(error)))
    return dots


def _figure(dots: Sequence[Dot], unit: str, word: str, where: str) -> Figure:
    best = frontier(dots)
    named = ", ".join(f"{d.name} ({_error(d)})" for d in best)
    caption = f"{where}Filled: the frontier, beaten by none in both. Lower left is better."
    alt = f"{len(dots)} methods by relative error and {word}. On the frontier, from the cheapest: {named}."
    return Figure(f"Error against {word}", caption, alt, lambda axes: _draw(axes, dots, best, unit, word))


def _error(dot: Dot) -> str:
    return "exact" if not dot.error else f"error {dot.error:.2g}"


def _draw(axes: Axes, dots: Sequence[Dot], best: Sequence[Dot], unit: str, word: str) -> None:
    biased = [d.error for d in dots if d.error]
    top = max(biased, default=1.0)
    low = 10.0 ** math.floor(math.log10(min(biased, default=0.1)))
    floor = low / (10 ** max(0.35, 0.16 * math.log10(top / low)))
    height = {d: d.error or floor for d in dots}
    axes.set_xscale("log")
    axes.set_yscale("log")
    prices = [d.price for d in dots]
    wide = max(prices) / min(prices)
    axes.set_xlim(min(prices) / (1.15 * wide**0.06), max(prices) * 1.3 * wide**0.28)
    axes.set_ylim(floor / (low / floor) ** 0.5, top * (top / floor) ** 0.12)
    scale(axes.xaxis, unit)
    _errors(axes, low, floor, biased)
    grid(axes)
    if any(not d.error for d in dots):
        axes.axhline(floor, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.step([d.price for d in best], [height[d] for d in best], where="post", color=ACCENT, linewidth=1.1)
    for number, dot in enumerate(dots):
        on = dot in best
        axes.plot(
            dot.price, height[dot], "o", color=ACCENT if on else PAPER, markeredgecolor=ACCENT if on else MUTED,
            markeredgewidth=1.1, gid=f"tip:{dot.name}: {_price(dot.price, unit)}, {_error(dot)}:{number}", zorder=3,
        )  # fmt: skip
    axes.set_xlabel(word)
    axes.set_ylabel("relative error")
    place(axes, [(d.price, height[d], d.name, d in best) for d in dots])


def _errors(axes: Axes, low: float, floor: float, biased: Sequence[float]) -> None:
    """Ticks of the errors, and the word "exact" on the line of the exact."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(round(math.log10(low)), math.floor(math.log10(max(biased, default=low))) + 1) if biased else ()
    every = max(1, len(decades) // 6)
    ticks = [10.0**k for k in list(decades)[::every]]
    if 0 < len(ticks) < 3:
        ticks = sorted({t * s for t in ticks for s in (1, 2, 5)})
    top = axes.get_ylim()[1]
    axes.yaxis.set_major_locator(FixedLocator([floor, *(t for t in ticks if t <= top)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: "exact" if v <= floor * 1.001 else tidy(v)))
    axes.yaxis.set_minor_locator(NullLocator())


def _price(value: float, unit: str) -> str:
    from matplotlib.ticker import EngFormatter

    return str(EngFormatter(unit=unit, places=2)(value))
