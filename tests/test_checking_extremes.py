"""Numbers at the ends of the range of floats, and choices at kinks: told where they can be, with a reason where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import run, write

from bpcli.checking.summary import at_kink, summarise
from bpcli.checking.verdict import References, judge
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
    """Where imaginary parts would be lost, differences judge."""
    loss, slope = (text.format(power=power) for text in SQUARES)
    assert ["pass", "wrong"] == verdicts(loss, slope, "0.5")


@pytest.mark.parametrize(
    ("function", "first"),
    [(LOG, first) for first in ("1e-8", "1e-20", "1e-35", "1e-45", "1e-100", "1e-290", "1e-300")]
    + [(SQRT, first) for first in ("1e-8", "1e-20", "1e-28")],
)
def test_tiny_entries_beside_the_edge_of_the_domain(function: tuple[str, str], first: str) -> None:
    """Neither imaginary steps nor real ones may be large beside them."""
    loss, slope = function
    assert ["pass", "wrong"] == verdicts(f"sum({loss})", slope, first)


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
    """A sentence, with the entry that it is about: the root of 1e-60 is less than a rounding of the loss."""
    loss, slope = SQRT
    spec = write(Path("net.toml"), SPEC.format(first="1e-60", loss=f"sum({loss})"))
    assert "inconclusive" == verdicts(f"sum({loss})", slope, "1e-60")[0]
    assert "w: the loss is rounded too much for differences to tell w[0]" in run("check", spec).stdout


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
    """Differences say that anything from 0 to 1 is right; an oracle beyond that is no witness."""
    references = References(central=estimate(oracle, 1e-12, 0.0), second=estimate(0.5, 1e-9, kink))
    entries = judge(np.array([given]), references, np.full(1, 1e-14), np.dtype(np.float64))
    verdict, cause, worst = summarise(entries)
    assert expected == (verdict, cause)
    found = at_kink(entries, worst)
    assert (found is not None and (found.low, found.high) == (0.0, 1.0)) == (expected[1] == "kink")
