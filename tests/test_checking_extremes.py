"""Numbers at the ends of the range of floats, and slopes at kinks: judged where possible, else with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import run, write

from bpcli.checking.verdict import References, at_kink, judge, summarise
from bpcli.references.base import Estimate

SPEC = """bp = 1
[params]
w = {{ shape = [3], value = [{first}, 1.0, 2.0] }}
[equations]
loss = "{loss}"
[data]
batch = 1
"""
KERNEL = """
import numpy as np

np.seterr(all="ignore")

def right(params, inputs, state):
    w = params["w"]
    return {{"w": np.asarray({slope})}}

def wrong(params, inputs, state):
    return {{"w": 1.01 * right(params, inputs, state)["w"]}}
"""
BOX = """
import numpy as np

class Box:
    params = {{"w": np.array([{first}, 0.1, 3.0])}}

    def loss(self, p):
        return np.sum({loss})

    def grad(self, p):
        w = p["w"]
        return {{"w": {factor} * np.asarray({slope})}}
"""
LOG, SQRT = ("log(w)", "1 / w"), ("sqrt(w)", "0.5 / np.sqrt(w)")
SQUARES = ("1e-{power} * sum(tanh(w)**2)", "2e-{power} * np.tanh(w) / np.cosh(w) ** 2")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def findings(*args: str) -> list[dict[str, Any]]:
    """Those of a check."""
    return list(json.loads(run("check", *args, "--format", "json").stdout)["findings"])


def verdicts(loss: str, slope: str, first: str) -> list[str]:
    """Of a right kernel and of one that is 1% off."""
    spec = write(Path("net.toml"), SPEC.format(first=first, loss=loss))
    write(Path("mine.py"), KERNEL.format(slope=slope))
    return [found["verdict"] for k in ("right", "wrong") for found in findings(spec, "--kernel", f"mine.py:{k}")]


@pytest.mark.parametrize("power", [200, 270, 285, 292, 300])
def test_tiny_losses(power: int) -> None:
    """Differences judge where imaginary parts would underflow."""
    loss, slope = (text.format(power=power) for text in SQUARES)
    assert ["pass", "wrong"] == verdicts(loss, slope, "0.5")


@pytest.mark.parametrize(
    ("function", "first"),
    [(LOG, first) for first in ("1e-8", "1e-20", "1e-35", "1e-45", "1e-100", "1e-290", "1e-300")]
    + [(SQRT, first) for first in ("1e-8", "1e-20", "1e-28")],
)
def test_tiny_entries_beside_the_edge_of_the_domain(function: tuple[str, str], first: str) -> None:
    """Steps must be small relative to tiny parameters."""
    loss, slope = function
    assert ["pass", "wrong"] == verdicts(f"sum({loss})", slope, first)


# Losses of w, their slopes, and w[0]; w[1:] is 1 and 2.
POWERS = [
    ("w[0]**3", "[3 * w[0] ** 2, 0, 0]"),
    ("w[0] * w[0] * w[0]", "[3 * w[0] ** 2, 0, 0]"),
    ("w[0]**3 * w[1]", "[3 * w[0] ** 2, w[0] ** 3, 0]"),
    ("sum(tanh(w * w)**2)", "4 * w * np.tanh(w * w) / np.cosh(w * w) ** 2"),
    ("dot(w, w) * w[0]", "w @ w * np.eye(3)[0] + 2 * w[0] * w"),
    ("(cos(w[0]) - 1) * w[0] + w[1]", "[np.cos(w[0]) - 1 - w[0] * np.sin(w[0]), 1, 0]"),
    (
        "w[0]**2 * logsumexp(w)",
        "2 * w[0] * np.log(np.exp(w).sum()) * np.eye(3)[0] + w[0]**2 * np.exp(w) / np.exp(w).sum()",
    ),
    ("0.5 * dot(w, w * sigmoid(w * w[1] * 0))", "0.5 * w"),
    ("w[0]**2 / (1 + w[0]**2)", "[2 * w[0] / (1 + w[0] ** 2) ** 2, 0, 0]"),
]


@pytest.mark.parametrize("first", ["0.0", "1e-130", "1e-100", "1e-45", "1e-9"])
@pytest.mark.parametrize(("loss", "slope"), POWERS)
def test_powers_at_nothing(loss: str, slope: str, first: str) -> None:
    """Steps are small relative to their entry, without truncation error where a derivative vanishes."""
    found = verdicts(loss, slope, first)
    assert "pass" == found[0] and found[1] in ("wrong", "pass" if first == "0.0" else "wrong")


RANGE = [
    ("w[0] / w[3]", "[1e200, 1e200]", "[1e-200, -1e-200]"),
    ("w[0] / w[3]", "[1e-200, 1e-200]", "[1e200, -1e200]"),
    ("1e150 * w[0]**2 / w[3]", "[1e-150, 1e-100]", "[2e100, -1e50]"),
    ("1e-150 * w[0] / w[3]", "[1e300, 1e200]", "[1e-350, -1e-250]"),
    ("w[0]**1.5 + w[3]", "[1e-300, 1.0]", "[1.5e-150, 1]"),
    ("sum(sqrt(w))", "[1e300, 1.0]", "0.5 / np.sqrt(w)"),
    ("softplus(w[0]**2) + w[3]", "[1e150, 1.0]", "[2e150, 1]"),
    ("log(w[0]) + w[3]", "[1e-300, 1.0]", "[1e300, 1]"),
    ("leaky_relu(w[0], 0.2)**2 + w[3]**2", "[1e-160, 1e-150]", "2 * w"),
    ("1 / (1 + exp(w[0])) + w[3]", "[300.0, 1.0]", "[-np.exp(-300.0), 1]"),
    ("w[3] * relu(-exp(w[0])) + w[3]", "[709.0, 1.0]", "[0.0, 1.0]"),
]


@pytest.mark.parametrize(("loss", "value", "slope"), RANGE)
def test_numbers_of_any_size(loss: str, value: str, slope: str) -> None:
    """Gradients of two numbers that are floats although numbers on the way are huge or tiny, and 0.05% beside."""
    text = SPEC.format(first="0.0", loss=loss.replace("w[3]", "w[1]"))
    write(Path("net.toml"), text.replace("shape = [3], value = [0.0, 1.0, 2.0]", f"shape = [2], value = {value}"))
    write(Path("mine.py"), KERNEL.replace("1.01", "1.0005").format(slope=slope))
    own, right, wrong = (
        findings("net.toml", *args)[0]["verdict"]
        for args in ((), *(("--kernel", f"mine.py:{k}") for k in ("right", "wrong")))
    )
    assert ("pass", "pass", "wrong") == (own, right, wrong)


# Losses, w[0], the slopes, and what is lost on the way.
LOST = [
    ("log(w[0])", "1e-310", "[np.inf, 0, 0]", "overflow"),
    ("1 / w[0]", "1e-160", "[-np.inf, 0, 0]", "overflow"),
    ("sqrt(w[0])", "0.0", "[np.inf, 0, 0]", "overflow"),
    ("0 * sqrt(w[0]) + w[1]", "0.0", "[np.nan, 1, 0]", "overflow"),
    ("exp(-exp(w[0]))", "710.0", "[0, np.nan, 0.0]", "overflow"),
    ("1e308 / (1 + exp(w[0]))", "710.0", "[-0.45, 0, 0]", "overflow"),
    ("1 / (1 + exp(w[0]))", "400.0", "[-np.exp(-400), 0, 0]", "underflow"),
    ("1e300 * exp(w[0])", "-800.0", "[3.7e-48, 0, 0]", "underflow"),
    ("w[0] * (1e-200 * w[1]) * 1e-200", "1e-160", "[0, 1e-320, 0.0]", "underflow"),
    ("w[0] * (1e-200 * (1e-160 * w[1])) * 1e200", "1e-160", "[1e-160, 1e-320, 0]", "underflow"),
    ("w[0]**3", "1e-160", "3 * w**2 * [1, 0, 0]", "underflow"),
]


@pytest.mark.parametrize(("loss", "first", "slope", "cause"), LOST)
def test_what_the_range_takes(loss: str, first: str, slope: str, cause: str) -> None:
    """A gradient is inconclusive, with the reason, where an intermediate number leaves the range."""
    spec = write(Path("net.toml"), SPEC.format(first=first, loss=loss))
    write(Path("mine.py"), KERNEL.format(slope=slope).replace("np.asarray(", "1.0 * np.array("))
    for args in ((), ("--kernel", "mine.py:right")):
        (found,) = findings(spec, *args)
        assert ("inconclusive", cause) == (found["verdict"], found["cause"])


@pytest.mark.parametrize(
    ("scale", "expected"), [("2.5e6", ("inconclusive", "overflow")), ("1.0", ("wrong", "not finite"))]
)
def test_influences_that_overflow(scale: str, expected: tuple[str, str]) -> None:
    """RTRL multiplies an infinite influence by zero; reverse mode does not."""
    text = """bp = 1
