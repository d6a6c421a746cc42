"""The gradients of single steps: of online methods, by `bp grad --per-step` and in Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_cases import FORWARD, run, write
from kernel_cases import RECURRENT, SPECS, problem_of

import bpcli
from bpcli.methods import built_in, load, parse, stepwise_methods
from bpcli.methods.base import Gradient

METHODS = ("rtrl", "rtrl-dense", "snap:k=1", "uoro", "fbptt:3", "tbptt:k1=1,k2=2", "ebptt:1")
ALIKE = ("rtrl", "rtrl-dense", "fbptt:6")
"""Exact in 6 steps, by three ways."""
T = 6
SPEC = str(SPECS / "leaky_rnn.toml")


def each(name: str, method: str, dtype: str = "float64") -> tuple[Gradient, list[Gradient]]:
    """The gradient of a method, and those of its steps."""
    problem = problem_of(SPECS / f"{name}.toml", {"T": T, "dtype": dtype}, ("params", "inputs", "state"))
    call = parse(method)
    found = call.step_gradients(problem)
    assert found is not None
    return call.gradient(problem), list(found)


def apart(found: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference relative to the largest entry of an array."""
    return max(float(np.abs(found[n] - a).max() / max(np.abs(a).max(), 1e-3)) for n, a in other.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECURRENT)
def test_steps_add_up(name: str, method: str) -> None:
    """The sum over steps is the gradient; without the first step it is another."""
    whole, steps = each(name, method)
    assert T == len(steps)
    assert np.isclose(whole.loss, sum(s.loss for s in steps), rtol=1e-14)
    for left, close in ((steps, True), (steps[1:], False)):
        total = {n: np.sum([s.arrays[n] for s in left], axis=0) for n in whole.arrays}
        assert close == (apart(total, dict(whole.arrays)) < 1e-14)


@pytest.mark.parametrize("name", RECURRENT)
def test_three_ways_agree(name: str) -> None:
    """The exact gradient of every step, forwards in kernels and in NumPy, and backwards; snap's is another."""
    rtrl, dense, reverse = (each(name, method)[1] for method in ALIKE)
    for t in range(T):
        assert apart(dict(rtrl[t].arrays), dict(reverse[t].arrays)) < 1e-13
        assert apart(dict(dense[t].arrays), dict(reverse[t].arrays)) < 1e-13
        assert np.isclose(rtrl[t].loss, reverse[t].loss, rtol=1e-14)
    short = each(name, "fbptt:2")[1]
    assert apart(dict(short[1].arrays), dict(reverse[1].arrays)) < 1e-13
    assert apart(dict(short[-1].arrays), dict(reverse[-1].arrays)) > 1e-6


def test_float32() -> None:
    """In float32 the steps add up to its rounding."""
    whole, steps = each("gru", "rtrl", "float32")
    assert {np.dtype(np.float32)} == {a.dtype for s in steps for a in s.arrays.values()}
    total = {n: np.sum([s.arrays[n] for s in steps], axis=0) for n in whole.arrays}
    assert apart(total, dict(whole.arrays)) < 1e-5


def test_who_has_them() -> None:
    """Every online method does; with several losses a window, and offline, there are none."""
    graph = bpcli.load(SPEC).setup.graph
    online = {n for n in built_in() if "online" in load(n).tags and load(n).refusal(graph) is None}
    assert online == set(stepwise_methods(graph))
    problem = problem_of(Path(SPEC), {"T": T}, ("params",))
    assert [None] * 3 == [parse(m).step_gradients(problem) for m in ("bptt", "tbptt:k1=2,k2=3", "sqrt")]


def test_in_python() -> None:
    """`LoadedProblem.step_gradients`: arrays with an axis of steps."""
    net = bpcli.load(SPEC, T=T)
    found, whole = net.step_gradients("rtrl"), net.gradient("rtrl")
    assert isinstance(found, bpcli.StepGradients)
    for name, values in whole.arrays.items():
        assert (T, *values.shape) == found.arrays[name].shape
        np.testing.assert_allclose(found.arrays[name].sum(axis=0), values, atol=1e-13)
    with pytest.raises(bpcli.BpError, match="has no per-step gradient"):
        net.step_gradients("bptt")
    small = bpcli.load(SPEC, T=T, limits=bpcli.Limits(max_memory=90_000))
    small.gradient("rtrl")
    with pytest.raises(bpcli.BpError, match="the limit is"):
        small.step_gradients("rtrl")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of sizes; all numbers in .npz, .csv and JSON, the same."""
    monkeypatch.chdir(tmp_path)
    call = ("grad", SPEC, "-m", "snap:k=1", "--per-step", "--set", f"T={T}")
    result = run(*call, "-o", "g.npz", "--format", "json")
    steps = json.loads(result.stdout)["steps"]
    assert (0, list(range(T))) == (result.exit_code, [s["step"] for s in steps])
    with np.load("g.npz") as file:
        arrays = dict(file)
    found = bpcli.load(SPEC, T=T).step_gradients("snap:k=1")
    for name, values in found.arrays.items():
        assert np.array_equal(values, arrays[f"d_{name}"])
        assert np.array_equal(values, np.array([s["gradient"][f"d_{name}"] for s in steps]))
    assert np.array_equal(found.losses, arrays["loss"])
    exact = bpcli.load(SPEC, T=T).step_gradients("rtrl")
    flat = [np.concatenate([a[-1].ravel() for a in g.arrays.values()]) for g in (found, exact)]
    assert np.isclose(steps[-1]["bias"], np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
    assert steps[-1]["bias"] > 0.01 > steps[0]["bias"]
    assert 0 == run(*call, "-o", "g.csv").exit_code
    lines = Path("g.csv").read_text().splitlines()
    rows = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    flats = np.concatenate([a.reshape(T, -1) for a in found.arrays.values()], axis=1)
    assert np.array_equal(rows[:, 2:], flats)
    assert "d_W[0 1]" in lines[0].split(",")


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs leave out the middle; exact methods have no bias; without -o nothing is written."""
    monkeypatch.chdir(tmp_path)
    long = run("grad", SPEC, "-m", "rtrl", "--per-step", "--set", "T=60")
    assert "steps 12 to 47 are left out; -v shows them" in long.stdout
    assert "bias" not in long.stdout
    assert [] == list(tmp_path.iterdir())
    assert "left out" not in run("grad", SPEC, "-m", "rtrl", "--per-step", "--set", "T=60", "-v").stdout
    assert "|d_W|" in run("grad", SPEC, "-m", "rtrl", "--per-step", "--set", "T=3").stdout
    assert "loss = " in run("grad", SPEC, "-m", "rtrl").stdout
    for method in ("bptt", "tbptt:k1=2,k2=3"):
        refused = run("grad", SPEC, "-m", method, "--per-step")
        assert 2 == refused.exit_code
        assert all(name in refused.stderr for name in ("these have: dni", " rtrl,", " snap,"))
    flat = run("grad", write(Path("flat.toml"), FORWARD), "-m", "backprop", "--per-step")
    assert "a network without a state has no steps" in flat.stderr
