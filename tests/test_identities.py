"""Identities between methods where other tests do not have them: in float32, and on more kinds of cells.

In float64 most stand beside the method: test_methods.py, test_checkpointing.py, test_sparse_influence.py,
test_online_rules.py, test_random_methods.py and test_learned_rules.py. Each has a twin that must differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import RECURRENT, SPECS, distance, gradient, problem_of, small
from test_random_methods import expectation
from test_sparse_influence import by_total_signal

from bpcli.methods._online import run
from bpcli.problem.definition import Problem
from bpcli.references.numerics.expectation import Bits, Taken, bits_of, mean_over_outcomes
from bpcli.runtime.evaluation import loss_along

LIMITS = {"float64": 1e-12, "float32": 1e-5}
TWIN = 1e-3
EQUAL = ("tbptt:k1=2,k2=9", "tbptt:k1=9,k2=9", "fbptt:9", "ebptt:9", "artbp:0", "rtrl", "rtrl-dense", "snap:k=9")
"""Methods that leave out nothing in four steps of three units."""


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", RECURRENT)
def test_methods_that_leave_out_nothing(name: str, dtype: str) -> None:
    """Truncations that do not truncate, and patterns that are whole, are BPTT; a window or a step less is not."""
    problem = small(name, dtype)
    exact = gradient(problem, "bptt").arrays
    for method in EQUAL:
        assert distance(gradient(problem, method).arrays, exact) < LIMITS[dtype], method
    for method in ("tbptt:k1=2,k2=2", "ebptt:3", "fbptt:2", *(["snap:k=1"] if name != "indrnn" else [])):
        assert distance(gradient(problem, method).arrays, exact) > TWIN, method


RECURRENT_MATRICES = {
    "vanilla_rnn": ("W",), "leaky_rnn": ("W",), "masked_rnn": ("W",), "stacked_rnn": ("W1", "W2"),
    "gru": ("U_r", "U_z", "U_c"), "lstm": ("U",),
}  # fmt: skip


def with_matrices(name: str, problem: Problem, factor: float, diagonal: float = 1.0) -> Problem:
    """The problem with `factor` times its recurrent matrices, and `diagonal` times that on the diagonal."""
    params = dict(problem.params)
    for matrix in RECURRENT_MATRICES[name]:
        W = params[matrix] * params[matrix].dtype.type(factor)
        if diagonal != 1:
            W = W - W.dtype.type(1 - diagonal) * np.diag(np.diag(W))
        params[matrix] = W
    return replace(problem, params=params)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", RECURRENT_MATRICES)
def test_local_rules_without_recurrent_matrices(name: str, dtype: str) -> None:
    """`eprop` is exact where units do not feed each other; so is `rflo` where a state is affine in the one before."""
    problem, without = small(name, dtype), with_matrices(name, small(name, dtype), 0.0)
    for method in ("eprop", "rflo")[: 1 if name == "lstm" else 2]:
        assert distance(gradient(without, method).arrays, gradient(without, "rtrl").arrays) < LIMITS[dtype]
        assert distance(gradient(problem, method).arrays, gradient(problem, "rtrl").arrays) > TWIN
    if name == "lstm":
        assert distance(gradient(without, "rflo").arrays, gradient(without, "rtrl").arrays) > TWIN


@pytest.mark.parametrize("dtype", LIMITS)
def test_local_rules_of_a_diagonal_recurrence(dtype: str) -> None:
    """Of an LRU, affine and elementwise, both are exact; of an IndRNN `rflo` is not."""
    lru, indrnn = small("lru", dtype), small("indrnn", dtype)
    for problem, method in ((lru, "rflo"), (lru, "eprop"), (indrnn, "eprop"), (indrnn, "snap:k=1")):
        assert distance(gradient(problem, method).arrays, gradient(problem, "rtrl").arrays) < LIMITS[dtype]
    assert distance(gradient(indrnn, "rflo").arrays, gradient(indrnn, "rtrl").arrays) > TWIN


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", ["vanilla_rnn", "leaky_rnn", "masked_rnn"])
def test_rflo_is_snap_without_self_connections(name: str, dtype: str) -> None:
    """With them it is not; inputs reach all units at once, so that they are left out."""
    wide = {"n": 6, "n_in": 2, "T": 5, "batch": 2, "dtype": dtype}
    problem = problem_of(SPECS / f"{name}.toml", wide, ("params",))
    if name == "masked_rnn":  # which may have no self-connection by chance
        whole = np.tril(np.random.default_rng(0).standard_normal((6, 6))).astype(dtype)
        wrt = tuple(replace(x, pattern=None) for x in problem.setup.wrt)
        problem = replace(problem, setup=replace(problem.setup, wrt=wrt), params={**problem.params, "W": whole})
    hollow = with_matrices(name, problem, 1.0, diagonal=0.0)
    assert distance(gradient(hollow, "rflo").arrays, gradient(hollow, "snap:k=1").arrays) < LIMITS[dtype]
    assert distance(gradient(problem, "rflo").arrays, gradient(problem, "snap:k=1").arrays) > TWIN


@pytest.mark.parametrize("name", ["leaky_rnn", "gru", "lstm", "stacked_rnn", "masked_rnn"])
def test_the_total_derivative_in_float32(name: str) -> None:
    """E-prop with it as the learning signal is BPTT; with the step's own losses it is not."""
    problem = small(name, "float32")
    exact = gradient(problem, "bptt").arrays
    assert distance(by_total_signal(problem, "elementwise"), exact) < LIMITS["float32"]
    assert distance(by_total_signal(problem, "elementwise", stale=True), exact) > TWIN


