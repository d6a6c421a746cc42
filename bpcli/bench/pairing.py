"""Two environments timed side by side: interleaved blocks in fresh processes, and suspicious cells a second time.

Each cell runs in three lanes: base, head and a second process of the base, its twin. Blocks form palindromes
(A B C C B A) with the lanes in rotating places, so that drift affects all alike. The twin shows how far processes of
the same code differ; no change below three times that is claimed. Control kernels without bp's code run among the
cells: where they change, so did the machine.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpcli.bench import comparison, intervals
from bpcli.bench.comparison import CONTROL_SHIFT, Comparison
from bpcli.bench.intervals import Evidence, Pair, TimeVerdict
from bpcli.bench.measurement import Cell, Row
from bpcli.bench.saved_runs import verdict
from bpcli.bench.worker_process import Environment, Worker, workers

Work = Mapping[str, Any]
"""A cell or a control kernel, as JSON for a worker."""
Rounds = list[list[Pair]]
Say = Callable[[str], None]

MIN_PAIRS, MAX_PAIRS = 5, 200
CONTROLS: tuple[Work, ...] = ({"control": "gemm"}, {"control": "copy"})
_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


class Lane(Protocol):
    """A worker that runs one cell at a time."""

    def ask(self, do: str, **fields: Any) -> Mapping[str, Any]:
        """Answer the requests `load`, `calibrate` and `run`, as documented in `worker`."""


Lanes = Sequence[Lane]
OpenLanes = Callable[[], AbstractContextManager[Lanes]]


@dataclass(frozen=True)
class Plan:
    """`rounds` of fresh processes, `budget` seconds of blocks a cell in each; `seed` orders the cells."""

    rounds: int
    budget: float
    seed: int


@dataclass(frozen=True)
class PairedTime:
    """Seconds a call of base and head, the evidence on their ratio, and the verdict."""

    base: float
    head: float
    evidence: Evidence
    verdict: TimeVerdict
    detail: str = ""


@dataclass(frozen=True)
class Sides:
    """The two environments, each worker on `threads` threads."""

    base: Environment
    head: Environment
    threads: int


def compare_environments(
    sides: Sides, cells: Sequence[Cell], plan: Plan, say: Say
) -> tuple[Comparison, Mapping[str, Any]]:
    """Compare the cells in both environments; also return the workers' descriptions of themselves by side.

    Deterministic figures are compared first, and cells with a right gradient on both sides are timed. Raises BpError
    where an environment cannot run the cells.
    """
    say("checking the gradients of both")
    works = [dataclasses.replace(cell, spec=cell.spec.absolute()).to_json() for cell in cells]
    rows, hellos = _describe(sides, works)
    base, head = (comparison.by_key(r, s.given) for r, s in zip(rows, (sides.base, sides.head), strict=True))
    lines, _ = comparison.deterministic(base, head)
    right = [i for i, pair in enumerate(zip(*rows, strict=True)) if "wrong" not in map(verdict, pair)]
    apart = _differences(*hellos)
    notes = [f"besides bp, the environments differ in: {', '.join(apart)}"] if apart else []
    if right:
        three = (sides.base, sides.head, sides.base)
        timed, moved = suite(lambda: workers(three, sides.threads), [works[i] for i in right], plan, say)
        for i, one in zip(right, timed, strict=True):
            old, new = {**rows[0][i], "time_s": one.base}, {**rows[1][i], "time_s": one.head}
            lines.append(comparison.time_line(old, new, one.evidence, one.verdict, one.detail))
        notes += moved
    found = Comparison(tuple(sorted(lines, key=comparison.rank)), len(cells), tuple(notes))
    return found, dict(zip(("base", "head"), hellos, strict=True))


def _describe(sides: Sides, works: Sequence[Work]) -> tuple[list[list[Row]], list[Mapping[str, Any]]]:
    """The rows of base and head without steady times, and the workers' descriptions; both sides work at once."""

    def rows(worker: Worker) -> list[Row]:
        return [worker.ask("describe", cell=work)["row"] for work in works]

    with workers((sides.base, sides.head), sides.threads) as both, ThreadPoolExecutor(len(both)) as pool:
        return list(pool.map(rows, both)), [worker.hello for worker in both]


