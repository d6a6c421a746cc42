"""`bp train`: what is printed and written, checkpoints of a process that was killed, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_cases import run
from test_training import RNN

from bpcli.commands.train import spark
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

FIXED = RNN.replace('task = "add:lag1=1,lag2=2"\n', "")
ADD = ["train", "net.toml", "-m", "bptt", "-m", "uoro", "--watch", "snap:k=1", "--watch-every", "3", "--format", "csv"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A spec with a task and one without, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("net.toml").write_text(RNN, encoding="utf-8")
    Path("fixed.toml").write_text(FIXED, encoding="utf-8")


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV document."""
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_for_each_step_and_method() -> None:
    """With empty fields where nothing was compared."""
    found = rows(run(*ADD, "--steps", "4").stdout)
    assert [(str(k), m) for k in range(1, 5) for m in ("bptt", "uoro")] == [(r["step"], r["method"]) for r in found]
    assert [True, False, False, True] == [bool(r["cosine[snap:k=1]"]) for r in found[::2]]
    assert found[0]["loss"] == found[1]["loss"] and found[2]["loss"] != found[3]["loss"]


def test_the_table_and_its_summary() -> None:
    """A line for each method with its loss over the trivial one; JSON has the same under `summary`."""
    called = ("train", "net.toml", "-m", "rtrl", "-m", "tbptt:k1=1,k2=1", "--online", "--steps", "3", "--lr", "0.001")
    shown, told = run(*called, "--output", "json=a.json").stdout, json.loads(Path("a.json").read_text("utf-8"))
    assert "trivial loss" in shown and "rtrl: its influence matrix stems from earlier parameters" in shown
    assert "tbptt:k1=1,k2=1: its influence" not in shown
    assert ["rtrl", "tbptt:k1=1,k2=1"] == [r["method"] for r in told["summary"]["runs"]]
    (first, *_) = told["summary"]["runs"]
    assert first["share"] == pytest.approx(first["last"] / told["summary"]["trivial_loss"])
    assert 6 == len(told["steps"]) and "step_cosine" in told["steps"][0]


def test_data_is_fixed_without_a_task() -> None:
    """The default of a spec without one, whose loss then falls at every small step; fresh data is another."""
    called = ["train", "fixed.toml", "--optimizer", "sgd", "--lr", "0.01", "--steps", "5", "--format", "csv"]
    losses = [float(r["loss"]) for r in rows(run(*called).stdout)]
    assert sorted(losses, reverse=True) == losses
    fresh = [float(r["loss"]) for r in rows(run(*called, "--data", "fresh").stdout)]
    assert losses[0] == fresh[0] and losses[1:] != fresh[1:]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_saved_weights_are_read_back(dtype: str) -> None:
    """By `[weights] file`, bit by bit; a run that starts from them goes on where the first one ended."""
    run("train", "fixed.toml", "--steps", "3", "--save", "w.npz", "--dtype", dtype, "--optimizer", "sgd")
    trained = FIXED.replace("[data]", '[weights]\nfile = "w.npz"\n[data]')
    Path("trained.toml").write_text(trained, encoding="utf-8")
    params = draw(open_setup("trained.toml", {"dtype": dtype}, (), Limits())).params
    with np.load("w.npz") as file:
        assert {n: (a.dtype, a.tolist()) for n, a in params.items()} == {
            n: (file[n].dtype, file[n].tolist()) for n in file
        }
    base = ["--optimizer", "sgd", "--format", "csv", "--dtype", dtype]
    whole = rows(run("train", "fixed.toml", "--steps", "5", *base).stdout)
    rest = rows(run("train", "trained.toml", "--steps", "2", *base).stdout)
    assert [r["loss"] for r in whole[3:]] == [r["loss"] for r in rest]


@pytest.mark.parametrize("more", [[], ["--online"], ["--optimizer", "momentum", "--dtype", "float32"]])
def test_a_resumed_run_is_the_uninterrupted_one(more: list[str]) -> None:
    """Every digit of every row; from another seed no digit is."""
    whole = run(*ADD, *more, "--steps", "9").stdout
    run(*ADD, *more, "--steps", "5", "--checkpoint", "c.npz")
    assert whole == run(*ADD, *more, "--steps", "9", "--resume", "c.npz").stdout
    assert whole == run(*ADD, *more, "--steps", "9", "--resume", "c.npz").stdout  # which it was written to
    assert whole != run(*ADD, *more, "--steps", "9", "--seed", "1").stdout


