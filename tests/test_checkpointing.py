"""Backpropagation from snapshots: the optimal number of steps, no more snapshots than allowed, the bits of `bptt`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from kernel_cases import RECURRENT, SMALL, SPECS, distance, gradient, problem_of

from bpcli.bench.profiling import allocated_bytes
from bpcli.methods import parse
from bpcli.methods._checkpointed import Action, Counts
from bpcli.methods.base import Gradient, NoOptions
from bpcli.methods.revolve import METHOD, Options, advances, counts, schedule
from bpcli.methods.sqrt import schedule as sqrt_schedule
from bpcli.runtime.trace import Snapshot, Trace
from bpcli.tape import plan

NONE = 10**9


def snapshots(actions: list[Action]) -> int:
    """The most that are alive at a time."""
    alive, most = set[int](), 0
    for action, k in actions:
        alive = alive | {k} if action == "save" else alive - {k} if action == "record" else alive
        most = max(most, len(alive))
    return most


@lru_cache(None)
def fewest(n: int, s: int) -> int:
    """The least number of advances, by trying every place of the next snapshot."""
    if n == 1 or s < 1:
        return 0 if n == 1 else NONE
    return min(m + fewest(n - m, s - 1) + fewest(m, s) for m in range(1, n))


def followed(actions: list[Action], n: int) -> int:
    """The advances of a schedule, each of whose actions is found possible and recordings to go from the last to the
    first."""
    at, saved, count, left = 0, set[int](), 0, n
    for action, k in actions:
        if action == "restore":
            assert k in saved
            at = k
        assert k == at
        if action == "save":
            saved.add(k)
        elif action == "advance":
            at, count = at + 1, count + 1
        elif action == "record":
            left -= 1
            assert k == left
            saved.discard(k)
            at = n  # nothing follows but a restored state
    assert left == 0
    return count


@pytest.mark.parametrize("s", [1, 2, 3, 5, 8])
def test_no_schedule_advances_less(s: int) -> None:
    """For any number of segments; a schedule with a snapshot less advances more, where one is missed."""
    for n in range(1, 45):
        actions = list(schedule(n, Options(s)))
        assert fewest(n, s) == advances(n, s) == followed(actions, n)
        first = sum(action == ("advance", 0) for action in actions)
        assert counts(n, Options(s)) == Counts(fewest(n, s), first, snapshots(actions))
    assert advances(45, s) > advances(45, s + 1)


@pytest.mark.parametrize(("n", "s", "count"), [(14, 3, 27), (100, 10, 222), (1000, 50, 1948)])
def test_the_counts_of_the_paper(n: int, s: int, count: int) -> None:
    """Griewank & Walther's formula, by the schedule itself."""
    assert count == followed(list(schedule(n, Options(s))), n)


def test_a_schedule_that_nobody_can_follow_is_foretold() -> None:
    """One snapshot and 100,000 segments: five thousand million advances."""
    assert 100_000 * 99_999 // 2 == counts(100_000, Options(1)).advances


def test_square_root_advances_once() -> None:
    """Every segment but the last."""
    for n in (1, 2, 7, 30):
        actions = list(sqrt_schedule(n, NoOptions()))
        assert (n - 1, n - 1) == (followed(actions, n), snapshots(actions))


def same(one: Gradient, other: Gradient) -> bool:
    """Whether two have the same bits."""
    return one.loss == other.loss and all(np.array_equal(one.arrays[n], other.arrays[n]) for n in one.arrays)


@pytest.mark.parametrize("wrt", [("params",), ("params", "inputs", "state")])
@pytest.mark.parametrize(("dtype", "batch", "T"), [("float64", 1, 23), ("float64", 3, 20), ("float32", 16, 14)])
@pytest.mark.parametrize("name", RECURRENT)
def test_the_bits_of_bptt(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, batch: int, T: int, wrt: tuple[str, ...]
) -> None:
    """Loss and gradient, where both work on as many steps at a time; to rounding where they do not."""
    problem = problem_of(SPECS / f"{name}.toml", {**SMALL, "T": T, "batch": batch, "dtype": dtype}, wrt)
    whole = gradient(problem, "bptt")
    for method, steps in (
        ("sqrt", 5 - (T < 17)),
        ("revolve:s=1,steps=3", 3),
        ("revolve:s=3", 3),
        ("revolve:s=2,steps=1", 1),
    ):
        for name_, value in (("CHUNK_ROWS", steps * batch), ("LEAST_CHUNK_ROWS", steps * batch), ("CHUNK_ENTRIES", 1)):
            monkeypatch.setattr(plan, name_, value)
        again = problem_of(SPECS / f"{name}.toml", {**SMALL, "T": T, "batch": batch, "dtype": dtype}, wrt)
        found = gradient(again, method)
        assert same(gradient(again, "bptt"), found), method
        assert distance(found.arrays, whole.arrays) < (1e-12 if dtype == "float64" else 2e-5), method


def test_a_stale_snapshot_is_another_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above: snapshots that are not restored."""
    problem = problem_of(SPECS / "vanilla_rnn.toml", {**SMALL, "T": 50, "batch": 3})
    exact = gradient(problem, "bptt")
    restore = Trace.restore

    def zeroed(self: Trace, snapshot: Snapshot) -> None:
        restore(self, Snapshot(snapshot.step, {name: 0 * values for name, values in snapshot.states.items()}))

    monkeypatch.setattr(Trace, "restore", zeroed)
    assert distance(exact.arrays, gradient(problem, "revolve:s=2").arrays) > 1e-3


@pytest.mark.parametrize("method", ["sqrt", "revolve:s=1", "revolve:s=4", "revolve:s=16"])
def test_memory_and_steps_are_as_predicted(method: str) -> None:
    """Allocated bytes within 1%, beside the calls of kernels that a plan keeps; the steps taken forwards, exactly."""
    problem = problem_of(SPECS / "vanilla_rnn.toml", {"n": 96, "T": 1200, "batch": 8})
    call = parse(method)
    call.gradient(problem)
    cost = call.cost(problem.setup)
    assert cost.bytes <= allocated_bytes(lambda: call.gradient(problem)) <= 1.01 * cost.bytes + 200_000
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        forward = Trace.forward
        patch.setattr(Trace, "forward", lambda self, a, b: (taken.append(b - a), forward(self, a, b)))
        call.gradient(problem)
    assert cost.forward_steps == sum(taken)
    assert 1.5 * cost.bytes < parse("bptt").cost(problem.setup).bytes


def test_options() -> None:
    """At least the initial state is kept; a network without a state is refused."""
    with pytest.raises(ValueError, match="s must be at least 1"):
        Options(0)
    assert "backprop" in str(METHOD.refusal(problem_of(SPECS / "classifier.toml", {}).setup.graph))
