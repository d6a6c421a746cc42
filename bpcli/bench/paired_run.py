"""Two environments, each with a bp of its own, on the same cells: what is deterministic first, then time in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpcli.bench import comparison as compare
from bpcli.bench import pairing as interleave
from bpcli.bench.comparison import Comparison, Line
from bpcli.bench.pair_worker import Child, Environment, lanes, processes, strangers
from bpcli.bench.pairing import Cell, Plan
from bpcli.bench.rows import Row
from bpcli.bench.saved_runs import verdict
from bpcli.bench.sweep import Item
from bpcli.errors import fail

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sides:
    """The two environments; each process of theirs uses `threads` threads."""

    base: Environment
    head: Environment
    threads: int


def cells(items: Sequence[Item], threads: int) -> list[Cell]:
    """The items of a sweep as processes are asked for them, in words that another version of bp knows too.

    Raises BpError where an item wants other threads than the processes have.
    """
    if any(item.threads != threads for item in items):
        fail("usage", "bp ab can't sweep threads", help="run it once for each value of --threads")
    return [_cell(item) for item in items]


def _cell(item: Item) -> Cell:
    target = item.target
    return {
        "path": str(Path(target.path).resolve()),
        "name": target.name,
        "overrides": dict(target.overrides),
        "settings": dict(item.settings),
        "grid": dict(item.cell.grid),
        "method": item.cell.method,
        "wrt": list(target.wrt),
        "threads": item.threads,
        "limits": asdict(target.limits),
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