dtype = "float32"
params.W = {{ shape = [2, 2], init = "ones", scale = {scale} }}
state.a = {{ shape = [2], value = [0.0, 0.0], trainable = true }}
[equations]
a = "W @ a[t-1]"
loss = "1"
[data]
batch = 1
T = 8
"""
    spec = write(Path("net.toml"), text.format(scale=scale))
    write(Path("mine.py"), "def nan(p, inputs, s):\n    return {'a': s['a'] * float('nan'), 'W': p['W'] * 0}\n")
    (found,) = [f for f in findings(spec, "--kernel", "mine.py:nan") if f["tensor"] == "a"]
    assert expected == (found["verdict"], found["cause"].split(" (")[0])
    assert "wrong" not in [f["verdict"] for f in findings(spec)]


def test_what_is_not_finite_within_the_range_is_wrong() -> None:
    """A gradient that is not finite is wrong if no intermediate number leaves the range."""
    assert ["wrong", "wrong"] == verdicts("sum(w**2)", "2 * w * [1, np.nan, 1]", "0.5")


@pytest.mark.parametrize(
    ("function", "first"),
    [(LOG, first) for first in ("1e-5", "1e-8", "1e-12", "1e-100", "1e-300")]
    + [(SQRT, first) for first in ("1e-5", "1e-8", "1e-12", "1e-16")],
)
def test_black_boxes_beside_the_edge_of_their_domain(function: tuple[str, str], first: str) -> None:
    """Steps go by the entry's own size, and curvature beside the edge is no kink."""
    loss, slope = function
    found = []
    for factor in ("1", "1.01"):
        text = BOX.format(first=first, loss="np." + loss.replace("w", 'p["w"]'), slope=slope, factor=factor)
        write(Path("box.py"), text)
        (one,) = findings("box.py:Box")
        found.append((one["verdict"], one["cause"]))
    assert [("pass", ""), ("wrong", "")] == found


