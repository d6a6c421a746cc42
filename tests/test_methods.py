"""Every method on every shipped spec against the loop-only twin; the equalities between methods, and their twins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import (
    EXACT,
    FEED_FORWARD,
    RECURRENT,
    SPECS,
    TRUNCATED,
    distance,
    expected,
    gradient,
    loops,
    problem_of,
    small,
)
from naive import loss

from bpcli.errors import BpError
from bpcli.kernels import matrix_gradients as products
from bpcli.methods import known_names, load, parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem
from bpcli.runtime import kernel_loader as library
from bpcli.runtime.reverse_mode import Unrolled, Window
from bpcli.runtime.schedule import schedule_of

CASES = [
    *((name, method) for name in RECURRENT for method in (*EXACT, *TRUNCATED)),
    *((name, "backprop") for name in FEED_FORWARD),
]
TOLERANCE = {"float64": 1e-12, "float32": 2e-4}
Threads = Callable[[int], None]


def same_bits(first: Gradient, second: Gradient) -> bool:
    """Whether two gradients and their losses are bitwise equal."""
    arrays = all(np.array_equal(values, second.arrays[name]) for name, values in first.arrays.items())
    return first.loss == second.loss and arrays


def test_the_tables_hold_every_spec_and_method() -> None:
    """Nothing that is shipped is left out above, but approximate rules, which are compared in test_online_rules.py and
    test_learned_rules.py, and random methods, in test_random_methods.py."""
    assert {path.stem for path in SPECS.glob("*.toml")} == {*RECURRENT, *FEED_FORWARD}
    random = {name for name in known_names() if "random" in load(name).tags}
    approximate = {"dni", "eprop", "eprop-random", "rflo", "snap"}
    assert {*known_names()} - approximate - random == {method.split(":")[0] for _, method in CASES}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_method_is_what_it_is_meant_to_be(threads: Threads, name: str, method: str, dtype: str) -> None:
    """Loss and gradient are the loops', in shape and dtype too, and bitwise the same by one thread and by two."""
    problem = small(name, dtype)
    threads(1)
    alone = gradient(problem, method)
    threads(2)
    assert same_bits(alone, gradient(problem, method))
    assert distance(alone.arrays, expected(small(name, dtype), method)) < TOLERANCE[dtype]
    assert abs(alone.loss / loss(problem.setup.spec, loops(problem)) - 1) < TOLERANCE[dtype]
    assert {x.name: (x.shape, np.dtype(dtype)) for x in problem.setup.wrt} == {
        name: (values.shape, values.dtype) for name, values in alone.arrays.items()
    }


@pytest.fixture(scope="module")
def large() -> Problem:
    """A network whose samples and steps are cut into several shards, lanes and stretches of matrices."""
    wide = {"n": 128, "n_in": 16, "n_out": 32, "T": 60, "batch": 40}
    return problem_of(SPECS / "leaky_rnn.toml", wide, ("params", "inputs", "state"))


@pytest.mark.parametrize("method", ["bptt", "tbptt:k1=4,k2=8", "fbptt:3"])
def test_threads_change_no_bit(threads: Threads, large: Problem, method: str) -> None:
    """Where the work is shared out, one thread, two, and two again give the same bits."""
    from bpcli.graph.nodes import Phase

    plan = Unrolled(large.setup, parse(method).definition(large.setup).over(large.setup)).plan
    assert plan.shards > 1
    assert len(plan.tasks) > len(plan.reverse.products) or method != "bptt"
    assert plan.lanes(Phase.OUTPUT, plan.extent.chunk) > 1 or method != "bptt"
    threads(1)
    alone = gradient(large, method)
    threads(2)
    assert same_bits(alone, gradient(large, method)) and same_bits(alone, gradient(large, method))


def test_no_two_jobs_add_to_the_same_matrix(tmp_path: Path) -> None:
    """Gradients of a matrix in three products are taken in turns: together, threads would lose some of them."""
    text = """bp = 1
[inputs]
x = [64]
[params]
W = [64, 64]
[state]
a = [64]
[equations]
a = "tanh(W @ tanh(W @ a[t-1]) + W @ x)"
loss = "dot(a, a)"
[data]
T = 20
batch = 40
"""
    path = tmp_path / "tied.toml"
    path.write_text(text, encoding="utf-8")
    problem = problem_of(path, {})
    plan = Unrolled(problem.setup, parse("bptt").definition(problem.setup).over(problem.setup)).plan
    calls = [c for c in schedule_of(plan, np.dtype(np.float64), False).reverse((0, 20, 0)) if c.name == "products"]
    sums = [c.jobs[:, products.SUM].tolist() for c in calls]
    assert [len(set(each)) for each in sums] == [len(each) for each in sums] and calls[0].parallel
    assert 3 == len(sums) and sums[0] == sums[1]
    alone = gradient(problem, "bptt")
    with library.reordered():
        assert same_bits(alone, gradient(problem, "bptt"))


