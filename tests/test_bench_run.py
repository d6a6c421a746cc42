"""A bench run on methods made of a few lines: rows, refusals, faults, interruption, files."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from bpcli import backends, methods
from bpcli.bench import journal, precheck, profiling, worker, worker_process
from bpcli.bench.precheck import Precheck
from bpcli.cli import main
from bpcli.errors import BpError, Diagnostic
from bpcli.methods.base import Cost, Exact, Gradient
from bpcli.runtime import kernel_loader as library

SPEC = """bp = 1
[dims]
n = 3
[constants]
alpha = 0.5
[inputs]
x = ["n"]
[params]
W = ["n", "n"]
[state]
a = ["n"]
[equations]
a = "tanh(W @ a[t-1] + alpha * x)"
loss = "sum(a**2)"
[data]
T = 4
batch = 2
[bench]
methods = ["bptt", "tbptt:k1=1,k2=2"]
[bench.grid]
n = [2, 3]
k2 = [1, 2]
"""
CSV = [
    "spec", "method", "backend", "n", "k2", "T", "batch", "dtype", "threads", "time_s", "time_low_s", "time_high_s",
    "compile_s", "predicted_bytes", "allocated_bytes", "peak_bytes", "forward_steps", "flops", "gemm_fraction",
    "bias", "cosine", "limit", "kind", "kernel_error", "variance", "draws",
]  # fmt: skip


@dataclass(frozen=True)
class NoOptions:
    """None."""


@dataclass(frozen=True)
class Lags:
    """Options of a truncated method."""

    k1: int
    k2: int

    def __post_init__(self) -> None:
        if self.k2 < self.k1:
            raise ValueError("k2 is smaller than k1")


class Ones:
    """A method whose gradient is a matrix of ones."""

    name: ClassVar[str] = "bptt"
    summary: ClassVar[str] = "ones"
    tags: ClassVar[frozenset[str]] = frozenset({"default", "exact", "reverse"})
    Options: ClassVar[type[Any]] = NoOptions

    def refusal(self, graph: Any) -> str | None:
        return None if graph.recurrent else "needs a state"

    def definition(self, setup: Any, options: Any) -> Exact:
        return Exact()

    def cost(self, setup: Any, options: Any) -> Cost:
        return Cost(1000.0 * setup.T, 8 * setup.wrt[0].entries, setup.T)

    def gradient(self, problem: Any, options: Any) -> Gradient:
        return Gradient(1.0, {t.name: np.ones(t.shape, problem.setup.dtype) for t in problem.setup.wrt})


class Tilted(Ones):
    """Ones, but for the first entry, which comes right only as k2 grows."""

    name: ClassVar[str] = "tbptt"
    tags: ClassVar[frozenset[str]] = frozenset({"biased"})
    Options: ClassVar[type[Any]] = Lags

    def gradient(self, problem: Any, options: Any) -> Gradient:
        found = super().gradient(problem, options)
        for array in found.arrays.values():
            array.flat[0] += 1.0 / options.k2
        return found


class Stopped(Ones):
    """A method during which the user presses Ctrl-C."""

    name: ClassVar[str] = "rtrl"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})

    def gradient(self, problem: Any, options: Any) -> Gradient:
        raise KeyboardInterrupt


class Here:
    """A session in this process, its requests and answers as JSON."""

    def __init__(self) -> None:
        self.session = worker.Session()

    def ask(self, do: str, **fields: Any) -> Any:
        request = json.loads(json.dumps({"do": do, **fields}))
        answer = json.loads(json.dumps(self.session.answer(request), default=float))
        if "refused" in answer:
            raise BpError([Diagnostic(**d) for d in answer["refused"]])
        return answer

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """An empty folder, a worker in this process, and figures of the machine that cost nothing."""
    monkeypatch.setattr(worker_process, "Worker", lambda threads: Here())
    monkeypatch.setattr(library, "set_threads", lambda count: None)  # other tests run in this process too
    monkeypatch.setattr(profiling, "sample_controls", lambda: {"gemm": 1e-3, "copy": 2e-3})
    monkeypatch.setattr(profiling, "_RATE_GEMM_SIZE", 32)
    monkeypatch.setattr(profiling, "_RATE_COPY_BYTES", 1 << 12)
    # Of a process with so much in it that takes long; processes of its own have it in test_bench_profiling.
    monkeypatch.setattr(profiling, "peak_growth", lambda work: work() and 4096)
    monkeypatch.setattr(profiling, "BLOCK_SECONDS", 1e-4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def verdicts(here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> dict[str, Precheck]:
    """`net.toml`, three methods, and a check that passes all but what the test puts into the mapping."""
    known = {m.name: m for m in (Ones(), Tilted(), Stopped())}
    given: dict[str, Precheck] = {}
    monkeypatch.setattr(methods, "known_names", lambda: tuple(sorted(known)))
    monkeypatch.setattr(methods, "load", known.__getitem__)
    good = Precheck("pass", "every entry", "")
    monkeypatch.setattr(precheck, "vouch", lambda problem, call, *rest: given.get(call.text, good))
    (tmp_path / "net.toml").write_text(SPEC)
    return given


def bench(*args: str) -> Result:
    """`bp bench` with little time for each cell."""
    return CliRunner().invoke(main, ["bench", "net.toml", "--budget", "0.001", "--threads", "1", *args])


def rows_file(folder: Path) -> Path:
    """The one CSV file of the network under reports/."""
    (file,) = (folder / "reports").glob("bench-net*.csv")
    return file


def table(result: Result) -> pd.DataFrame:
    """The CSV on stdout."""
    return pd.read_csv(io.StringIO(result.stdout))


def test_the_csv_has_exactly_the_columns_and_a_row_a_cell(verdicts, tmp_path):
    """The file under reports/ and stdout agree, and pandas reads numbers as numbers."""
    result = bench("--format", "csv")
    assert 0 == result.exit_code, result.output
    frame = table(result)
    assert CSV == list(frame.columns)
    cells = [("bptt", 2), ("tbptt:k1=1,k2=1", 2), ("tbptt:k1=1,k2=2", 2)]
    assert [*cells, *((m, 3) for m, _ in cells)] == list(zip(frame.method, frame.n, strict=True))
    assert [True, False, False] * 2 == list(frame.k2.isna())
    assert {("net", "bp", 4, 2, "float64", 1, 4)} == set(
        frame[["spec", "backend", "T", "batch", "dtype", "threads", "forward_steps"]].itertuples(index=False, name=None)
    )
    texts = ("spec", "method", "backend", "dtype", "limit", "kind")
    assert all(frame[c].dtype.kind in "if" for c in CSV if c not in texts)
    assert (frame.time_low_s <= frame.time_s).all() and (frame.time_s <= frame.time_high_s).all()
    assert (frame.time_s > 0).all() and (frame.flops == 4000).all()
    assert [32, 72] == sorted(set(frame.predicted_bytes))
    pd.testing.assert_frame_equal(frame, pd.read_csv(rows_file(tmp_path)))


def test_bias_and_cosine_are_those_of_the_whole_gradient(verdicts):
    """One entry in four is off by 1/k2."""
    frame = table(bench("--format", "csv", "-g", "n=2"))
    assert pytest.approx([0.0, 0.5, 0.25]) == list(frame.bias)
    expected = [1.0, 5 / (2 * 7**0.5), 4.5 / (2 * 5.25**0.5)]
    assert pytest.approx(expected) == list(frame.cosine)


def test_json_holds_samples_machine_and_check(verdicts):
    """What a program needs to judge the figures."""
    document = json.loads(bench("--format", "json", "-g", "n=2").stdout)
    assert 1 == document["schema_version"]
    assert {"measured": 3, "wrong": 0, "inconclusive": 0, "laws": [], "over_seeds": []} == document["summary"]
    cell = document["cells"][0]
    assert len(cell["samples_s"]) >= 7
    assert cell["time_min_s"] == min(cell["samples_s"])
    assert {"verdict": "pass", "how": "every entry", "detail": ""} == cell["check"]
    assert {"n": 2} == cell["settings"]
    assert document["context"]["machine"]["gemm_float64_flops_per_s"] > 1e6
    assert "numpy" in document["context"]["machine"]["versions"]


def test_a_wrong_gradient_is_not_timed(verdicts):
    """No timing, exit code 1, and what was wrong."""
    verdicts["tbptt:k1=1,k2=1"] = Precheck("wrong", "every entry", "W: wrong, z = 7")
    result = bench("--format", "csv", "-g", "n=2")
    assert 1 == result.exit_code
    assert [False, True, False] == list(table(result).time_s.isna())
    shown = bench("-g", "n=2")
    assert "net tbptt:k1=1,k2=1 n=2: wrong: W: wrong, z = 7 (every entry)" in shown.stdout
    assert "2 of 3 rows measured" in shown.stdout


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--strict",), 4)])
def test_an_inconclusive_check_counts_when_strict(verdicts, flags, code):
    """Timed all the same."""
    verdicts["bptt"] = Precheck("inconclusive", "every entry", "W: noise")
    assert code == bench("-g", "n=2", *flags).exit_code


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("-g", "m=1,2"), 2, 'unknown grid key "m"'),
        (("-g", "n=1,,2"), 2, "expected KEY=V1,V2"),
        (("-g", "n=2", "--set", "n=4"), 2, "--grid n contradicts"),
        (("-g", "dtype=float16"), 2, "float16"),
        (("-g", "n=0"), 2, "error["),
        (("-m", "nothing"), 2, 'unknown method "nothing"'),
        (("-m", "tbptt:k1=x,k2=2"), 2, "must be an integer"),
        (("-m", "tbptt:k1=4", "-g", "k2=2,3"), 5, "left out"),
        (("--peer", "nobody"), 2, 'unknown peer "nobody"'),
        (("--budget", "0"), 2, "budget"),
        (("--max-memory", "100"), 2, "too-large"),
        (("elsewhere",), 2, "elsewhere"),
    ],
)
def test_what_can_not_be_measured_is_refused(verdicts, args, code, words):
    """With a word on why, and the exit code that goes with it."""
    result = bench("-g", "n=2", *args) if "n=" not in " ".join(args) else bench(*args)
    assert words in result.output
    assert code == result.exit_code
    assert "Traceback" not in result.output


def test_a_grid_that_suits_one_of_two_specs_names_the_other(verdicts, tmp_path):
    """The rows of the first are measured."""
    other = SPEC.replace('"n"', '"m"').replace("\nn = 3", "\nm = 3").replace("\nn = [", "\nm = [")
    (tmp_path / "second.toml").write_text(other)
    result = bench("second.toml", "-g", "n=2", "-m", "bptt")
    assert 2 == result.exit_code and 'second: unknown grid key "n"' in result.output


@pytest.mark.parametrize(
    ("grid", "code"), [("n=2,0", "out-of-range"), ("n=2,2.5", "wrong-type"), ("T=2,-1", "out-of-range")]
)
def test_one_bad_value_is_refused_before_anything_is_measured(verdicts, tmp_path, grid, code):
    """No cell of its spec is measured; another spec is, as one target hides no other."""
    result = bench("--format", "json", "-g", grid, "-m", "bptt")
    document = json.loads(result.stdout)
    assert (2, [], [code]) == (result.exit_code, document["cells"], [e["code"] for e in document["errors"]])


def test_a_bad_value_for_one_spec_hides_no_other(verdicts, tmp_path):
    """Where one of two specs can't be set to a value, the other is measured at all of them."""
    (tmp_path / "second.toml").write_text(SPEC.replace('"n"', '"n-2"'))
    result = bench("second.toml", "--format", "json", "-g", "n=3,2", "-m", "bptt")
    document = json.loads(result.stdout)
    assert 2 == result.exit_code
    assert [("net", 3), ("net", 2)] == [(c["spec"], c["settings"]["n"]) for c in document["cells"]]


