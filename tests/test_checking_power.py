"""Planted faults: each is caught or changes nothing, and its harmless rewrite passes."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from checking_cases import SPECS, small_setup
from click.testing import CliRunner

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.faults.fault import as_method
from bpcli.checking.power import power
from bpcli.cli import main

AUTO = CheckOptions()
NAMES = ("leaky_rnn", "exercise", "relu")


def test_there_are_enough_faults() -> None:
    """At least 32, each under a name of its own, with advice for any spec."""
    names = [fault.name for fault in CATALOGUE]
    assert len(names) == len(set(names)) >= 32
    for name in ("square", "leaky_rnn"):
        assert all(fault.advice(small_setup(name)) for fault in CATALOGUE)


@pytest.mark.parametrize("name", NAMES)
def test_no_fault_is_missed(name: str) -> None:
    """A fault is caught in the tensors that it changes and no other, or is void."""
    found = power(small_setup(name), AUTO)
    assert [] == [p.fault.name for p in found if p.outcome == "missed"]
    assert [] == [p.fault.name for p in found if p.wrong != p.changed]
    assert Counter(p.outcome for p in found)["caught"] >= 15


@pytest.mark.parametrize("name", NAMES)
def test_harmless_rewrites_pass(name: str) -> None:
    """The same rules replaced by others that compute the same."""
    calls = [as_method(fault.name, fault.harmless) for fault in CATALOGUE]
    findings = check(small_setup(name), calls, AUTO)
    assert [] == [(f.method, f.tensor) for f in findings if f.verdict != "pass"]


@pytest.mark.parametrize(
    ("settings", "fault", "advice"),
    [
        ({"alpha": 1.0}, "leak-missing-in-J", "alpha = 1: the leak term is untested"),
        ({"batch": 1}, "batch-average-missing", "batch = 1: the batch average is untested"),
        ({"T": 1}, "J-of-wrong-step", "T = 1: which step J belongs to is untested"),
    ],
)
def test_void_faults_come_with_advice(settings: dict[str, object], fault: str, advice: str) -> None:
    """A fault that a spec cannot reveal is void with advice, and caught when the advice is followed."""
    rows = [f for f in CATALOGUE if f.name == fault]
    (void,) = power(small_setup("leaky_rnn", ("params",), **settings), AUTO, rows)
    assert "void" == void.outcome
    assert void.advice.startswith(advice)
    (caught,) = power(small_setup("leaky_rnn", ("params",)), AUTO, rows)
    assert ("caught", "") == (caught.outcome, caught.advice)


def test_where_the_gradient_is_zero_nothing_is_tested() -> None:
    """A zero gradient is the reason for every void fault."""
    rows = [f for f in CATALOGUE if f.name in ("leak-missing-in-J", "batch-average-missing")]
    found = power(small_setup("leaky_rnn", ("W", "W_in"), alpha=0.0), AUTO, rows)
    assert [("void", True)] * 2 == [(p.outcome, p.advice.startswith("the gradient is zero")) for p in found]


@pytest.mark.parametrize("option", ["--kernel", "--gradient"])
def test_power_takes_no_gradient(option: str) -> None:
    """A gradient given beside --power is refused, as it would not be judged."""
    result = CliRunner().invoke(main, ["check", str(SPECS / "square.toml"), "--power", option, "any.file"])
    assert 2 == result.exit_code
    assert f"{option} does not go with --power" in result.stderr


def test_the_command_lists_faults() -> None:
    """`bp check --power` writes a row for each fault and counts them."""
    result = CliRunner().invoke(main, ["check", str(SPECS / "square.toml"), "--power", "--format", "json"])
    assert 0 == result.exit_code
    document = json.loads(result.stdout)
    assert len(CATALOGUE) == len(document["faults"]) == sum(document["summary"].values())
    assert 0 == document["summary"]["missed"]
