"""Sizes are checked before anything is allocated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from problem_cases import RNN, open_text, refusals

from bpcli import methods
from bpcli.errors import BpError
from bpcli.problem import limits
from bpcli.problem.limits import Limits, array_bytes, check_arrays, check_cost, format_bytes, free_memory, parse_bytes
from bpcli.problem.setup import open_setup


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12345", 12345),
        ("1B", 1),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("2GiB", 2 << 30),
        ("2G", 2_000_000_000),
        ("1.5kB", 1500),
        ("0.5TiB", 1 << 39),
        (" 3Ki ", 3072),
    ],
)
def test_parse_bytes_reads_amounts(text, size):
    """Numbers with decimal or binary units, in any case."""
    assert size == parse_bytes(text)


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "0", "0.1", "1e9", "inf", "nan", "2 PB", "1,5GB", "1" * 400, "٣MB", "\x1b["]
)
def test_parse_bytes_refuses_the_rest(text):
    """Anything else is refused with an example, control codes escaped."""
    with pytest.raises(BpError) as caught:
        parse_bytes(text)
    (diagnostic,) = caught.value.diagnostics
    assert "bad-size" == diagnostic.code
    assert "500MB" in diagnostic.help
    assert "\x1b" not in diagnostic.what


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1 MB"), (8.8e12, "8.8 TB"), (5e22, "5e+04 EB")],
)
def test_format_bytes(size, text):
    """The largest unit that leaves at least one."""
    assert text == format_bytes(size)


def test_the_default_limit_is_most_of_free_memory():
    """The default is above zero and below all of it."""
    assert 0 < Limits().max_memory < 1 << 50
    assert 0 < free_memory()
    assert 3600.0 == Limits().max_time


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"max": "5000", "current": "3000", "stat": "anon 2000\ninactive_file 700\n"}, 2700),
        ({"max": "5000", "current": "6000", "stat": "anon 2000\n"}, 0),
        ({"max": "max", "current": "3000", "stat": "inactive_file 700\n"}, 10_000),
        ({"max": "50000", "current": "0", "stat": ""}, 10_000),
        ({"max": "5000"}, 10_000),
        ({}, 10_000),
    ],
)
def test_free_memory_is_what_the_control_group_has_left(monkeypatch, tmp_path, files, expected):
    """The limit less the memory in use that can't be dropped, where that is less than the machine has."""
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(limits, "_GROUP", tmp_path)
    monkeypatch.setattr(limits, "_meminfo", lambda: 10_000)
    assert expected == free_memory()


def test_array_bytes_are_those_of_the_arrays(tmp_path):
    """Eight bytes an entry: inputs over T and batch, a shared state once."""
    setup = open_text(tmp_path, RNN, T=7, batch=5)
    expected = {"W": 72, "U": 48, "w": 24, "x": 8 * 7 * 5 * 2, "y_star": 8 * 7 * 5, "a": 24}
    assert expected == array_bytes(setup)
    assert 4 * 7 * 5 * 2 == array_bytes(open_text(tmp_path, RNN, T=7, batch=5, dtype="float32"))["x"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"n": 2**21}, 9),
        ({"m": 2**34}, 6),
        ({"T": 2**36}, 6),
        ({"batch": 2**39, "m": 1}, 6),
        ({"T": 2**36, "m": 2**20}, 6),
    ],
    ids=str,
)
@pytest.mark.parametrize("density", ["", ", density = 0.5"])
def test_terabytes_are_refused_at_once(overrides, line, density, tmp_path):
    """Terabytes are refused at the largest array's declaration, with the number, without drawing a pattern."""
    text = RNN.replace('W = ["n", "n"]', f'W = {{ shape = ["n", "n"]{density} }}')
    start = time.perf_counter()
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, text, **overrides)
    assert [("too-large", line)] == refusals(caught.value)
    assert re.search("need [0-9]{13,} bytes .*[TPE]B", caught.value.diagnostics[0].what)
    assert time.perf_counter() - start < 1.0


def test_the_limit_is_exact(tmp_path):
    """As many bytes as allowed pass; one fewer does not."""
    setup = open_text(tmp_path, RNN)
    total = sum(array_bytes(setup).values())
    check_arrays(setup, Limits(max_memory=total))
    with pytest.raises(BpError, match=rf"{total} bytes .*limit is {total - 1} bytes"):
        open_setup(tmp_path / "spec.toml", {}, (), Limits(max_memory=total - 1))


@pytest.mark.parametrize(
    ("nbytes", "flops", "code", "says"),
    [
        (1 << 40, 0.0, "too-large", "rtrl and the arrays need 10995"),
        (0, 5e9 * 4000, "too-long", "rtrl would take about 66.7 minutes, the limit is 60 minutes"),
        (0, 1e30, "too-long", "years"),
    ],
)
def test_costs_are_refused(nbytes, flops, code, says, tmp_path):
    """A method beyond memory or time is refused with the prediction."""
    setup = open_text(tmp_path, RNN)
    with pytest.raises(BpError) as caught:
        check_cost(setup, "rtrl", nbytes, flops, Limits(max_memory=1 << 30))
    assert [(code, 6)] == refusals(caught.value)
    assert says in caught.value.diagnostics[0].what