def test_a_cell_beyond_the_limits_hides_no_other(verdicts):
    """The rest is measured, and the exit code tells."""
    result = bench("--format", "json", "-g", "n=2,100000", "-m", "bptt")
    document = json.loads(result.stdout)
    assert (2, ["too-large"]) == (result.exit_code, [e["code"] for e in document["errors"]])
    assert [2] == [cell["settings"]["n"] for cell in document["cells"]]


def test_a_flag_goes_over_the_grid_of_the_spec(verdicts):
    """`--set` fixes what the spec sweeps."""
    frame = table(bench("--format", "csv", "--set", "n=4"))
    assert "n" not in frame.columns
    assert {128} == set(frame.predicted_bytes)


def test_an_option_is_swept_over_the_methods_that_have_it(verdicts):
    """A method that lacks it runs once; one that gives it no value needs the grid's."""
    frame = table(bench("--format", "csv", "-m", "bptt", "-m", "tbptt:k1=1", "-g", "n=2", "-g", "k2=3,4,5"))
    assert ["bptt", *(f"tbptt:k1=1,k2={k}" for k in (3, 4, 5))] == list(frame.method)


def test_ctrl_c_keeps_what_was_measured(verdicts, tmp_path):
    """The points before are printed and written; the exit code is 130."""
    (tmp_path / "second.toml").write_text(SPEC.replace("methods = [", 'methods = ["rtrl", '))
    result = bench("second.toml", "--format", "csv")
    assert 130 == result.exit_code
    assert {"net"} == set(table(result).spec)
    assert 6 == len(pd.read_csv(rows_file(tmp_path)))
    assert not list((tmp_path / "reports").glob("bench-second*"))


