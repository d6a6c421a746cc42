"""The V-curve: how wrong a central difference is at each step, rounding to the left and truncation to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bpcli.render.page.figure import ACCENT, MUTED, Figure
from bpcli.render.page.labels import brief, grid, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[float]
# Where a difference hits the reference to the last bit: a logarithm has no zero.
LEAST = 1e-17


def v_curve(spec: str, steps: Curve, errors: Mapping[str, Curve], overall: Curve, judge: str) -> Figure:
    """The figure for one spec.

    `errors` are relative, one at each of `steps`, for each tensor, and `overall`; they are measured against `judge`.
    """
    best = min(range(len(steps)), key=lambda i: overall[i])
    found = f"smallest at h = {steps[best]:.1g}, where it is {overall[best]:.1g}"
    caption = f"{spec}: h is relative to the entry; error against {judge}. Thin: each tensor; bold: their median."
    alt = (
        f"Error of the central difference of {spec} against its step h, a V: rounding grows as 1/h to the left, "
        f"truncation as h squared to the right. The median error is {found}."
    )
    return Figure(
        "Central difference: error against step", caption, alt, lambda axes: _draw(axes, steps, errors, overall)
    )


def _draw(axes: Axes, steps: Curve, errors: Mapping[str, Curve], overall: Curve) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, (name, values) in enumerate(errors.items()):
        shown = [max(v, LEAST) for v in values]
        axes.plot(steps, shown, color=MUTED, linewidth=0.7, alpha=0.55, gid=f"tip:{brief(name)}:{number}")
    shown = [max(v, LEAST) for v in overall]
    axes.plot(steps, shown, color=ACCENT, linewidth=1.8)
    best = min(range(len(steps)), key=lambda i: overall[i])
    axes.plot(steps[best], shown[best], "o", color=ACCENT, markersize=5)
    axes.annotate(
        f"h = {tidy(steps[best])}", (steps[best], shown[best]), (-4, -4), textcoords="offset points",
        ha="right", va="top", color=ACCENT, fontsize=8.5,
    )  # fmt: skip
    every = [max(v, LEAST) for values in errors.values() for v in values] + shown
    low = min(every) / 100
    axes.set_ylim(low, max(100.0, shown[0] * 100))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(lambda v, _: tidy(v)))
        axis.set_minor_locator(NullLocator())
    grid(axes)
    axes.text(0.24, 0.86, "rounding, as 1/h", transform=axes.transAxes, color=MUTED, fontsize=8.5)
    axes.text(0.97, 0.94, "truncation, as h²", transform=axes.transAxes, color=MUTED, fontsize=8.5, ha="right")
    axes.set_xlabel("step h")
    axes.set_ylabel("relative error")