def test_eprop_of_a_leaky_rnn_in_float32() -> None:
    """It is `rflo` there, and not in an LSTM."""
    leaky, lstm = small("leaky_rnn", "float32"), small("lstm", "float32")
    assert distance(gradient(leaky, "eprop").arrays, gradient(leaky, "rflo").arrays) < LIMITS["float32"]
    assert distance(gradient(lstm, "eprop").arrays, gradient(lstm, "rflo").arrays) > TWIN


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in ("lstm", "stacked_rnn", "lru") for text in ("uoro", "kf-rtrl", "ok:1", "artbp:0.3")),
        *((name, "rkf-rtrl") for name in ("lstm", "stacked_rnn")),
        *(("masked_rnn", text) for text in ("uoro", "kf-rtrl", "rkf-rtrl", "artbp:0.3")),
    ],
)
def test_right_in_the_mean_on_more_cells(name: str, text: str) -> None:
    """Over all outcomes of the random bits, to rounding, though a draw is not."""
    T = 2 if (name, text) == ("lstm", "rkf-rtrl") else 3  # a bit for every gate
    units = {"n": 2 if name == "masked_rnn" else 1, "n1": 1, "n2": 1, "T": T, "batch": 1}
    problem = problem_of(SPECS / f"{name}.toml", units, ("params",))
    given, steps = expectation(problem, text).given, Taken(problem)
    bits = bits_of(given, steps)
    assert bits is not None and bits <= 8
    mean, _ = mean_over_outcomes(given, steps, bits)
    exact = gradient(problem, "bptt").arrays
    assert distance(mean, exact) < 1e-12
    draws = [run(given, steps, Bits(bit)).arrays for bit in ([0] * bits, [1] * bits, [1, 0] * bits)]  # type: ignore[arg-type]
    # One unit is a sum of one term, whose rank is one: there is nothing to leave out.
    assert max(distance(draw, exact) for draw in draws) > TWIN or text == "ok:1"


@pytest.mark.parametrize("text", ["kf-rtrl", "artbp:0.3"])
def test_right_in_the_mean_in_float32(text: str) -> None:
    """To the rounding of float32."""
    problem = problem_of(SPECS / "gru.toml", {"n": 2, "T": 3, "batch": 1, "dtype": "float32"}, ("params",))
    given, steps = expectation(problem, text).given, Taken(problem)
    mean, _ = mean_over_outcomes(given, steps, bits_of(given, steps) or 0)
    exact = gradient(problem, "bptt").arrays
    assert distance(mean, exact) < LIMITS["float32"]
    assert distance(run(given, steps, Bits()).arrays, exact) > TWIN  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", ["vanilla_rnn", "gru", "lstm", "stacked_rnn"])
def test_directional_derivatives_are_columns(name: str, dtype: str) -> None:
    """Along unit vectors of parameters, at some entries of each; another entry is another derivative."""
    problem = small(name, dtype)
    exact = gradient(problem, "rtrl").arrays
    for x in problem.setup.wrt:
        entries = np.linspace(0, np.prod(x.shape) - 1, 3).astype(int)
        slopes, flat = np.zeros(3), exact[x.name].ravel()
        for k, entry in enumerate(entries):
            v = np.zeros(flat.size)
            v[entry] = 1
            _, slopes[k] = loss_along(problem, {x.name: v.reshape(x.shape)})
        assert np.abs(slopes - flat[entries]).max() < LIMITS[dtype] * max(1.0, np.abs(flat).max())
        assert len(set(entries)) == 1 or np.abs(slopes - flat[entries[::-1]]).max() > 1e-6


def test_every_recurrent_spec_is_there() -> None:
    """The kinds of cells that the identities are to hold on."""
    assert {*RECURRENT_MATRICES, "lru", "indrnn"} == {*RECURRENT}
    assert all(Path(SPECS / f"{name}.toml").exists() for name in RECURRENT)