def test_ctrl_c_before_anything_was_measured(verdicts, tmp_path):
    """What an earlier run wrote stays."""
    (tmp_path / "keep.json").write_text("of an earlier run")
    result = bench("-m", "rtrl", "--output", "json=keep.json")
    assert 130 == result.exit_code and "no cell was finished, no file was written" in result.stdout
    assert "of an earlier run" == (tmp_path / "keep.json").read_text()


def test_specs_of_one_file_name_have_files_of_their_own(verdicts, tmp_path):
    """The folders tell them apart; a slash is a hyphen in the name of a file."""
    for name in ("a/net", "b/net", "a-net"):
        (tmp_path / f"{name}.toml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.toml").write_text(SPEC)
    targets = ["a/net.toml", "b/net.toml", "a-net.toml"]
    result = CliRunner().invoke(main, ["bench", *targets, "--budget", "0.001", "-g", "n=2", "-m", "bptt"])
    assert 0 == result.exit_code, result.output
    files = {re.sub("-[0-9a-f]{6}", "", p.stem): set(pd.read_csv(p).spec) for p in (tmp_path / "reports").iterdir()}
    assert {"bench-a-net": {"a/net"}, "bench-b-net": {"b/net"}, "bench-a-net-": {"a-net"}} == files


KERNEL = """
def gradient(params, inputs, state):
    if FACTOR == 0:
        raise ValueError("no")
    return {"p": FACTOR * params["p"]}
"""


