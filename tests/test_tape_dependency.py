"""Where RTRL leaves products out: what is called zero is zero in the loops' M̄, and the operations are counted so."""

from __future__ import annotations

from pathlib import Path

import naive
import numpy as np
import pytest
from kernel_cases import RECURRENT, SMALL, SPECS, distance, gradient, loops, problem_of, written

from bpcli.problem.definition import Problem
from bpcli.runtime import forward_mode
from bpcli.tape import dependency


def bands(problem: Problem) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each parameter that reaches a state, with the rows low..high of its columns of M̄."""
    plan = forward_mode.rtrl_plan(problem.setup)
    columns, nodes = plan.structure.columns(0, plan.parameters), plan.graph.nodes
    return [
        (nodes[s.node].name, columns.low[s.start : s.start + s.columns], columns.high[s.start : s.start + s.columns])
        for s in plan.column_spans
        if nodes[s.node].op == "param"
    ]


@pytest.mark.parametrize("name", RECURRENT)
def test_rows_beside_the_bands_are_zero(name: str) -> None:
    """No entry of M̄ lies outside its column's band, and where a band is no more than one row that row is reached."""
    problem = problem_of(SPECS / f"{name}.toml", SMALL, ("params",))
    spec, arrays = problem.setup.spec, loops(problem)
    entries = naive.parameters(spec, arrays)
    found = sum(np.abs(naive.immediate(spec, arrays, t, b)) for t in range(3) for b in range(2))
    checked = 0
    for parameter, low, high in bands(problem):
        own = found[:, [i for i, (owner, _) in enumerate(entries) if owner == parameter]]
        rows = np.arange(len(own))[:, None]
        assert not own[(rows < low) | (rows >= high)].any(), parameter
        single = high - low == 1
        assert (own[low[single], np.flatnonzero(single)] != 0).all(), parameter
        checked += own.shape[1]
    assert checked > 0


@pytest.mark.parametrize(
    ("equation", "width"),
    [
        ("tanh(W @ a[t-1] + b)", 1),
        ("tanh(W.T @ a[t-1] + b)", 1),
        ("concat(tanh(W @ a[t-1])[2:4], b[0:2])", 1),
        ("softmax(W @ a[t-1] + b)", 4),
        ("a[t-1] * sum(W @ a[t-1] + b)", 4),
    ],
)
def test_bands_of_operations(tmp_path, equation: str, width: int) -> None:
    """Elementwise functions, slices and concatenation keep a column to one row, reductions do not; RTRL is BPTT."""
    text = f"""bp = 1
inputs = {{ x = [4] }}
state = {{ a = [4] }}
params = {{ W = [4, 4], b = [4] }}
data = {{ T = 5, batch = 2 }}
[equations]
a = "{equation} + x"
loss = "sum(a**2)"
"""
    problem = written(tmp_path, text)
    widths = {int(w) for name, low, high in bands(problem) for w in np.maximum(high - low, 0)}
    assert max(widths) == width
    assert distance(gradient(problem, "rtrl").arrays, gradient(problem, "bptt").arrays) < 1e-12


def test_products_that_are_left_out() -> None:
    """M(1) = M̄ takes no product, M(2) one with a row a column, and nothing needs M(T); q M from the second step on,
    and q J M for M(T-1)."""
    for steps, full, single, credits in ((1, 0, 0, 0), (2, 0, 0, 1), (3, 0, 0, 3), (4, 0, 1, 4), (20, 16, 1, 20)):
        setup = problem_of(SPECS / "vanilla_rnn.toml", {"n": 6, "n_in": 2, "T": steps, "batch": 3}, ("params",)).setup
        plan, N, P = forward_mode.rtrl_plan(setup), 6, 6 * 6 + 6 * 2 + 6
        assert 3 * 2 * N * P * (full * N + single + credits) == plan.flops


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("wrt", [("params",), ("params", "inputs", "state")])
def test_columns_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, name: str, wrt: tuple[str, ...]) -> None:
    """However many are looked at at a time, panels and operations are the same; those of large nodes are a bound."""
    setup = problem_of(SPECS / f"{name}.toml", SMALL, wrt).setup
    plan = forward_mode.rtrl_plan(setup)
    panels, flops = plan.structure.panels(8), plan.structure.flops(False)
    monkeypatch.setattr(dependency, "BLOCK", 8)
    assert np.array_equal(panels, plan.structure.panels(8))
    assert flops == plan.structure.flops(False)
    monkeypatch.setattr(dependency, "MOST_LOOKED_AT", 1)
    assert flops <= plan.structure.flops(False)


@pytest.mark.parametrize(("count", "kept"), [(64, 64), (65, None)])
def test_many_shifts_are_any(tmp_path, count: int, kept: int | None) -> None:
    """Of joins that reach a state at very many places no list is made; places beyond the state are none."""
    joins = ", ".join(["b"] * count)
    text = f"""bp = 1
inputs = {{ x = [1] }}
state = {{ a = [{count}] }}
params = {{ b = [1], c = [1] }}
[equations]
a = "concat({joins}) + concat(x, a[t-1], c)[0:{count}]"
loss = "sum(a)"
"""
    graph = written(tmp_path, text).setup.graph
    reach = dependency.shifts(graph)
    shifts = {graph.nodes[n].name: by for n, by in reach.items()}
    assert kept == (None if shifts["b"] is None else len(shifts["b"]))
    assert not shifts["c"], "c stands behind the end of the slice"


@pytest.mark.parametrize("most", [1, 3])
def test_products_where_the_last_step_is_a_chunk(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Then M(T-1) stands there already."""
    monkeypatch.setattr(forward_mode, "MOST_STEPS", most)
    problem = problem_of(SPECS / "vanilla_rnn.toml", {"n": 6, "n_in": 2, "T": 4, "batch": 1}, ("params",))
    plan, N, P = forward_mode.rtrl_plan(problem.setup), 6, 6 * 6 + 6 * 2 + 6
    assert most == plan.chunk
    assert 2 * N * P * (N + 1 + 3) == plan.flops
    assert distance(gradient(problem, "rtrl").arrays, gradient(problem, "bptt").arrays) < 1e-12


@pytest.mark.parametrize(
    ("wrt", "births", "per_column"),
    [
        (("state",), [-1] * 6, 6 * (5 + 1 + 6)),
        (("inputs",), [0, 0, 1, 1, 2, 2, 3, 3], 2 * ((4 + 6) + 3 + 1)),
    ],
)
def test_products_with_states_and_inputs(wrt: tuple[str, ...], births: list[int], per_column: int) -> None:
    """An initial state is there from the start; an input's columns begin with its step, and reach every row."""
    plan = forward_mode.rtrl_plan(
        problem_of(SPECS / "vanilla_rnn.toml", {"n": 6, "n_in": 2, "T": 4, "batch": 1}, wrt).setup
    )
    assert births == list(plan.structure.columns(0, plan.parameters).birth)
    assert 2 * 6 * per_column == plan.flops


def test_an_input_that_a_slice_leaves_out(tmp_path: Path) -> None:
    """It reaches no row of the state, and its gradient is zero."""
    text = """bp = 1
[inputs]
x = []
[params]
p = []
[state]
a = [1]
[equations]
a = "concat(p * sum(a[t-1]) + 1, x)[0:1]"
loss = "sum(a)"
[data]
T = 3
"""
    problem = written(tmp_path, text)
    arrays = gradient(problem, "rtrl").arrays
    assert not arrays["x"].any()
    assert arrays["p"].any()
    assert distance(arrays, gradient(problem, "bptt").arrays) < 1e-12
