"""Forecasts: --dry-run, and what long runs say before they begin and on the way."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from cli_cases import run
from kernel_cases import SPECS

from bpcli.commands import output, planning
from bpcli.commands.shared_options import Common

VANILLA, EXERCISE = str(SPECS / "vanilla_rnn.toml"), str(SPECS / "exercise.toml")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def plan(*args: str) -> list[dict[str, object]]:
    """The rows of a plan."""
    result = run(*args, "--dry-run", "--format", "json")
    assert 0 == result.exit_code, result.stderr
    rows = json.loads(result.stdout)["plan"]
    assert isinstance(rows, list)
    return rows


def test_the_plan_of_a_bench() -> None:
    """A row for every cell with the figures that the run itself reports, and nothing is measured or written."""
    asked = ("bench", VANILLA, "-m", "bptt", "-m", "tbptt:k1=1,k2=4", "-g", "n=2,4", "-g", "T=6", "-g", "k2=2,4")
    rows = plan(*asked)
    assert [] == list(Path.cwd().iterdir())
    found = [(r["method"], r["grid"]["n"], r["T"]) for r in rows]
    assert len(found) == 6 and ("tbptt:k1=1,k2=2", 4, 6) in found
    ran = run("bench", VANILLA, "-m", "bptt", "-g", "n=2", "-g", "T=6", "--budget", "0.001", "--format", "json")
    (cell,) = json.loads(ran.stdout)["cells"]
    assert (cell["predicted_bytes"], cell["flops"]) == (rows[0]["predicted_bytes"], rows[0]["flops"])
    assert rows[0]["predicted_bytes"] < rows[3]["predicted_bytes"]  # that of n = 4


def test_what_fits() -> None:
    """Cells beyond the limit are refused one by one; the others stand in the plan."""
    args = ("bench", VANILLA, "-m", "bptt", "-g", "n=8,64,128", "-g", "T=100", "--max-memory", "2MB", "--dry-run")
    result = run(*args)
    assert 2 == result.exit_code
    assert "at n=128" in result.stderr and "with arrays" in result.stdout
    assert ["8", "64"] == [line.split()[2] for line in result.stdout.splitlines() if line.startswith("vanilla_rnn ")]


def test_the_plan_of_a_check() -> None:
    """A row for every method, and one for the check; nothing is checked."""
    rows = plan("check", VANILLA, EXERCISE, "--set", "batch=2")
    assert ["bptt", "rtrl", "tbptt:k1=1,k2=4", "the check", "backprop", "the check"] == [r["method"] for r in rows]
    assert [10, None] == [rows[0]["T"], rows[-1]["T"]]
    assert rows[3]["flops"] > sum(r["flops"] for r in rows[:3])
    assert all(r["total_bytes"] > r["predicted_bytes"] > 0 < r["predicted_s"] for r in rows)
    longer = plan("check", VANILLA, "--set", "T=20")
    assert (
        longer[3]["predicted_s"] > rows[3]["predicted_s"] and longer[0]["predicted_bytes"] > rows[0]["predicted_bytes"]
    )


def test_plans_refuse_as_runs_do() -> None:
    """A broken spec, an object, and a run that would take too long."""
    Path("a.toml").write_text("bp = 1\n")
    assert "missing-key" in run("check", "a.toml", "--dry-run").stderr
    assert 2 == run("bench", "a.toml", "--dry-run").exit_code
    assert "--dry-run applies to specs" in run("check", "box.py:Box", "--dry-run").stderr
    assert "too-long" in run("check", VANILLA, "--set", "T=1000000", "--max-time", "1", "--dry-run").stderr


def test_long_runs_say_so_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast, then the rows as they come; a short run says neither, nor does one that is to be quiet."""
    check = ("check", EXERCISE)
    bench = ("bench", EXERCISE, "-m", "backprop", "--budget", "0.001")
    assert "exercise" not in run(*check).stderr
    monkeypatch.setattr(planning, "LONG", 0.0)
    lines = run(*check).stderr.splitlines()
    assert lines[0].startswith("exercise: about 0 s and ") and "exercise backprop: 6 pass" in lines
    told = run(*bench).stderr
    assert "1 cell, about 2 s; the largest takes " in told
    assert any(line.startswith("exercise backprop: ") and line.endswith(", pass") for line in told.splitlines())
    assert "" == run(*check, "-q").stderr == run(*bench, "-q").stderr


def test_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal; the time that is left is that of the moment."""
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.05)
    with output.remaining([40.0, 20.0], ["a", "b"], Common()) as done:
        time.sleep(0.5)
        done(0)
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d+ s: 0 of 2 cells, about (60|5\d) s left", lines[0])
    assert re.fullmatch(r"\d+ s: 1 of 2 cells, about \d s left; last: a", lines[-1])
    with output.progress(Common(quiet=True)) as say:
        say("a")
        time.sleep(0.2)
    assert "" == capsys.readouterr().err


def test_the_time_that_is_left() -> None:
    """It never becomes negative."""
    assert "about 5 s left" == planning.left(time.monotonic() + 5.2)
    assert "longer than predicted" == planning.left(time.monotonic() - 1)
