"""What the tests of the command line share: specs, toy methods, and a check that finds what it is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import bpcli.checking
import bpcli.methods as methods
from bpcli.checking.findings import Finding, Verdict, Worst
from bpcli.cli import main
from bpcli.methods.base import Cost, Exact, Gradient

RECURRENT = """bp = 1
[params]
W = ["n", "n"]
[dims]
n = 2
[inputs]
x = ["n"]
[state]
a = ["n"]
[equations]
a = "tanh(W @ a[t-1] + x)"
loss = "sum(a)"
[data]
T = 3
batch = 2
[check]
methods = ["bptt"]
"""

FORWARD = """bp = 1
[params]
w = []
[equations]
loss = "w**2"
"""


@dataclass(frozen=True)
class Options:
    """No options."""


@dataclass(frozen=True)
class Toy:
    """A method that suits graphs with (or without) a state and answers with ones."""

    name: str
    recurrent: bool
    Options: type[Any] = Options
    summary: str = "a toy"
    tags: frozenset[str] = frozenset({"default", "exact"})

    def refusal(self, graph: Any) -> str | None:
        """Only the kind of graph counts."""
        return None if graph.recurrent == self.recurrent else f"{self.name} does not apply"

    def definition(self, setup: Any, options: Any) -> Exact:
        """All of it."""
        return Exact()

    def cost(self, setup: Any, options: Any) -> Cost:
        """Next to nothing."""
        return Cost(flops=1.0, bytes=1, forward_steps=1)

    def gradient(self, problem: Any, options: Any) -> Gradient:
        """Ones."""
        return Gradient(2.5, {t.name: np.ones(t.shape) for t in problem.setup.wrt})


TOYS = {m.name: m for m in (Toy("bptt", True), Toy("rtrl", True), Toy("backprop", False))}


def install_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the toys in place of the catalogue."""
    monkeypatch.setattr(methods, "known_names", lambda: tuple(sorted(TOYS)))
    monkeypatch.setattr(methods, "load", lambda name: TOYS[name])


@dataclass(frozen=True)
class CheckOptions:
    """As the real one."""

    reference: str = "auto"
    mode: str = "auto"


def install_check(monkeypatch: pytest.MonkeyPatch, verdict: Callable[[str], Verdict]) -> list[Any]:
    """A check that gives each tensor the verdict of `verdict(spec name)`; returns the list of its calls."""
    calls: list[Any] = []

    def check(
        setup: Any, chosen: Sequence[Any], options: Any, elsewhere: Any = None, told: Any = None
    ) -> list[Finding]:
        calls.append((setup, [c.text for c in chosen], options))
        found = []
        for call in chosen:
            for tensor in setup.wrt:
                found.append(finding(setup.spec.name, call.text, tensor.name, verdict(setup.spec.name)))
        return found

    module = SimpleNamespace(check=check, CheckOptions=CheckOptions)
    monkeypatch.setitem(sys.modules, "bpcli.checking.checker", module)
    monkeypatch.setattr(bpcli.checking, "checker", module, raising=False)
    return calls


def finding(spec: str, method: str, tensor: str, verdict: Verdict) -> Finding:
    """A finding with figures; a wrong one knows whom to blame."""
    z = {"pass": 0.25, "wrong": 1e9, "inconclusive": float("nan")}[verdict]
    worst = Worst((0, 1), 1.0, 1.0 + z * 1e-12, 1e-12, z)
    cause = {"pass": "", "wrong": "sign", "inconclusive": "noise"}[verdict]
    blame: dict[str, object] | None = None
    if verdict == "wrong":
        blame = {"text": "the sign is wrong", "reproduce": f"bp check {spec}.toml", "cause": "sign"}
    return Finding(spec, method, tensor, (2, 2), 4, verdict, cause, worst, 1e-16, 0.0, 1.0, blame)


def run(*args: str, **more: Any) -> Result:
    """`bp ARGS` in this process."""
    return CliRunner().invoke(main, list(args), prog_name="bp", **more)


def write(path: Path, text: str) -> str:
    """A file, its folder made; the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)
