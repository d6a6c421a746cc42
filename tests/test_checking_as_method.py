"""Checks as methods of a bench: one reference over every entry, whole checks, and gradcheck for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bpcli import references
from bpcli.backends.torch import PEER as TORCH
from bpcli.bench import bench_run
from bpcli.bench.precheck import vouch
from bpcli.bench.sweep import ROUNDS
from bpcli.checking.check_as_method import Checking, parse_measurable
from bpcli.cli import main
from bpcli.errors import BpError
from bpcli.methods import parse
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.references.base import Estimate

VANILLA = Path(__file__).parents[1] / "specs" / "vanilla_rnn.toml"
NAMES = ("central", "complex-step", "ladder", "check")


def small(dtype: str = "float64") -> Problem:
    return draw(open_setup(VANILLA, {"n": 3, "T": 3, "batch": 2, "dtype": dtype}, (), Limits()))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_a_check_is_a_method_with_a_gradient_and_a_cost(name, dtype):
    """The gradient is exact, in the spec's dtype, and the precheck judges it by its verdict on reverse mode."""
    problem, call = small(dtype), parse_measurable(f" {name} ")
    found, expected = call.gradient(problem), parse("bptt").gradient(problem)
    assert name == call.text
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for tensor in problem.setup.wrt:
        assert (tensor.shape, problem.setup.dtype) == (found.arrays[tensor.name].shape, found.arrays[tensor.name].dtype)
        np.testing.assert_allclose(found.arrays[tensor.name], expected.arrays[tensor.name], rtol=1e-3, atol=1e-5)
    assert call.cost(problem.setup).flops > parse("bptt").cost(problem.setup).flops
    assert "pass" == vouch(problem, call, found, None).verdict


def test_a_whole_check_costs_more_than_its_references():
    """The cost includes both references, the rounding, and two gradients."""
    setup = small().setup
    cost = {name: parse_measurable(name).cost(setup).flops for name in NAMES}
    assert cost["check"] > cost["central"] + cost["complex-step"]


def test_a_reference_that_is_wrong_is_not_timed(monkeypatch):
    """A wrong reference is detected by its verdict on a right gradient, and not timed."""
    kind = type(references.get("complex-step"))
    estimate = kind.estimate

    def off(self, *args):
        found = estimate(self, *args)
        return {n: Estimate(1.001 * e.value, e.bound, e.noise, e.kink) for n, e in found.items()}

    monkeypatch.setattr(kind, "estimate", off)
    problem, call = small(), parse_measurable("complex-step")
    assert "wrong" == vouch(problem, call, call.gradient(problem), None).verdict


def test_methods_are_parsed_as_ever():
    """The precheck judges methods as before."""
    assert "tbptt" == parse_measurable("tbptt:k1=1,k2=2").method.name
    assert not isinstance(parse_measurable("bptt").method, Checking)
    with pytest.raises(BpError, match='unknown method "centrall"'):
        parse_measurable("centrall")


def test_nothing_is_remembered_between_calls(monkeypatch):
    """A reference recomputes its bounds in each call, so that their cost is measured."""
    seen = []
    estimate = type(references.get("central")).estimate
    monkeypatch.setattr(
        type(references.get("central")), "estimate", lambda self, p, *rest: seen.append(p) or estimate(self, p, *rest)
    )
    problem = small()
    for _ in range(2):
        parse_measurable("central").gradient(problem)
    assert 3 == len({id(p) for p in (problem, *seen)})


@pytest.mark.parametrize(("seconds", "taken"), [(0.01, [0, 1, 2, 3, 4, 5, 6]), (20.0, [0, 3, 6])])
def test_long_blocks_are_taken_in_few_rounds(seconds, taken):
    """The first, the middle and the last."""
    lane = bench_run._Lane(None, "bp", None, report={"block_s": seconds})
    assert taken == [turn for turn in range(ROUNDS) if turn % lane.stride == 0]


def test_bench_measures_checks(tmp_path, monkeypatch):
    """Rows like any other; gradcheck, if it is there, stands beside central and the check, with how much longer."""
    monkeypatch.chdir(tmp_path)
    peer = [] if TORCH.available() else ["--peer", "torch"]
    methods = [part for name in NAMES for part in ("-m", name)]
    sizes = ["--set", "batch=2", "-g", "k2=1", "-g", "n=3", "-g", "T=3"]
    result = CliRunner().invoke(
        main, ["bench", str(VANILLA), *methods, *sizes, *peer, "--budget", "0.001", "--format", "json"]
    )
    assert 0 == result.exit_code, result.output
    cells = json.loads(result.stdout)["cells"]
    found = {(c["method"], c["backend"]): c for c in cells}
    beside = [("central", "torch"), ("check", "torch")] if peer else []
    assert sorted([*((name, "bp") for name in NAMES), *beside]) == sorted(found)
    assert {"pass"} == {c["check"]["verdict"] for c in cells}
    assert all(found[key]["ratio"]["median"] > 0 for key in beside)
    assert all(c["time_s"] > 0 for c in cells)
