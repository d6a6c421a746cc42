"""No timing without a right gradient: the check before the clock, on a small recurrent network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bpcli.bench import precheck, profiling
from bpcli.bench.measurement import Cell
from bpcli.bench.precheck import distance, flat, true_gradient
from bpcli.bench.worker import Session
from bpcli.cli import main
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import SpecFile, open_setup

SPEC = Path(__file__).parents[1] / "specs" / "vanilla_rnn.toml"
KINKED = Path(__file__).with_name("checking_leaky_kinked_rnn.toml")
Fault = Callable[[dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A method whose gradient goes through `fault` before anybody sees it."""

    inner: Any
    fault: Fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        found = self.inner.gradient(problem, options)
        arrays = {name: np.array(a) for name, a in found.arrays.items()}
        self.fault(arrays)
        return Gradient(found.loss, arrays)


def none(arrays: dict[str, np.ndarray]) -> None:
    """No fault."""


def scaled(arrays: dict[str, np.ndarray]) -> None:
    """All of one matrix off by a thousandth."""
    arrays["W"] *= 1.001


def one_entry(arrays: dict[str, np.ndarray]) -> None:
    """One entry of many off by a tenth."""
    arrays["W"][0, 5] *= 1.1  # not in the sample


def judge(text: str, fault: Fault, spec: Path = SPEC) -> precheck.Precheck:
    """The verdict on a method with a fault."""
    problem = draw(open_setup(spec, {"n": 6, "T": 5, "batch": 2}, (), Limits()))
    right = parse(text)
    call = MethodCall(right.text, Faulty(right.method, fault), right.options)
    true = true_gradient(problem, Limits())
    return precheck.vouch(problem, call, call.gradient(problem), true)


@pytest.mark.parametrize(
    ("text", "affordable", "fault", "verdict", "how"),
    [
        ("bptt", 1e9, none, "pass", "every entry"),
        ("rtrl", 1e9, none, "pass", "every entry"),
        ("tbptt:k1=1,k2=2", 1e9, none, "pass", "every entry"),
        ("bptt", 1e9, scaled, "wrong", "every entry"),
        ("tbptt:k1=1,k2=2", 1e9, one_entry, "wrong", "every entry"),
        ("bptt", 1.0, none, "pass", "10 entries"),
        ("rtrl", 1.0, none, "pass", "10 entries, and all against reverse mode"),
        ("tbptt:k1=1,k2=2", 1.0, none, "pass", "10 entries"),
        ("tbptt:k1=1,k2=2", 1.0, scaled, "wrong", "10 entries"),
        ("rtrl", 1.0, scaled, "wrong", "10 entries"),
        ("rtrl", 1.0, one_entry, "wrong", "10 entries, and all against reverse mode"),
    ],
)
def test_a_gradient_is_judged_before_it_is_timed(monkeypatch, text, affordable, fault, verdict, how):
    """Every entry where that is affordable, else a sample, and all against the truth where the method is exact."""
    monkeypatch.setattr(precheck, "AFFORDABLE_FLOPS", affordable)
    found = judge(text, fault)
    assert verdict == found.verdict
    assert how == found.how
    assert (verdict == "pass") == (found.detail == "")


@pytest.mark.parametrize(
    ("text", "fault", "verdict", "how"),
    [
        ("bptt", none, "pass", "10 entries by complex-step"),
        ("bptt", scaled, "wrong", "10 entries by complex-step"),
        ("rtrl", one_entry, "wrong", "10 entries by complex-step, and all against reverse mode"),
    ],
)
def test_large_cells_are_judged_by_the_complex_step(monkeypatch, text, fault, verdict, how):
    """Where differences of a few entries would take minutes."""
    monkeypatch.setattr(precheck, "AFFORDABLE_FLOPS", 1.0)
    monkeypatch.setattr(precheck, "MAX_FLOPS", 1.0)
    found = judge(text, fault)
    assert (verdict, how) == (found.verdict, found.how)


def test_differences_stay_where_there_are_kinks(monkeypatch):
    """The complex step knows nothing of a kink at the very point."""
    monkeypatch.setattr(precheck, "AFFORDABLE_FLOPS", 1.0)
    monkeypatch.setattr(precheck, "MAX_FLOPS", 1.0)
    found = judge("bptt", none, KINKED)
    assert ("pass", "8 entries") == (found.verdict, found.how)


