"""Batched windows of truncated BPTT: the same numbers as one after another, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bpcli.kernels import reverse as reverse_kernel
from bpcli.methods import parse
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.runtime.jobs import Call
from bpcli.runtime.reverse_mode import Unrolled, staircase
from bpcli.runtime.trace import Disturbance

SPECS = Path(__file__).parents[1] / "specs"
RECURRENT = ("vanilla_rnn", "leaky_rnn", "gru", "lstm", "stacked_rnn", "lru", "indrnn", "masked_rnn")
EVERYTHING = ("params", "inputs", "state")


def problem_of(name: str, wrt: tuple[str, ...], **dims: int) -> Problem:
    """A recurrent spec with 70 steps, several blocks of windows."""
    return draw(open_setup(SPECS / f"{name}.toml", {"T": 70, "batch": 2, **dims}, wrt, Limits()))


def one_after_another(problem: Problem, k1: int, k2: int, rounding: bool = False) -> tuple[float, dict]:
    """The gradient without blocks."""
    plan = Unrolled(problem.setup, staircase(problem.setup.T, k1, k2))
    plan.__dict__["batched"] = None
    return plan.gradient(problem, rounding)


def distance(left: dict, right: dict) -> float:
    """The largest difference, relative to each array's largest entry."""
    return max(float(np.abs(left[x] - right[x]).max() / (np.abs(right[x]).max() or 1)) for x in right)


@pytest.mark.parametrize("wrt", [EVERYTHING, ("params", "state")])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 5), (3, 7), (4, 4), (8, 40)])
@pytest.mark.parametrize("name", RECURRENT)
def test_side_by_side(name: str, k1: int, k2: int, wrt: tuple[str, ...]) -> None:
    """Every recurrent spec, with a shorter last window, windows that reach the first step, and several blocks."""
    problem = problem_of(name, wrt)
    plan = Unrolled(problem.setup, staircase(70, k1, k2))
    assert plan.batched is not None
    loss, found = plan.gradient(problem)
    want_loss, want = one_after_another(problem, k1, k2)
    assert distance(found, want) < 1e-12
    assert abs(loss - want_loss) <= 1e-13 * abs(want_loss)
    assert k2 > 8 or distance(one_after_another(problem, k1, k2 + 1)[1], want) > 1e-9


@pytest.mark.parametrize("name", ["vanilla_rnn", "lstm"])
def test_absolute_contributions(name: str) -> None:
    """Sums of absolute contributions pass through blocks as gradients do."""
    problem = problem_of(name, EVERYTHING)
    plan = Unrolled(problem.setup, staircase(70, 2, 6))
    assert distance(plan.gradient(problem, rounding=True)[1], one_after_another(problem, 2, 6, True)[1]) < 1e-12


@pytest.mark.parametrize("method", ["tbptt:k1=1,k2=16", "ebptt:tau=8"])
def test_any_number_of_threads(method: str, threads) -> None:  # type: ignore[no-untyped-def]
    """Bitwise the same."""
    problem = problem_of("vanilla_rnn", ("params",), n=64)
    answers = []
    for count in (1, 2):
        threads(count)
        answers.append(parse(method).gradient(problem).arrays)
    assert all(np.array_equal(answers[0][x], answers[1][x]) for x in answers[0])


@pytest.mark.parametrize(("batch", "k2", "blocks"), [(2, 8, True), (64, 8, False), (2, 2000, False)])
def test_where_it_pays(batch: int, k2: int, blocks: bool) -> None:
    """Many samples fill products by themselves, and long windows are not held several at a time."""
    setup = open_setup(SPECS / "vanilla_rnn.toml", {"T": 3000, "batch": batch}, ("params",), Limits())
    assert blocks == (Unrolled(setup, staircase(3000, 1, k2)).batched is not None)


def test_simulated_rounding_disturbs_every_step_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reverse call is disturbed, also in batched windows, which step through time outside `Trace.reverse`."""
    disturbed = []
    run = Call.run

    def noted(call: Call, values: NDArray[Any], address: int) -> None:
        if call.name == "reverse":
            disturbed.append(bool(call.jobs[:, reverse_kernel.DISTURBANCE].all()))
        run(call, values, address)

    monkeypatch.setattr(Call, "run", noted)
    problem = problem_of("vanilla_rnn", ("params",))
    Unrolled(problem.setup, staircase(70, 1, 5)).gradient(problem, disturbance=Disturbance(1e-10, 0))
    assert len(disturbed) > 5
    assert all(disturbed)
