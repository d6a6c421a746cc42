"""The heat map of a failed check: how wrong each tensor is at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpcli.render.page.figure import ACCENT, FAINT, INK, MUTED, Figure
from bpcli.render.page.labels import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cells = Mapping[str, Mapping[int, float]]
ROWS_AT_MOST = 24


def heat_maps(findings: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """A map for each spec and method with a wrong finding that knows its step."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for finding in findings:
        if finding["verdict"] == "wrong" and (cells := errors_by_step(finding)):
            groups.setdefault((brief(finding["spec"]), brief(finding["method"])), {})[brief(finding["tensor"])] = cells
    return [_figure(spec, method, cells) for (spec, method), cells in groups.items()]


def errors_by_step(finding: Mapping[str, Any]) -> dict[int, float]:
    """Step, from 1, to relative error: `blame.errors`, a number a step, or the kernel error at the step to blame."""
    blame = finding["blame"] or {}
    errors = blame.get("errors")
    if isinstance(errors, list):
        found = {t: _float(e) for t, e in enumerate(errors, start=1)}
        return {t: e for t, e in found.items() if e is not None}
    step = blame.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 100_000:
        return {}
    error = _float(finding["kernel_error"])
    return {step: 1.0 if error is None else error}


def _float(value: Any) -> float | None:
    """A number of a document, where it is one: infinity where it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return abs(number) if math.isfinite(number) else math.inf


def _figure(spec: str, method: str, cells: Cells) -> Figure:
    worst = {name: max(row, key=lambda t: row[t]) for name, row in cells.items()}
    told = ", ".join(f"{name} at step {t}" for name, t in worst.items())
    caption = (
        f"{spec}, {method}. The stronger the colour, the larger the error of that step; blank: none, or not known."
    )
    alt = f"Heat map of the wrong gradients of {spec} by {method}, tensors by steps. Worst: {told}."
    return Figure("Where the gradient is wrong", caption, alt, lambda axes: _draw(axes, cells))


def _draw(axes: Axes, cells: Cells) -> None:
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
