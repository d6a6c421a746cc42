"""Runs on a cluster of real worker processes on loopback: the same rows, also when a worker is killed midway."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed")

from bpcli.cluster.connect import Cluster, Facts, differences, together
from bpcli.cluster.remote_work import LEAST_FLOPS, batches
from bpcli.problem.definition import Values
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.references.perturbation.perturbed import CopyBlock, LossRequest, perturbed_for
from bpcli.runtime.machine import Machine

HOME = str(Path(__file__).parents[1])
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
a = "relu(0.5 * W @ a[t-1] + x)"
loss = "sum(a**2)"
[data]
T = 3
batch = 2
[bench]
methods = ["bptt", "tbptt:k1=1,k2=2", "rtrl"]
[bench.grid]
T = [2, 3]
"""
LASTING = (
    "cell", "spec", "method", "backend", "grid", "settings", "T", "batch", "dtype", "threads", "parameters",
    "predicted_bytes", "forward_steps", "flops", "bias", "cosine", "check",
)  # fmt: skip
HERE = Facts("here", Machine("cpu", 2, "avx2", "Linux", "3.11.1", {"bp": "1", "numba": "0.68", "numpy": "2.1"}), "abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec."""
    (tmp_path / "net.toml").write_text(SPEC)
    return tmp_path


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    """A command in its own process group."""
    env = {**os.environ, "PYTHONPATH": HOME}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bpcli", *args],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> dict:
    """The document that a command leaves behind."""
    out, said = process.communicate(timeout=300)
    assert code == process.returncode, said
    return json.loads(out)


def bench(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep of six cells."""
    return start(folder, "bench", "net.toml", "--budget", "0.01", "--threads", "1", "--format", "json", *more)


def lasting(document: dict) -> list[dict]:
    """Of each row what does not depend on the clock."""
    return [{key: row[key] for key in LASTING} for row in document["cells"]]


def journal(folder: Path) -> list[dict]:
    """The finished cells, as they stand on the disk."""
    lines = [line for path in folder.glob("reports/*.jsonl") for line in path.read_text().splitlines()[1:]]
    return [json.loads(line) for line in lines]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def workers(pid: int) -> list[int]:
    """The worker processes of a command with a local cluster."""
    return [p for p in children(pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def await_cells(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Return when so many cells are finished, and not all."""
    while len(journal(folder)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@contextlib.contextmanager
def cluster(folder: Path, path: str) -> Iterator[str]:
    """The address of a scheduler with one worker, whose modules are looked for in `path`."""
    serve = [sys.executable, "-P", "-m", "distributed.cli.dask_scheduler"]
    env = {**os.environ, "PYTHONPATH": HOME}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    where = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(where)]
    processes = [subprocess.Popen([*serve, *options], env=env, **quiet)]
    try:
        while not where.exists() or not where.read_text().strip().endswith("}"):
            assert processes[0].poll() is None
            time.sleep(0.05)
        address = json.loads(where.read_text())["address"]
        work = [sys.executable, "-P", "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        processes.append(subprocess.Popen([*work, "--no-nanny"], env={**env, "PYTHONPATH": path}, **quiet))
        yield address
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What one process measures."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "net.toml").write_text(SPEC)
    return lasting(finish(bench(folder)))


def test_a_cluster_that_loses_a_worker_gives_the_rows_of_one_process(folder: Path, expected: list[dict]) -> None:
    """Two workers, one of them killed after the first cell, measure what one process does."""
    process = bench(folder, "--local-cluster", "2")
    await_cells(folder, process, 1)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    document = finish(process)
    assert expected == lasting(document)
    assert 6 == len(expected)
    assert {os.uname().nodename} == {row["host"] for row in document["cells"]}
    assert [] == list(folder.glob("reports/*.jsonl"))


def test_an_interrupted_run_goes_on(folder: Path, expected: list[dict]) -> None:
    """Ctrl-C, which reaches the workers too, leaves the journal; --resume measures the rest, and no other rows."""
    process = bench(folder, "--local-cluster", "2")
    await_cells(folder, process, 2)
    os.killpg(process.pid, signal.SIGINT)
    first = finish(process, 130)
    kept = {entry["cell"] for entry in journal(folder)}
    assert 2 <= len(kept) == len(first["cells"])
    document = finish(bench(folder, "--local-cluster", "2", "--resume"))
    samples = {row["cell"]: row["samples_s"] for row in document["cells"]}
    assert all(samples[row["cell"]] == row["samples_s"] for row in first["cells"])
    assert [0, 1, 2, 3, 4, 5] == sorted(samples)
    assert expected == lasting(document)
    assert {os.uname().nodename} == {row["host"] for row in document["cells"]}
    assert [] == list(folder.glob("reports/*.jsonl"))


def test_other_versions_are_refused(folder: Path) -> None:
    """A worker with another numpy is named, with both versions, and nothing is measured."""
    fake = folder / "fake" / "numpy-0.0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    with cluster(folder, f"{fake.parent}{os.pathsep}{HOME}") as address:
        document = finish(bench(folder, "--scheduler", address), 2)
    (error,) = document["errors"]
    assert "wrong-versions" == error["code"]
    assert "worker tcp://127.0.0.1:" in error["message"]
    assert f"numpy 0.0.1 ({np.__version__} here)" in error["message"]
    assert [] == document["cells"]


def test_a_worker_must_find_the_same_spec(folder: Path, expected: list[dict]) -> None:
    """A fit worker measures; one that finds no such file is named."""
    with cluster(folder, HOME) as address:
        found = lasting(finish(bench(folder, "--scheduler", address, "-g", "T=2")))
        code = "import sys; sys.argv[0] = 'bp'; from bpcli.cli import main\n"
        code += "from bpcli.cluster import connect\nown = connect.Cluster.require\n"
        code += "connect.Cluster.require = lambda self, spec, sha: own(self, spec, 'of another file')\nmain()"
        call = ["-c", code, "bench", "net.toml", "--budget", "0.01", "--scheduler", address]
        ran = subprocess.run(
            [sys.executable, "-P", *call], cwd=folder, env={**os.environ, "PYTHONPATH": HOME},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    same = [{**row, "cell": number} for number, row in enumerate(r for r in expected if 2 == r["T"])]
    assert same == found and 3 == len(same)
    assert 2 == ran.returncode
    assert "other-files" in ran.stderr
    assert "is another one" in ran.stderr


class Hands:
    """A client of so many workers, each of which has what it was given to do until it is asked for the next thing."""

    status = "running"

    def __init__(self, places: int) -> None:
        self.places, self.held, self.most = places, 0, 0

    def scheduler_info(self, n_workers: int) -> dict:
        """A worker that is unfit stands beside the others."""
        assert -1 == n_workers
        return {"workers": {str(i): {"resources": {"bp": float(i > 0)}} for i in range(self.places + 1)}}

    def submit(self, work: Callable, order: Any, **how: Any) -> Any:
        """A future that is done at once."""
        self.held += 1
        self.most = max(self.most, self.held)
        future: Any = concurrent.futures.Future()
        future.key, future.result = order, lambda timeout: self._told(work(order))
        future.set_result(None)
        return future

    def cancel(self, futures: list) -> None:
        """Nothing is left."""
        assert [] == futures

    def _told(self, answer: Any) -> Any:
        self.held -= 1
        return answer


@pytest.mark.parametrize(("places", "each", "most"), [(1, 1, 1), (2, 1, 2), (2, 2, 4), (9, 1, 7)])
def test_work_is_handed_out_as_workers_come_back_for_it(places: int, each: int, most: int) -> None:
    """In order, and never more than they can have: what lies at one can be done by no other."""
    hands = Hands(places)
    found = list(Cluster(hands, {}, 1, True).results(lambda order: 2 * order, list(range(7)), each))
    assert [(i, 2 * i) for i in range(7)] == found
    assert (0, most) == (hands.held, hands.most)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense:x", "what://127.0.0.1:1"])
def test_nobody_at_the_address(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that isn't there is a usage error, after a while."""
    from bpcli.cluster import connect
    from bpcli.errors import BpError

    monkeypatch.setattr(connect, "PATIENCE", 0.5)
    with pytest.raises(BpError, match=f'no Dask scheduler answers at "{address}"'), connect.connect(address):
        pass


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"host": "there", "machine": dataclasses.replace(HERE.machine, cpu="other", cores=64)}, []),
        ({"machine": dataclasses.replace(HERE.machine, python="3.12.0")}, ["python 3.12.0 (3.11.1 here)"]),
        (
            {"machine": dataclasses.replace(HERE.machine, versions={"bp": "2", "numpy": "2.1"})},
            ["bp 2 (1 here)", "numba missing (0.68 here)"],
        ),
        ({"sources": "abd"}, ["another bp 0.1.0: its sources differ"]),
    ],
)
def test_differences(change: dict, found: list[str]) -> None:
    """Versions and sources count, processors and hosts do not."""
    assert found == differences(HERE, dataclasses.replace(HERE, **change))


def test_machines_together() -> None:
    """What differs between machines is listed, what doesn't is kept."""
    other = dataclasses.replace(HERE.machine, cpu="better", cores=64)
    both = together([HERE.machine, other])
    assert ("better or cpu", "2 or 64", "Linux") == (both.cpu, both.cores, both.system)
    assert HERE.machine == together([HERE.machine, HERE.machine])


class Twin:
    """`Executor` in this process, from arrays drawn afresh, piece by piece from the last to the first."""

    def __init__(self, path: Path) -> None:
        self.problem, self.asked = draw(open_setup(path, {}, (), Limits())), list[LossRequest]()

    def losses(self, asked: LossRequest, pieces: list[CopyBlock]) -> list[Values]:
        """Those of all pieces, in order."""
        self.asked.append(asked)
        perturbed = perturbed_for(self.problem, asked)
        return [perturbed.block_losses(piece) for piece in pieces[::-1]][::-1]


@pytest.mark.parametrize(
    ("equation", "dtypes"),
    [
        ("relu(0.5 * W @ a[t-1] + x)", {"float64", "complex128"}),
        ("tanh(W @ a[t-1] + x)", {"float64", "complex128"}),
    ],
)
@pytest.mark.parametrize("method", ["bptt", "tbptt:k1=1,k2=2"])
def test_losses_elsewhere_are_the_same(
    folder: Path, method: str, equation: str, dtypes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check whose losses are all computed elsewhere finds the same, to the last bit."""
    (folder / "net.toml").write_text(SPEC.replace("relu(0.5 * W @ a[t-1] + x)", equation).replace("n = 2", "n = 6"))
    from bpcli import methods
    from bpcli.checking.check_options import CheckOptions
    from bpcli.checking.checker import check
    from bpcli.references.perturbation import perturbed

    setup, twin = open_setup(folder / "net.toml", {}, (), Limits()), Twin(folder / "net.toml")
    call, options = methods.parse(method), CheckOptions(mode="full")
    expected = check(setup, [call], options)
    monkeypatch.setattr(perturbed, "FAR_FLOPS", 0.0)
    monkeypatch.setattr(perturbed, "BLOCK_ENTRIES", 1)
    alone = check(setup, [call], options)
    assert alone == check(setup, [call], options, twin)
    assert [f.verdict for f in expected] == [f.verdict for f in alone]
    assert dtypes == {asked.dtype for asked in twin.asked}


def test_check_on_a_cluster(folder: Path) -> None:
    """`bp check` with its losses on workers says what it says without, in every figure."""
    sizes = ["--set", "n=32", "--set", "T=40", "--set", "batch=4"]
    call = ["check", "net.toml", "-m", "bptt", *sizes, "--mode", "full", "--threads", "1", "--format", "json"]
    expected = finish(start(folder, *call))
    actual = finish(start(folder, *call, "--local-cluster", "2"))
    assert expected["findings"] == actual["findings"]
    assert ["pass"] == [f["verdict"] for f in actual["findings"]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (100, [[0.4, 0.4], [0.4], [3.0], [0.1], [0.95]]),
        (1, [[0.4, 0.4, 0.4, 3.0, 0.1, 0.95]]),
        (2, [[0.4, 0.4, 0.4], [3.0], [0.1, 0.95]]),
    ],
)
def test_batches(count: int, expected: list[list[float]]) -> None:
    """Small pieces go together, large ones alone, and none is lost."""
    nothing = np.zeros(1, np.int64)
    pieces = [CopyBlock(1, nothing, nothing, nothing, size * LEAST_FLOPS) for size in (0.4, 0.4, 0.4, 3.0, 0.1, 0.95)]
    assert expected == [[round(p.flops / LEAST_FLOPS, 2) for p in batch] for batch in batches(pieces, count)]


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is named with the extra that brings it; two clusters are one too many."""
    from bpcli.commands import shared_options as commands
    from bpcli.commands.shared_options import Common, opened_cluster
    from bpcli.errors import BpError

    with pytest.raises(BpError, match="two clusters"), opened_cluster(Common(scheduler="a:1", local_cluster=1)):
        pass
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BpError, match=r"bp\[distributed\]"), opened_cluster(Common(local_cluster=1)):
        pass
