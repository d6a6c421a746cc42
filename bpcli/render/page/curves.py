"""The plots of a training: the loss of each method against the step, and the alignment of watched gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bpcli.render.page.figure import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    Figure,
    at_line_ends,
    brief,
    grid,
    set_ticks,
    ticks,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 200
"""Points of a line at most, each the mean of neighbouring steps."""
COSINES = 60
"""Points of a line of cosines at most: single steps scatter."""
_COLORS = (ACCENT, INK, MUTED)
_STYLES = ("-", "--", ":")


def loss_curves(spec: str, curves: Mapping[str, Sequence[float]], trivial: float | None) -> Figure:
    """The positive losses of every step by method; `trivial` is drawn as a line where it is known."""
    lines = {name: points(values) for name, values in curves.items()}
    ends = ", ".join(f"{brief(name)} {line[-1][1]:.3g}" for name, line in lines.items() if line)
    caption = f"{spec}: mean losses of neighbouring steps. Dotted: a predictor that ignores the input."
    alt = f"Loss of {spec} against the step for {len(lines)} methods. At the end: {ends}."
    return Figure("Loss against step", caption, alt, lambda axes: _draw(axes, lines, trivial))


def alignment_curves(method: str, watched: Mapping[str, Sequence[float]]) -> Figure:
    """The cosine of every watched gradient with the true one against the step, along the trajectory of `method`."""
    lines = {name: cosines(values) for name, values in watched.items()}
    ends = ", ".join(f"{brief(n)} {sum(y for _, y in line) / len(line):.2g}" for n, line in lines.items() if line)
    caption = f"Along {method}: 1 is the direction of the true gradient, 0 is across it. Means of neighbouring steps."
    alt = f"Cosine of {len(lines)} gradients with the true one along {brief(method)}. In the mean: {ends}."
    title = f"Alignment along {brief(method)}"
    return Figure(title, caption, alt, lambda axes: _draw_cosines(axes, lines))


def cosines(values: Sequence[float]) -> list[tuple[float, float]]:
    """Steps from 1 and mean cosines of equal stretches, of the steps that were compared."""
    known = [(step, value) for step, value in enumerate(values, 1) if math.isfinite(value)]
    width = max(1, -(-len(known) // COSINES))
    parts = (known[first : first + width] for first in range(0, len(known), width))
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def _draw_cosines(axes: Axes, lines: Mapping[str, list[tuple[float, float]]]) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel("cosine with the true gradient")
    low = min((y for line in lines.values() for _, y in line), default=0.0)
    axes.set_ylim(-1.05 if low < -0.05 else -0.05, 1.05)
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    ends = []
    for number, (name, line) in enumerate((n, line) for n, line in lines.items() if line):
        color, style = _COLORS[number % 3], _STYLES[number // 3 % 3]
        x, y = zip(*line, strict=True)
        axes.plot(x, y, style, color=color, gid=f"tip:{brief(name)}: {y[-1]:.3g}:{number}")
        ends.append((x[-1], y[-1], brief(name), color))
    grid(axes)
    at_line_ends(axes, ends)


def cosine_matrix(method: str, cells: Mapping[tuple[str, str], float | None]) -> Figure:
    """The mean cosines between all watched gradients and the true one, along the trajectory of `method`."""
    names = list(dict.fromkeys(a for a, _ in cells))
    told = [f"{brief(a)} and {brief(b)} {v:.2f}" for (a, b), v in cells.items() if v is not None and a < b]
    caption = f"Along {method}: cosines between gradients, in the mean over the steps that were compared."
    alt = f"Matrix of mean cosines along {brief(method)}: {', '.join(told)}."
    return Figure(f"Cosines along {brief(method)}", caption, alt, lambda axes: _draw_matrix(axes, names, cells))


def _draw_matrix(axes: Axes, names: Sequence[str], cells: Mapping[tuple[str, str], float | None]) -> None:
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            value = cells[one, other]
            if value is not None:
                shade = 0.45 * min(1.0, max(0.0, value))
                axes.bar(column, 0.94, 0.94, row - 0.47, color=ACCENT, alpha=shade, linewidth=0)
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=INK, fontsize=8.5)
    shown = [brief(name) for name in names]
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), shown)
    axes.set_xticks(range(len(names)), shown)
    if max(map(len, shown)) * len(names) > 36:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right")
    axes.tick_params(length=0, labelcolor=INK)


def points(values: Sequence[float]) -> list[tuple[float, float]]:
    """Steps from 1 and mean losses of equal stretches; those that are not positive numbers have no logarithm."""
    width = -(-len(values) // POINTS)
    found = []
    for first in range(0, len(values), max(1, width)):
        part = values[first : first + width]
        mean = sum(part) / len(part)
        if 0 < mean < float("inf"):
            found.append((first + (len(part) + 1) / 2, mean))
    return found


def _draw(axes: Axes, lines: Mapping[str, list[tuple[float, float]]], trivial: float | None) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    ends = []
    for number, (name, line) in enumerate((n, line) for n, line in lines.items() if line):
        color, style = _COLORS[number % 3], _STYLES[number // 3 % 3]
        x, y = zip(*line, strict=True)
        axes.plot(x, y, style, color=color, gid=f"tip:{brief(name)}: {y[-1]:.3g}:{number}")
        ends.append((x[-1], y[-1], brief(name), color))
    if trivial:
        axes.axhline(trivial, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    set_ticks(axes.yaxis, ticks(*axes.get_ylim()), tidy)
    grid(axes)
    at_line_ends(axes, ends)