def test_what_is_left_open_has_a_reason() -> None:
    """The note names the entry: the sine of 1e300 is arbitrary after one rounding."""
    loss, slope = "sin(w[0])", "np.cos(w) * [1, 0, 0]"
    spec = write(Path("net.toml"), SPEC.format(first="1e300", loss=loss))
    assert "inconclusive" == verdicts(loss, slope, "1e300")[0]
    assert "w: no reference is accurate enough at w[0] to tell" in run("check", spec).stdout


def estimate(value: float, bound: float, kink: float) -> Estimate:
    """Of one entry."""
    return Estimate(np.array([value]), np.array([bound]), np.zeros(1), np.array([kink]))


@pytest.mark.parametrize(
    ("given", "oracle", "kink", "expected"),
    [
        (1.0, 0.0, 0.5, ("pass", "kink")),
        (0.3, 1.0, 0.5, ("pass", "kink")),
        (1.2, 0.0, 0.5, ("wrong", "")),
        (1.0, 7.0, 0.5, ("inconclusive", "references disagree")),
        (0.5, 0.0, 0.0, ("inconclusive", "references disagree")),
    ],
)
def test_an_oracle_has_its_own_choice_at_a_kink(
    given: float, oracle: float, kink: float, expected: tuple[str, str]
) -> None:
    """Differences accept 0 to 1; an oracle outside of that interval confirms nothing."""
    references = References(central=estimate(oracle, 1e-12, 0.0), second=estimate(0.5, 1e-9, kink))
    entries = judge(np.array([given]), references, np.full(1, 1e-14), np.dtype(np.float64))
    verdict, cause, worst = summarise(entries)
    assert expected == (verdict, cause)
    found = at_kink(entries, worst)
    assert (found is not None and (found.low, found.high) == (0.0, 1.0)) == (expected[1] == "kink")