@pytest.mark.parametrize(("factor", "verdict", "code"), [(2, "pass", 0), (3, "wrong", 1)])
def test_a_kernel_is_measured_beside_the_exact_method(tmp_path, monkeypatch, factor, verdict, code):
    """With its own bias and time, if it is right; a wrong one is not timed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(KERNEL.replace("FACTOR", str(factor)))
    (tmp_path / "net.toml").write_text('bp = 1\n[params]\np = [3]\n[equations]\nloss = "sum(p**2)"\n')
    given = ["net.toml", "-m", "backprop", "--kernel", "mine.py:gradient", "--budget", "0.001", "--format", "json"]
    result = CliRunner().invoke(main, ["bench", *given])
    assert code == result.exit_code, result.output
    ours, theirs = json.loads(result.stdout)["cells"]
    assert ("bp", "mine.py:gradient") == (ours["backend"], theirs["backend"])
    assert verdict == theirs["check"]["verdict"] and (theirs["time_s"] is None) == (verdict == "wrong")


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("mine.py", "expected FILE.py:FUNC"),
        ("other.py:gradient", 'no file "other.py"'),
        ("mine.py:grad", 'mine.py has no "grad"'),
        ("mine.py:KERNEL", '"KERNEL" of mine.py is not a function'),
        ("mine.py:gradient", "raises ValueError: no (mine.py:4)"),
    ],
)
def test_what_is_no_kernel_is_refused(here, tmp_path, kernel, what):
    """A name, a file and a function that there is, and that does not fail."""
    (tmp_path / "mine.py").write_text(KERNEL.replace("FACTOR", "0") + "KERNEL = 1\n")
    (tmp_path / "net.toml").write_text('bp = 1\n[params]\np = [3]\n[equations]\nloss = "sum(p**2)"\n')
    result = CliRunner().invoke(main, ["bench", "net.toml", "-m", "backprop", "--kernel", kernel, "--budget", "0.001"])
    assert 2 == result.exit_code and what in result.stderr, result.output


class Halves:
    """A peer whose gradient is `value` everywhere."""

    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "one number"
    methods: ClassVar[tuple[str, ...]] = ("bptt", "rtrl")

    def __init__(self, value: float) -> None:
        self.value = value

    def available(self) -> str | None:
        return None

    def prepare(self, threads: int) -> int | None:
        return None

    def refusal(self, setup: Any, method: str) -> str | None:
        return None

    def gradient_function(self, problem: Any, method: str) -> Any:
        arrays = {t.name: np.full(t.shape, self.value) for t in problem.setup.wrt}
        return lambda: Gradient(1.0, arrays)


@pytest.mark.parametrize(
    ("method", "ours", "value", "known", "verdict", "how"),
    [
        ("tbptt:k1=1,k2=1", "pass", 2.0, True, "wrong", "all entries against bp"),
        ("bptt", "pass", 1.0, True, "pass", "all entries against bp"),
        ("tbptt:k1=1,k2=1", "wrong", 1.0, True, "pass", "all entries against reverse mode"),
        ("tbptt:k1=1,k2=1", "inconclusive", 2.0, True, "wrong", "all entries against reverse mode"),
        ("tbptt:k1=1,k2=1", "wrong", 1.0, False, "inconclusive", "nothing"),
        ("bptt", "wrong", 1.0, True, "inconclusive", "nothing"),
    ],
)
def test_a_peer_is_judged_by_a_right_gradient(verdicts, monkeypatch, method, ours, value, known, verdict, how):
    """By ours where that passes, else by the true one, else by none; its threads are unknown."""
    verdicts[method] = Precheck(ours, "every entry", "")
    monkeypatch.setattr(backends, "get", lambda name: Halves(value))
    if not known:
        monkeypatch.setattr(precheck, "true_gradient", lambda problem, limits: None)
    cells = json.loads(bench("--format", "json", "-g", "n=2", "-m", method, "--peer", "halves").stdout)["cells"]
    found = {c["backend"]: (c["threads"], c["check"]["verdict"]) for c in cells if c["method"] == method}
    assert {"bp": (1, ours), "halves": (None, verdict)} == found
    assert how == next(c["check"]["how"] for c in cells if c["backend"] == "halves")


def test_the_csv_goes_where_it_is_told(verdicts, tmp_path):
    """`--output csv=PATH` in place of reports/."""
    result = bench("-g", "n=2", "--output", "csv=here.csv")
    assert "wrote here.csv" in result.stderr
    assert CSV == list(pd.read_csv(tmp_path / "here.csv").columns)
    assert not (tmp_path / "reports").exists()


def test_the_table_is_for_people(verdicts):
    """Units, what differs between rows, and sentences on top."""
    out = bench().stdout
    assert "6 rows measured, all gradients checked first" in out
    heading = next(line for line in out.splitlines() if line.lstrip().startswith("method"))
    assert ["method", "n"] == heading.split()[:2] and {"bias", "time", "allocated"} <= set(heading.split())
    assert "GFLOP/s" in out


def test_quiet_says_nothing_when_all_is_well(verdicts):
    """Files are written all the same."""
    result = bench("-q", "-g", "n=2")
    assert ("", "") == (result.stdout, result.stderr)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_are_a_partition(verdicts, parts):
    """Every cell is in one part, and no method is all of one part's."""
    rows = [
        (c["cell"], c["method"])
        for part in range(1, parts + 1)
        for c in json.loads(bench("--format", "json", "--shard", f"{part}/{parts}", "-g", "n=1,2,3").stdout)["cells"]
    ]
    assert [*range(9)] == sorted(number for number, _ in rows)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(verdicts, text):
    """Parts count from 1."""
    result = bench("--shard", text)
    assert (2, True) == (result.exit_code, "--shard" in result.output)


