"""`step(v, k)`: 1 or 0, with the surrogate slope k max(0, 1 - |v|) as the derivative that all references take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checking_cases import (
    REFERENCES,
    Arrays,
    compare_reference,
    judged,
    naive_gradient,
    not_passed,
    opened,
    truncation_windows,
)
from cli_cases import run, write

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.verdict import JUMP
from bpcli.methods import parse
from bpcli.references.perturbation.jumps import jumps, sides
from bpcli.references.perturbation.kinks import analytic

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


def without_surrogate(folder: Path, text: str, dtype: str = "float64") -> Arrays:
    """The gradient of a program for which step has no derivative."""
    for slope in (", 0.8)", ", 2)", ", 0.5)"):
        text = text.replace(slope, ")")
    return naive_gradient(opened(folder, text, dtype))


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", TEXTS)
def test_references_take_the_surrogate(tmp_path: Path, name: str, reference: str) -> None:
    """Imaginary steps and differences agree with the twin, and not with a program without a surrogate."""
    problem = opened(tmp_path, TEXTS[name])
    compare_reference(problem, reference, without_surrogate(tmp_path, TEXTS[name]))


def test_windows_take_it_too(tmp_path: Path) -> None:
    """Truncated through three steps at a time."""
    problem = opened(tmp_path, SPIKING)
    right, whole = naive_gradient(problem, 2, 3), naive_gradient(problem)
    for reference in REFERENCES.values():
        found = reference.estimate(problem, truncation_windows(6, 2, 3), problem.setup.wrt)["W"]
        assert (np.abs(found.value - right["W"]) <= found.bound + 1e-12).all()
        assert (np.abs(found.value - whole["W"]) > 10 * found.bound).any()


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_program_without_the_surrogate_is_wrong(tmp_path: Path, name: str, dtype: str, mode: str) -> None:
    """The methods pass."""
    problem = opened(tmp_path, TEXTS[name], dtype)
    assert [] == not_passed(problem, mode)
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
def test_where_rounding_decides_both_sides_are_right(tmp_path: Path, u: str, dtype: str, expected: bool) -> None:
    """A program may be on either side of a jump, with all it computes; a mixture of both, or neither, is wrong."""
    text = FEED_FORWARD.replace("[0.5, -0.25, 0.125]", u).replace("step(u, 0.5) * u", "step(3 * u - 0.3, 0.5) * u")
    problem = opened(tmp_path, text, dtype)
    assert expected == jumps(problem)
    below, above = (
        naive_gradient(opened(tmp_path, text.replace("3 * u - 0.3", f"3 * u - 0.3 {shift}"), dtype))
        for shift in ("- 1e-6", "+ 1e-6")
    )
    middle = {n: ((below[n] + above[n]) / 2).astype(dtype) for n in below}
    assert {"pass"} == {f.verdict for f in judged(problem, naive_gradient(problem))}
    found = [next(f.verdict for f in judged(problem, g) if f.tensor == "x") for g in (below, above, middle)]
    apart = float(np.abs(below["x"] - above["x"]).max())
    if apart:
        assert [("wrong", "pass")[expected], "pass", "wrong"] == found
    else:
        assert ["pass"] * 3 == found and not expected


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_many_jumps_leave_open_what_fits_none(tmp_path: Path, dtype: str) -> None:
    """Of dozens of jumps the sides that simulated rounding takes are tried, and a gradient of none is not accused."""
    text = SPIKING.replace('s = "step(v - 0.7, 0.8)"', 's = "step(3 * (0.1 * v) - 0.3 * v, 0.8)"')
    problem = opened(tmp_path, text, dtype)
    assert jumps(problem) and not sides(problem).complete  # type: ignore[union-attr] (at a jump there are sides)
    call_, options = parse("bptt"), CheckOptions(mode="full")
    assert {"pass"} == {f.verdict for f in check_problem(problem, [call_], options)}
    right = call_.gradient(problem).arrays
    wrong = judged(problem, {name: 1.5 * values for name, values in right.items()})
    assert {("inconclusive", JUMP)} == {(f.verdict, f.cause) for f in wrong if f.verdict != "pass"} != set()


def test_exact_zeros_are_below(tmp_path: Path) -> None:
    """A state that starts from zero is on one side however a program rounds; what is stopped has no kinks."""
    text = SPIKING.replace('{ shape = [4], init = "normal", scale = 1.0 }', "[4]")
    problem = opened(tmp_path, text.replace("step(v)", "step(v[t-1])"))
    assert not jumps(problem) and analytic(problem.setup.graph)
    assert {"pass"} == {f.verdict for f in judged(problem, naive_gradient(problem))}


KERNEL = """
import numpy as np


def gradient(params, inputs, sign, side):
    W, u, x = params["W"], params["u"], inputs["x"]
    h = np.tanh(x @ W.T)
    delta = 2 * (h - 0.25) * (1 - h * h)
    above = 3 * u - 0.3 + side > 0
    return {"W": sign * delta.T @ x / len(x), "u": (x * above).mean(0)}


def above(params, inputs, state):
    return gradient(params, inputs, 1, 1e-9)


def below(params, inputs, state):
    return gradient(params, inputs, 1, -1e-9)


def negated(params, inputs, state):
    return gradient(params, inputs, -1, -1e-9)
"""


def test_a_wrong_gradient_at_a_jump_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the side that it is on; those that are right there pass."""
    monkeypatch.chdir(tmp_path)
    text = FEED_FORWARD.replace("step(W @ x, 2)", "tanh(W @ x)").replace("step(u, 0.5)", "step(3 * u - 0.3)")
    write(Path("jump.toml"), text.replace("[0.5, -0.25, 0.125]", "[0.1, -0.25, 0.125]"))
    write(Path("mine.py"), KERNEL)
    kernels = [word for name in ("above", "below", "negated") for word in ("--kernel", f"mine.py:{name}")]
    found = json.loads(run("check", "jump.toml", *kernels, "--format", "json").stdout)["findings"]
    wrong = [f for f in found if f["verdict"] != "pass"]
    assert [("kernel:negated", "W", "wrong")] == [(f["method"], f["tensor"], f["verdict"]) for f in wrong]
    assert "-1 times the right one" in wrong[0]["blame"]["text"]
