"""What the tests of `bp report` share: documents as `bp bench` and `bp check` write them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

EVIL = '</script><script>fetch("//evil")</script><img src=x onerror=alert(1)>"\'& $\\frac{$ \x00\x1b\ud800\u6f22'
METHODS = {
    "bptt": (1.0, 4.0, 0.0),
    "tbptt:k1=1,k2=2": (3.0, 1.0, 0.2),
    "tbptt:k1=1,k2=8": (6.0, 2.0, 0.01),
    "rtrl": (40.0, 30.0, 1e-16),
}


def cell(method: str, n: int, T: int, **more: Any) -> dict[str, Any]:
    """A row of a bench run: time grows as n² T, memory as n T."""
    time, memory, bias = METHODS[method]
    seconds, size = 1e-6 * time * n * n * T, int(8 * memory * n * T)
    grid: dict[str, Any] = {"n": n, "T": T}
    if method.startswith("tbptt"):
        grid["k2"] = int(method.rpartition("=")[2])
    return {
        "spec": "net", "method": method, "backend": "bp", "grid": grid, "settings": {"n": n, "T": T}, "T": T,
        "batch": 2, "dtype": "float64", "threads": 1, "parameters": n * n, "time_s": seconds,
        "time_low_s": 0.9 * seconds, "time_high_s": 1.1 * seconds, "time_min_s": seconds, "compile_s": 0.0,
        "calls_per_block": 1, "samples_s": [seconds], "predicted_bytes": size, "allocated_bytes": size,
        "peak_bytes": size, "forward_steps": T, "flops": 100.0 * n * n * T, "gemm_fraction": 0.5, "bias": bias,
        "cosine": 1.0 - bias / 2, "check": {"verdict": "pass", "how": "every entry", "detail": ""}, "ratio": None,
        **more,
    }  # fmt: skip


def bench(sizes: tuple[int, ...] = (8, 16, 32), steps: tuple[int, ...] = (10, 20), **more: Any) -> dict[str, Any]:
    """A bench run over n and T."""
    cells = [cell(m, n, T, **more) for n, T, m in itertools.product(sizes, steps, METHODS)]
    machine = {"cpu": "CPU", "cores": 2, "system": "Linux", "python": "3.13", "versions": {"bp": "0.1.0"}}
    context = {"program": "bp", "version": "0.1.0", "command": "bench", "machine": machine}
    return {"schema_version": 1, "context": context, "cells": cells, "errors": [], "summary": {}}


def finding(tensor: str, verdict: str = "pass", blame: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A row of a check."""
    z = 0.1 if verdict == "pass" else "inf"
    worst = {"index": [0, 1], "value": 1.0, "reference": 1.0, "bound": 1e-12, "z": z}
    return {
        "spec": "net", "method": "rtrl", "tensor": tensor, "shape": [2, 2], "checked": 4, "verdict": verdict,
        "cause": "", "worst": worst, "kernel_error": 0.5, "bias": 1e-3, "cosine": None, "blame": blame, **more,
    }  # fmt: skip


def check(*findings: dict[str, Any], **context: Any) -> dict[str, Any]:
    """A check with these findings."""
    return {"schema_version": 1, "context": context, "findings": list(findings), "errors": [], "summary": {}}


def training(
    methods: tuple[str, ...] = ("bptt", "uoro"), watched: tuple[str, ...] = ("rflo", "snap:k=1"), **more: Any
) -> dict[str, Any]:
    """A training of forty steps, every second of which is compared."""
    steps = []
    for step, method in itertools.product(range(1, 41), methods):
        known = step % 2 == 1
        row: dict[str, Any] = {"step": step, "method": method, "loss": 1.0 / step, "norm": 1.0}
        for name in watched:
            row |= {f"{f}[{name}]": v if known else None for f, v in (("cosine", 0.5), ("ratio", 2.0), ("signs", 0.75))}
        row |= {f"cosine[{a}|{b}]": 0.25 if known else None for a, b in itertools.combinations(watched, 2)}
        steps.append(row)
    runs = [
        {"method": m, "steps": 40, "first": 1.0, "last": 0.025, "share": 0.05, "outcome": "all steps"} for m in methods
    ]
    context = {"command": "train", "spec": "net", "optimizer": "adam", "lr": 0.01, "fresh": True, "task": "add", **more}
    summary = {"trivial_loss": 0.5, "runs": runs}
    return {"schema_version": 1, "context": context, "steps": steps, "errors": [], "summary": summary}


def save(path: Path, document: Any) -> str:
    """A document as a file; its path as text."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)
