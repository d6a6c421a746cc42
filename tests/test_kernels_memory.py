"""Work cut into chunks, shards, lanes, sliding windows and blocks: the same gradient; and memory as predicted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import RECURRENT, SMALL, SPECS, Array, Words, distance, expected, gradient, problem_of, small, written

from bpcli.bench.profiling import allocated_bytes
from bpcli.methods import parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem
from bpcli.runtime import forward_mode, schedule, trace
from bpcli.runtime import reverse_mode as unrolled
from bpcli.runtime.trace import MEMORY
from bpcli.tape import instructions as rows
from bpcli.tape import layout, plan
from bpcli.tape import layout as matrices

CUTS: dict[str, dict[object, dict[str, float]]] = {
    "chunks": {plan: {"CHUNK_ROWS": 4}},
    "chunks of one step": {plan: {"CHUNK_ROWS": 1}},
    "shards": {plan: {"SHARD_ROWS": 2}},
    "a step's phases together": {plan: {"STEPWISE_ROWS": 1}},
    "short chunks of these": {plan: {"STEPWISE_ROWS": 1, "SHARD_ROWS": 2, "CHUNK_ENTRIES": 160, "LEAST_CHUNK_ROWS": 1}},
    "single steps of these": {plan: {"STEPWISE_ROWS": 1, "SHARD_ROWS": 2, "CHUNK_ENTRIES": 1, "LEAST_CHUNK_ROWS": 1}},
    "matrices by rows": {
        plan: {"STEPWISE_ROWS": 1, "SHARD_ROWS": 2, "TASK_ROWS": 1, "LANE_FLOPS": 1.0},
        layout: {"LANE_ENTRIES": 3},
    },
    "lanes": {plan: {"LANE_FLOPS": 1.0, "LANE_ROWS": 1, "TASK_ROWS": 1}},
    "slides": {unrolled: {"SLACK": 1}},
    "slides by chunks": {unrolled: {"SLACK": 1}, plan: {"CHUNK_ROWS": 4}},
    "blocks": {forward_mode: {"BLOCK_ENTRIES": 7}},
    "blocks of one panel": {forward_mode: {"BLOCK_ENTRIES": 1, "JOBS": 3}},
    "one step at a time": {forward_mode: {"MOST_STEPS": 1}},
    "two steps at a time": {forward_mode: {"MOST_STEPS": 2, "BLOCK_ENTRIES": 11}},
    "three steps at a time": {forward_mode: {"MOST_STEPS": 3}, plan: {"SHARD_ROWS": 2}},
    "all at once": {
        plan: {"CHUNK_ROWS": 6, "SHARD_ROWS": 1, "LANE_FLOPS": 1.0, "LANE_ROWS": 1, "TASK_ROWS": 1},
        forward_mode: {"MOST_STEPS": 2, "BLOCK_ENTRIES": 5, "SEED_ENTRIES": 300, "SEED_SHARE": 1 << 40},
        unrolled: {"SLACK": 2},
    },
}
METHODS = ("bptt", "rtrl", "tbptt:k1=1,k2=2", "tbptt:k1=2,k2=3", "ebptt:3")


def cut(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Set the sizes of pieces."""
    for module, sizes in CUTS[name].items():
        for size, value in sizes.items():
            monkeypatch.setattr(module, size, value)


def test_factors_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """W @ a[t-1] and W_in @ x share the delta of their sum (3 entries), W_out @ a has another (2): 5 + 3 + 2 + 3."""
    setup = problem_of(SPECS / "vanilla_rnn.toml", {**SMALL, "n_out": 2, "T": 9}).setup
    monkeypatch.setattr(plan, "STEPWISE_ROWS", 1)
    monkeypatch.setattr(plan, "LEAST_CHUNK_ROWS", 1)
    for entries, steps in ((13 * 3 * 4, 4), (13 * 3 * 4 - 1, 3), (1, 1), (1 << 20, 9)):
        monkeypatch.setattr(plan, "CHUNK_ENTRIES", entries)
        made = unrolled.Unrolled(setup, parse("bptt").definition(setup).over(setup)).plan
        assert 13 == plan.factor_entries(made.graph, made.forward, made.reverse)
        assert steps == made.extent.chunk
    monkeypatch.setattr(plan, "LEAST_CHUNK_ROWS", 6)
    monkeypatch.setattr(plan, "CHUNK_ENTRIES", 1)
    assert 2 == unrolled.Unrolled(setup, parse("bptt").definition(setup).over(setup)).plan.extent.chunk