def test_only_the_same_call_replaces_a_file(verdicts, tmp_path):
    """Rows of a call with other methods, grid or settings stay where they are."""
    calls = [("-g", "n=2"), ("-g", "n=3"), ("-g", "n=2", "-m", "bptt"), ("-g", "n=2", "--seed", "5")]
    for count, call in enumerate(calls, start=1):
        assert 0 == bench(*call).exit_code
        assert count == len([*(tmp_path / "reports").iterdir()])
    assert 0 == bench(*calls[0]).exit_code
    assert len(calls) == len([*(tmp_path / "reports").iterdir()])


def test_seeds_share_a_row_of_the_table_and_have_their_own_elsewhere(verdicts, tmp_path):
    """The CSV stays tidy; JSON has the spread; the table shows it."""
    result = bench("-m", "tbptt:k1=1,k2=2", "-g", "n=2", "-g", "k2=2", "-g", "seed=0,1,2", "--output", "json=r.json")
    assert 0 == result.exit_code, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert [0, 1, 2] == [c["settings"]["seed"] for c in document["cells"]]
    (together,) = document["summary"]["over_seeds"]
    assert [0, 1, 2] == together["seeds"] and "time_s" in together["spread"]
    assert [0, 1, 2] == list(pd.read_csv(rows_file(tmp_path)).seed)
    assert 1 == sum(line.startswith("tbptt") and " 3 " in line for line in result.stdout.splitlines())


