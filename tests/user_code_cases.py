"""Shared by the tests of user code: a right gradient function for the toy spec, and ways to check and to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_cases import RECURRENT, run, write

import bpcli

GOOD = """import numpy as np

def grad(params, inputs, state):
    W, x = params["W"], inputs["x"]
    T, B, n = x.shape
    a = [np.broadcast_to(state["a"], (B, n))]
    for t in range(T):
        a.append(np.tanh(a[-1] @ W.T + x[t]))
    g, d, dx = np.zeros_like(W), np.zeros((B, n), W.dtype), np.zeros_like(x)
    for t in reversed(range(T)):
        dx[t] = (1 - a[t + 1] ** 2) * (d + W.dtype.type(1 / B))
        g += dx[t].T @ a[t]
        d = dx[t] @ W
    return {"W": g, "a": d if state["a"].ndim == 2 else d.sum(axis=0), "x": dx}

def loss(params, inputs, state):
    W, x = params["W"], inputs["x"]
    a, total = np.broadcast_to(state["a"], x.shape[1:]), 0.0
    for t in range(len(x)):
        a = np.tanh(a @ W.T + x[t])
        total += a.sum() / len(a)
    return total
"""


def check(*args: str, spec: str = RECURRENT) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a check of the toy spec in the current folder, `good.py` beside it."""
    write(Path("good.py"), GOOD)
    result = run("check", write(Path("net.toml"), spec), *args, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


def outcomes(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Verdict and cause by tensor."""
    return {f["tensor"]: (f["verdict"], f["cause"]) for f in document["findings"]}


def verdicts(report: bpcli.Report, method: str = "vjp") -> dict[str, str]:
    """The verdict on each leaf of a function."""
    return {f.tensor: f.verdict for f in report.findings if f.method == method}


def texts(report: bpcli.Report) -> str:
    """The texts of the blames in a report."""
    return "\n".join(str(f.blame["text"]) for f in report.findings if f.blame)
