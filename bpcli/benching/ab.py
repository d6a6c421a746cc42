"""Two environments, each with a bp of its own, on the same cells: what is deterministic first, then time in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli import methods
from bpcli.benching import compare, interleave
from bpcli.benching.compare import Comparison, Line
from bpcli.benching.interleave import Cell, Plan
from bpcli.benching.pair_process import Child, Environment, lanes, processes, strangers
from bpcli.benching.run import Job, Results
from bpcli.benching.runfile import Row, verdict
from bpcli.benching.sweep import Point
from bpcli.errors import BpError
from bpcli.problem.limits import PASSES, Limits, check_cost
from bpcli.problem.model import Setup

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sides:
    """The two environments; each process of theirs uses `threads` threads."""

    base: Environment
    head: Environment
    threads: int


@dataclass(frozen=True)
class Request:
    """What every cell of a spec has in common: where it stands, its overrides, and what it may cost."""

    path: Path
    overrides: Mapping[str, Any]
    limits: Limits
    threads: int


def cells(job: Job, request: Request, results: Results) -> list[Cell]:
    """The cells of a job as the processes are asked for them; what does not apply or costs too much is noted."""
    found: list[Cell] = []
    for point in job.sweep.points:
        try:
            found += _at(job, point, request, results)
        except BpError as error:
            results.refuse(error)
    return found


def _at(job: Job, point: Point, request: Request, results: Results) -> list[Cell]:
    setup = job.open_at(point.settings)
    found: list[Cell] = []
    for cell in point.cells:
        call = methods.parse(cell.method, job.places.get(cell.base))
        if reason := call.refusal(setup.graph):
            results.note(f"{setup.spec.name}: skipped {call.text}: {reason}")
            continue
        cost = call.cost(setup)
        check_cost(setup, call.text, cost.bytes, cost.flops, request.limits, PASSES * cost.forward_steps)
        found.append({**_common(setup, point, request), "method": call.text, "grid": dict(cell.grid)})
    return found


def _common(setup: Setup, point: Point, request: Request) -> Cell:
    """What a process needs to open the spec as it is open here, its defaults spelled out."""
    spelled = {"dtype": setup.dtype.name, "seed": setup.spec.data.seed}
    return {
        "path": str(request.path.resolve()),
        "name": setup.spec.name,
        "overrides": {**spelled, **request.overrides, **point.settings},
        "settings": dict(point.settings),
        "wrt": [t.name for t in setup.wrt],
        "threads": request.threads,
        "max_memory": request.limits.max_memory,
        "max_time": request.limits.max_time,
        "allow_outside": request.limits.allow_outside,
    }


def run(sides: Sides, cells: Sequence[Cell], plan: Plan, say: Say) -> tuple[Comparison, Mapping[str, Any]]:
    """The comparison, and who the two environments are. Raises BpError for one that can't run the cells."""
    say("checking the gradients of both")
    rows, people = _describe(sides, cells)
    base, head = (compare.by_key(side, where.given) for side, where in zip(rows, (sides.base, sides.head), strict=True))
    lines, _ = compare.deterministic(base, head)
    right = [i for i, pair in enumerate(zip(*rows, strict=True)) if "wrong" not in map(verdict, pair)]
    notes = [f"the environments differ beside bp: {', '.join(apart)}"] if (apart := strangers(*people)) else []
    if right:
        timed, moved = interleave.suite(
            lambda: lanes(sides.base, sides.head, sides.threads), [cells[i] for i in right], plan, say
        )
        lines += [_time(rows[0][i], rows[1][i], one) for i, one in zip(right, timed, strict=True)]
        notes += moved
    who = dict(zip(("base", "head"), people, strict=True))
    return Comparison(tuple(sorted(lines, key=compare.rank)), len(cells), tuple(notes)), who


def _time(old: Row, new: Row, timed: interleave.Timed) -> Line:
    rows = ({**old, "time_s": timed.base}, {**new, "time_s": timed.head})
    return compare.time_line(*rows, timed.evidence, timed.verdict, timed.detail)


def _describe(sides: Sides, cells: Sequence[Cell]) -> tuple[list[list[Row]], list[Mapping[str, Any]]]:
    """The rows of base and head without times, and what each says of itself; the two work side by side."""
    with processes((sides.base, sides.head), sides.threads) as both, ThreadPoolExecutor(len(both)) as pool:
        rows = list(pool.map(lambda child: _rows(child, cells), both))
        return rows, [child.hello for child in both]


def _rows(child: Child, cells: Sequence[Cell]) -> list[Row]:
    return [child.describe(cell) for cell in cells]