def test_threads_change_no_bit_of_rtrl(threads: Threads) -> None:
    """Where blocks of influence are shared out, one thread, two, and two again give the same bits."""
    problem = problem_of(SPECS / "gru.toml", {"n": 32, "T": 20, "batch": 6}, ("params", "state"))
    threads(1)
    alone = gradient(problem, "rtrl")
    threads(2)
    assert same_bits(alone, gradient(problem, "rtrl")) and same_bits(alone, gradient(problem, "rtrl"))
    assert distance(alone.arrays, gradient(problem, "bptt").arrays) < 1e-12


@pytest.mark.parametrize("name", RECURRENT)
def test_exact_methods_agree(name: str) -> None:
    """RTRL is BPTT, and so is a truncation that does not truncate, at a size beyond loops."""
    problem = problem_of(SPECS / f"{name}.toml", {"T": 30, "batch": 4})
    exact = gradient(problem, "bptt").arrays
    for method in ("rtrl", "tbptt:k1=30,k2=30", "tbptt:k1=7,k2=30", "tbptt:k1=40,k2=50", "ebptt:30", "fbptt:30"):
        assert distance(gradient(problem, method).arrays, exact) < 1e-12, method


@pytest.mark.parametrize("method", ["tbptt:k1=1,k2=2", "tbptt:k1=2,k2=2", "ebptt:2", "fbptt:3"])
@pytest.mark.parametrize("name", [name for name in RECURRENT if name != "lru"])
def test_truncation_truncates(name: str, method: str) -> None:
    """A window shorter than the sequence gives another gradient than the exact one."""
    problem = small(name)
    assert distance(gradient(problem, method).arrays, gradient(problem, "bptt").arrays) > 1e-6


@pytest.mark.parametrize(("first", "second"), [("ebptt:2", "tbptt:k1=2,k2=2"), ("fbptt:3", "tbptt:k1=1,k2=3")])
def test_names_of_truncations(first: str, second: str) -> None:
    """Special cases of tbptt (ebptt where tau divides T) equal it bitwise; the two of them differ."""
    problem = small("lstm")
    assert same_bits(gradient(problem, first), gradient(problem, second))
    assert not same_bits(gradient(problem, "ebptt:3"), gradient(problem, "fbptt:3"))


def test_a_short_last_epoch_goes_back_to_its_own_start() -> None:
    """Where tau does not divide T, tbptt reaches back into the epoch before the last one; epochwise BPTT does not."""
    problem = small("lstm")
    assert problem.setup.T == 4
    windows = parse("ebptt:3").definition(problem.setup).over(problem.setup)
    assert (Window(0, 0, 3), Window(3, 3, 4)) == windows
    found = gradient(problem, "ebptt:3").arrays
    assert distance(found, expected(problem, "ebptt:3")) < 1e-12
    assert distance(found, gradient(problem, "tbptt:k1=3,k2=3").arrays) > 1e-6


@pytest.mark.parametrize("name", [*RECURRENT, *FEED_FORWARD])
def test_part_of_what_may_be_asked_for(name: str) -> None:
    """Asking for less changes no number of what is asked for, up to the order of sums."""
    methods = (*EXACT, "fbptt:2") if name in RECURRENT else ("backprop",)
    everything = small(name)
    for tensor in everything.setup.wrt:
        overrides = {"n": 3, "n1": 2, "n2": 3, "n_in": 2, "n_hidden": 3, "n_mid": 3, "m": 2, "T": 4, "batch": 3}
        part = problem_of(SPECS / f"{name}.toml", overrides, (tensor.name,))
        for method in methods:
            got, want = gradient(part, method).arrays, gradient(everything, method).arrays
            assert [tensor.name] == list(got)
            assert distance(got, want) < 1e-13


@pytest.mark.parametrize("name", known_names())
def test_refusals(name: str) -> None:
    """A method refuses the graphs that it does not apply to, and says what does."""
    feed_forward, recurrent = small("linear").setup.graph, small("gru").setup.graph
    wrong, right = (recurrent, feed_forward) if name == "backprop" else (feed_forward, recurrent)
    assert load(name).refusal(right) is None
    assert "`" in str(load(name).refusal(wrong))


@pytest.mark.parametrize("text", ["tbptt:k1=0,k2=1", "tbptt:k1=3,k2=2", "ebptt:0", "fbptt:-1", "tbptt:k1=1", "fbptt"])
def test_options_out_of_range(text: str) -> None:
    """Windows that make no sense are refused."""
    with pytest.raises(BpError):
        parse(text)
