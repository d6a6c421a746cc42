"""Teams: products that threads share are those that one thread computes, whoever comes, comes late or not at all."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpcli.kernels import calls, mode
from bpcli.kernels.library import reordered
from bpcli.kernels.team import desk_for
from bpcli.kernels.trace import Trace
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.layouts import plan_of
from bpcli.problem.limits import Limits
from bpcli.problem.open import open_setup

SPECS = Path(__file__).parents[1] / "specs"


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module as it is where nothing is compiled."""
    monkeypatch.setattr(mode, "compiling", False)
    names = [f"bpcli.kernels.{name}" for name in ("jit", "atomics", "blas", "team")]
    held = [sys.modules.pop(name, None) for name in names]
    yield importlib.import_module(names[-1])
    sys.modules.update({name: module for name, module in zip(names, held, strict=True) if module})


def _product(team: Any, desk: Any, turned: bool, n: int, k: int, add: bool) -> tuple[Any, Any]:
    """y (n) (+)= W x by a team, and by one product of NumPy."""
    rng = np.random.default_rng(n + k)
    W, x, y = rng.normal(size=n * k), rng.normal(size=k), rng.normal(size=n)
    expected = y.copy()
    sys.modules["bpcli.kernels.blas"].plain_gemm(
        False, not turned, 1, n, k, x, 0, k, W, 0, n if turned else k, add, expected, 0, n
    )
    team.team_product(desk, not turned, n, k, x, 0, W, 0, n if turned else k, add, y, 0, False)
    return y, expected


@pytest.fixture
def helped(team: Any) -> Any:
    """A desk with helpers, who have arrived, for a number of members."""
    started: list[tuple[Any, threading.Thread]] = []

    def start(members: int) -> Any:
        desk = team.desk_for(members)
        assert team.arrive(desk) == 0
        for _ in range(1, members):
            helper = threading.Thread(target=team.assist, args=(desk, np.zeros(1), team.arrive(desk)))
            helper.start()
            started.append((desk, helper))
        return desk

    yield start
    for desk, helper in started:
        team.dismiss(desk)
        helper.join(10)
        assert not helper.is_alive()


@pytest.mark.parametrize("members", [2, 3, 8])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_team_computes_the_product(team: Any, helped: Any, members: int, turned: bool, add: bool) -> None:
    desk = helped(members)
    for n, k in ((700, 300), (333, 511), (64, 600)):
        y, expected = _product(team, desk, turned, n, k, add)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert [desk[team._done(m)] > 1 for m in range(1, members)] == [True] * (members - 1)


def test_a_share_that_is_told_wrong_is_seen(team: Any, helped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "address_of", lambda array, i: array.ctypes.data + 8 * max(0, int(i) - 1))
    y, expected = _product(team, helped(3), False, 700, 300, False)
    assert not np.allclose(y, expected)


def test_who_has_not_arrived_is_not_waited_for(team: Any) -> None:
    desk = team.desk_for(4)
    team.arrive(desk)
    y, expected = _product(team, desk, False, 700, 300, False)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    team.dismiss(desk)
    team.assist(desk, np.zeros(1), team.arrive(desk))  # comes when all is over, and goes


def test_a_leader_who_waits_long_goes_on_alone(team: Any, helped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "DEBT", -1)
    desk = helped(2)
    first = _product(team, desk, True, 700, 300, True)
    told = desk[team._told(1)]
    second = _product(team, desk, True, 700, 300, False)
    for y, expected in (first, second):
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert told == -1 and desk[team._PRODUCT] == -1


def test_long_waits_add_up(team: Any, helped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is forgiven, and what comes soon after it is not."""
    monkeypatch.setattr(team, "PATIENCE", -(10**9))
    monkeypatch.setattr(team, "DEBT", 3 * 10**9 // 2)
    desk = helped(2)
    for owed, alone in ((10**9, False), (2 * 10**9, True)):
        y, expected = _product(team, desk, False, 700, 300, False)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        assert owed <= desk[team._OWED] and alone == (desk[team._PRODUCT] == -1)


def test_small_products_are_not_shared(team: Any, helped: Any) -> None:
    desk = helped(2)
    _product(team, desk, False, 100, 100, False)
    assert desk[team._done(1)] == 1


@pytest.mark.parametrize("spec", ["vanilla_rnn", "gru"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_are_the_same_by_a_team(spec: str, dtype: str, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = open_setup(SPECS / f"{spec}.toml", {"n": 401, "T": 6, "batch": 1, "dtype": dtype}, (), Limits())
    problem, call = draw(setup), parse("bptt")
    members: list[int] = []
    monkeypatch.setattr(calls, "desk_for", lambda count: members.append(count) or desk_for(count))
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
    monkeypatch.setattr(calls, "desk_for", lambda count: members.append(count) or desk_for(count))
    threads(2)
    trace = Trace(plan_of(setup, setup.T), np.dtype(dtype), problem.arrays)
    trace.start()
    trace.forward(0, setup.T)
    assert shared == bool(members)