LONGER = {**SMALL, "T": 9}


@cache
def uncut(spec: str, wrt: Words) -> dict[str, dict[str, Array]]:
    """Gradients of nine steps by method, in one piece."""
    whole = problem_of(SPECS / f"{spec}.toml", LONGER, wrt)
    return {method: gradient(whole, method).arrays for method in METHODS}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("wrt", [("params", "state"), ("params", "inputs", "state")])
@pytest.mark.parametrize("spec", ["gru", "masked_rnn", "stacked_rnn"])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, spec: str, wrt: Words, name: str) -> None:
    """Any size of pieces gives the gradient of the whole."""
    gradients = uncut(spec, wrt)
    cut(monkeypatch, name)
    pieces = problem_of(SPECS / f"{spec}.toml", LONGER, wrt)
    for method in METHODS:
        assert distance(gradient(pieces, method).arrays, gradients[method]) < 1e-13, method


@pytest.mark.parametrize("spec", RECURRENT)
def test_pieces_of_every_cell(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """All kinds of pieces at once, against loops."""
    whole = small(spec)
    cut(monkeypatch, "all at once")
    pieces = problem_of(SPECS / f"{spec}.toml", SMALL)
    for method in ("bptt", "rtrl", "tbptt:k1=1,k2=2"):
        assert distance(gradient(pieces, method).arrays, expected(whole, method)) < 1e-12, method


NO_MATRIX_FOR_ITSELF = ("indrnn", "lru", "masked_rnn")


def equal(first: Gradient, second: Gradient) -> bool:
    """Whether two gradients are the same to the bit."""
    return all((values == second.arrays[name]).all() for name, values in first.arrays.items())


def loaded_end_to_end(here: schedule.TraceSlices) -> list[tuple[str, slice, tuple[int, ...], int]]:
    """`TraceSlices.params` of a layout without gaps."""
    nodes = ((n, int(here.places[n.index, rows.BASE])) for n in here.plan.graph.nodes if n.op == "param")
    return [(n.name, slice(base, base + n.size), n.shape, 0) for n, base in nodes]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spec", RECURRENT)
def test_gaps_between_the_rows_of_matrices(monkeypatch: pytest.MonkeyPatch, spec: str, dtype: str) -> None:
    """The same to the bit, but for where they stand; of a matrix that is used otherwise there are none."""
    alone = {**SMALL, "batch": 1, "dtype": dtype}
    dense = problem_of(SPECS / f"{spec}.toml", alone, ("params", "inputs", "state"))
    gradients = {method: gradient(dense, method) for method in METHODS}
    monkeypatch.setattr(matrices, "GAP_COLUMNS", 1)
    monkeypatch.setattr(matrices, "LEAST_MATRIX", 1)
    apart = problem_of(SPECS / f"{spec}.toml", alone, ("params", "inputs", "state"))
    table = unrolled.unrolled(apart.setup, parse("bptt").definition(apart.setup).over(apart.setup)).plan.values.table
    graph = apart.setup.graph
    with_gaps = {graph.nodes[n].name for n in np.flatnonzero(table[:, rows.APART])}
    assert with_gaps or spec in NO_MATRIX_FOR_ITSELF
    for method in METHODS:
        assert equal(gradient(apart, method), gradients[method]), method
    monkeypatch.setattr(schedule.TraceSlices, "params", property(loaded_end_to_end))
    MEMORY.clear()
    doubled = replace(apart, params={name: 2 * values for name, values in apart.params.items()})
    assert equal(gradient(doubled, "bptt"), gradient(replace(dense, params=doubled.params), "bptt")) == (not with_gaps)


READ_IN_PART = """bp = 1
[inputs]
x = [2]
[params]
W = [3, 3]
V = [2, 2]
[state]
a = [3]
read_in_part = [3]
read_by_the_loss = [2]
not_read = [3]
[equations]
a = "tanh(W @ (a[t-1] + 0.5 * concat(read_in_part[t-1][1:], x[:1])))"
read_in_part = "sin(W @ a)"
read_by_the_loss = "V @ x + a[:2]"
not_read = "cos(a[t-1])"
loss = "dot(read_by_the_loss[t-1], a[1:]) + sum(not_read * read_in_part)"
[data]
T = 5
batch = 3
"""


@pytest.mark.parametrize("name", ["chunks", "a step's phases together", "short chunks of these", "all at once"])
def test_states_that_the_next_step_reads_in_part_or_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Their cotangents begin at zero."""
    whole = written(tmp_path, READ_IN_PART)
    right = expected(whole, "bptt")
    cut(monkeypatch, name)
    pieces = written(tmp_path, READ_IN_PART)
    for _ in range(2):
        assert distance(gradient(pieces, "bptt").arrays, right) < 1e-12


@pytest.mark.parametrize("name", ["slides", "a step's phases together", "all at once"])
@pytest.mark.parametrize("ready", [0, 1 << 22], ids=["memory", "views"])
@pytest.mark.parametrize("spec", RECURRENT)
def test_what_is_left_of_the_gradient_before(monkeypatch: pytest.MonkeyPatch, spec: str, ready: int, name: str) -> None:
    """A gradient in memory that another has left reads nothing of it: with NaNs there, it is the same to the bit."""
    cut(monkeypatch, name)
    monkeypatch.setattr(trace, "LEAST_REUSED", 0)
    monkeypatch.setattr(trace, "MOST_VIEWED", ready)
    pieces = problem_of(SPECS / f"{spec}.toml", SMALL)

    def kept() -> list[np.ndarray]:
        return [views.V.base for views in MEMORY.views.values()] if ready else MEMORY.freed

    for method in ("bptt", "rtrl", "tbptt:k1=1,k2=2"):
        MEMORY.clear()
        first = gradient(pieces, method).arrays
        (left,) = kept()
        left[:] = 255
        second = gradient(pieces, method).arrays
        (again,) = kept()
        assert left is again
        assert all(np.array_equal(values, second[tensor]) for tensor, values in first.items()), method


def test_views_are_kept_of_few_small_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that they hold counts, the influence of RTRL too."""
    MEMORY.clear()
    for n in range(4, 4 + trace.VIEWED + 2):
        gradient(problem_of(SPECS / "vanilla_rnn.toml", {**SMALL, "n": n}), "bptt")
    assert trace.VIEWED == len(MEMORY.views)
    MEMORY.clear()
    pieces = problem_of(SPECS / "vanilla_rnn.toml", {**SMALL, "n": 6})
    gradient(pieces, "rtrl")
    ((_, views),) = MEMORY.views.items()
    assert views.bytes > views.V.nbytes + views.C.nbytes
    monkeypatch.setattr(trace, "MOST_VIEWED", views.bytes - 1)
    gradient(pieces, "rtrl")
    assert not MEMORY.views


def test_memory_is_kept_for_the_next_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as many bytes only, and within limits."""
    MEMORY.clear()
    monkeypatch.setattr(trace, "LEAST_REUSED", 100)
    array, address = MEMORY.allocate(100, np.dtype(np.float64))
    assert address == array.ctypes.data
    assert 0 == address % trace.ALIGNMENT
    MEMORY.free(array[3:])
    assert address == MEMORY.allocate(100, np.dtype(np.float64))[1]
    MEMORY.free(array)
    assert address == MEMORY.allocate(200, np.dtype(np.float32))[1]  # as many bytes
    MEMORY.free(array)
    MEMORY.allocate(101, np.dtype(np.float64))
    assert not MEMORY.freed
    for limits in ({"LEAST_REUSED": 100, "MOST_REUSED": 200}, {"LEAST_REUSED": 2000, "MOST_REUSED": 3000}):
        for name, bytes_ in limits.items():
            monkeypatch.setattr(trace, name, bytes_)
        MEMORY.free(array)
        assert not MEMORY.freed


def test_more_samples_than_a_chunk_has_steps() -> None:
    """RTRL takes as many steps at a time as its trace holds, however many samples there are."""
    problem = problem_of(SPECS / "vanilla_rnn.toml", {"n": 3, "n_in": 2, "T": 40, "batch": 150})
    assert distance(gradient(problem, "rtrl").arrays, gradient(problem, "bptt").arrays) < 1e-12


WIDE = {"n": 64, "n_in": 8, "n_out": 4, "T": 200, "batch": 4}


@pytest.fixture(scope="module")
def wide() -> Problem:
    """A network whose arrays outweigh all bookkeeping."""
    return problem_of(SPECS / "vanilla_rnn.toml", WIDE, ("params",))


@pytest.mark.parametrize("method", ["bptt", "tbptt:k1=8,k2=16", "tbptt:k1=40,k2=120", "fbptt:20", "rtrl"])
def test_memory_is_as_predicted(wide: Problem, method: str) -> None:
    """The bytes held at the peak are those predicted from sizes, within a tenth; steps forwards are T."""
    gradient(wide, method)
    cost = parse(method).cost(wide.setup)
    assert pytest.approx(allocated_bytes(lambda: gradient(wide, method)), rel=0.1) == cost.bytes
    assert 200 == cost.forward_steps


@pytest.mark.parametrize("wrt", [("inputs",), ("params", "inputs", "state")])
@pytest.mark.parametrize("method", ["bptt", "tbptt:k1=8,k2=16"])
def test_memory_of_gradients_of_inputs(method: str, wrt: tuple[str, ...]) -> None:
    """The same where inputs are differentiated."""
    problem = problem_of(SPECS / "vanilla_rnn.toml", WIDE, wrt)
    gradient(problem, method)
    cost = parse(method).cost(problem.setup)
    assert pytest.approx(allocated_bytes(lambda: gradient(problem, method)), rel=0.1) == cost.bytes


def test_memory_of_backprop() -> None:
    """The same for a feed-forward network."""
    problem = problem_of(SPECS / "residual_mlp.toml", {"n": 128, "n_in": 32, "m": 256, "batch": 512}, ("params",))
    gradient(problem, "backprop")
    cost = parse("backprop").cost(problem.setup)
    assert pytest.approx(allocated_bytes(lambda: gradient(problem, "backprop")), rel=0.1) == cost.bytes
    assert 1 == cost.forward_steps


def test_what_grows_with_time() -> None:
    """BPTT holds all steps, its truncations and RTRL hold a number that T has no part in."""
    costs = {}
    for steps in (800, 1600):
        setup = problem_of(SPECS / "vanilla_rnn.toml", {**WIDE, "T": steps}, ("params",)).setup
        for method in ("bptt", "tbptt:k1=8,k2=16", "rtrl"):
            costs[method, steps] = parse(method).cost(setup)
    assert costs["bptt", 1600].bytes - costs["bptt", 800].bytes > 800 * 4 * 64 * 8
    for method in ("tbptt:k1=8,k2=16", "rtrl"):
        assert costs[method, 800].bytes == costs[method, 1600].bytes
    for method in ("bptt", "tbptt:k1=8,k2=16", "rtrl"):
        assert pytest.approx(2 * costs[method, 800].flops, rel=0.05) == costs[method, 1600].flops


def test_flops_of_the_lecture() -> None:
    """Per step, BPTT costs about 6 n² a sample and RTRL about 2 n² P."""
    setup = problem_of(SPECS / "vanilla_rnn.toml", {**WIDE, "batch": 1}, ("params",)).setup
    n, parameters = 64, 64 * 64 + 64 * 8 + 64
    assert pytest.approx(200 * 6 * (n * n + n * 8 + n * 4), rel=0.25) == parse("bptt").cost(setup).flops
    assert pytest.approx(200 * 2 * n * n * parameters, rel=0.1) == parse("rtrl").cost(setup).flops
