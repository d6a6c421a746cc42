"""Words beside points and lines, without overlaps, and axes that read as people write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpcli.errors import printable
from bpcli.render.page.figure import FAINT, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

LABEL_AT_MOST = 32
_TICKS_AT_LEAST, _TICKS_AT_MOST = 3, 8
_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))

Spot = tuple[float, float, str, bool]
Place = tuple[int, int, Any, Any]

# Where a label may stand around its point: offset in points, and how it is aligned there.
_PLACES: tuple[Place, ...] = (
    (4, 4, "left", "bottom"), (7, 0, "left", "center"), (5, -6, "left", "top"), (-6, 0, "right", "center"),
    (-5, 6, "right", "bottom"), (-5, -6, "right", "top"), (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (8, 17, "left", "bottom"), (8, -17, "left", "top"), (-8, 17, "right", "bottom"), (-8, -17, "right", "top"),
)  # fmt: skip


def place(axes: Axes, spots: Sequence[Spot]) -> None:
    """Label points `(x, y, text, must)`; one that finds no free place is left out, unless it `must` stand."""
    canvas: Any = axes.figure
    canvas.draw_without_rendering()
    taken = [_around(axes.transData.transform((x, y)), 3.5) for x, y, _, _ in spots]
    for x, y, text, must in sorted(spots, key=lambda s: not s[3]):
        tried = []
        for where in _PLACES:
            note = _write(axes, (x, y), text, where, must)
            box = note.get_window_extent()
            clash = sum(box.overlaps(other) for other in taken) + (0 if _inside(box, axes) else 2)
            tried.append((clash, where, box))
            note.remove()
            if not clash:
                break
        clash, where, box = min(tried, key=lambda t: t[0])
        if must or not clash:
            _write(axes, (x, y), text, where, must)
            taken.append(box)


def _write(axes: Axes, point: tuple[float, float], text: str, where: Place, must: bool) -> Any:
    dx, dy, ha, va = where
    color = INK if must else MUTED
    return axes.annotate(text, point, (dx, dy), textcoords="offset points", ha=ha, va=va, color=color, fontsize=8.5)


def _inside(box: Bbox, axes: Axes) -> bool:
    frame = axes.bbox
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 2 and frame.y0 + 2 <= box.y0 and box.y1 <= frame.y1 + 8)


def _around(point: Any, radius: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = point
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def at_line_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Label lines `(x, y, text, colour)` right of the axes, pushed apart where they would touch."""
    canvas: Any = axes.figure
    canvas.draw_without_rendering()
    height = 11.5 / 72 * canvas.dpi
    order = sorted(ends, key=lambda e: e[1])
    heights = [float(axes.transData.transform((e[0], e[1]))[1]) for e in order]
    low, high = axes.bbox.y0, axes.bbox.y1
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + height)
    if heights and heights[-1] > high:
        heights[-1] = high
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - height)
    for (_, _, text, color), y in zip(order, heights, strict=True):
        axes.text(
            1.02, (y - low) / (high - low), text, transform=axes.transAxes, va="center", color=color, fontsize=8.5
        )


def scale(axis: Any, unit: str) -> None:
    """A logarithmic axis whose limits are set: ticks at the roundest numbers of which there are enough."""
    from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks(*axis.get_view_interval())))
    axis.set_major_formatter(EngFormatter(unit=unit))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def ticks(low: float, high: float) -> list[float]:
    """Three to eight numbers between two positive ones: powers of ten where they suffice, else finer steps."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        found = [float(f"{step}e{k}") for k in decades for step in steps if low <= float(f"{step}e{k}") <= high]
        if len(found) >= _TICKS_AT_LEAST:
            return found[:: math.ceil(len(found) / _TICKS_AT_MOST)]
    return [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]


def tidy(value: float) -> str:
    """A number on an axis: as it is down to a thousandth, with a power of ten below."""
    if 1e-3 <= abs(value) < 1e5 or value == 0:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def numbers(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at the very values that were measured."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    found = sorted(set(values))
    shown: list[float] = []
    for value in found:  # far enough from the last for both to be read
        if not shown or math.log(value / shown[-1]) > 0.09 * math.log(found[-1] / found[0]):
            shown.append(value)
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def grid(axes: Axes) -> None:
    """Faint lines at the ticks of y."""
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, width=0.8)


def brief(text: str) -> str:
    """A name from a document, fit to be drawn."""
    return printable(text, LABEL_AT_MOST)


def short(methods: Sequence[str]) -> dict[str, str]:
    """Methods without the options that all of one name agree on: `tbptt:k1=1,k2=4` is `tbptt k2=4` among its like."""
    parts = {m: (m.partition(":")[0], [p for p in m.partition(":")[2].split(",") if p]) for m in methods}
    said = {}
    for method, (name, options) in parts.items():
        like = [set(o) for n, o in parts.values() if n == name]
        own = [o for o in options if len(like) > 1 and not all(o in other for other in like)]
        said[method] = brief(" ".join([name, *own]))
    return said
