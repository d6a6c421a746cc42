"""`bp ab` with real processes: nothing is found in nothing, a slow head is SLOWER, a wrong one WRONG."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_cases import RECURRENT, run, write
from injected import HOUSE, TWICE, WRONG, checkout

from bpcli.bench.measurement import PROTOCOL
from bpcli.bench.worker import serve
from bpcli.bench.worker_process import environment, variables_of, workers
from bpcli.errors import BpError

FEW = ("--rounds", "3", "--budget", "0.1", "--threads", "1", "--format", "json")


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """A small network."""
    return write(tmp_path / "net.toml", RECURRENT)


@pytest.fixture
def head(tmp_path: Path) -> Callable[[str], str]:
    """A function that makes a checkout with a fault: a room of its own, the others and their compiled kernels ours."""

    return lambda body: checkout(tmp_path / "head", body)


def test_a_bp_beside_itself(spec):
    """No regression, and no exit code that says so; deterministic figures are equal, the time has an interval."""
    found = run("ab", "--aa", spec, "-m", "bptt", *FEW, "--rounds", "2")
    document = json.loads(found.stdout)
    assert (0, "") == (found.exit_code, found.stderr)
    rows = {r["figure"]: r for r in document["comparisons"]}
    assert {"gradient", "predicted_bytes", "allocated_bytes", "forward_steps", "flops", "time_s"} <= rows.keys()
    assert {"SAME"} == {r["verdict"] for name, r in rows.items() if name != "time_s"}
    assert rows["time_s"]["verdict"] in ("SAME", "INCONCLUSIVE")
    assert rows["time_s"]["low"] <= rows["time_s"]["ratio"] <= rows["time_s"]["high"]


def test_a_slow_head_is_slower(spec, head):
    """Twice the work: SLOWER, confirmed, exit 3, the interval about 2. A machine that moved may leave it open."""
    found = run("ab", "--base", str(HOUSE), "--head", head(TWICE), spec, "-m", "bptt", *FEW)
    document = json.loads(found.stdout)
    row = next(r for r in document["comparisons"] if r["figure"] == "time_s")
    assert row["low"] > 1.3
    if "contaminated" not in found.stdout and row["margin"] < 0.5:
        assert (3, "SLOWER", "confirmed by a second run") == (found.exit_code, row["verdict"], row["detail"])


def test_a_wrong_head_is_wrong(spec, head):
    """Off by a hundredth: exit 1, and nothing is timed."""
    found = run("ab", "--base", str(HOUSE), "--head", head(WRONG), spec, "-m", "bptt", *FEW)
    rows = json.loads(found.stdout)["comparisons"]
    assert (1, "WRONG", "gradient") == (found.exit_code, rows[0]["verdict"], rows[0]["figure"])
    assert "time_s" not in {r["figure"] for r in rows}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--base", "."), "needs --head"),
        (("--head", "."), "needs --base"),
        (("--aa", "--head", "."), "takes no --head"),
        (("--base", "/nowhere/at/all", "--head", "."), "neither a Python interpreter nor a folder"),
    ],
)
def test_what_cannot_be_compared_is_refused(args, word, spec):
    """Before anything starts."""
    found = run("ab", *args, spec)
    assert (2, True) == (found.exit_code, word in found.stderr)


def test_a_folder_without_a_protocol_is_refused(tmp_path, spec):
    """A bp from before `bp ab`: told which side it is, and what it lacks."""
    write(tmp_path / "old" / "bpcli" / "__init__.py", "")
    found = run("ab", "--base", str(tmp_path / "old"), "--head", str(HOUSE), spec)
    assert 2 == found.exit_code
    assert "--base" in found.stderr and "no bp there that can be timed" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_interpreter_without_bp_is_refused(tmp_path, spec):
    """A program that is no Python at all is refused in the same way."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'nothing here' >&2\nexit 3\n")
    program.chmod(0o755)
    found = run("ab", "--base", str(HOUSE), "--head", str(program), spec)
    assert (2, True) == (found.exit_code, "its process ended: nothing here" in found.stderr)


def test_kinds_of_environments(tmp_path):
    """A checkout, a virtual environment, an interpreter by path and by name."""
    assert (sys.executable, str(HOUSE)) == (lambda e: (e.python, e.checkout))(environment("--base", str(HOUSE)))
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert str(tmp_path / "venv" / "bin" / "python") == environment("--base", str(tmp_path / "venv")).python
    assert sys.executable == environment("--base", sys.executable).python
    assert os.path.isabs(environment("--base", "sh").python)


def test_a_child_gets_its_own_bp_and_threads(monkeypatch):
    """The parent's PYTHONPATH would put the parent's bp before the one to be measured."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    inside = variables_of(environment("--base", str(HOUSE)), 3)
    assert (str(HOUSE), "3", "1") == tuple(
        inside[k] for k in ("PYTHONPATH", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    )
    assert "PYTHONPATH" not in variables_of(environment("--base", sys.executable), 1)


def test_requests_that_go_wrong_are_answered():
    """A process that serves does not end by a bad request."""
    answers = io.StringIO()
    requests = [
        '{"do": "run", "calls": 2}',
        '{"do": "dance"}',
        "nonsense",
        '{"do": "load", "cell": {"control": "gemm"}}',
    ]
    serve(io.StringIO("\n".join(requests) + "\n"), answers)
    hello, *rest = map(json.loads, answers.getvalue().splitlines())
    assert PROTOCOL == hello["protocol"]
    assert [{"seconds", "samples"}, *[{"error", "help", "refused"}] * 2, set()] == [set(a) for a in rest]


def test_children_end_with_their_parent_s_interest(spec):
    """Whatever happens inside, no process is left; and a refused cell is told with the side's name."""
    same = environment("--base", str(HOUSE))
    with pytest.raises(BpError, match="--base"), workers((same, same), 1) as children:
        children[0].ask("load", cell={"path": "absent.toml", "overrides": {}, "wrt": [], "method": "bptt"})
    assert [True, True] == [child._process.poll() is not None for child in children]
