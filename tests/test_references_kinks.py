"""Differences near kinks: inside the branches that were taken, and on both sides of a kink that rounding hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checking_cases import LIMITS, FakeMethod, call

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.methods import parse
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.references import get
from bpcli.references.perturbation.kinks import FREE, find_kinks
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.runtime.reverse_mode import Window

TESTS = Path(__file__).parent
DIFFERENCES = ("central", "ladder")
# The argument of the first unit is 1e-9: on one side for float64, on either for float32.
TINY = """bp = 1
[inputs]
x = [2]
[params]
w = { shape = [2], value = [0.1, 0.7] }
v = { shape = [2], value = [0.299999998, -2.0] }
[equations]
loss = "sum(relu(w * x - v)) + sum(w * w)"
[data]
batch = 2
values = { x = [3.0, 3.0] }
"""


def opened(path: Path, dtype: str, seed: int = 0) -> Problem:
    """The problem of a spec."""
    return draw(open_setup(path, {"dtype": dtype, "seed": seed, "batch": 2}, ("params",), LIMITS))


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize(("dtype", "width"), [("float64", 0.0), ("float32", 1.5)])
def test_a_kink_that_rounding_hides_is_an_interval(tmp_path: Path, name: str, dtype: str, width: float) -> None:
    """From 0.2, the derivative on the left, to 3.2; what float64 can tell apart has one derivative, the right one."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    problem = opened(tmp_path / "tiny.toml", dtype)
    found = get(name).estimate(problem, (Window(0, 0, 1),), problem.setup.wrt)["w"]
    assert width == pytest.approx(found.kink[0], abs=1e-4)
    assert found.value[0] + found.kink[0] == pytest.approx(3.2, abs=1e-4)
    assert found.kink[1] == 0.0
    assert found.bound[0] <= 1e-4


# An input of zero moves the arguments of two units up and of one down, all of them at the kink.
BOTH_WAYS = """bp = 1
[inputs]
x = [1]
[params]
W = {{ shape = [3, 1], value = [[1.0], [-1.0], [2.0]] }}
v = {{ shape = [3], value = [1.0, -1.0, 1.0] }}
[equations]
loss = "{term} + sum(x)"
[data]
batch = 2
values = {{ x = [0.0] }}
"""


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize(
    ("term", "low", "high"),
    [
        (
            "sum(v * relu(W @ x))",
            0.0,
            4.0,
        ),  # off on the left is on on the right: from 1 to 3
        ("sum(relu(x)) - sum(relu(-x))", 0.0, 2.0),  # of which neither side shows a kink
        ("sum(abs(x)) - sum(abs(-2 * x))", -3.0, 3.0),  # where(x >= 0, 1, -1) is a slope of abs as well
        ("sum(relu(x) - relu(-x) + 0.5 * abs(1.2 * x) - 0.5 * abs(-x))", -1.1, 3.1),
    ],
)
def test_kinks_that_an_entry_meets_on_both_sides(tmp_path: Path, name: str, term: str, low: float, high: float) -> None:
    """What programs make of it that switch all alike is right; what is beyond is wrong."""
    path = tmp_path / "both.toml"
    path.write_text(BOTH_WAYS.format(term=term), encoding="utf-8")
    setup = open_setup(path, {}, ("inputs",), LIMITS)
    problem, once = draw(setup), (Window(0, 0, 1),)
    found = get(name).estimate(problem, once, setup.wrt)["x"]
    along = get(name).along(problem, once, {setup.wrt[0]: np.full((1, 2), 0.5)})["x"]
    for estimate in (found, along):  # the loss is a mean of two samples; the direction half a step of both
        np.testing.assert_allclose(estimate.value - estimate.kink, (1 + low) / 2, atol=1e-6)
        np.testing.assert_allclose(estimate.value + estimate.kink, (1 + high) / 2, atol=1e-6)
    ends = ((low + 0.01, "pass"), (high - 0.01, "pass"), (low - 0.1, "wrong"), (high + 0.1, "wrong"))
    for slope, verdict in (*ends, (0.0, "pass")):
        value = (1 + slope) / 2
        method = call(FakeMethod(lambda arrays, *_, value=value: arrays.update(x=np.full_like(arrays["x"], value))))
        for mode in ("full", "directional"):
            (finding,) = check(setup, [method], CheckOptions(mode=mode))
            assert verdict == finding.verdict


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("spec", ["leaky_kinked_rnn", "abs_rnn"])
@pytest.mark.parametrize("seed", [0, 1])
def test_among_many_kinks_differences_keep_to_one_branch(name: str, spec: str, seed: int) -> None:
    """Each entry is known sharply, and its bound covers the error, where larger steps would pass hundreds of kinks."""
    problem = opened(TESTS / f"checking_{spec}.toml", "float64", seed)
    windows = (Window(0, 0, problem.setup.T),)
    tensors = [t for t in problem.setup.wrt if t.name in ("U", "b")]
    exact = get("complex-step").estimate(problem, windows, tensors)
    for tensor, estimate in get(name).estimate(problem, windows, tensors).items():
        assert np.all(np.abs(estimate.value - exact[tensor].value) <= estimate.bound)
        assert np.all(estimate.bound <= 1e-5 * np.abs(exact[tensor].value).max())


def test_steps_that_change_a_branch_are_marked() -> None:
    """A large step meets kinks and its loss is NaN, a tiny one meets none."""
    problem = opened(TESTS / "checking_abs_rnn.toml", "float64")
    perturbed = Perturbed(problem, (Window(0, 0, problem.setup.T),), np.dtype(np.float64), find_kinks(problem))
    losses, met = perturbed.losses_and_kinks(problem.setup.wrt[0], np.zeros(2, dtype=np.int64), np.array([1.0, 1e-12]))
    assert np.isnan(losses[0]).all() and np.isinf(met[0]).all()
    assert np.isfinite(losses[1]).all() and (met[1] == FREE).all()


@pytest.mark.parametrize("reference", ["auto", *DIFFERENCES])
@pytest.mark.parametrize(("factor", "expected"), [(1.0, "pass"), (-0.5, "wrong")])
def test_any_value_between_the_one_sided_derivatives_passes(
    monkeypatch: pytest.MonkeyPatch, reference: str, factor: float, expected: str
) -> None:
    """At an exact kink; its twin lies outside."""
    setup = open_setup(TESTS / "checking_kink.toml", {}, ("params",), LIMITS)
    call = parse("backprop")
    right = call.gradient(draw(setup)).arrays["b"]
    bent = right + factor * np.array([1.0, 0.0, 0.0])
    monkeypatch.setattr(
        "bpcli.checking.checker.on_pattern", lambda given, tensor: bent if tensor.name == "b" else given
    )
    found = {f.tensor: f for f in check(setup, [call], CheckOptions(reference))}  # type: ignore[arg-type]
    assert expected == found["b"].verdict
    assert found["b"].cause == ("kink" if expected == "pass" else "")
