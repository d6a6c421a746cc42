"""A sweep by real processes, killed and resumed: no row lost, none doubled; and the journal by itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import run

from bpcli.bench.journal import Journal, run_hash
from bpcli.bench.worker_process import Worker
from bpcli.errors import BpError

SPEC = """bp = 1
[dims]
n = 2
[inputs]
x = ["n"]
[params]
W = ["n", "n"]
[state]
a = ["n"]
[equations]
a = "tanh({factor} * W @ a[t-1] + x)"
loss = "sum(a**2)"
[data]
T = 3
batch = 2
[bench]
methods = ["bptt", "tbptt:k1=1,k2=2"]
"""
NAMES = ("first", "second", "third")
TIMED = (
    "time_", "compile_", "first_", "gemm_", "copy_", "samples", "peak_", "allocated", "calls_", "rounds", "control",
    "contaminated",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three specs."""
    for factor, name in enumerate(NAMES, start=1):
        (tmp_path / f"{name}.toml").write_text(SPEC.format(factor=0.3 * factor))
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep of six cells in three groups, which are measured one after another."""
    home = str(Path(__file__).parents[1])
    command = ["-m", "bpcli", "bench", *(f"{n}.toml" for n in NAMES), "--budget", "0.01", "--threads", "1"]
    env = {**os.environ, "PYTHONPATH": home}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder, "env": env}
    return subprocess.Popen([sys.executable, "-P", *command, "--format", "json", *more], **pipes)


def finish(process: subprocess.Popen[str]) -> dict:
    """The document of a run that ends well."""
    out, said = process.communicate(timeout=300)
    assert 0 == process.returncode, said
    return json.loads(out)


def lasting(document: dict) -> list[dict]:
    """Of each row what does not depend on the clock or the allocator."""
    return [{k: v for k, v in c.items() if not k.startswith((*TIMED, "pareto"))} for c in document["cells"]]


def journaled(folder: Path) -> int:
    """Cells in the journal."""
    return sum(max(0, p.read_bytes().count(b"\n") - 1) for p in folder.glob("reports/*.journal.jsonl"))


def kill_when(process: subprocess.Popen[str], folder: Path, cells: int, delay: float) -> None:
    """SIGKILL some seconds after so many cells were finished."""
    while journaled(folder) < cells and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    process.communicate()


def test_a_killed_sweep_goes_on_where_it_was(folder):
    """Killed twice, among the first cells and in the middle: the third start measures only what is left."""
    expected = lasting(finish(start(folder)))
    assert 6 == len(expected) and 0 == journaled(folder)
    kill_when(start(folder), folder, 0, 0.5)
    kill_when(start(folder, "--resume"), folder, 2, 0.05)
    before = journaled(folder)
    assert before in (2, 4)
    process = start(folder, "--resume", "-v")
    document = finish(process)
    assert expected == lasting(document)
    assert [*range(6)] == [c["cell"] for c in document["cells"]]
    assert 0 == journaled(folder)


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(folder):
    """Whatever the moment; what one start has finished no later one measures again. One that ends first is whole."""
    begun = time.monotonic()
    expected = lasting(finish(start(folder)))
    length = time.monotonic() - begun
    rng = random.Random(5)
    kept: dict[str, list] = {}
    kills = 0
    while kills < 10:
        process = start(folder, "--resume")
        try:
            out, _ = process.communicate(timeout=rng.uniform(0.1, length))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            lines = [json.loads(x) for p in folder.glob("reports/*.journal.jsonl") for x in whole_lines(p)[1:]]
            now = {x["cell"]: x["rows"] for x in lines}
            assert len(now) == len(lines)
            assert kept == {k: now.get(k) for k in kept}
            kept = now
        else:
            assert expected == lasting(json.loads(out))
            kept = {}
    document = finish(start(folder, "--resume"))
    assert expected == lasting(document)
    samples = {json.dumps(c["samples_s"]) for c in document["cells"]}
    assert {json.dumps(row["samples_s"]) for rows in kept.values() for row in rows} <= samples


def test_the_journal_stands_until_the_rows_are_written(folder, monkeypatch):
    """What fails at the very end, when everything was measured, loses nothing."""
    from bpcli.commands import bench_document as bench_files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(bench_files, "write_csv", full)
    assert 0 != run("bench", "first.toml", "--budget", "0.01", "--threads", "1").exit_code
    assert 2 == journaled(folder)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a journal that end."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def test_ctrl_c_shows_what_is_done_and_how_to_go_on(folder):
    """Exit code 130, the rows so far, the journal kept. (A job in the background would not hear the signal.)"""
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start(folder)
    finally:
        signal.signal(signal.SIGINT, heard)
    while journaled(folder) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert 130 == process.returncode, said
    assert "run the same command with --resume" in said
    assert len(json.loads(out)["cells"]) == journaled(folder) >= 2


def test_a_process_that_dies_is_told_of_and_ends_nothing_else():
    """Its end in words, with what it said last."""
    child = Worker(1)
    try:
        assert child.ask("floor")["bytes"] >= 0
        child._process.kill()
        with pytest.raises(BpError, match="SIGKILL") as caught:
            child.ask("floor")
        assert "memory" in caught.value.diagnostics[0].help
    finally:
        child.close()


def test_a_process_ends_with_the_one_that_asks():
    """When its stdin ends, though nobody ends it."""
    child = Worker(1)
    child.ask("floor")
    child._process.stdin.close()
    assert 0 == child._process.wait(10)
    child.close()


@pytest.mark.parametrize("tail", [b"", b'{"cell": "b", "ro', b'{"cell": "b", "rows": [1]}'])
def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path, tail):
    """What follows it is written in its place."""
    path, run = tmp_path / "j.jsonl", run_hash({"a": 1})
    journal = Journal(path, run, resume=False)
    journal.write("a", [{"x": 1.5}])
    journal.close(remove=False)
    path.write_bytes(path.read_bytes() + tail)
    again = Journal(path, run, resume=True)
    assert {"a": [{"x": 1.5}]} == again.rows
    again.write("c", [{"x": 0.1}])
    again.close(remove=False)
    last = Journal(path, run, resume=True)
    last.close(remove=True)
    assert ["a", "c"] == list(last.rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"journal": 1, "run": "other"}\n', "another run"),
        (b"[]\n", "line 1"),
        (b"nonsense\n", "line 1"),
        (b'{"journal": 1, "run": "RUN"}\n{"cell": 3}\n', "line 2"),
        (b'{"journal": 1, "run": "RUN"}\n\xff\n', "line 2"),
    ],
)
def test_a_journal_that_is_none_is_refused(tmp_path, content, words):
    """With the line that is wrong."""
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(BpError, match=words):
        Journal(path, "RUN", resume=True)


def test_an_old_journal_is_kept(tmp_path):
    """A run that does not resume puts it aside."""
    path = tmp_path / "j.jsonl"
    first = Journal(path, "run", resume=False)
    first.write("a", [])
    first.close(remove=False)
    second = Journal(path, "run", resume=False)
    second.close(remove=True)
    assert second.kept is not None and second.kept.read_bytes().count(b"\n") == 2
    assert not path.exists()
    Journal(path, "run", resume=False).close(remove=False)
    third = Journal(path, "run", resume=False)  # takes the place of one with nothing in it, and the old one stays
    third.close(remove=True)
    assert third.kept is None and second.kept.read_bytes().count(b"\n") == 2


def test_the_hash_of_a_run_sees_all_that_rows_depend_on():
    """Not the order of keys."""
    assert run_hash({"a": 1, "b": [2]}) == run_hash({"b": [2], "a": 1}) != run_hash({"a": 1, "b": [3]})
