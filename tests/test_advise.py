"""`bp advise`: the method it names fits and keeps what was promised; a demand that is too hard is told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from cli_cases import run
from kernel_cases import SPECS

import bpcli
from bpcli.api.advice import Demand, advise
from bpcli.bench.precheck import distance, flat
from bpcli.bench.profiling import allocated_bytes
from bpcli.methods import parse
from bpcli.problem.draw import draw

LSTM, LEAKY = (str(SPECS / f"{name}.toml") for name in ("lstm", "leaky_rnn"))


def without_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates are looked at, however busy the machine is, and whichever are the fastest on it."""
    for name in ("RUNNERS_UP", "_LIST_SECONDS", "_BIAS_SECONDS", "_SLOW_COST", "_MANY_FAILING"):
        monkeypatch.setattr(f"bpcli.api.advice.{name}", 1000)


def advice(spec: str, *args: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """The exit code, the rows and the context."""
    result = run("advise", spec, *args, "--format", "json")
    document = json.loads(result.stdout)
    return result.exit_code, document["methods"], document["context"]


@pytest.mark.parametrize(
    ("memory", "sizes"), [("64MB", {"n": 128}), ("1MB", {"n": 16, "T": 300}), ("250kB", {"n": 16, "T": 300})]
)
def test_it_keeps_its_promise(memory: str, sizes: dict[str, int]) -> None:
    """The method allocates what was predicted, within the memory, and is as fast as was measured."""
    code, rows, context = advice(
        LSTM, "--memory", memory, *(w for k, v in sizes.items() for w in ("--set", f"{k}={v}"))
    )
    assert (0, "advised") == (code, rows[0]["advice"])
    assert all(row["exact"] and row["bytes"] <= context["memory_bytes"] for row in rows)
    assert rows[0]["step_s"] <= 1.25 * min(row["step_s"] for row in rows)
    net = bpcli.load(LSTM, **sizes)
    for row in rows:
        call, problem = parse(row["method"]), draw(net.setup)
        call.gradient(problem)
        taken = allocated_bytes(lambda call=call, problem=problem: call.gradient(problem))
        assert row["measured"]
        assert abs(taken - row["bytes"]) <= 0.05 * row["bytes"] + 30_000  # of plans and views


def test_memory_decides() -> None:
    """With plenty the fastest, with less one from snapshots, with too little none; bptt itself is refused there."""
    names = {}
    for memory in ("10MB", "400kB", "20kB"):
        code, rows, context = advice(LSTM, "--set", "n=16", "--set", "T=300", "--memory", memory)
        names[memory] = {row["method"].partition(":")[0] for row in rows}
        assert ("nearest" if code else "advised") == rows[0]["advice"]
        assert bool(code) == (rows[0]["bytes"] > context["memory_bytes"])
    assert "bptt" in names["10MB"]
    assert names["400kB"] <= {"revolve", "sqrt"}
    assert code == 1
    held = parse("bptt").cost(bpcli.load(LSTM, n=16, T=300).setup).bytes
    assert 400_000 < held < 10_000_000


def test_bias_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A biased method appears where its bias is allowed, with the bias that it has; with 0 it does not."""
    without_deadlines(monkeypatch)
    sizes = ("--set", "T=400", "--memory", "300kB")
    code, rows, _ = advice(LEAKY, *sizes, "--bias", "0.5")
    biased = [row for row in rows if not row["exact"]]
    assert code == 0
    assert biased
    problem = draw(bpcli.load(LEAKY, T=400).setup)
    true = flat(problem.setup, parse("bptt").gradient(problem))
    for row in biased:
        assert {} == row["bias_at"]
        found, _ = distance(flat(problem.setup, parse(row["method"]).gradient(problem)), true)
        assert found is not None
        assert math.isclose(found, row["bias"], rel_tol=1e-6)
        assert 0 < found <= 0.5
    assert all(row["exact"] for row in advice(LEAKY, *sizes)[1])


def test_a_smaller_case_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a gradient takes long, the bias is that of fewer units and samples, and says so."""
    without_deadlines(monkeypatch)
    file = bpcli.load(LSTM, n=256, T=200, batch=4)
    found = advise(file.file, file.setup, Demand(60_000_000, 0.9), 1)
    smaller = [c for c in found.found if not c.exact]
    assert smaller
    assert all(c.at["batch"] == 1 for c in smaller)


def test_time_decides() -> None:
    """A step time that none keeps is told with the fastest; one that all keep changes nothing."""
    code, rows, _ = advice(LEAKY, "--memory", "1MB", "--per-step-time", "1ns")
    assert (1, "nearest") == (code, rows[0]["advice"])
    assert rows[0]["step_s"] > 1e-9
    code, rows, context = advice(LEAKY, "--memory", "1MB", "--per-step-time", "100ms")
    assert (0, 0.1) == (code, context["per_step_time_s"])
    assert all(row["step_s"] <= 0.1 for row in rows)


def test_what_it_says() -> None:
    """A sentence with the reason, the command that measures it, and where nothing fits by how much."""
    told = run("advise", LEAKY, "--memory", "1MB", "--set", "n=4")
    assert "the fastest exact candidate" in told.stdout
    (line,) = [x for x in told.stdout.splitlines() if x.startswith("  measure it: bp bench ")]
    swept = bpcli.load(LEAKY, n=4).setup
    assert "--set n=4" in line
    assert all(f"--set {k}=" in line for k in swept.spec.bench.grid if k in ("n", "T", "batch"))
    told = run("advise", LSTM, "--memory", "64MB", "--set", "n=128")
    assert f"bp bench {LSTM} --set n=128 --set T=10 -m " in told.stdout  # the spec sweeps T=100
    told = run("advise", LEAKY, "--memory", "1kB")
    assert 1 == told.exit_code
    assert "Nothing fits: the nearest method, " in told.stdout
    assert "(1 kB allowed)" in told.stdout
    told = run("advise", str(SPECS / "residual_mlp.toml"), "--memory", "1MB")
    assert "backprop needs " in told.stdout
