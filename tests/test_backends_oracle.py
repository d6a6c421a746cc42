"""Peers as oracles: right gradients pass, wrong ones fail, and an oracle that errs condemns none by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking_cases import Arrays, FakeMethod, call, naive_gradient, naive_loss, small_setup
from click.testing import CliRunner

from bpcli import backends
from bpcli.backends import jax, torch
from bpcli.backends import oracle as outside
from bpcli.checking.check_options import CheckOptions, check_bytes, choose
from bpcli.checking.checker import check
from bpcli.cli import main
from bpcli.errors import BpError
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

VANILLA = str(Path(__file__).parents[1] / "specs" / "vanilla_rnn.toml")
ORACLE = CheckOptions("oracle", "full")
Spoil = Callable[[Arrays], None]


@dataclass(frozen=True)
class Oracle:
    """A peer that computes naively, in float64, and then spoils its answer."""

    spoil: Spoil = lambda arrays: None

    def refusal(self, setup: Setup, method: str) -> str | None:
        return None

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        assert np.float64 == problem.setup.dtype
        arrays = naive_gradient(problem)
        self.spoil(arrays)
        return lambda: Gradient(naive_loss(problem), arrays)


def permille(arrays: Arrays) -> None:
    arrays["W"] *= 1.001


def lost(arrays: Arrays) -> None:
    arrays["W"] *= np.nan


def nothing(arrays: Arrays) -> None:
    pass


def ask(monkeypatch: pytest.MonkeyPatch, oracle: Spoil) -> None:
    """Let the only peer be this oracle."""
    monkeypatch.setattr(backends, "known_names", lambda: ("oracle",))
    monkeypatch.setattr(backends, "get", lambda name: Oracle(oracle))


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize(
    ("oracle", "method", "expected"),
    [
        (nothing, nothing, ("pass", "")),
        (nothing, permille, ("wrong", "")),
        (permille, nothing, ("inconclusive", "references disagree")),
        (permille, permille, ("pass", "")),  # nobody else was asked
        (lost, nothing, ("inconclusive", "no power")),
    ],
)
def test_who_differs_from_an_oracle_is_wrong_where_differences_say_so_too(monkeypatch, mode, oracle, method, expected):
    """`wrong` needs differences to agree with the oracle; an oracle without a finite gradient lets none pass."""
    ask(monkeypatch, oracle)
    fake = FakeMethod(lambda arrays, method_, problem: method(arrays))
    findings = check(small_setup("vanilla_rnn"), [call(fake)], CheckOptions("oracle", mode))
    found = {f.tensor: (f.verdict, f.cause) for f in findings}
    assert expected == found.pop("W")
    assert {("pass", "")} == set(found.values())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_float32_is_judged_in_float64(monkeypatch, dtype):
    """The oracle computes at the very values of the spec; the bound is that of the spec's dtype."""
    ask(monkeypatch, nothing)
    setup = small_setup("leaky_rnn", dtype=dtype)
    assert {"pass"} == {f.verdict for f in check(setup, [call(FakeMethod())], ORACLE)}


def test_another_choice_at_a_kink_is_not_accused(monkeypatch):
    """At an exact kink the oracle has one derivative and the method another: differences accept both."""
    ask(monkeypatch, lambda arrays: arrays.update({n: np.zeros_like(a) for n, a in arrays.items()}))
    setup = small_setup("kink", ("params",))
    findings = check(setup, [call(FakeMethod())], ORACLE)
    assert "wrong" not in {f.verdict for f in findings}


def test_the_cost_of_an_oracle_is_that_of_a_gradient_and_its_bound(monkeypatch):
    """Far below that of differences; memory is foretold."""
    ask(monkeypatch, nothing)
    setup = small_setup("leaky_rnn", ("params",), n=512)
    fake = call(FakeMethod())
    assert choose(setup, [fake], ORACLE).flops < 0.1 * choose(setup, [fake], CheckOptions("central", "full")).flops
    assert check_bytes(setup, [fake], ORACLE) > 64 * 64 * 8


@pytest.mark.parametrize(
    ("methods", "code", "said"),
    [
        ([], 0, "skipped tbptt:k1=1,k2=4 for vanilla_rnn: the reference oracle differentiates the whole loss"),
        (["-m", "bptt"], 0, "Every entry checked against oracle."),
        (["-m", "bptt", "-m", "tbptt:k1=1,k2=2"], 2, "error[reference-refused]: tbptt:k1=1,k2=2: the reference oracle"),
    ],
)
def test_truncation_is_nothing_that_an_oracle_knows(monkeypatch, methods, code, said):
    """What the spec names is skipped with a note, what the user names is refused."""
    ask(monkeypatch, nothing)
    result = CliRunner().invoke(main, ["check", VANILLA, "--reference", "oracle", "--set", "n=3", *methods])
    assert code == result.exit_code
    assert said in result.output


def test_a_kernel_that_is_meant_to_be_truncated_is_refused(monkeypatch, tmp_path):
    """The oracle cannot judge it either."""
    ask(monkeypatch, nothing)
    (tmp_path / "k.py").write_text("def f(params, inputs, state):\n    return params\n")
    options = ["--kernel", f"{tmp_path / 'k.py'}:f", "--reference", "oracle", "--set", "n=3"]
    result = CliRunner().invoke(main, ["check", VANILLA, *options, "--as", "fbptt:3"])
    assert 2 == result.exit_code
    assert "error[reference-refused]: kernel:f: the reference oracle" in result.output
    assert 1 == CliRunner().invoke(main, ["check", VANILLA, *options]).exit_code


def test_a_missing_program_is_told_once(monkeypatch):
    """Before any spec is looked at."""
    monkeypatch.setattr(jax.PEER.__class__, "available", lambda self: "JAX is not installed")
    result = CliRunner().invoke(main, ["check", VANILLA, VANILLA, "--reference", "jax"])
    assert 2 == result.exit_code
    assert 1 == result.stderr.count("JAX is not installed")
    assert "bp-check[peers]" in result.stderr


def test_an_oracle_is_for_specs():
    """An object has no graph that a peer could run."""
    with pytest.raises(BpError, match="unknown peer"):
        outside.get("jacks")
    result = CliRunner().invoke(main, ["check", "box.py:Box", "--reference", "torch"])
    assert 2 == result.exit_code


def test_oracles_are_listed():
    """Beside the references, installed or not."""
    result = CliRunner().invoke(main, ["list", "references"])
    assert {"central", "complex-step", "jax", "ladder", "torch"} <= set(result.stdout.split())


@pytest.mark.parametrize("peer", [jax.PEER, torch.PEER], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["gru", "classifier", "relu", "kink"])
def test_real_oracles_agree_with_bp(peer: Any, name: str) -> None:
    """Analytic and not; z stays far below 1."""
    if reason := peer.available():
        pytest.skip(reason)
    setup = small_setup(name)
    findings = check(setup, [call(FakeMethod())], CheckOptions(peer.name, "full"))
    assert {"pass"} == {f.verdict for f in findings}
    assert max(f.worst.z for f in findings if f.worst) < 0.5
