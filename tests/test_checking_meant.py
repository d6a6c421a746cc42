"""`--as METHOD`: kernels and saved gradients that are judged against the definition of a truncated method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking_cases import SPECS
from cli_cases import RECURRENT, run, write

import bpcli

SPEC = RECURRENT.replace("T = 3", "T = 7")
# Each is given the steps that the loss of step t reaches back to: `start(t, T)`, counted from 0.
KERNELS = """import numpy as np

def truncated(start, params, inputs, state):
    W, x = params["W"], inputs["x"]
    T, B, n = x.shape
    a = [np.broadcast_to(state["a"], (B, n))]
    for t in range(T):
        a.append(np.tanh(a[-1] @ W.T + x[t]))
    g, first, dx = np.zeros_like(W), np.zeros((B, n)), np.zeros_like(x)
    for end in range(T):
        d = np.full((B, n), 1 / B)
        for t in reversed(range(start(end, T), end + 1)):
            c = (1 - a[t + 1] ** 2) * d
            dx[t] += c
            g += c.T @ a[t]
            d = c @ W
            if t == 0:
                first = first + d
    return {"W": g, "a": first.sum(axis=0), "x": dx}

def staircase(k1, k2):
    return lambda t, T: max(0, min(T, k1 * (t // k1 + 1)) - k2)

def tbptt_2_4(*arrays):
    return truncated(staircase(2, 4), *arrays)

def tbptt_2_5(*arrays):
    return truncated(staircase(2, 5), *arrays)

def fbptt_3(*arrays):
    return truncated(lambda t, T: max(0, t - 2), *arrays)

def ebptt_4(*arrays):
    return truncated(lambda t, T: 4 * (t // 4), *arrays)

def ebptt_3(*arrays):
    return truncated(lambda t, T: 3 * (t // 3), *arrays)

def uneven(*arrays):
    return truncated(lambda t, T: 0 if t % 2 else t, *arrays)

def exact(*arrays):
    return truncated(lambda t, T: 0, *arrays)
"""
NAMES = {"tbptt_2_4": "tbptt:k1=2,k2=4", "fbptt_3": "tbptt:k1=1,k2=3", "ebptt_4": "ebptt:4"}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in, with the kernels and the spec."""
    monkeypatch.chdir(tmp_path)
    write(Path("mine.py"), KERNELS)
    write(Path("net.toml"), SPEC)


def findings(*args: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """The exit code, the findings and the context of a check of the spec."""
    result = run("check", "net.toml", *args, "--wrt", "params", "--wrt", "inputs", "--format", "json")
    document = json.loads(result.stdout)
    return result.exit_code, document["findings"], document["context"]


@pytest.mark.parametrize(("function", "method"), [*NAMES.items(), ("fbptt_3", "fbptt:3"), ("exact", "bptt")])
def test_a_truncated_kernel_passes_as_what_it_is(function: str, method: str) -> None:
    """It passes with its bias beside it, and a note says as what it was judged."""
    code, found, context = findings("--kernel", f"mine.py:{function}", "--as", method)
    assert 0 == code and {"pass"} == {f["verdict"] for f in found}
    assert all((f["bias"] > 1e-3) == (function != "exact") for f in found)
    assert f"net: kernel:{function} judged as {method}" in context["notes"]


@pytest.mark.parametrize(
    ("function", "method"), [("tbptt_2_5", "tbptt:k1=2,k2=4"), ("exact", "ebptt:4"), ("ebptt_3", "ebptt:4")]
)
def test_it_is_wrong_as_another(function: str, method: str) -> None:
    """One off by a step, and the exact gradient, are wrong as a truncated one; the command repeats it."""
    code, found, _ = findings("--kernel", f"mine.py:{function}", "--as", method)
    assert 1 == code
    wrong = [f for f in found if f["verdict"] == "wrong"]
    assert wrong and all(f"--as {method}" in f["blame"]["reproduce"] for f in wrong)


def test_a_saved_gradient_and_python() -> None:
    """`bp grad` of a truncated method passes as that method, and not by itself."""
    run("grad", "net.toml", "-m", "tbptt:k1=1,k2=2", "-o", "g.npz", "--wrt", "params", "--wrt", "inputs")
    assert 0 == findings("--gradient", "g.npz", "--as", "tbptt:k1=1,k2=2")[0]
    assert 1 == findings("--gradient", "g.npz")[0]
    problem = bpcli.load("net.toml", wrt=["params"])
    assert "pass" == problem.check(gradients="g.npz", as_="fbptt:2").verdict
    assert "wrong" == problem.check(gradients="g.npz", as_="fbptt:3").verdict
    assert "pass" == problem.check(kernels="mine.py:ebptt_4", as_="ebptt:4").verdict
    saved = dict(np.load("g.npz"))
    np.savez("g.npz", **{**saved, "d_W": saved["d_W"] * 1.001})
    assert "wrong" == problem.check(gradients="g.npz", as_="fbptt:2").verdict


def test_a_function_object_is_judged_as_what_it_is() -> None:
    """Given to `check` itself; as another method, or as none, it is wrong, and the blame says how to see it again."""
    held: dict[str, Any] = {}
    exec(KERNELS, held)
    problem = bpcli.load("net.toml", wrt=["params"])
    assert "pass" == problem.check(held["tbptt_2_4"], as_="tbptt:k1=2,k2=4").verdict
    assert "pass" == problem.check(held["exact"]).verdict
    for method in ("tbptt:k1=2,k2=5", None):
        report = problem.check(held["tbptt_2_4"], as_=method)
        assert "wrong" == report.verdict
        (again,) = {f["blame"]["reproduce"] for f in report.to_dict()["findings"] if f["verdict"] == "wrong"}
        said = "" if method is None else f', as_="{method}"'
        assert again.startswith('bpcli.load("net.toml"') and again.endswith(f".check(tbptt_2_4{said})")


def test_a_spec_says_what_its_kernel_is() -> None:
    """`as` in a kernel's table; the option takes precedence."""
    write(Path("net.toml"), f'{SPEC}\n[kernel.ebptt_4]\nfile = "mine.py"\nas = "ebptt:4"\n')
    code, found, context = findings("--kernel", "ebptt_4")
    assert 0 == code and all(f["bias"] > 1e-3 for f in found)
    assert "net: kernel:ebptt_4 judged as ebptt:4" in context["notes"]
    assert 1 == findings("--kernel", "ebptt_4", "--as", "bptt")[0]


def causes(*args: str) -> set[str]:
    """The causes of the wrong findings of a check."""
    return {str(f["blame"]["cause"]) for f in findings(*args)[1] if f["verdict"] == "wrong"}


@pytest.mark.parametrize("function", NAMES)
def test_a_truncated_kernel_is_named(function: str) -> None:
    """Judged as the exact gradient, it is named first, with the option that makes it pass; so is a saved one."""
    name = NAMES[function]
    assert {f"this is {name}; if that is meant, add --as {name}"} == causes("--kernel", f"mine.py:{function}")
    run("grad", "net.toml", "-m", name, "-o", "g.npz", "--wrt", "params", "--wrt", "inputs")
    assert {f"this is {name}; if that is meant, add --as {name}"} == causes("--gradient", "g.npz")


def test_a_twin_is_named_otherwise() -> None:
    """One step more is another method, the exact gradient is `bptt`, and uneven windows are none."""
    assert {"this is tbptt:k1=2,k2=5; if that is meant, add --as tbptt:k1=2,k2=5"} == causes(
        "--kernel", "mine.py:tbptt_2_5"
    )
    (said,) = causes("--kernel", "mine.py:tbptt_2_5", "--as", "tbptt:k1=2,k2=4")
    assert said.startswith("this is tbptt:k1=2,k2=5;")
    (said,) = causes("--kernel", "mine.py:exact", "--as", "ebptt:4")
    assert said.startswith("this is bptt;")
    assert not any("this is" in cause for cause in causes("--kernel", "mine.py:uneven"))


def test_an_approximate_online_method_is_named() -> None:
    """SnAp-1 by its name; a gradient that resembles it, by none."""
    run("grad", "net.toml", "-m", "snap:k=1", "-o", "g.npz", "--wrt", "params")
    asked = ("check", "net.toml", "--gradient", "g.npz", "--wrt", "params", "--format", "json")
    (found,) = (f for f in json.loads(run(*asked).stdout)["findings"] if f["tensor"] == "W")
    assert found["blame"]["cause"].startswith("this is snap:k=1; if that is meant, add --as snap:k=1")
    assert 0 == run(*asked, "--as", "snap:k=1").exit_code
    saved = dict(np.load("g.npz"))
    saved["d_W"][0, 1] *= 1.001
    np.savez("g.npz", **saved)
    (found,) = (f for f in json.loads(run(*asked).stdout)["findings"] if f["tensor"] == "W")
    assert "this is" not in found["blame"]["cause"]


LEAKY = """import numpy as np

def leaky(leak, params, inputs, state):
    W, x = params["W"], inputs["x"]
    a, trace, g = state["a"] + 0 * x[0], 0, np.zeros_like(W)
    for t in range(len(x)):
        h = np.tanh(a @ W.T + x[t])
        trace = leak * trace + (0.3 * (1 - h**2))[:, :, None] * a[:, None]
        a = 0.7 * a + 0.3 * h
        g += trace.mean(axis=0)
    return {"W": g}

def rflo(*arrays):
    return leaky(0.7, *arrays)

def rflo_of_another_leak(*arrays):
    return leaky(0.69, *arrays)
"""


def test_a_kernel_of_an_approximate_rule_is_named() -> None:
    """RFLO, which e-prop is on a leaky network, passes as such; with another leak it is neither."""
    write(
        Path("net.toml"), SPEC.replace('a = "tanh(W @ a[t-1] + x)"', 'a = "0.7 * a[t-1] + 0.3 * tanh(W @ a[t-1] + x)"')
    )
    write(Path("mine.py"), LEAKY)
    asked = ("check", "net.toml", "--wrt", "params", "--format", "json", "--kernel")
    (found,) = json.loads(run(*asked, "mine.py:rflo").stdout)["findings"]
    assert "this is rflo; if that is meant, add --as rflo (eprop is the same here)" == found["blame"]["cause"]
    assert 0 == run(*asked, "mine.py:rflo", "--as", "rflo").exit_code
    (found,) = json.loads(run(*asked, "mine.py:rflo_of_another_leak").stdout)["findings"]
    assert "this is" not in found["blame"]["cause"]
    assert 1 == run(*asked, "mine.py:rflo_of_another_leak", "--as", "rflo").exit_code


@pytest.mark.parametrize(
    ("spec", "method", "same"), [("gru", "rflo", " (eprop is the same here)"), ("masked_rnn", "snap:k=2", "")]
)
def test_an_approximation_of_a_gated_or_sparse_network_is_named(spec: str, method: str, same: str) -> None:
    """By its own name, and by that of another method which it is there too."""
    path = str(SPECS / f"{spec}.toml")
    run("grad", path, "-m", method, "-o", "g.npz", "--wrt", "params")
    asked = ("check", path, "--gradient", "g.npz", "--wrt", "params", "--format", "json")
    said = {f["blame"]["cause"] for f in json.loads(run(*asked).stdout)["findings"] if f["verdict"] == "wrong"}
    assert {f"this is {method}; if that is meant, add --as {method}{same}"} == said
    assert 0 == run(*asked, "--as", method).exit_code


def test_a_long_sequence() -> None:
    """Where a comparison of all truncations is too much, it is made on fewer steps."""
    (said,) = causes("--kernel", "mine.py:fbptt_3", "--set", "T=200")
    assert said.startswith("this is tbptt:k1=1,k2=3;")


def test_methods_that_are_the_same_here() -> None:
    """Blocks of 3 steps are `tbptt:k1=3,k2=3` where 3 divides T; a kernel is asked for another T."""
    run("grad", "net.toml", "-m", "ebptt:3", "--set", "T=6", "-o", "g.npz", "--wrt", "params", "--wrt", "inputs")
    (said,) = causes("--gradient", "g.npz", "--set", "T=6")
    assert "add --as ebptt:3 (tbptt:k1=3,k2=3 is the same here)" in said
    assert {"this is ebptt:3; if that is meant, add --as ebptt:3"} == causes(
        "--kernel", "mine.py:ebptt_3", "--set", "T=6"
    )
