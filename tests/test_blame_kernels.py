"""Blame of users' kernels: hard-coded sizes, one wrong product, noise, float32."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_cases import RECURRENT, run, write
from user_code_cases import GOOD

CELL = RECURRENT.replace("n = 2", "n = 4").replace("tanh(W @ a[t-1] + x)", "tanh(W @ a[t-1] + V @ x)")
CELL = CELL.replace('W = ["n", "n"]', 'W = ["n", "n"]\nV = ["n", "n"]')
KERNELS = """
def both(params, inputs, state):
    W, V, x = params["W"], params["V"], inputs["x"]
    found = grad({"W": W}, {"x": x @ V.T}, state)
    rows = found["x"].reshape(-1, len(V))
    return {"W": found["W"], "V": rows.T @ x.reshape(-1, x.shape[-1])}

def fixed(params, inputs, state):
    g = both(params, inputs, state)
    return {**g, "V": -g["V"].reshape(4, 4)}

def turned(params, inputs, state):
    g = both(params, inputs, state)
    return {**g, "V": g["V"].T.copy()}

def lacking(params, inputs, state):
    g = both(params, inputs, state)
    return {"V": g["V"].T.copy()}

def noisy(params, inputs, state):
    g = both(params, inputs, state)
    return {**g, "V": g["V"] * (1 + 1e-3 * np.random.normal())}

def rounded(params, inputs, state):
    return {name: a.astype(np.float32).astype(float) for name, a in both(params, inputs, state).items()}
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in, with the kernels and the spec."""
    monkeypatch.chdir(tmp_path)
    write(Path("mine.py"), GOOD + KERNELS)
    write(Path("net.toml"), CELL)


def wrong(function: str, *args: str) -> dict[str, dict[str, Any]]:
    """The findings that are wrong, by tensor."""
    result = run("check", "net.toml", "--kernel", f"mine.py:{function}", "--format", "json", *args)
    return {f["tensor"]: f for f in json.loads(result.stdout)["findings"] if f["verdict"] == "wrong"}


def test_a_smaller_case_fails_for_the_same() -> None:
    """A hard-coded size is kept: another one raises, which is another failure."""
    assert {} == wrong("both")
    (finding,) = wrong("fixed").values()
    assert "n=" not in finding["blame"]["reproduce"] and "T=1" in finding["blame"]["reproduce"]
    words = shlex.split(finding["blame"]["reproduce"])
    again = json.loads(run(*words[1:], "--format", "json").stdout)["findings"]
    assert [("V", "wrong", "")] == [(f["tensor"], f["verdict"], f["cause"]) for f in again if f["verdict"] != "pass"]
    assert "raises" in wrong("fixed", "--set", "n=1")["V"]["cause"]


def test_what_alone_is_wrong_is_wrong_where_it_is_used() -> None:
    """The node is the product, not the state, whose cotangent reaches W too, which is right."""
    (finding,) = wrong("turned").values()
    assert "is transposed" in finding["blame"]["text"]
    assert finding["blame"]["node"].startswith("matmul at line 12, column 26")
    assert "n=2" in finding["blame"]["reproduce"]  # of one unit nothing is transposed


def test_a_missing_tensor_hides_no_cause() -> None:
    """The gradients that are returned are explained without it."""
    found = wrong("lacking")
    assert {"W", "V"} == set(found)
    assert "no gradient of that name" in found["W"]["blame"]["text"]
    assert "is transposed" in found["V"]["blame"]["text"]


def test_noise_is_not_taken_for_an_error_of_some_kind() -> None:
    """A gradient that changes from call to call is not explained as a multiple of the right one."""
    (finding,) = wrong("noisy").values()
    assert finding["cause"].startswith("not deterministic")
    assert (
        "gives different numbers" in finding["blame"]["text"] and "times the right one" not in finding["blame"]["text"]
    )


def test_what_is_rounded_to_float32_is_said_of_every_tensor() -> None:
    """Rounding to float32 is recognised in every tensor, also where it is below the error of float32 sums."""
    found = wrong("rounded")
    assert {"W", "V"} == set(found)
    assert all("the accuracy of float32" in f["blame"]["text"] for f in found.values())
