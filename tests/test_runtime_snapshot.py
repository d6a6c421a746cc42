"""Snapshots of a forward recurrence: a run restored from one gives the bits of the run that it was taken from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_cases import RECURRENT, SMALL, SPECS, problem_of

from bpcli.problem.definition import Problem
from bpcli.runtime.trace import Snapshot, Trace
from bpcli.tape.plan import make_plan

T, MIDDLE, WINDOW = 9, 5, 6


def trace_of(problem: Problem, steps: int) -> Trace:
    """A trace that holds so many steps, for a forward and a reverse pass."""
    setup, graph = problem.setup, problem.setup.graph
    leaves = [graph.leaf[x.name] for x in setup.wrt if x.name in graph.leaf and x.kind != "state"]
    plan = make_plan(graph, leaves, setup.batch, steps, [graph.loss, *graph.new.values()])
    return Trace(plan, setup.dtype, problem.arrays)


def run(trace: Trace, first: int, last: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The losses of some steps, and their gradient by leaf; what came before them is a constant."""
    losses = []
    for t in range(first, last):
        trace.forward(t, t + 1)
        losses.append(trace.losses(t, t + 1).copy())
    for t in reversed(range(first, last)):
        trace.reverse(t, t + 1, np.ones((1, losses[0].shape[1])), fresh=t == last - 1)
    return np.concatenate(losses), trace.finish()


def same(one: tuple[np.ndarray, dict[int, np.ndarray]], other: tuple[np.ndarray, dict[int, np.ndarray]]) -> bool:
    """Whether losses and gradients have the same bits."""
    return bool((one[0] == other[0]).all()) and all(np.array_equal(one[1][n], other[1][n]) for n in one[1])


def taken(problem: Problem, step: int) -> tuple[Trace, Snapshot]:
    """A trace after `step` steps, and its snapshot of the state that enters the next."""
    trace = trace_of(problem, T)
    trace.start()
    for t in range(step):
        trace.forward(t, t + 1)
    return trace, trace.snapshot(step)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_restored_run_has_the_same_bits(name: str, dtype: str, batch: int) -> None:
    """In a trace of its own, of fewer steps; not with the state of another step, nor with one state changed."""
    problem = problem_of(SPECS / f"{name}.toml", {**SMALL, "T": T, "batch": batch, "dtype": dtype}, ("params",))
    trace, snapshot = taken(problem, MIDDLE)
    assert (snapshot.step, set(snapshot.states)) == (MIDDLE, set(problem.setup.graph.previous))
    whole = run(trace, MIDDLE, T)

    def restored(state: Snapshot) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        fresh = trace_of(problem, WINDOW)
        fresh.restore(state)
        return run(fresh, MIDDLE, T)

    assert same(whole, restored(snapshot))
    assert not same(whole, restored(replace(taken(problem, MIDDLE - 1)[1], step=MIDDLE)))
    for state, values in snapshot.states.items():
        assert not same(whole, restored(replace(snapshot, states={**snapshot.states, state: values * 1.5}))), state


def test_the_first_snapshot_is_the_initial_state() -> None:
    """Of every sample, where the spec has one for all; a copy, which the passes that follow leave alone."""
    problem = problem_of(SPECS / "lstm.toml", {**SMALL, "T": T})
    trace, snapshot = taken(problem, 0)
    before = {name: values.copy() for name, values in snapshot.states.items()}
    for name, values in problem.state.items():
        assert (before[name] == values.reshape(-1, before[name].shape[1])).all()
    run(trace, 0, T)
    assert all((snapshot.states[name] == values).all() for name, values in before.items())


def test_a_snapshot_after_a_slide() -> None:
    """Steps count from the beginning of the sequence, not of the window."""
    problem = problem_of(SPECS / "gru.toml", {**SMALL, "T": T})
    _, expected = taken(problem, MIDDLE)
    trace = trace_of(problem, 2)
    trace.start()
    for t in range(MIDDLE):
        if t >= 2:
            trace.slide(1)
        trace.forward(t, t + 1)
    assert all((trace.snapshot(MIDDLE).states[n] == values).all() for n, values in expected.states.items())
