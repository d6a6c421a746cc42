"""What samples of time say: tests against tables, and suites of simulated machines, some thousands of cells."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from bpcli.bench import pairing
from bpcli.bench.intervals import (
    MIN_MARGIN,
    UNPAIRED_MARGIN,
    Evidence,
    Pair,
    holm,
    interval,
    margins,
    noise_floor,
    paired,
    rank_tail,
    ratio,
    sign_tail,
    unpaired,
    unpaired_margin,
    verdicts,
)
from bpcli.bench.pairing import CONTROLS, MIN_PAIRS, PairedTime, Plan, measure, suite
from bpcli.bench.worker import Session


def test_a_ratio_is_that_of_pairs():
    """The median of their logarithms, and its interval."""
    assert pytest.approx((2.5, 2.5, 2.5)) == ratio([0.05, 0.1, 0.2], [0.02, 0.04, 0.08])


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (100, 40), (5000, 2431)]
)
def test_the_interval_is_that_of_the_order_statistics(n, k):
    """Ranks as in tables of the sign test; the range where there are too few samples."""
    assert (k, n - k + 1) == interval(range(1, n + 1))


def test_the_interval_covers_the_median_as_often_as_it_says():
    """Skewed samples, 2000 times: 95% and not much less cover ln 2, the median of an exponential."""
    rng = np.random.default_rng(3)
    hits = 0
    for sample in rng.exponential(size=(2000, 15)):
        low, high = interval(sample.tolist())
        hits += low <= math.log(2.0) <= high
    assert 0.95 - 0.01 <= hits / 2000 <= 0.98


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], []), ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.5, 0.9], [1.0, 1.0]), ([0.2, 0.001], [0.2, 0.002])],
)
def test_holm_steps_down(given, expected):
    """The smallest p-value times how many there are, the next one times one less, never less than before."""
    assert expected == pytest.approx(holm(given))


@pytest.mark.parametrize(
    ("count", "n", "expected"), [(0, 7, 1.0), (7, 7, 1 / 128), (6, 7, 8 / 128), (4, 7, 0.5), (3000, 5000, 0.0)]
)
def test_tails_of_the_sign_test(count, n, expected):
    """As counted by hand; large numbers neither overflow nor come out negative."""
    assert expected == pytest.approx(sign_tail(count, n), abs=1e-12)


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [
        ([3, 4], [1, 2], 1 / 6),
        ([2, 4], [1, 3], 2 / 6),
        ([1, 2], [3, 4], 1.0),
        (list(range(7, 14)), list(range(7)), 1 / math.comb(14, 7)),
        ([1, 2, 3], [1, 2, 3], 13 / 20),
    ],
)
def test_tails_of_the_rank_test(top, bottom, expected):
    """P(U >= u) from all orders of so few numbers."""
    assert expected == pytest.approx(rank_tail(top, bottom))


def test_the_rank_test_is_the_same_for_many_as_for_few():
    """Where the normal distribution takes over it says what the exact one does."""
    top, bottom = np.random.default_rng(0).normal(size=(2, 21))
    for shift in (-0.5, 0.0, 0.5, 1.0):
        exact = mannwhitneyu(top + shift, bottom, alternative="greater", method="exact").pvalue
        assert exact == pytest.approx(rank_tail((top + shift).tolist(), bottom.tolist()), abs=3e-3)


@pytest.mark.parametrize(
    ("low", "high", "chance", "expected"),
    [
        (1.06, 1.20, 1e-6, "SLOWER"),
        (1.06, 1.20, 0.20, "INCONCLUSIVE"),
        (1.04, 1.20, 1e-6, "INCONCLUSIVE"),
        (0.96, 1.04, 1.0, "SAME"),
        (0.94, 1.04, 1.0, "INCONCLUSIVE"),
        (0.80, 0.90, 1e-6, "FASTER"),
        (0.80, 0.96, 1e-6, "INCONCLUSIVE"),
    ],
)
def test_verdicts_need_the_whole_interval_and_the_test(low, high, chance, expected):
    """A margin of 5%: 1.05 above, 1/1.05 below."""
    found = Evidence(math.sqrt(low * high), low, high, 0.05, chance, chance)
    assert [expected] == verdicts([found])


def test_a_loud_machine_does_not_say_same():
    """A margin of 25% and an interval from 6% to 17%: that is a change, of which no more is known."""
    assert ["INCONCLUSIVE", "SAME"] == verdicts(
        [Evidence(1.12, 1.06, 1.17, 0.25, 1.0, 1.0), Evidence(1.10, 1.04, 1.17, 0.25, 1.0, 1.0)]
    )


def test_a_claim_among_many_needs_more():
    """What convinces alone does not among a hundred cells."""
    one = Evidence(1.1, 1.06, 1.2, 0.05, 0.01, 1.0)
    none = Evidence(1.0, 0.99, 1.01, 0.05, 1.0, 1.0)
    assert "SLOWER" == verdicts([one])[0]
    assert "INCONCLUSIVE" == verdicts([one, *[none] * 99])[0]


def test_nothing_is_the_same_on_a_machine_that_is_too_loud():
    """A margin of 90% would hold almost any interval; one of a fourth is the widest that says something."""
    assert ["INCONCLUSIVE", "SAME"] == verdicts(
        [Evidence(1.1, 0.95, 1.8, 0.9, 1.0, 1.0), Evidence(1.0, 0.95, 1.2, 0.25, 1.0, 1.0)]
    )


def test_the_margin_is_what_twins_differ_by():
    """Three standard deviations of a mean of rounds, 5% at least, and no cell quieter than is usual."""
    rounds = [[Pair(1.0, 1.0, math.exp(0.04 * sign))] * 5 for sign in (1, -1, 1, -1)]
    assert 0.02 == pytest.approx(noise_floor(rounds))
    loud, usual, quiet = margins([0.10, 0.03, 0.0])
    assert math.expm1(0.30) == pytest.approx(loud)
    assert math.expm1(0.09) == pytest.approx(usual) == pytest.approx(quiet)
    assert [MIN_MARGIN] == margins([0.001])


def test_saved_runs_are_judged_by_wider_margins():
    """10% at least, and what the cells scatter by; a change of all together is none of that."""
    assert UNPAIRED_MARGIN == unpaired_margin([1.0, 3.0])
    assert UNPAIRED_MARGIN == unpaired_margin([2.0, 2.0, 2.0, 2.01])
    assert unpaired_margin([0.7, 1.0, 1.4, 0.8, 1.3]) > 0.5


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "SAME"), (1.5, "SLOWER"), (1 / 1.5, "FASTER"), (1.1, None)])
def test_two_saved_runs(factor, expected):
    """Fifteen samples with a scatter of 2%; a tenth more is at the margin and must not be called the same or slower."""
    rng = np.random.default_rng(5)
    base, head = rng.lognormal(0.0, 0.02, size=(2, 15))
    assert (expected or "INCONCLUSIVE") == verdicts([unpaired(base.tolist(), (factor * head).tolist(), 0.10)])[0]


class Machine:
    """A machine of which processes differ, speed drifts, and blocks are disturbed, as on a shared runner."""

    def __init__(self, seed: int, effects: Sequence[float], process: float = 0.01, noise: float = 0.03) -> None:
        self.rng = np.random.default_rng(seed)
        self.effects, self.process, self.noise = effects, process, noise
        self.drift, self.opened, self.loads = 0.0, 0, 0
        self.disturbances = self._disturbances()

    def _disturbances(self) -> Iterator[tuple[float, float, float]]:
        """Of each block: by how much the machine drifts, what bursts in, and noise; drawn by the thousand."""
        while True:
            bursts = np.where(self.rng.random(1000) < 0.05, 1.5, 1.0)
            drifts, noises = self.rng.normal(0.0, 0.005, 1000), self.rng.normal(0.0, self.noise, 1000)
            yield from zip(drifts.tolist(), bursts.tolist(), noises.tolist(), strict=True)

    @contextlib.contextmanager
    def lanes(self) -> Iterator[tuple[SimulatedLane, SimulatedLane, SimulatedLane]]:
        """Three fresh processes, the second one the head."""
        self.opened += 1
        yield SimulatedLane(self, False), SimulatedLane(self, True), SimulatedLane(self, False)


class SimulatedLane:
    """A process: each cell has a speed of its own there."""

    def __init__(self, machine: Machine, head: bool) -> None:
        self.machine, self.head = machine, head
        self.seconds = 0.0

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        found = getattr(self, do)(**fields)
        return {"calls": found, "seconds": found}

    def load(self, cell: Mapping[str, object]) -> None:
        machine = self.machine
        machine.loads += 1
        effect = machine.effects[int(str(cell["number"]))] if self.head and "number" in cell else 1.0
        self.seconds = 1e-3 * effect * math.exp(machine.rng.normal(0.0, machine.process))

    def calibrate(self) -> int:
        return 10

    def run(self, calls: int) -> float:
        machine = self.machine
        drift, burst, noise = next(machine.disturbances)
        machine.drift = 0.99 * machine.drift + drift
        return calls * self.seconds * burst * math.exp(machine.drift + noise)


def simulate(seed: int, effects: Sequence[float], rounds: int = 8, **more: float) -> list[PairedTime]:
    """A suite on a simulated machine."""
    machine = Machine(seed, effects, **more)
    cells = [{"number": i} for i in range(len(effects))]
    return suite(machine.lanes, cells, Plan(rounds, 0.5, seed), lambda text: None)[0]


@pytest.mark.parametrize("more", [{}, {"process": 0.03, "noise": 0.10}, {"process": 0.0, "noise": 0.005}])
def test_fifty_suites_of_nothing_but_noise_show_nothing(more):
    """Twenty cells each, on a quiet, a usual and a bad machine: no SLOWER and no FASTER in 1000 cells."""
    found = [one.verdict for seed in range(50) for one in simulate(seed, [1.0] * 20, **more)]
    assert {"SLOWER", "FASTER"} & set(found) == set()
    assert found.count("SAME") > 0.8 * len(found)


def test_a_tenth_is_found_and_nothing_else():
    """One of six cells takes 10% more: found in 19 of 20 suites at least, confirmed, and the interval holds it."""
    suites = [simulate(100 + seed, [1.0, 1.0, 1.10, 1.0, 1.0, 1.0]) for seed in range(20)]
    assert sum(found[2].verdict == "SLOWER" for found in suites) >= 19
    assert {"SLOWER"} & {one.verdict for found in suites for i, one in enumerate(found) if i != 2} == set()
    for found in suites:
        if found[2].verdict == "SLOWER":
            assert "confirmed by a second run" == found[2].detail
            assert found[2].evidence.low > 1.0 + found[2].evidence.margin


def test_a_tenth_less_is_found_too():
    """The same the other way round."""
    suites = [simulate(300 + seed, [1.0, 1 / 1.12, 1.0]) for seed in range(20)]
    assert sum(found[1].verdict == "FASTER" for found in suites) >= 18


def test_a_twentieth_is_never_confirmed_without_evidence():
    """5% is at the margin: hardly ever SLOWER, and where it is, the whole interval lies above 5%."""
    suites = [simulate(500 + seed, [1.05, 1.0, 1.0, 1.05]) for seed in range(60)]
    slower = [one for found in suites for one in found if one.verdict == "SLOWER"]
    assert len(slower) <= 3
    assert all(one.evidence.low > 1.05 for one in slower)


@pytest.fixture
def slow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of the head take 20% more, for controls too."""
    load = SimulatedLane.load

    def slow(self: SimulatedLane, cell: Mapping[str, object]) -> None:
        load(self, cell)
        self.seconds *= 1.2 if self.head else 1.0

    monkeypatch.setattr(SimulatedLane, "load", slow)