def test_a_killed_run_loses_the_steps_since_its_checkpoint() -> None:
    """And is finished from there, with the output of a run that was left alone."""
    called = [sys.executable, "-m", "bpcli", *ADD, "--steps", "120"]
    whole = subprocess.run(called, capture_output=True, check=True, text=True)
    keeping = [*called, "--checkpoint", "c.npz", "--checkpoint-every", "10"]
    with subprocess.Popen(keeping, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not os.path.exists("c.npz") and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    with np.load("c.npz") as file:
        assert 0 == file["0/status"].view(np.int64)[0] % 10
    resumed = subprocess.run([*called, "--resume", "c.npz"], capture_output=True, check=True, text=True)
    assert whole.stdout == resumed.stdout


def test_threads_do_not_matter() -> None:
    """A batch that is shared out among two threads."""
    outputs = []
    for threads in ("1", "2"):
        called = [*ADD, "--set", "batch=64", "--steps", "6", "--threads", threads]
        done = subprocess.run([sys.executable, "-m", "bpcli", *called], capture_output=True, check=True, text=True)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lr", "0.5"], "lr is 0.01 there"),
        (["--set", "batch=3"], "set is {} there"),
        (["-m", "rtrl"], "method is ['bptt', 'uoro'] there"),
        (["--steps", "2"], "has 4 steps, more than --steps 2"),
    ],
)
def test_checkpoints_of_other_calls_are_refused(more: list[str], said: str) -> None:
    """With what differs; more steps are no difference."""
    run(*ADD, "--steps", "4", "--checkpoint", "c.npz")
    result = run(*ADD, "--resume", "c.npz", "--steps", "5", *more)
    assert (2, True) == (result.exit_code, said in result.stderr)
    assert 0 == run(*ADD, "--resume", "c.npz", "--steps", "5").exit_code


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--until", "loss<1e9", "--strict"], 0),
        (["--until", "loss < 1e-9"], 0),
        (["--until", "loss<1e-9", "--strict"], 4),
        (["--strict"], 0),
        (["--strict", "--optimizer", "sgd", "--lr", "1e200"], 4),
        (["--optimizer", "sgd", "--lr", "1e200"], 0),
    ],
)
def test_exit_codes(more: list[str], code: int) -> None:
    """4 with --strict where a method did not come to what was asked for."""
    result = run("train", "net.toml", "--steps", "8", *more)
    assert code == result.exit_code
    assert ("1e200" in more) == (
        "bptt stopped: its loss, gradient or parameters are not finite at step" in result.stdout
    )
    assert ("loss<1e9" in more) == ("reached at step 1" in result.stdout)


def test_the_default_method_is_exact() -> None:
    """Online it is the one that moves the parameters at every step."""
    for more, method in (([], "bptt"), (["--online"], "rtrl")):
        found = rows(run("train", "net.toml", "--steps", "1", "--format", "csv", *more).stdout)
        assert [method] == [r["method"] for r in found]


def test_curves_are_drawn() -> None:
    """A line for each method, and its name."""
    assert 0 == run("train", "net.toml", "-m", "bptt", "-m", "rtrl", "--steps", "5", "--plot", "c.svg").exit_code
    drawn = Path("c.svg").read_text("utf-8")
    assert "bptt" in drawn and "rtrl" in drawn and "uoro" not in drawn


def test_sparks() -> None:
    """Bars on a logarithmic scale; what has no logarithm is a dot."""
    assert "█▅▁" == spark([100.0, 10.0, 1.0]).replace("▄", "▅")
    assert "▁·▁" == spark([1.0, float("nan"), 1.0])
    assert ("", "▁" * 12) == (spark([]), spark([1.0] * 400))


def test_feed_forward_networks_are_trained() -> None:
    """By the exact method, on the data of the spec."""
    spec = Path(__file__).parents[1] / "specs" / "classifier.toml"
    found = rows(run("train", str(spec), "--steps", "50", "--format", "csv").stdout)
    assert float(found[-1]["loss"]) < float(found[0]["loss"]) and {"backprop"} == {r["method"] for r in found}
