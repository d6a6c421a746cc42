"""`bp ab`: compare two installations of bp, timed in turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, finite_seconds, from_project, shared

if TYPE_CHECKING:
    from bpcli.bench.cell import Cell
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.pairing import Plan, Sides
    from bpcli.bench.sweep import BenchOptions, Sweep
    from bpcli.bench.worker_process import Environment


@click.command()
@click.argument("target", nargs=-1)
@click.option("--base", metavar="PYTHON", help="Python interpreter with the old bp, or a checkout of it.")
@click.option("--head", metavar="PYTHON", help="Python interpreter with the new bp, or a checkout of it.")
@click.option("--aa", is_flag=True, help="Compare the base with itself, to measure the noise.")
@click.option("-m", "--method", multiple=True, metavar="METHOD", help="Method, such as tbptt:k1=1,k2=4; repeatable.")
@click.option(
    "-g", "--grid", multiple=True, metavar="KEY=V1,V2,…", help="Sweep a setting or method option; repeatable."
)
@click.option(
    "--rounds", type=click.IntRange(2, 100), default=8, show_default=True, metavar="N",
    help="Number of rounds; each times every cell in fresh processes.",
)  # fmt: skip
@click.option(
    "--budget", type=float, default=0.5, show_default=True, metavar="SECONDS", callback=finite_seconds,
    help="Time to spend on each cell in each round; at least five pairs are timed.",
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
    """Compare two installations of bp on each TARGET, a spec or a folder of specs.

    Gradients are checked and deterministic figures compared first. Then base, head and a second copy of the base are
    timed in turn, in fresh processes, round after round. Apparent changes are measured again before they count.
    Methods and grid are chosen as in `bp bench`. --aa needs no --base: it then compares the running bp with itself.
    """
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.pairing import Plan, Sides
    from bpcli.bench.sweep import BenchOptions, parse_axis
    from bpcli.commands.bench import planned
    from bpcli.commands.specs import find_or_packaged
    from bpcli.runtime.machine import cores

    sides = Sides(*_environments(base, head, aa), common.threads or cores())
    results = BenchResults()
    paths, results.errors = find_or_packaged(target, common)
    swept, fixed = dict(map(parse_axis, grid)), frozenset(common.overrides)
    threads, limits, alone = sides.threads, common.limits(), len(paths) == 1
    options = BenchOptions(method, from_project(), swept, fixed, budget, threads, limits=limits, alone=alone)
    cells = _cells(planned(paths, options, common, results), options, results)
    return _show(cells, sides, Plan(rounds, budget, seed=0), (results, common))


def _environments(base: str | None, head: str | None, aa: bool) -> tuple[Environment, Environment]:
    """The environments of base and head. Raises BpError where one is missing, or --head contradicts --aa."""
    import bpcli
    from bpcli.bench.worker_process import Environment, environment
    from bpcli.errors import fail

    if aa and head is not None:
        fail("usage", "--aa compares the base with itself and takes no --head", help="give --head or --aa")
    if aa:
        own = Environment("--base", "this bp", sys.executable, os.path.dirname(os.path.dirname(bpcli.__file__)))
        same = own if base is None else environment("--base", base)
        return same, replace(same, option="--aa")
    if base is None or head is None:
        missing = "base" if base is None else "head"
        advice = "--base OLD --head NEW names two Pythons or checkouts; --aa measures the noise"
        fail("usage", f"bp ab needs --{missing}", help=advice)
    return environment("--base", base), environment("--head", head)


def _cells(sweeps: Sequence[Sweep], options: BenchOptions, results: BenchResults) -> list[Cell]:
    """The cells of all specs. Raises BpError where the grid has threads, which are fixed for each worker."""
    from bpcli.bench.sweep import admit, cells_of
    from bpcli.errors import fail

    cells = admit(sweeps, cells_of(sweeps), options, results)
    if any(cell.threads != options.threads for cell in cells):
        fail("usage", "bp ab can't sweep threads", help="run it once for each number of --threads")
    return cells


def _show(cells: Sequence[Cell], sides: Sides, plan: Plan, call: tuple[BenchResults, Common]) -> int:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.pairing import compare_environments
    from bpcli.commands.compare import brief_document, comparison_document, exit_code
    from bpcli.commands.output import describe, emit
    from bpcli.commands.progress import progress

    results, common = call
    comparison, who = Comparison((), 0), dict[str, Any]()
    if cells:
        with progress(common) as say:
            comparison, hellos = compare_environments(sides, cells, plan, say)
            who = {k: {"given": getattr(sides, k).given, **hello} for k, hello in hellos.items()}
    more = {"strict": common.strict, "rounds": plan.rounds, "budget_s": plan.budget, **who}
    about = {**describe("ab", common, **more), "threads": sides.threads}
    doubtful = any(line.verdict == "INCONCLUSIVE" and line.figure == "time_s" for line in comparison.lines)
    advice = ["more --rounds would narrow the intervals and the margin"] if doubtful else []
    document = comparison_document(comparison, about, [*advice, *results.notes], results.errors)
    emitted = emit(document, common, brief_document(document, common.quiet))
    return emitted or (2 if results.errors else exit_code(comparison, common.strict))