@pytest.mark.usefixtures("slow_head")
def test_a_slow_machine_is_not_a_slow_head():
    """A head whose processes are all slower by 20%, controls too, is told as contaminated and not as SLOWER."""
    machine = Machine(1, [1.0, 1.0])
    found, notes = suite(machine.lanes, [{"number": 0}, {"number": 1}], Plan(5, 0.5, 1), lambda text: None)
    assert ["INCONCLUSIVE"] * 2 == [one.verdict for one in found]
    assert ["contaminated: gemm", "contaminated: copy"] == [n.partition(",")[0] for n in notes]


@pytest.mark.usefixtures("slow_head")
def test_a_head_twice_as_slow_is_found_on_a_machine_that_is_not_the_same():
    """Controls that take 20% more, cells that take 120% more: what controls show is taken off, the rest is told."""
    machine = Machine(1, [2.0, 1.0])
    found, notes = suite(machine.lanes, [{"number": 0}, {"number": 1}], Plan(5, 0.5, 1), lambda text: None)
    assert ["SLOWER", "INCONCLUSIVE"] == [one.verdict for one in found]
    assert found[0].evidence.margin > 0.2 and len(notes) == 2


def test_a_change_that_noise_may_hide_is_looked_at_again():
    """Four rounds on a loud machine: what one pass cannot tell of 30% the next one often can, and two confirm it."""
    said: list[str] = []
    found = []
    for seed in range(20):
        machine = Machine(900 + seed, [1.0, 1.3], process=0.05)
        timed, _ = suite(machine.lanes, [{"number": 0}, {"number": 1}], Plan(4, 0.5, seed), said.append)
        found.append(timed[1].verdict)
        assert timed[0].verdict not in ("SLOWER", "FASTER")
    assert any(text.startswith("noisy cells again") for text in said)
    assert found.count("SLOWER") >= 15


