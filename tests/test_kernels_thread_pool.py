"""The thread pool: every part of a call is done once, whichever threads come, in whatever order, late or not at all."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kernel_cases import SPECS, gradient, problem_of

from bpcli import kernels
from bpcli.problem.definition import Problem
from bpcli.runtime import kernel_loader as library

SIZES = {"n": 40, "T": 30, "batch": 70}


class Board:
    """A board with one call of `count` jobs, 8 bytes apart, and how often each has been done."""

    def __init__(self, pool: Any, monkeypatch: pytest.MonkeyPatch, count: int, members: int) -> None:
        self.module, self.numbers, self.done = pool, np.zeros(pool._BOARD_SIZE, np.int64), Counter[int]()
        self.put(2, count, members)
        monkeypatch.setattr(pool, "_call", self._called)

    def put(self, number: int, count: int, members: int) -> None:
        """Publish another call."""
        self.numbers[self.module._NUMBER] = number
        self.numbers[self.module._KERNEL : self.module._MEMBERS + 1] = 0, 0, count, 8, 0, members
        self.numbers[self.module._DONE] = 0

    def _called(self, kernel: int, jobs: int, count: int, stride: int, values: int) -> None:
        self.done.update(range(jobs // stride, jobs // stride + count))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module as it is where nothing is compiled."""
    monkeypatch.setattr(kernels, "compiling", False)
    names = [f"bpcli.kernels.{name}" for name in ("jit", "atomics", "thread_pool")]
    held = [sys.modules.pop(name, None) for name in names]
    yield importlib.import_module(names[-1])
    sys.modules.update({name: module for name, module in zip(names, held, strict=True) if module})


@pytest.mark.parametrize("count", [2, 3, 64, 255, 256, 257, 1000])
@pytest.mark.parametrize("order", [(0,), (1, 0), (2, 1, 0), (0, 0, 2)])
def test_every_job_is_done_once(pool: Any, monkeypatch: pytest.MonkeyPatch, count: int, order: tuple[int, ...]) -> None:
    board = Board(pool, monkeypatch, count, 3)
    for member in order:
        pool.take_part(board.numbers, 2, member)
    assert board.done == dict.fromkeys(range(count), 1)
    assert board.numbers[pool._DONE] == min(count, pool.MOST_PARTS)


def test_members_begin_at_places_of_their_own(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    board, first = Board(pool, monkeypatch, 8, 4), []
    monkeypatch.setattr(pool, "_call", lambda kernel, jobs, *rest: first.append(jobs // 8))
    for member in range(4):
        board.numbers[pool._TAKEN :] = 0
        first.clear()
        pool.take_part(board.numbers, 2, member)
        assert (2 * member, 8) == (first[0], len(set(first)))


def test_a_late_thread_finds_nothing(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a call that is done, nor of the one that has replaced it, nor beyond the members that a call asks for."""
    board = Board(pool, monkeypatch, 4, 2)
    pool.take_part(board.numbers, 2, 2)  # there are members 0 and 1
    assert not board.done
    pool.take_part(board.numbers, 2, 0)
    pool.take_part(board.numbers, 2, 1)
    board.put(4, 6, 2)
    pool.take_part(board.numbers, 2, 1)  # has seen the first call
    assert board.done == dict.fromkeys(range(4), 1)
    pool.take_part(board.numbers, 4, 1)
    assert board.done == {**dict.fromkeys(range(4), 2), 4: 1, 5: 1}


def test_a_part_that_is_not_marked_is_done_twice(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(pool, monkeypatch, 4, 2)
    monkeypatch.setattr(pool, "exchange", lambda *arguments: True)
    for member in range(2):
        pool.take_part(board.numbers, 2, member)
    assert board.done == dict.fromkeys(range(4), 2)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Jobs for several threads."""
    return problem_of(SPECS / "gru.toml", SIZES)


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(values, other[name]) for name, values in one.items())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_any_number_of_threads(threads: Callable[[int], None], problem: Problem, count: int) -> None:
    """More than there are cores too."""
    threads(1)
    expected = gradient(problem, "bptt").arrays
    threads(count)
    assert all(_same(gradient(problem, "bptt").arrays, expected) for _ in range(20))


def test_several_threads_of_python(threads: Callable[[int], None], problem: Problem) -> None:
    """While one leads a call, the others run theirs alone."""
    threads(2)
    expected, found = gradient(problem, "bptt").arrays, []
    workers = [
        threading.Thread(target=lambda: found.extend(gradient(problem, "bptt").arrays for _ in range(10)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [True] * 40 == [_same(arrays, expected) for arrays in found]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")  # Python's, and JAX's where another test has imported it
def test_a_fork_has_a_pool_of_its_own(threads: Callable[[int], None], problem: Problem) -> None:
    threads(2)
    expected = gradient(problem, "bptt").arrays
    child = os.fork()
    if child == 0:
        right = _same(gradient(problem, "bptt").arrays, expected) and len(library.thread_pool()._wakeups) == 2
        os._exit(0 if right else 1)
    assert (child, 0) == os.waitpid(child, 0)


def test_a_long_idle_pool_wakes(threads: Callable[[int], None], problem: Problem) -> None:
    """Its threads sleep soon after the last call, and take part in the next."""
    threads(2)
    gradient(problem, "bptt")
    pool = sys.modules["bpcli.kernels.thread_pool"]
    board = library.thread_pool()._board
    for _ in range(1000):
        if board[pool._ASLEEP + pool._LINES]:
            break
        threading.Event().wait(0.005)
    assert board[pool._ASLEEP + pool._LINES] == 1
    before = board[pool._NUMBER]
    gradient(problem, "bptt")
    assert board[pool._NUMBER] > before