def test_many_tiny_steps_take_time(tmp_path):
    """A step costs some microseconds beside its arithmetic."""
    setup = open_text(tmp_path, RNN)
    allowed = Limits(max_memory=1 << 30, max_time=0.5)
    check_cost(setup, "rtrl", 0, 1.0, allowed, 20_000)
    with pytest.raises(BpError, match=r"rtrl would take about 0\.6 seconds"):
        check_cost(setup, "rtrl", 0, 1.0, allowed, 30_000)


def test_costs_within_the_limits_pass(tmp_path):
    """A small cost is no refusal."""
    check_cost(open_text(tmp_path, RNN), "rtrl", 1000, 1e9, Limits(max_memory=1 << 30))


MEASURED = """
import sys
from bpcli.cli import main
try:
    main()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""
"""A call of `bp` that prints its highest resident memory; other counts include that of the parent process."""


def wide(n: int, product: str, extra: str = "") -> str:
    """A recurrent network with a matrix of n by n."""
    return f"""bp = 1
inputs = {{ x = [{n}] }}
params = {{ W = {{ shape = [{n}, {n}]{extra} }}, u = [{n}] }}
state = {{ a = [{n}] }}
[data]
T = 2
batch = 1
[equations]
a = "tanh({product} + u * x)"
loss = "sum(a)"
"""


def doubled(times: int, first: str, rest: str, state: str = "") -> str:
    """A vector of four, joined with itself again and again."""
    joins = "".join(f'h{i + 1} = "concat(h{i}, h{i})"\n' for i in range(times))
    return f"""bp = 1
inputs = {{ x = [4] }}
params = {{ w = [4] }}
{state}
[equations]
h0 = "{first}"
{joins}{rest}
"""


STATE, LOSS = "state = { a = [4] }", 'loss = "sum(a)"'
OUTER = """bp = 1
inputs = { x = [60000] }
params = { u = [60000, 1], v = [1, 60000] }
[equations]
loss = "sum((u @ v) @ x)"
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (wide(6500, "W @ a[t-1]"), ["-m", "rtrl"], "too-large"),
        (wide(6500, "W.T @ a[t-1]"), ["-m", "rtrl"], "too-large"),
        (wide(3000, "W @ a[t-1] + W.T @ a[t-1]"), ["-m", "rtrl"], "too-large"),
        (wide(2000, "W @ a[t-1]", ", density = 0.5"), ["-m", "rtrl"], "too-large"),
        (doubled(24, "w * x", 'loss = "sum(h24)"'), [], "too-large"),
        (doubled(24, "w * w", 'loss = "sum(h24) * sum(x)"'), [], "too-large"),
        (doubled(24, "w * x + a[t-1]", f'a = "tanh(h24[0:4])"\n{LOSS}', STATE), ["-m", "rtrl"], "too-large"),
        (doubled(24, "w * x + a[t-1]", f'a = "0.5 * h0 * sum(h24)"\n{LOSS}', STATE), [], "too-large"),
        (doubled(36, "w * x", 'loss = "sum(h36)"'), [], "too-large"),
        (doubled(60, "w * x", 'loss = "sum(h60)"'), [], "out-of-range"),
        (doubled(60, "w * w", 'loss = "sum(h60) * sum(x)"'), [], "out-of-range"),
        (OUTER, [], "too-large"),
    ],
)
def test_memory_before_a_refusal(text, options, code, tmp_path):
    """Memory in use at a refusal, and before it, does not grow with the sizes that are refused."""
    (tmp_path / "spec.toml").write_text(text)
    call = [sys.executable, "-c", MEASURED, "check", "spec.toml", "--max-memory", "400MB", *options]
    paths = os.pathsep.join(filter(None, (str(Path(limits.__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        call, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert 2 == done.returncode, done.stderr
    assert f"error[{code}]" in done.stderr
    assert "help: " in done.stderr
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stderr)[1]) < 200_000


@pytest.mark.parametrize("overrides", [{"n": 2**40}, {"T": 2**40, "batch": 2**40}, {"batch": 2**40}])
@pytest.mark.parametrize("method", ["bptt", "rtrl"])
def test_what_no_process_can_address(overrides, method, tmp_path):
    """Sizes beyond the address space are refused whatever the limit, also beyond integers of 64 bits."""
    text = 'bp = 1\nstate = { a = ["n"] }\nparams = { w = ["n"] }\ndims = { n = 4 }\n'
    (tmp_path / "spec.toml").write_text(text + '[equations]\na = "w * a[t-1]"\nloss = "sum(a)"\n')
    allowed = Limits(max_memory=1 << 90, max_time=1e300)

    def predict() -> None:
        setup = open_setup(tmp_path / "spec.toml", overrides, (), allowed)
        check_cost(setup, method, methods.parse(method).cost(setup).bytes, 0.0, allowed)

    with pytest.raises(BpError) as caught:
        predict()
    assert ["too-large"] == [code for code, _ in refusals(caught.value)]
    assert f"limit is {limits.MOST_MEMORY} bytes" in caught.value.diagnostics[0].what
