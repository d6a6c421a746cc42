"""Blame: hand-written gradients of a leaky RNN with one slip each, none of them made by the interpreter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking_cases import LIMITS, SPECS, Arrays, FakeMethod, call, small_setup
from click.testing import CliRunner

from bpcli.checking.blame.explain import Reproducer, explain
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding
from bpcli.cli import main
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup


def slip(problem: Problem, name: str) -> Arrays:
    """BPTT of specs/leaky_rnn.toml by hand, (1 - α) a + α tanh(W a + W_in x + b), with the slip called `name`."""
    p, setup = problem.params, problem.setup
    x, target, alpha = problem.inputs["x"], problem.inputs["y_star"], setup.spec.constants["alpha"]
    T, B = setup.T, setup.batch
    a = [np.broadcast_to(problem.state["a"], (B, setup.spec.dims["n"]))]
    f = []
    for t in range(T):
        f.append(np.tanh(a[t] @ p["W"].T + x[t] @ p["W_in"].T + p["b_rec"]))
        a.append((1 - alpha) * a[t] + alpha * f[t])
    g = {key: np.zeros_like(value) for key, value in p.items()}
    carried = np.zeros_like(a[0])
    for t in reversed(range(T)):
        delta = (a[t + 1] @ p["W_out"].T + p["b_out"] - target[t]) / (1 if name == "batch-average-missing" else B)
        if name == "final-loss-dropped" and t == T - 1:
            delta = 0 * delta
        g["W_out"] += delta.T @ a[t + 1]
        g["b_out"] += delta[0] if name == "bias-unreduced" else delta.sum(axis=0)
        c = delta @ p["W_out"] + carried
        slope = 1 - np.tanh(f[t]) ** 2 if name == "slope-at-output" else 1 - f[t] ** 2
        slope = 1.0 if name == "tanh-slope-missing" else slope
        h = alpha * c * slope
        into = h / alpha if name == "alpha-missing-in-M" else h
        kept = 0.0 if name == "first-step-missing" and t == 0 else 1.0
        g["W"] += kept * into.T @ (a[t + 1] if name == "state-now-for-before" else a[t])
        g["W_in"] += kept * into.T @ (x[max(t - 1, 0)] if name == "input-one-step-off" else x[t])
        g["b_rec"] += kept * (into[0] if name == "bias-unreduced" else into.sum(axis=0))
        leak = 0.0 if name == "leak-missing-in-J" else 1 - alpha
        carried = leak * c + h @ (p["W"].T if name == "weight-untransposed" else p["W"])
        if name == "hidden-truncation" and t == T // 2:
            carried = 0 * carried
    if name == "outer-product-transposed":
        g["W"] = g["W"].T.copy()
    if name == "sign":
        g = {key: -value for key, value in g.items()}
    return g


WORDS = {
    "batch-average-missing": "1/B is missing",
    "final-loss-dropped": "the last step's loss is left out",
    "bias-unreduced": "the gradient of a bias is that of the first sample",
    "tanh-slope-missing": "the derivative of tanh is missing",
    "slope-at-output": "the derivative is evaluated at the output",
    "alpha-missing-in-M": "is missing in M̄",
    "first-step-missing": "the first step's contribution",
    "state-now-for-before": "a(t) is used where a(t-1) is needed",
    "input-one-step-off": "x(t-1) is used",
    "leak-missing-in-J": "the leak is missing in J",
    "weight-untransposed": "W is used where Wᵀ is needed",
    "hidden-truncation": "nothing is propagated back beyond the middle",
    "outer-product-transposed": "a gradient is transposed",
    "sign": "the sign is wrong",
}


@cache
def blames(name: str) -> list[Finding]:
    """The findings on a slip, explained."""

    def spoil(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
        arrays.update(slip(problem, name))

    setup = small_setup("leaky_rnn", ("params",), T=6)
    method = call(FakeMethod(spoil))

    def reopen(settings: Mapping[str, object]) -> Any:
        return open_setup(SPECS / "leaky_rnn.toml", {"n": 3, "T": 6, "batch": 2, **settings}, ("params",), LIMITS)

    again = Reproducer(reopen, lambda text, settings: " ".join([text, *(f"{k}={v}" for k, v in settings.items())]))
    return explain(check(setup, [method], CheckOptions()), setup, [method], again)


def test_a_right_gradient_is_not_blamed() -> None:
    """The hand-written gradient without a slip passes."""
    assert {("pass", None)} == {(f.verdict, f.blame) for f in blames("none")}


@pytest.mark.parametrize("name", WORDS)
def test_slips_are_named(name: str) -> None:
    """The first cause is the slip, in every tensor that is wrong."""
    wrong = [f for f in blames(name) if f.verdict == "wrong"]
    assert wrong
    for finding in wrong:
        assert finding.blame is not None
        assert WORDS[name] in str(finding.blame["cause"]).split(" (or: ")[0]
        assert str(finding.blame["reproduce"]).startswith("fake ")


def test_places() -> None:
    """A fault of one step names that step, one of M̄ its factor; steps count from 1."""
    found = {f.tensor: f.blame for f in blames("first-step-missing") if f.blame}
    assert {(1, "M̄")} == {(b["step"], b["factor"]) for b in found.values()}
    assert {"W", "W_in", "b_rec"} == set(found)


def test_the_command_that_shows_it_again(tmp_path: Path) -> None:
    """A user's kernel with a wrong sign: the blame's command is shrunk, and fails as well."""
    kernel = tmp_path / "mine.py"
    kernel.write_text("def gradient(params, inputs, state):\n    return {'x': -2.0 * params['x']}\n")
    given = ["check", str(SPECS / "square.toml"), "--kernel", f"{kernel}:gradient", "--format", "json"]
    result = CliRunner().invoke(main, given)
    assert 1 == result.exit_code
    (finding,) = json.loads(result.stdout)["findings"]
    assert "the sign is wrong" in finding["blame"]["cause"]
    words = finding["blame"]["reproduce"].split()
    assert ["bp", "check"] == words[:2] and f"{kernel}:gradient" in words
    assert 1 == CliRunner().invoke(main, words[1:]).exit_code


def shares(name: str) -> list[float]:
    """`blame.errors` of W for a slip; none where the blame has none."""
    (blame,) = (f.blame for f in blames(name) if f.tensor == "W" and f.blame)
    errors = blame["errors"]
    return [] if errors is None else list(errors)


def test_errors_by_step_are_those_of_each_step() -> None:
    """With α missing in M̄ each step gives 1/α times its share: the norm of share times 1/α - 1 over that of all."""
    setup = small_setup("leaky_rnn", ("params",), T=6)
    problem, alpha = draw(setup), setup.spec.constants["alpha"]
    whole = slip(problem, "none")["W"]
    p, B = problem.params, setup.batch
    a, f = [np.broadcast_to(problem.state["a"], (B, len(p["W"])))], []
    for x in problem.inputs["x"]:
        f.append(np.tanh(a[-1] @ p["W"].T + x @ p["W_in"].T + p["b_rec"]))
        a.append((1 - alpha) * a[-1] + alpha * f[-1])
    carried, expected = np.zeros_like(a[0]), []
    for t in reversed(range(setup.T)):
        c = (a[t + 1] @ p["W_out"].T + p["b_out"] - problem.inputs["y_star"][t]) / B @ p["W_out"] + carried
        h = alpha * c * (1 - f[t] ** 2)
        expected.append((1 / alpha - 1) * np.linalg.norm(h.T @ a[t]) / np.linalg.norm(whole))
        carried = (1 - alpha) * c + h @ p["W"]
    np.testing.assert_allclose(shares("alpha-missing-in-M"), expected[::-1], rtol=1e-9)


def test_errors_by_step_are_told_where_they_are_known() -> None:
    """A dropped last loss makes all steps wrong, an omitted first step that one alone."""
    errors = shares("final-loss-dropped")
    assert 6 == len(errors) and min(errors) > 0
    errors = shares("first-step-missing")
    assert errors[0] > 0 and [0.0] * 5 == errors[1:]
