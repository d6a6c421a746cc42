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

from bpcli.benching import evidence
from bpcli.benching.comparable import CONTROL_SHIFT
from bpcli.benching.evidence import Evidence, Pair, TimeVerdict

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

    A change counts when both passes show it; the figures are then those of the second, which was not chosen for them.
    """
    found, notes = _pass(open_lanes, cells, plan, lambda text: say(f"pass 1, {text}"))
    suspects = [i for i, one in enumerate(found) if one.verdict in ("SLOWER", "FASTER")]
    if not suspects:
        return found, notes
    again = Plan(plan.rounds, plan.budget, plan.seed + 1)
    second, more = _pass(open_lanes, [cells[i] for i in suspects], again, lambda text: say(f"pass 2, {text}"))
    for index, one in zip(suspects, second, strict=True):
        found[index] = _confirmed(found[index], one, bool(more))
    told = {n.partition(",")[0] for n in notes}
    return found, notes + [n for n in more if n.partition(",")[0] not in told]


def _confirmed(first: Timed, second: Timed, moved: bool) -> Timed:
    if second.verdict != first.verdict:
        detail = f"looked {first.verdict} ({first.evidence.ratio:.3f}), not confirmed by a second run"
        return Timed(second.base, second.head, second.evidence, _doubtful(second.verdict), detail)
    if moved:
        return Timed(second.base, second.head, second.evidence, "INCONCLUSIVE", "contaminated")
    return Timed(second.base, second.head, second.evidence, second.verdict, "confirmed by a second run")


def _doubtful(verdict: TimeVerdict) -> TimeVerdict:
    """A second opinion that contradicts the first settles nothing, unless it is that nothing changed."""
    return "SAME" if verdict == "SAME" else "INCONCLUSIVE"


def _pass(
    open_lanes: Opener, cells: Sequence[Cell], plan: Plan, say: Callable[[str], None]
) -> tuple[list[Timed], list[str]]:
    """All cells and the controls, judged."""
    everything = [*CONTROLS, *cells]
    rounds = measure(open_lanes, everything, plan, say)
    controls, own = rounds[: len(CONTROLS)], rounds[len(CONTROLS) :]
    limits = evidence.margins([evidence.floor(r) for r in own])
    found = [evidence.paired(r, m) for r, m in zip(own, limits, strict=True)]
    timed = [
        Timed(_middle(r, "base"), _middle(r, "head"), e, v, "")
        for r, e, v in zip(own, found, evidence.verdicts(found), strict=True)
    ]
    notes = [n for cell, r in zip(CONTROLS, controls, strict=True) if (n := _moved(str(cell["control"]), r))]
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


def _moved(name: str, rounds: Rounds) -> str:
    """What to say of a kernel with none of our code that is not the same in both programs, "" where it is."""
    ratio = evidence.paired(rounds, CONTROL_SHIFT - 1.0).ratio
    if 1.0 / CONTROL_SHIFT <= ratio <= CONTROL_SHIFT:
        return ""
    return f"contaminated: {name}, which has none of bp's code, took {ratio:.3f} of its time in the head"


def _middle(rounds: Rounds, lane: str) -> float:
    seconds = [pair.base if lane == "base" else pair.head for pairs in rounds for pair in pairs]
    return statistics.median(seconds)
