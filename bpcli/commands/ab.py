"""`bp ab`: two environments timed in pairs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared

if TYPE_CHECKING:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.pair_worker import Environment
    from bpcli.bench.paired_run import Sides
    from bpcli.bench.pairing import Cell, Plan
    from bpcli.bench.planning import Results, Wish


@click.command()
@click.argument("target", nargs=-1)
@click.option("--base", metavar="PYTHON", help="The interpreter that has the old bp, or a folder with its checkout.")
@click.option("--head", metavar="PYTHON", help="The interpreter that has the new bp, or a folder with its checkout.")
@click.option("--aa", is_flag=True, help="Take the base as head too: what differs then is noise.")
@click.option("-m", "--method", multiple=True, metavar="METHOD", help="Time this method; repeatable.")
@click.option("-g", "--grid", multiple=True, metavar="KEY=V1,V2,…", help="Sweep a setting or an option; repeatable.")
@click.option(
    "--rounds", type=click.IntRange(2, 100), default=8, show_default=True, metavar="N",
    help="How often fresh processes are started and every cell is timed.",
)  # fmt: skip
@click.option(
    "--budget", type=click.FloatRange(min=0.0, min_open=True), default=0.5, show_default=True, metavar="SECONDS",
    help="How long to time a cell in each round; five pairs at least.",
)  # fmt: skip
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def ab(
    target: tuple[str, ...],
    base: str | None,
    head: str | None,
    aa: bool,
    method: tuple[str, ...],
    grid: tuple[str, ...],
    rounds: int,
    budget: float,
    common: Common,
) -> int:
    """Compare two environments, each with a bp of its own, on each TARGET: a spec or a folder of specs.

    Gradients are checked in both, deterministic figures compared, then times taken in turn: base, head and a twin of
    the base in fresh processes, round after round. What looks changed is run again before it counts. Methods and grid
    are chosen as for `bp bench`. Without --base, --aa takes the bp that runs.
    """
    from bpcli.bench.machine import cores
    from bpcli.bench.paired_run import Sides
    from bpcli.bench.pairing import Plan
    from bpcli.bench.planning import Results, Wish
    from bpcli.bench.sweep import parse_axis
    from bpcli.commands.method_selection import from_project
    from bpcli.commands.specs import find_or_packaged

    first, second = _environments(base, head, aa)
    sides = Sides(first, second, common.threads or cores())
    results = Results()
    paths, results.errors = find_or_packaged(target, common)
    wish = Wish(method, from_project(), dict(map(parse_axis, grid)), frozenset(common.overrides), alone=len(paths) == 1)
    plan = Plan(rounds, budget, seed=0)
    return _show(_cells(paths, wish, results, (plan, sides, common)), sides, plan, (results, common))


def _environments(base: str | None, head: str | None, aa: bool) -> tuple[Environment, Environment]:
    """The two sides. Raises BpError where one is missing or there is one too many."""
    from bpcli.bench.pair_worker import environment
    from bpcli.errors import fail

    if aa and head is not None:
        fail("usage", "--aa takes the base as head", help="give --head or --aa")
    if aa:
        same = environment("--base", base) if base is not None else _own()
        return same, replace(same, option="--aa")
    if base is None or head is None:
        fail("usage", f"bp ab needs --{'base' if base is None else 'head'}", help="or --aa, to see the noise alone")
    return environment("--base", base), environment("--head", head)


def _own() -> Environment:
    """The bp that runs."""
    import bpcli
    from bpcli.bench.pair_worker import Environment

    return Environment("--base", "this bp", sys.executable, os.path.dirname(os.path.dirname(bpcli.__file__)))


def _cells(paths: Sequence[Path], wish: Wish, results: Results, call: tuple[Plan, Sides, Common]) -> list[Cell]:
    """The cells of all specs; a refusal of one hides no other."""
    from bpcli.bench.paired_run import cells
    from bpcli.bench.planning import Ask, entries, orders, prepare
    from bpcli.bench.target import Target
    from bpcli.commands.failures import translate
    from bpcli.commands.specs import names, said_over

    plan, sides, common = call
    jobs = []
    for path, name in names(paths).items():
        try:
            jobs.append(prepare(Target(str(path), name, *said_over(path, common), common.limits()), wish, results))
        except Exception as error:
            results.refuse(translate(error))
    ask = Ask(plan.budget, sides.threads, (), common.limits())
    return cells(orders(entries(jobs), ask, results), sides.threads)


def _show(cells: Sequence[Cell], sides: Sides, plan: Plan, call: tuple[Results, Common]) -> int:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.paired_run import run
    from bpcli.commands.comparison_document import brief_document, comparison_document, exit_code
    from bpcli.commands.output import describe, emit
    from bpcli.commands.progress import progress

    results, common = call
    comparison, who = Comparison((), 0), dict[str, Any]()
    if cells:
        with progress(common) as say:
            comparison, told = run(sides, cells, plan, say)
            who = {k: {"given": getattr(sides, k).given, **v} for k, v in told.items()}
    more = {"strict": common.strict, "rounds": plan.rounds, "budget_s": plan.budget, **who}
    about = {**describe("ab", common, **more), "threads": sides.threads}
    document = comparison_document(comparison, about, [*_floor(comparison), *results.notes], results.errors)
    emitted = emit(document, common, brief_document(document, common.quiet))
    return emitted or (2 if results.errors else exit_code(comparison, common.strict))


def _floor(comparison: Comparison) -> list[str]:
    """What to know of the times."""
    doubtful = any(line.verdict == "INCONCLUSIVE" and line.figure == "time_s" for line in comparison.lines)
    return ["more --rounds make the intervals and the margin smaller"] if doubtful else []
