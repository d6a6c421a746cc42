"""Lockstep groups: threads that share steps compute the bits of one thread, even where one comes late or not at all."""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpcli import kernels
from bpcli.kernels import lockstep
from bpcli.kernels.lockstep import new_group
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.runtime import jobs as calls
from bpcli.runtime import schedule
from bpcli.runtime.copies import plan_of
from bpcli.runtime.kernel_loader import code, reordered
from bpcli.runtime.schedule import Schedule
from bpcli.runtime.trace import Disturbance, Trace
from bpcli.tape import barriers
from bpcli.tape import layout as matrices
from bpcli.tape.instructions import (
    ACCUMULATE,
    ADDEND,
    APART,
    BASE,
    FIELDS,
    MATMUL,
    MODE_A,
    MODE_ADDEND,
    MODE_B,
    MULTIPLY,
    OP,
    OUT,
    PLACE_FIELDS,
    SIZE,
    SIZE_A,
    SIZE_B,
    A,
    B,
)
from bpcli.tape.plan import make_plan

SPECS = Path(__file__).parents[1] / "specs"
TRIES = 100
"""How often threads are started until two have been there at the same time."""
MIXED = """bp = 1
[dims]
n = 71
m = 40
[inputs]
x = ["n"]
[params]
W = { shape = ["n", "n"], init = "orthogonal", scale = 0.9 }
U = { shape = ["n", "n"], init = "orthogonal", scale = 0.9 }
R = ["m", "n"]
b = ["n"]
k = ["n"]
scale = []
[state]
a = ["n"]
c = ["n"]
[equations]
fixed = "W @ tanh(U @ k)"
u = "tanh(W @ a[t-1] + x + fixed)"
v = "U.T @ u + b * c[t-1]"
g = "concat(u, v)"
p = "sigmoid(v)"
r = "tanh(R @ p + p[0:m])"
s = "scale * (sum(sigmoid(g)) + sum(p[0:n-1] * p[1:n]) + sum(r)) / n"
c = "s * v + softmax(u)"
a = "tanh(W @ c) * g[1:n+1] + a[t-1] / 2"
loss = "dot(a, c) + s"
[data]
T = 5
batch = 1
"""
"""Matrices that are used twice and turned, also where nothing depends on the step; reductions, slices of a vector that
overlap and are added to, or of one that is put together, scalars of a step."""


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The modules of kernels as they are where nothing is compiled."""
    monkeypatch.setattr(kernels, "compiling", False)
    prefix = f"{kernels.__name__}."

    def take_out() -> dict[str, Any]:
        held = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
        for name in held:
            del sys.modules[name]
            delattr(kernels, name.removeprefix(prefix))
        return held

    held = take_out()
    yield lambda name: importlib.import_module(prefix + name)
    take_out()
    for name, module in held.items():
        sys.modules[name] = module
        setattr(kernels, name.removeprefix(prefix), module)


class Recurrence:
    """The calls of a small trace that groups may run, and all of its numbers."""

    def __init__(self, path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for bound in ("LEAST_STEP", "LEAST_READ"):
            monkeypatch.setattr(lockstep, bound, 1)
        monkeypatch.setattr(schedule, "LEAST_MATRIX", 1)
        sizes = {"n": 150} if path.stem == "gru" else {}
        setup = open_setup(path, {"T": steps, "batch": 1, **sizes}, (), Limits())
        graph = setup.graph
        leaves = [graph.leaf[x.name] for x in setup.wrt]
        plan = make_plan(graph, leaves, 1, steps, [graph.loss, *graph.new.values()])
        self.trace = Trace(plan, np.dtype("float64"), draw(setup).arrays)
        self.trace.schedule = Schedule(
            plan, self.trace.dtype, False
        )  # not those that are kept, which were made without groups
        self.trace.start()
        self.trace.forward(0, steps)
        self.trace.reverse(0, steps, np.ones((steps, 1)), fresh=True)
        self.trace.finish()
        here, span = self.trace.schedule, (0, steps, 0)
        found = [*here.static_forward, *here.forward(span), *here.reverse(span), *here.static_reverse]
        self.calls = [call for call in found if call.group is not None]
        length = self.trace.schedule.entries * self.trace.dtype.itemsize
        self.numbers = np.frombuffer((ctypes.c_byte * length).from_address(self.trace._address), self.trace.dtype)
        self.numbers[~np.isfinite(self.numbers)] = 0  # what nothing has written may be anything
        self.numbers *= 0.9  # so that what is written again is not what is there

    def after(self, run: Callable[[], object]) -> np.ndarray:
        """All numbers after something has run; then they are as before."""
        before = self.numbers.copy()
        run()
        after = self.numbers.copy()
        self.numbers[:] = before
        return after

    def alone(self, call: calls.Call) -> np.ndarray:
        """All numbers after one thread has run a call."""
        kernel = code((call.name, self.trace.dtype))
        job = call.jobs[0]
        return self.after(lambda: kernel.call(job.ctypes.data, 1, 0, self.trace._address))

    def together(self, call: calls.Call, group: np.ndarray, waits: Sequence[float]) -> np.ndarray:
        """The same after threads have, each of which comes so many seconds after the one before."""
        kernel, job = code((call.name, self.trace.dtype)), call.jobs[0].copy()
        assert call.group is not None
        job[call.group] = group.ctypes.data

        def run() -> None:
            threads = []
            for wait in waits:
                time.sleep(wait)
                arguments = (job.ctypes.data, 1, 0, self.trace._address)
                threads.append(threading.Thread(target=kernel.call, args=arguments))
                threads[-1].start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()

        return self.after(run)


def spec_of(name: str, folder: Path) -> Path:
    if name == "mixed":
        (folder / "mixed.toml").write_text(MIXED, encoding="utf-8")
        return folder / "mixed.toml"
    return SPECS / f"{name}.toml"


@pytest.mark.parametrize("gaps", [False, True], ids=["dense", "gaps"])
@pytest.mark.parametrize("members", [2, 3, 8])
@pytest.mark.parametrize("spec", ["mixed", "gru"])
def test_a_group_takes_the_steps(
    spec: str, members: int, gaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, wherever its members are admitted; a thread that arrives after the end is turned away."""
    if gaps:
        monkeypatch.setattr(matrices, "GAP_COLUMNS", 1)
        monkeypatch.setattr(matrices, "LEAST_MATRIX", 1)
    recurrence = Recurrence(spec_of(spec, tmp_path), 400, monkeypatch)
    assert gaps == bool(recurrence.trace.plan.values.table[:, APART].any())
    names = [call.name for call in recurrence.calls]
    assert names == (["forward", "reverse"] if spec == "gru" else ["forward", "forward", "reverse", "reverse"])
    for call in recurrence.calls:
        alone = recurrence.alone(call)
        assert (alone != recurrence.numbers).any()
        for waits in ([0.0] * members, [0.0] + [0.001] * (members - 1), [0.0] * (members - 1) + [0.3]):
            group = new_group(members)
            assert (recurrence.together(call, group, waits) == alone).all()
            assert group[lockstep._ARRIVED] == members
    middle = recurrence.calls[len(recurrence.calls) // 2]  # of all steps
    assert any(_meets(recurrence, middle, members) for _ in range(TRIES))


def _meets(recurrence: Recurrence, call: calls.Call, members: int) -> bool:
    """Whether a second thread came to a barrier: it may be started when the first has finished."""
    group = new_group(members)
    recurrence.together(call, group, [0.0] * members)
    return bool(group[lockstep._arrival.py_func(1)] > 0)


def test_a_leader_that_waits_long_continues_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recurrence = Recurrence(spec_of("mixed", tmp_path), 2000, monkeypatch)
    for call in recurrence.calls[1:3]:  # those of 2000 steps
        alone = recurrence.alone(call)
        for _ in range(TRIES):
            group = new_group(2)
            watch = threading.Thread(target=_owe, args=(group,))
            watch.start()
            together = recurrence.together(call, group, [0.0, 0.0])
            met = bool(group[lockstep._arrival.py_func(1)] > 0)
            alone_again = group[lockstep._CAPACITY] == 1
            group[lockstep._CAPACITY] = 1
            watch.join(10)
            assert (together == alone).all()
            if met and alone_again:
                break
        else:
            pytest.fail("no leader was left waiting")


def test_simulated_rounding_is_that_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group disturbs results, which have one writer each; cotangents, which all members read, one thread alone."""
    recurrence = Recurrence(spec_of("mixed", tmp_path), 400, monkeypatch)
    for number, call in enumerate(recurrence.calls):
        disturbed = Disturbance(1e-3, 0).of(call, recurrence.trace.dtype, number)
        alone = recurrence.alone(disturbed)
        assert (alone != recurrence.alone(call)).any()
        assert (disturbed.group is None) == (call.name == "reverse")
        if disturbed.group is not None:
            assert (recurrence.together(disturbed, new_group(2), [0.0, 0.0]) == alone).all()


def _owe(group: np.ndarray) -> None:
    """Let the leader be overdue as soon as another member has arrived at a barrier."""
    start, came = time.monotonic(), lockstep._arrival.py_func(1)
    while group[lockstep._CAPACITY] > 1 and time.monotonic() < start + 5:
        if group[came] > 0:
            group[lockstep._OVERDUE] = 1 << 40
        time.sleep(1e-5)


@pytest.mark.parametrize("spec", ["mixed", "vanilla_rnn", "lstm"])
def test_no_barrier_is_missing_or_superfluous(
    spec: str, plain: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of two members runs ahead from barrier to barrier; with any one barrier fewer, some bits differ."""
    recurrence = Recurrence(spec_of(spec, tmp_path), 4, monkeypatch)
    for call in recurrence.calls:
        module = plain(call.name)
        monkeypatch.setattr(plain("lockstep"), "PIECE_BYTES", 8)
        job, alone, group = call.jobs[0].copy(), recurrence.alone(call), new_group(2)
        job[call.group] = group.ctypes.data
        planned = int(job[module.BARRIERS])
        lines = [line for line in range(barriers.MOST_LINES) if planned >> line & 1]

        def by_two(there: int, first: int, job: Any = job, module: Any = module) -> np.ndarray:
            job[module.BARRIERS] = there
            return recurrence.after(lambda: _in_turns(module, plain("lockstep"), job, recurrence.numbers, first))

        right = [by_two(planned, first) for first in (0, 1)]
        assert all(np.abs(numbers - alone).max() < 1e-12 for numbers in right)
        for line in lines:  # where both add to an entry, the order shows in the last bit
            fewer = [by_two(planned & ~(1 << line), first) for first in (0, 1)]
            assert any((numbers != there).any() for numbers, there in zip(fewer, right, strict=True)), line


def _in_turns(module: Any, lockstep_module: Any, job: np.ndarray, numbers: np.ndarray, first: int) -> None:
    """Run a job by two members, one at a time, from barrier to barrier; `first` goes ahead."""
    turn, done = threading.Condition(), [False, False]
    whose, members = [first], threading.local()

    def give() -> None:
        whose[0] = 1 - members.me if not done[1 - members.me] else members.me
        turn.notify_all()

    def join(group: Any, step: int, line: int, end: int) -> tuple[tuple[int, int, int], int, int]:
        members.began = step, line
        return (members.me, 2, 0), step, line

    def barrier(group: Any, member: int, count: int, number: int, step: int, line: int) -> int:
        if (step, line) == members.began:  # as if the other had come in there
            return count
        with turn:
            give()
            turn.wait_for(lambda: whose[0] == member)
        return count

    def run(member: int) -> None:
        members.me = member
        with turn:
            turn.wait_for(lambda: whose[0] == member)
        try:
            module.forward_span(job, numbers) if hasattr(module, "forward_span") else module.reverse_span(job, numbers)
        finally:
            with turn:
                done[member] = True
                give()

    module.join, module.dismiss, lockstep_module.barrier = join, lambda group, membership: None, barrier
    threads = [threading.Thread(target=run, args=(member,)) for member in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_the_leader_alone_adds_to_an_entry_twice() -> None:
    """Two slices of one vector that overlap, multiplied; a product of a vector to which a slice of it is added."""
    places = np.zeros((5, PLACE_FIELDS), np.int64)
    places[:, BASE] = (0, 100, 101, 300, 400)
    product = np.zeros((1, FIELDS), np.int64)
    for field, entry in ((OP, MULTIPLY), (OUT, 0), (A, 1), (B, 2), (SIZE, 70), (SIZE_A, 70), (SIZE_B, 70)):
        product[0, field] = entry
    product[0, [MODE_A, MODE_B]] = ACCUMULATE
    assert barriers.reverse_barriers(product, places, 1) == (0, 1)
    places[2, BASE] = 170
    assert barriers.reverse_barriers(product, places, 1) == (0, 0)
    row = np.zeros((1, FIELDS), np.int64)
    for field, entry in ((OP, MATMUL), (OUT, 0), (A, 4), (B, 1), (ADDEND, 3), (SIZE, 60), (SIZE_B, 70)):
        row[0, field] = entry
    row[0, [MODE_B, MODE_ADDEND]] = ACCUMULATE
    assert barriers.reverse_barriers(row, places, 1) == (0, 0)
    places[3, BASE] = 110
    assert barriers.reverse_barriers(row, places, 1) == (0, 1)


@pytest.mark.parametrize("members", [1, 2, 5, 8])
def test_shares(members: int) -> None:
    """Whole pieces that follow each other, and nothing else."""
    for n in (0, 1, 31, 32, 33, 100, 401):
        shares = [lockstep.share.py_func(n, member, members, 8) for member in range(members)]
        assert [low for low, _ in shares[1:]] == [min(low + size, -(-n // 32) * 32) for low, size in shares[:-1]]
        assert sum(size for _, size in shares) == n
        assert all(low % 32 == 0 for low, _ in shares)


def test_too_many_lines_for_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spec_of("mixed", tmp_path)
    assert Recurrence(path, 3, monkeypatch).calls
    monkeypatch.setattr(schedule, "MOST_LINES", 2)
    assert not Recurrence(path, 3, monkeypatch).calls


@pytest.mark.parametrize("spec", ["vanilla_rnn", "gru"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_are_the_same_by_a_group(
    spec: str, dtype: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = open_setup(SPECS / f"{spec}.toml", {"n": 401, "T": 6, "batch": 1, "dtype": dtype}, (), Limits())
    problem, call = draw(setup), parse("bptt")
    members: list[int] = []
    monkeypatch.setattr(calls, "new_group", lambda count: members.append(count) or new_group(count))
    threads(1)
    alone = call.gradient(problem)
    assert not members
    for count in (2, 3):
        threads(count)
        together = call.gradient(problem)
        with reordered():
            against = call.gradient(problem)
        for found in (together, against):
            assert found.loss == alone.loss
            assert all((array == alone.arrays[name]).all() for name, array in found.arrays.items())
    assert len(members) == 4  # forwards and backwards, on two threads and on more


@pytest.mark.parametrize(("dtype", "shared"), [("float64", True), ("complex128", False)])
def test_complex_products_are_not_shared(
    dtype: str, shared: bool, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the BLAS's, whose bits may depend on how a product is cut."""
    setup = open_setup(SPECS / "vanilla_rnn.toml", {"n": 401, "T": 6, "batch": 1}, (), Limits())
    problem, members = draw(setup), []
    monkeypatch.setattr(calls, "new_group", lambda count: members.append(count) or new_group(count))
    threads(2)
    trace = Trace(plan_of(setup, setup.T), np.dtype(dtype), problem.arrays)
    trace.start()
    trace.forward(0, setup.T)
    assert shared == bool(members)