def test_processes_are_fresh_and_suspects_alone_are_run_again():
    """Five rounds of two controls and three cells, then five of the controls and the one that looked slower."""
    machine = Machine(2, [1.0, 1.5, 1.0])
    suite(machine.lanes, [{"number": i} for i in range(3)], Plan(5, 0.1, 0), lambda text: None)
    assert (5 + 5, 3 * 5 * (2 + 3) + 3 * 5 * (2 + 1)) == (machine.opened, machine.loads)
    machine = Machine(2, [1.0, 1.0, 1.0])
    suite(machine.lanes, [{"number": i} for i in range(3)], Plan(5, 0.1, 0), lambda text: None)
    assert (5, 3 * 5 * (2 + 3)) == (machine.opened, machine.loads)


def test_blocks_are_palindromes_in_changing_order():
    """Each lane runs as often as the others in every place; drift meets all alike."""
    log: list[int] = []

    class Noted(SimulatedLane):
        number = 0

        def run(self, calls: int) -> float:
            log.append(self.number)
            return super().run(calls)

    class NotedMachine(Machine):
        @contextlib.contextmanager
        def lanes(self) -> Iterator[tuple[SimulatedLane, SimulatedLane, SimulatedLane]]:
            three = Noted(self, False), Noted(self, True), Noted(self, False)
            for number, lane in enumerate(three):
                lane.number = number
            yield three

    (rounds,) = measure(NotedMachine(0, [1.0]).lanes, [{"number": 0}], Plan(1, 1e-9, 0), lambda text: None)
    assert MIN_PAIRS == len(rounds[0])
    turns = [tuple(log[i : i + 6]) for i in range(0, 18, 6)]
    assert [(0, 1, 2, 2, 1, 0), (1, 2, 0, 0, 2, 1), (2, 0, 1, 1, 0, 2)] == turns


def test_a_straight_drift_cancels():
    """A machine that slows down evenly from block to block shows no difference at all, but for the geometric mean."""

    class Slowing(Machine):
        now = 0.0

    class Even(SimulatedLane):
        def run(self, calls: int) -> float:
            self.machine.now += 1e-3  # type: ignore[attr-defined]
            return calls * 1e-3 * math.exp(self.machine.now)  # type: ignore[attr-defined]

    machine = Slowing(0, [1.0])
    pairs = pairing._pairs(tuple(Even(machine, h) for h in (False, True, False)), {"number": 0}, 0.5)  # type: ignore[arg-type]
    assert [0.0] * len(pairs) == pytest.approx([p.change for p in pairs], abs=1e-12)
    assert 1.0 == pytest.approx(paired([pairs], 0.05).ratio)


def test_controls_are_none_of_our_code():
    """Two of them, known by name to the processes."""
    session = Session()
    assert [{}, {}] == [session.answer({"do": "load", "cell": cell}) for cell in CONTROLS]
