"""The plot of a training: the loss of each method against the step."""

from __future__ import annotations

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
_COLORS = (ACCENT, INK, MUTED)
_STYLES = ("-", "--", ":")


def loss_curves(spec: str, curves: Mapping[str, Sequence[float]], trivial: float | None) -> Figure:
    """The positive losses of every step by method; `trivial` is drawn as a line where it is known."""
    lines = {name: points(values) for name, values in curves.items()}
    ends = ", ".join(f"{brief(name)} {line[-1][1]:.3g}" for name, line in lines.items() if line)
    caption = f"{spec}: mean losses of neighbouring steps. Dotted: a predictor that ignores the input."
    alt = f"Loss of {spec} against the step for {len(lines)} methods. At the end: {ends}."
    return Figure("Loss against step", caption, alt, lambda axes: _draw(axes, lines, trivial))


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