def test_threads_can_be_swept(verdicts):
    """They are the process's, and no setting of the spec; the table for people has them too."""
    swept = ["bench", "net.toml", "--budget", "0.001", "-m", "bptt", "-g", "n=2", "-g", "threads=1,2"]
    result = CliRunner().invoke(main, [*swept, "--format", "csv"])
    assert 0 == result.exit_code, result.output
    assert [1, 2] == list(table(result).threads)
    lines = [line.split()[:2] for line in CliRunner().invoke(main, swept).stdout.splitlines()]
    assert [["method", "threads"], ["bptt", "1"], ["bptt", "2"]] == [
        x for x in lines if x[:1] in (["method"], ["bptt"])
    ]
    assert "threads must be" in bench("-g", "threads=0,1").output or "contradicts" in bench("-g", "threads=0").output


def test_the_journal_names_the_run_and_goes_when_all_is_done(verdicts, tmp_path, monkeypatch):
    """Two lines of header and cell are on the disk before the run ends."""
    seen = []
    write = journal.Journal.write

    def spy(self, key, rows):
        write(self, key, rows)
        seen.append(self.path.read_text().count("\n"))

    monkeypatch.setattr(journal.Journal, "write", spy)
    assert 0 == bench("-g", "n=2").exit_code
    assert [2, 3, 4] == seen
    assert [rows_file(tmp_path)] == list((tmp_path / "reports").iterdir())


def test_json_says_what_the_run_was_made_of(verdicts):
    """Digests of specs and run, and the control kernels."""
    document = json.loads(bench("--format", "json", "-g", "n=2", "-m", "bptt").stdout)
    assert {"net"} == document["context"]["spec_sha256"].keys()
    assert 64 == len(document["context"]["spec_sha256"]["net"]) == len(document["context"]["run_sha256"])
    (cell,) = document["cells"]
    assert ({"gemm": 0.0, "copy": 0.0}, False, True) == (cell["control_moved"], cell["contaminated"], cell["pareto"])
    assert 7 == len(cell["rounds"]) and sum(cell["rounds"]) == len(cell["samples_s"])
    assert 7 == len(cell["gemm_flops_per_s"]) == len(cell["copy_bytes_per_s"])
    assert cell["first_s"] > 0 and cell["compile_s"] >= 0


def test_a_spec_that_changes_underway_is_refused(verdicts, tmp_path, monkeypatch):
    """Its rows would be of two networks."""
    real = worker.digest
    monkeypatch.setattr(worker, "digest", lambda setup, path: real(setup, path)[::-1])
    result = bench("-g", "n=2", "-m", "bptt")
    assert 2 == result.exit_code
    assert "changed while it was measured" in result.output


def test_kernels_compiled_while_the_clock_runs_spoil_a_time(verdicts, monkeypatch):
    """After warm-up their number stays."""
    counts = iter(range(1000))
    monkeypatch.setattr(library, "compiled", lambda: (next(counts), 0.0))
    result = bench("-g", "n=2", "-m", "bptt")
    assert "compiled during timing" in result.output
    assert 2 == result.exit_code