def _differences(base: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """Versions other than bp's that differ between the environments."""
    old, new = base.get("versions", {}), head.get("versions", {})
    pairs = [("python", base.get("python"), head.get("python"))]
    pairs += [(p, old.get(p), new.get(p)) for p in sorted({*old, *new} - {"bp"})]
    return [f"{name} {a or 'absent'} and {b or 'absent'}" for name, a, b in pairs if a != b]


def suite(open_lanes: OpenLanes, works: Sequence[Work], plan: Plan, say: Say) -> tuple[list[PairedTime], list[str]]:
    """Time the cells, and those that seem changed once more in fresh processes; also return notes on the machine.

    A change counts when two passes show it. The figures are then those of the second pass, which was not selected for
    them. A pass whose noise may hide a change is replaced by another one first.
    """
    found, notes = _pass(open_lanes, works, plan, lambda text: say(f"first pass, {text}"))

    def repeat(wanted: Callable[[PairedTime], bool], seed: int, name: str) -> list[tuple[int, PairedTime]]:
        chosen = [i for i, one in enumerate(found) if wanted(one)]
        if not chosen:
            return []
        again = dataclasses.replace(plan, seed=seed)
        more, noted = _pass(open_lanes, [works[i] for i in chosen], again, lambda text: say(f"{name}, {text}"))
        told = {n.partition(",")[0] for n in notes}
        notes.extend(n for n in noted if n.partition(",")[0] not in told)
        return list(zip(chosen, more, strict=True))

    for index, one in repeat(_hidden, plan.seed + 2, "noisy cells again"):
        found[index] = one
    for index, one in repeat(lambda t: t.verdict in ("SLOWER", "FASTER"), plan.seed + 1, "changed cells again"):
        found[index] = _confirmed(found[index], one)
    return found, notes


def _hidden(one: PairedTime) -> bool:
    """Whether the interval shows a change and only a margin widened by noise does not."""
    edge = 1.0 + intervals.MIN_MARGIN
    return one.verdict == "INCONCLUSIVE" and (one.evidence.low > edge or one.evidence.high < 1.0 / edge)


def _confirmed(first: PairedTime, second: PairedTime) -> PairedTime:
    """The second pass; one that contradicts the first settles nothing, unless it shows no change."""
    detail = "confirmed by a second run"
    if second.verdict == first.verdict:
        return dataclasses.replace(second, detail=detail)
    detail = f"looked {first.verdict} ({first.evidence.ratio:.3f}), not {detail}"
    said: TimeVerdict = "SAME" if second.verdict == "SAME" else "INCONCLUSIVE"
    return dataclasses.replace(second, verdict=said, detail=detail)


def _pass(open_lanes: OpenLanes, works: Sequence[Work], plan: Plan, say: Say) -> tuple[list[PairedTime], list[str]]:
    """Time and judge all cells and the controls; margins are widened by the change of the controls."""
    rounds = measure(open_lanes, [*CONTROLS, *works], plan, say)
    controls, own = rounds[: len(CONTROLS)], rounds[len(CONTROLS) :]
    shifts = [intervals.paired(r, CONTROL_SHIFT - 1.0).ratio for r in controls]
    shift = max(max(ratio, 1.0 / ratio) for ratio in shifts)
    limits = intervals.margins([intervals.noise_floor(r) for r in own])
    if shift > CONTROL_SHIFT:
        limits = [(1.0 + margin) * shift - 1.0 for margin in limits]
    found = [intervals.paired(r, m) for r, m in zip(own, limits, strict=True)]
    timed = []
    for own_rounds, evidence, said in zip(own, found, intervals.verdicts(found), strict=True):
        pairs = [pair for one in own_rounds for pair in one]
        base, head = statistics.median(p.base for p in pairs), statistics.median(p.head for p in pairs)
        timed.append(PairedTime(base, head, evidence, said))
    notes = [
        f"contaminated: {cell['control']}, which contains no bp code, took {ratio:.3f} times as long in the head"
        for cell, ratio in zip(CONTROLS, shifts, strict=True)
        if not 1.0 / CONTROL_SHIFT <= ratio <= CONTROL_SHIFT
    ]
    return timed, notes


def measure(open_lanes: OpenLanes, works: Sequence[Work], plan: Plan, say: Say) -> list[Rounds]:
    """The pairs of each cell by round; every round has fresh processes and its own order of cells."""
    rng = np.random.default_rng(plan.seed)
    found: list[Rounds] = [[] for _ in works]
    for number in range(plan.rounds):
        with open_lanes() as lanes:
            for done, index in enumerate(rng.permutation(len(works))):
                say(f"round {number + 1} of {plan.rounds}, cell {done + 1} of {len(works)}")
                found[index].append(_pairs(lanes, works[index], plan.budget))
    return found


def _pairs(lanes: Lanes, work: Work, budget: float) -> list[Pair]:
    """Pairs until the budget is spent, at least `MIN_PAIRS`."""
    for lane in lanes:
        lane.ask("load", cell=work)
    calls = int(lanes[0].ask("calibrate")["calls"])
    pairs: list[Pair] = []
    spent = 0.0
    while len(pairs) < MIN_PAIRS or (spent < budget and len(pairs) < MAX_PAIRS):
        order = _ORDERS[len(pairs) % len(_ORDERS)]
        blocks: list[list[float]] = [[], [], []]
        for place in (*order, *reversed(order)):
            blocks[place].append(float(lanes[place].ask("run", calls=calls)["seconds"]))
        spent += sum(map(sum, blocks))
        # Geometric means, since ratios are wanted.
        pairs.append(Pair(*(math.sqrt(first * last) / calls for first, last in blocks)))
    return pairs
