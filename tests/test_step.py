"""`step(v, k)`: 1 or 0, with the surrogate slope k max(0, 1 - |v|) as the derivative that all references take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checking_cases import LIMITS, Arrays, FakeMethod, call, naive_gradient, truncation_windows

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.methods import parse
from bpcli.methods.base import Exact
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.references import central, complex_step, ladder
from bpcli.references.perturbation.kinks import analytic, jumps

SPIKING = """bp = 1
inputs = { x = [4] }
[params]
W = { shape = [4, 4], scale = 0.6 }
b = { shape = [4], value = [0.5, 0.25, -0.5, 0.125] }
[state]
v = { shape = [4], init = "normal", scale = 1.0 }
s = [4]
[equations]
v = "0.9 * v[t-1] + W @ s[t-1] + x + b - stop_gradient(s[t-1])"
s = "step(v - 0.7, 0.8)"
loss = "sum((s - 0.3)**2) + 0.1 * sum(v * step(v))"
[data]
T = 6
batch = 2
seed = 3
"""
FEED_FORWARD = """bp = 1
inputs = { x = [3] }
[params]
W = [2, 3]
u = { shape = [3], value = [0.5, -0.25, 0.125] }
[equations]
h = "step(W @ x, 2)"
loss = "sum((h - 0.25)**2) + dot(x, step(u, 0.5) * u)"
[data]
batch = 3
"""
TEXTS = {"spiking": SPIKING, "feed-forward": FEED_FORWARD}
REFERENCES = {r.name: r for r in (complex_step.REFERENCE, central.REFERENCE, ladder.REFERENCE)}


def opened(folder: Path, text: str, dtype: str = "float64") -> Problem:
    """The problem of a spec's text, to be differentiated by everything."""
    path = folder / "step.toml"
    path.write_text(text, encoding="utf-8")
    kinds = ("params", "inputs", "state") if "[state]" in text else ("params", "inputs")
    return draw(open_setup(path, {"dtype": dtype}, kinds, LIMITS))


def without_surrogate(folder: Path, text: str, dtype: str = "float64") -> Arrays:
    """The gradient of a program for which step has no derivative."""
    for slope in (", 0.8)", ", 2)", ", 0.5)"):
        text = text.replace(slope, ")")
    return naive_gradient(opened(folder, text, dtype))


def judged(problem: Problem, answer: Arrays, mode: str = "full") -> list[Finding]:
    """The findings on a gradient."""
    method = FakeMethod(lambda arrays, *_: arrays.update(answer))
    return check_problem(problem, [call(method)], CheckOptions(mode=mode))  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", TEXTS)
def test_references_take_the_surrogate(tmp_path: Path, name: str, reference: str) -> None:
    """Imaginary steps and differences agree with the twin, and not with a program without a surrogate."""
    problem = opened(tmp_path, TEXTS[name])
    found = REFERENCES[reference].estimate(problem, Exact().over(problem.setup), problem.setup.wrt)
    right, other = naive_gradient(problem), without_surrogate(tmp_path, TEXTS[name])
    apart = 0.0
    for tensor, estimate in found.items():
        assert (np.abs(estimate.value - right[tensor]) <= estimate.bound + 1e-12).all(), tensor
        assert np.max(estimate.bound) < 1e-4
        apart = max(apart, float(np.max(np.abs(estimate.value - other[tensor]) - estimate.bound)))
    assert apart > 1e-2


def test_windows_take_it_too(tmp_path: Path) -> None:
    """Truncated through three steps at a time."""
    problem = opened(tmp_path, SPIKING)
    right, whole = naive_gradient(problem, 2, 3), naive_gradient(problem)
    for reference in REFERENCES.values():
        found = reference.estimate(problem, truncation_windows(6, 2, 3), problem.setup.wrt)["W"]
        assert (np.abs(found.value - right["W"]) <= found.bound + 1e-12).all()
        assert (np.abs(found.value - whole["W"]) > 10 * found.bound).any()


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_program_without_the_surrogate_is_wrong(tmp_path: Path, name: str, dtype: str, mode: str) -> None:
    """The methods pass."""
    problem = opened(tmp_path, TEXTS[name], dtype)
    methods = ("bptt", "rtrl", "tbptt:k1=2,k2=3") if problem.setup.graph.recurrent else ("backprop",)
    found = check_problem(problem, [parse(m) for m in methods], CheckOptions(mode=mode))  # type: ignore[arg-type]
    assert {"pass"} == {f.verdict for f in found}, [f for f in found if f.verdict != "pass"]
    assert "wrong" in {f.verdict for f in judged(problem, without_surrogate(tmp_path, TEXTS[name], dtype), mode)}


@pytest.mark.parametrize(
    ("u", "dtype", "expected"),
    [
        ("[0.5, -0.25, 0.125]", "float64", False),
        ("[0.1, -0.25, 0.125]", "float64", True),  # 3 u - 0.3 is zero but for rounding
        ("[0.1000000001, -0.25, 0.125]", "float64", False),
        ("[0.1000000001, -0.25, 0.125]", "float32", True),
    ],
)
def test_where_rounding_decides_nothing_is_wrong(tmp_path: Path, u: str, dtype: str, expected: bool) -> None:
    """A program may be on either side of a jump, and no gradient is accused for that, nor passed."""
    text = FEED_FORWARD.replace("[0.5, -0.25, 0.125]", u).replace("step(u, 0.5)", "step(3 * u - 0.3, 0.5)")
    problem = opened(tmp_path, text, dtype)
    assert expected == jumps(problem)
    verdicts = {f.verdict for f in judged(problem, naive_gradient(problem))}
    assert ({"inconclusive"} if expected else {"pass"}) == verdicts


def test_exact_zeros_are_below(tmp_path: Path) -> None:
    """A state that starts from zero is on one side however a program rounds; what is stopped has no kinks."""
    text = SPIKING.replace('{ shape = [4], init = "normal", scale = 1.0 }', "[4]")
    problem = opened(tmp_path, text.replace("step(v)", "step(v[t-1])"))
    assert not jumps(problem) and analytic(problem.setup.graph)
    assert {"pass"} == {f.verdict for f in judged(problem, naive_gradient(problem))}
