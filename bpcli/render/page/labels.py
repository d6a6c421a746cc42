"""Words beside points and lines, without overlaps, and axes that read as people write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpcli.render.page.figure import FAINT, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Where a label may stand around its point: offset in points, and how it is aligned there.
_PLACES = (
    (6, 0, "left", "center"), (5, 6, "left", "bottom"), (5, -6, "left", "top"), (-6, 0, "right", "center"),
    (-5, 6, "right", "bottom"), (-5, -6, "right", "top"), (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (8, 17, "left", "bottom"), (8, -17, "left", "top"), (-8, 17, "right", "bottom"), (-8, -17, "right", "top"),
)  # fmt: skip

Spot = tuple[float, float, str, bool]


def place(axes: Axes, spots: Sequence[Spot]) -> None:
    """Label points `(x, y, text, must)`; one that finds no free place is left out, unless it `must` stand."""
    canvas: Any = axes.figure
    canvas.draw_without_rendering()
    inside = axes.get_tightbbox()
    taken = [_around(axes.transData.transform((x, y)), 3.5) for x, y, _, _ in spots]
    for x, y, text, must in sorted(spots, key=lambda s: not s[3]):
        color = INK if must else MUTED
        best: tuple[float, Any, Bbox | None] = (float("inf"), None, None)
        for dx, dy, ha, va in _PLACES:
            note = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, color=color, fontsize=8.5
            )
            box = note.get_window_extent()
            clash = sum(box.overlaps(other) for other in taken)
            clash += 2 * (inside is not None and (box.x1 > inside.x1 + 4 or box.y1 > inside.y1 + 4 or box.x0 < axes.bbox.x0))
            note.remove()
            if clash < best[0]:
                best = (clash, (dx, dy, ha, va), box)
            if not clash:
                break
        clash, where, box = best
        if clash and not must:
            continue
        dx, dy, ha, va = where
        axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, color=color, fontsize=8.5)
        taken += [box] if box is not None else []


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


def scale(axis: Any, values: Sequence[float], unit: str) -> None:
    """A logarithmic axis over `values`: decades, or 1, 2, 5 where there are few of them; `unit` may be ""."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    low, high = min(values), max(values)
    few = high / low < 60
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
    if unit:
        axis.set_major_formatter(EngFormatter(unit=unit))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def numbers(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at the very values that were measured."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def grid(axes: Axes) -> None:
    """Faint lines at the ticks of y."""
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, width=0.8)


def short(methods: Sequence[str]) -> dict[str, str]:
    """Methods without the options that all of one name agree on: `tbptt:k1=1,k2=4` is `tbptt k2=4` among its like."""
    parts = {m: (m.partition(":")[0], [p for p in m.partition(":")[2].split(",") if p]) for m in methods}
    said = {}
    for method, (name, options) in parts.items():
        like = [set(o) for n, o in parts.values() if n == name]
        own = [o for o in options if len(like) > 1 and not all(o in other for other in like)]
        said[method] = " ".join([name, *own])
    return said
