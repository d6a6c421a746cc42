"""Two programs timed side by side: blocks in turn, in fresh processes round by round, suspects a second time.

Three lanes run each cell: the base, the head, and a twin of the base. Blocks come in palindromes, A B C C B A with the
lanes in changing places, so that whatever drifts meets all alike. The twin shows how far two processes differ that
run the same code: no change below three times that is claimed. Kernels with none of our code run as cells among the
others; where these move, it was the machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpcli.bench import intervals as evidence
from bpcli.bench.comparison import CONTROL_SHIFT
from bpcli.bench.intervals import Evidence, Pair, TimeVerdict

Cell = Mapping[str, Any]
Rounds = list[list[Pair]]

LEAST_PAIRS, MOST_PAIRS = 5, 200
CONTROLS: tuple[Cell, ...] = ({"control": "gemm"}, {"control": "copy"})
_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


class Lane(Protocol):
    """A process that runs one cell at a time."""

    def load(self, cell: Cell) -> None:
        """Make a cell the one that runs, warm."""

    def calibrate(self) -> int:
        """How many calls of it make a block."""

    def run(self, calls: int) -> float:
        """Seconds that so many calls take, after one that is not timed."""


Lanes = tuple[Lane, Lane, Lane]
Opener = Callable[[], AbstractContextManager[Lanes]]


@dataclass(frozen=True)
class Plan:
    """`rounds` of fresh processes, about `budget` seconds of blocks for a cell in each; `seed` of the cells' order."""

    rounds: int
    budget: float
    seed: int


@dataclass(frozen=True)
class Timed:
    """What was found of one cell: seconds a call of base and head, the evidence, and how often it was measured."""

    base: float
    head: float
    evidence: Evidence
    verdict: TimeVerdict
    detail: str


def suite(
    open_lanes: Opener, cells: Sequence[Cell], plan: Plan, say: Callable[[str], None]
) -> tuple[list[Timed], list[str]]:
    """The cells timed, those that look changed once more in fresh processes; and notes on the machine.

    A change counts when two passes show it; the figures are then those of the second, which was not chosen for them.
    Where the noise of a pass may hide a change, another one takes its place first.
    """
    found, notes = _pass(open_lanes, cells, plan, lambda text: say(f"first pass, {text}"))

    def once_more(wanted: Callable[[Timed], bool], seed: int, name: str) -> list[tuple[int, Timed]]:
        chosen = [i for i, one in enumerate(found) if wanted(one)]
        if not chosen:
            return []
        again = Plan(plan.rounds, plan.budget, seed)
        more, noted = _pass(open_lanes, [cells[i] for i in chosen], again, lambda text: say(f"{name}, {text}"))
        told = {n.partition(",")[0] for n in notes}
        notes.extend(n for n in noted if n.partition(",")[0] not in told)
        return list(zip(chosen, more, strict=True))

    for index, one in once_more(_hidden, plan.seed + 2, "what was too loud"):
        found[index] = one
    for index, one in once_more(_changed, plan.seed + 1, "what changed, again"):
        found[index] = _confirmed(found[index], one)
    return found, notes


def _hidden(one: Timed) -> bool:
    """Whether all of the interval shows a change, and only the margin, which noise made wide, does not."""
    edge = 1.0 + evidence.LEAST_MARGIN
    return one.verdict == "INCONCLUSIVE" and (one.evidence.low > edge or one.evidence.high < 1.0 / edge)


def _changed(one: Timed) -> bool:
    return one.verdict in ("SLOWER", "FASTER")


def _confirmed(first: Timed, second: Timed) -> Timed:
    detail = "confirmed by a second run"
    if second.verdict == first.verdict:
        return Timed(second.base, second.head, second.evidence, second.verdict, detail)
    detail = f"looked {first.verdict} ({first.evidence.ratio:.3f}), not {detail}"
    return Timed(second.base, second.head, second.evidence, _doubtful(second.verdict), detail)


def _doubtful(verdict: TimeVerdict) -> TimeVerdict:
    """A second opinion that contradicts the first settles nothing, unless it is that nothing changed."""
    return "SAME" if verdict == "SAME" else "INCONCLUSIVE"


def _pass(
    open_lanes: Opener, cells: Sequence[Cell], plan: Plan, say: Callable[[str], None]
) -> tuple[list[Timed], list[str]]:
    """All cells and the controls, judged; by what the controls changed, a cell may change too and count as the same."""
    everything = [*CONTROLS, *cells]
    rounds = measure(open_lanes, everything, plan, say)
    controls, own = rounds[: len(CONTROLS)], rounds[len(CONTROLS) :]
    shifts = [evidence.paired(r, CONTROL_SHIFT - 1.0).ratio for r in controls]
    shift = max(max(ratio, 1.0 / ratio) for ratio in shifts)
    limits = evidence.margins([evidence.floor(r) for r in own])
    if shift > CONTROL_SHIFT:
        limits = [(1.0 + margin) * shift - 1.0 for margin in limits]
    found = [evidence.paired(r, m) for r, m in zip(own, limits, strict=True)]
    timed = [
        Timed(_middle(r, "base"), _middle(r, "head"), e, v, "")
        for r, e, v in zip(own, found, evidence.verdicts(found), strict=True)
    ]
    notes = [n for cell, ratio in zip(CONTROLS, shifts, strict=True) if (n := _moved(str(cell["control"]), ratio))]
    return timed, notes


def measure(open_lanes: Opener, cells: Sequence[Cell], plan: Plan, say: Callable[[str], None]) -> list[Rounds]:
    """For each cell and round the pairs; cells come in a new order in each round."""
    rng = np.random.default_rng(plan.seed)
    found: list[Rounds] = [[] for _ in cells]
    for number in range(plan.rounds):
        with open_lanes() as lanes:
            for done, index in enumerate(rng.permutation(len(cells))):
                say(f"round {number + 1} of {plan.rounds}, cell {done + 1} of {len(cells)}")
                found[index].append(_pairs(lanes, cells[index], plan.budget))
    return found


def _pairs(lanes: Lanes, cell: Cell, budget: float) -> list[Pair]:
    """Pairs until the budget is spent, whole turns of the three orders where there is time for them."""
    for lane in lanes:
        lane.load(cell)
    calls = lanes[0].calibrate()
    pairs: list[Pair] = []
    spent = 0.0
    while len(pairs) < LEAST_PAIRS or (spent < budget and len(pairs) < MOST_PAIRS):
        order = _ORDERS[len(pairs) % len(_ORDERS)]
        blocks: list[list[float]] = [[], [], []]
        for place in (*order, *reversed(order)):
            blocks[place].append(lanes[place].run(calls))
        spent += sum(map(sum, blocks))
        # Geometric means, as ratios are what is asked for.
        pairs.append(Pair(*(math.sqrt(first * last) / calls for first, last in blocks)))
    return pairs


def _moved(name: str, ratio: float) -> str:
    """What to say of a kernel with none of our code that is not the same in both programs, "" where it is."""
    if 1.0 / CONTROL_SHIFT <= ratio <= CONTROL_SHIFT:
        return ""
    return f"contaminated: {name}, which has none of bp's code, took {ratio:.3f} of its time in the head"


def _middle(rounds: Rounds, lane: str) -> float:
    seconds = [pair.base if lane == "base" else pair.head for pairs in rounds for pair in pairs]
    return statistics.median(seconds)
