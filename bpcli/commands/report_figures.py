"""Which figures a run has: trade-offs at its points, growth, maps of what is wrong, V-curves of its specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.commands.options import Common

if TYPE_CHECKING:
    from bpcli.commands.report_runs import Run
    from bpcli.render.page.figure import Figure
    from bpcli.render.page.html import Group

Row = Mapping[str, Any]
POINTS_AT_MOST = 6


def groups(run: Run) -> list[Group]:
    """The groups of figures of a run; of the points of a sweep the most expensive come first."""
    from bpcli.bench.rows import by_spec
    from bpcli.render.page.growth import growths
    from bpcli.render.page.heat import heat_maps
    from bpcli.render.page.html import Group

    if run.kind == "findings":
        maps = heat_maps(run.rows)
        return [Group("", "blame", maps)] if maps else []
    found = []
    specs = by_spec(run.rows)
    for spec, rows in specs.items():
        timed = [r for r in rows if r["time_s"] is not None]
        before = f"{spec}: " if len(specs) > 1 else ""
        found += [Group(before + name, "trade", figures) for name, figures in _points(timed, before)]
        if grown := growths(timed):
            found.append(Group(spec, "growth", grown))
    return found


def _points(rows: Sequence[Row], before: str) -> list[tuple[str, list[Figure]]]:
    from bpcli.render.page.trade import trades

    points: dict[str, list[Row]] = {}
    for row in rows:
        points.setdefault(", ".join(f"{k}={v}" for k, v in row["settings"].items()), []).append(row)
    order = sorted(points, key=lambda p: -max((r["flops"] or 0.0, r["time_s"]) for r in points[p])[0])
    found = []
    for name in order[:POINTS_AT_MOST]:
        where = f"{before}at {name}. " if name else before
        if figures := trades(points[name], where[:1].upper() + where[1:] if not before else where):
            found.append((name or "as in the spec", figures))
    return found


def curve(path: Path, common: Common) -> Figure:
    """The V-curve of a spec, computed now. Raises BpError where the spec can't be run, or would cost too much."""
    from bpcli.checking.check_options import CheckOptions, check_bytes
    from bpcli.checking.v_curve import curve_flops, v_curve
    from bpcli.commands.kernels import prepare
    from bpcli.commands.specs import open_spec
    from bpcli.problem.draw import draw
    from bpcli.problem.limits import check_cost
    from bpcli.render.page import curve as figure
    from bpcli.runtime.evaluation import check_finite

    setup = open_spec(path, common)
    held = check_bytes(setup, [], CheckOptions("central"))
    check_cost(setup, "the V-curve", held, curve_flops(setup), common.limits())
    prepare(common)
    problem = draw(setup)
    check_finite(problem)
    found = v_curve(problem)
    errors = {name: values.tolist() for name, values in found.errors.items()}
    return figure.v_curve(setup.spec.name, found.steps.tolist(), errors, found.overall.tolist(), found.judge)