@pytest.mark.parametrize(
    ("found", "true", "bias", "cosine"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 1.0),
        ([-3.0, 4.0], [3.0, 4.0], 1.2, 0.28),
        ([3e-200, 4e-200], [6e-200, 8e-200], 0.5, 1.0),
        ([3e300, 4e300], [-3e300, -4e300], 2.0, -1.0),
        ([0.0, 0.0], [1.0, 0.0], 1.0, None),
        ([1.0, 0.0], [0.0, 0.0], None, None),
        ([np.nan, 0.0], [1.0, 0.0], None, None),
    ],
)
def test_the_distance_from_the_truth(found, true, bias, cosine):
    """Bias and cosine, with no overflow and no underflow, and nothing where there is nothing to compare."""
    expected = [None if x is None else pytest.approx(x) for x in (bias, cosine)]
    assert expected == list(distance(np.array(found), np.array(true)))


def test_the_flat_gradient_is_in_the_order_of_the_setup():
    """All parameters one after the other."""
    problem = draw(open_setup(SPEC, {"n": 3, "T": 2}, (), Limits()))
    gradient = true_gradient(problem, Limits())
    assert gradient is not None
    names = ["W", "W_in", "b_rec", "W_out", "b_out"]
    expected = np.concatenate([gradient.arrays[n].reshape(-1) for n in names])
    np.testing.assert_array_equal(expected, flat(problem.setup, gradient))


def test_the_truth_is_left_out_where_it_does_not_fit():
    """Memory beyond the limit gives no bias rather than a crash."""
    problem = draw(open_setup(SPEC, {"n": 3, "T": 2}, (), Limits()))
    assert true_gradient(problem, Limits(max_memory=1)) is None


def test_a_bench_of_the_packaged_network_runs_as_it_is(monkeypatch, tmp_path):
    """`bp bench` without a target, small: all pass, exit code 0, the CSV in its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiling, "BLOCK_SECONDS", 1e-4)
    flags = ["-g", "n=4", "-g", "T=6", "-g", "k2=2", "--budget", "0.001"]
    result = CliRunner().invoke(main, ["bench", *flags])
    assert 0 == result.exit_code, result.output
    assert "all gradients checked first" in result.stdout
    (file,) = (tmp_path / "reports").iterdir()
    assert re.fullmatch(r"bench-vanilla_rnn-[0-9a-f]{6}\.csv", file.name)


def test_the_mean_and_the_variance_of_draws():
    """Mean and variance are taken over gradients by other seeds on the same arrays; other methods have no variance."""
    problem = draw(open_setup(SPEC, {"n": 3, "T": 4}, (), Limits()))
    true, call = true_gradient(problem, Limits()), parse("kf-rtrl")
    assert true is not None
    first, right = call.gradient(problem), flat(problem.setup, true)
    mean, variance = precheck.drawn(problem, call, first, 3)
    assert variance is not None
    seeds = [problem.setup.spec.data.seed + (k << 32) for k in range(3)]
    found = np.array([flat(problem.setup, call.gradient(seeded(problem, seed))) for seed in seeds])
    np.testing.assert_allclose(mean, found.mean(axis=0), rtol=1e-12)
    assert variance == pytest.approx(found.var(axis=0, ddof=1).sum())
    bias, _, relative = precheck.spread(mean, variance, right)
    assert bias == distance(mean, right)[0] and relative == pytest.approx(variance / (right @ right))
    assert bias != distance(flat(problem.setup, first), right)[0]
    same, none_ = precheck.drawn(problem, parse("bptt"), true, 3)
    assert np.array_equal(same, right) and none_ is None
    assert (None, None, None) == precheck.spread(mean, variance, None)
    assert precheck.drawn(problem, call, first, 1)[1] is None


def seeded(problem: Problem, seed: int) -> Problem:
    """The same arrays, with another seed for what a method draws."""
    setup = problem.setup
    spec = dataclasses.replace(setup.spec, data=dataclasses.replace(setup.spec.data, seed=seed))
    return dataclasses.replace(problem, setup=dataclasses.replace(setup, spec=spec))


@pytest.mark.parametrize(
    ("method", "kind", "random"),
    [("bptt", "exact", False), ("tbptt:k1=1,k2=2", "truncated", False), ("snap:k=1", "approximate", False),
     ("kf-rtrl", "unbiased", True)],
)  # fmt: skip
def test_a_row_tells_kind_and_errors(method, kind, random):
    """A worker's row has the kind of the method, and kernel error, bias and variance as three numbers."""
    cell = Cell(SpecFile(str(SPEC), "net", {}, (), Limits()), "", 1, method, settings={"n": 3, "T": 4}, draws=4)
    row = Session().answer({"do": "describe", "cell": cell.to_json()})["row"]
    assert (kind, 4 if random else None) == (row["kind"], row["draws"])
    assert row["kernel_error"] < 1e-12 and (row["variance"] is not None) == random
    assert (row["bias"] > 1e-3) == (kind != "exact")
