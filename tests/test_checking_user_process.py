"""User code in a process of its own: whatever it does is a finding on it alone, and right code beside it passes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import RECURRENT, run, write
from user_code_cases import GOOD, check, outcomes

from bpcli.checking.sources.user_process import Process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a process group")

HEAD = "import ctypes, os, signal, sys, threading, time\nimport numpy as np\n"
CRASH, HANG = "ctypes.string_at(0)", "time.sleep(60)"
SLOW = "takes longer than 0.5 seconds, the limit of --user-time"
DEFINED, CALLED, LINE = 5, 6, 7
# Code and the cause in words, "" where a right gradient comes back; and the line that is told for kernels.
KINDS: dict[str, tuple[str, str, int]] = {
    "segfault": (CRASH, "crashes with SIGSEGV", LINE),
    "hang": (HANG, SLOW, LINE),
    "exit": ("sys.exit(3)", "raises SystemExit: 3", LINE),
    "_exit": ("os._exit(0)", "raises SystemExit: 0", LINE),
    "fork": ("os.fork()", "", LINE),
    "thread": ("threading.Thread(target=time.sleep, args=(60,)).start()", "", LINE),
    "recursion": ("f = lambda x: f(x); f(1)", "raises RecursionError: maximum recursion depth exceeded", LINE),
    "monkeypatch": ("np.tanh = None", "not deterministic: called again, raises TypeError: 'NoneType' object", CALLED),
    "100 GB": ("np.ones(1 << 37)", "raises MemoryError: Unable to allocate 1.00 TiB", LINE),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "raises KeyboardInterrupt", LINE),
    "a patch of what others use": (
        "np.abs = np.asarray = np.copyto = os.getpid = os.write = os._exit = None",
        "",
        LINE,
    ),
    "a busy loop": ("while True: pass", SLOW, LINE),
    "C's exit": ("ctypes.CDLL(None)._exit(7)", "ends its process with exit code 7", DEFINED),
    "abort": ("os.abort()", "crashes with SIGABRT", LINE),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", "is killed by SIGKILL", DEFINED),
    "the pipe": ("os.closerange(3, 256)", "closes bp's own pipe", DEFINED),
    "a copy that crashes": (f"os.fork() or {CRASH}", "", LINE),
    "a copy that lives on": (f"os.fork() or {HANG}", "", LINE),
}
KERNEL = f"""{HEAD}from good import grad

def bad(params, inputs, state):
    found = grad(params, inputs, state)
    {{code}}
    return found
"""
BOX = f"""{HEAD}calls = []

class Box:
    params = {{"w": np.array([0.5, -2.0]), "b": np.array(0.5)}}

    def loss(self, p):
        pass
        return np.sum(np.tanh(p["w"])) * p["b"]

    def grad(self, p):
        pass
        t = np.tanh(p["w"])
        return {{"w": (1 - t * t) * p["b"], "b": np.sum(t)}}
"""
LOSS, GRAD = 8, 12
# As the loss, and as the gradient: the lines of their first statements.
PARTS = {"loss": LOSS + 1, "grad": GRAD + 1}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def by_method(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Verdict and cause by method; one finding each."""
    found = {f["method"]: (f["verdict"], f["cause"]) for f in document["findings"]}
    assert len(found) == len(document["findings"])
    return found


@pytest.mark.parametrize("harmful", [True, False])
def test_kernels_between_right_ones(harmful: bool) -> None:
    """One finding for each, with the cause and its line; those asked before and after it pass."""
    kinds = [kind for kind, (_, cause, _) in KINDS.items() if harmful == bool(cause)]
    functions = ["good.py:grad"]
    for i, kind in enumerate(kinds):
        write(Path(f"bad{i}.py"), KERNEL.format(code=KINDS[kind][0]).replace("bad(", f"bad{i}("))
        write(Path(f"late{i}.py"), GOOD.replace("grad(", f"late{i}("))
        functions += [f"bad{i}.py:bad{i}", f"late{i}.py:late{i}"]
    exit_code, document = check(*(a for f in functions for a in ("--kernel", f)), "--user-time", "0.5")
    found = by_method(document)
    late = [f"kernel:late{i}" for i in range(len(kinds))]
    assert dict.fromkeys(["kernel:grad", *late], ("pass", "")) == {m: found[m] for m in ("kernel:grad", *late)}
    for i, kind in enumerate(kinds):
        (_, cause, line), (verdict, told) = KINDS[kind], found[f"kernel:bad{i}"]
        assert ("wrong" if cause else "pass") == verdict, kind
        assert told.startswith(cause) and told.endswith(f"(bad{i}.py:{line})" if cause else ""), kind
    assert int(harmful) == exit_code
    assert [] == document["errors"]


@pytest.mark.parametrize("part", PARTS)
def test_black_boxes_before_right_ones(part: str) -> None:
    """As for kernels: findings on all tensors where the gradient fails, on the loss where that does."""
    targets = []
    for i, (code, _, _) in enumerate(KINDS.values()):
        lines = BOX.splitlines()
        lines[PARTS[part] - 1] = f"        if not calls:\n            calls.append(1)\n            {code}"
        write(Path(f"bad{i}.py"), "\n".join(lines))
        write(Path(f"good{i}.py"), BOX)
        targets += [f"bad{i}.py:Box", f"good{i}.py:Box"]
    document = json.loads(run("check", *targets, "--user-time", "0.5", "--format", "json").stdout)
    for i, (kind, (_, cause, _)) in enumerate(KINDS.items()):
        bad, good = ([f for f in document["findings"] if f["spec"] == target] for target in targets[2 * i : 2 * i + 2])
        assert ["pass"] * 2 == [f["verdict"] for f in good], kind
        wrong = {"loss": ["loss"], "grad": ["w", "b"]}[part] if cause else []
        assert wrong == [f["tensor"] for f in bad if f["verdict"] == "wrong"], kind
        if kind != "monkeypatch":  # it is what fails next
            assert all(f["cause"].startswith(cause) and f"bad{i}.py:" in f["cause"] for f in bad if cause), kind
    assert [] == document["errors"]


@pytest.mark.parametrize("code", [CRASH, HANG])
def test_a_loss_that_ends_where_it_is_shifted(code: str) -> None:
    """A crash of the loss is the finding; the loss is not called again for differences."""
    write(Path("box.py"), BOX.replace("pass\n        return", f"p['b'] == 0.5 or {code}\n        return"))
    document = json.loads(run("check", "box.py:Box", "--user-time", "0.5", "--format", "json").stdout)
    ((tensor, (verdict, cause)),) = outcomes(document).items()
    assert ("loss", "wrong", f"(box.py:{LOSS + 1})") == (tensor, verdict, cause[-len("(box.py:9)") :])


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (CRASH, "it crashes with SIGSEGV"),
        (HANG, f"it {SLOW}"),
        ("os._exit(1)", "SystemExit: 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("ctypes.CDLL(None)._exit(7)", "it ends its process with exit code 7"),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_file_that_does_not_load(code: str, cause: str, declared: bool) -> None:
    """A file that crashes at import is refused at its line, and other targets are judged."""
    write(Path("bad.py"), KERNEL.replace("from", f"{code}\nfrom", 1).format(code="pass"))
    kernels = "".join(
        f'[kernel.{f}]\nfile = "{f}.py"\nfunction = "{g}"\n' for f, g in (("bad", "bad"), ("good", "grad"))
    )
    names = ("bad", "good") if declared else ("bad.py:bad", "good.py:grad")
    args = [a for n in names for a in ("--kernel", n)]
    exit_code, document = check(*args, "--user-time", "0.5", spec=RECURRENT + (kernels if declared else ""))
    (error,) = document["errors"]
    assert (2, "user-code", "bad.py") == (exit_code, error["code"], error["file"])
    assert error["message"].startswith(f"bad.py cannot be loaded: {cause}")
    assert (1 if "_exit(7)" in code else 3) == error["line"]
    assert [("pass", "")] == list(by_method(document).values())
    write(Path("bad.py"), KERNEL.format(code="pass"))
    assert 0 == check(*args, spec=RECURRENT + (kernels if declared else ""))[0]


def test_what_a_file_leaves_behind() -> None:
    """Right code that other code's leavings make wrong is called again in a fresh process."""
    write(Path("bad.py"), HEAD + "np.tanh = None\ndef bad(params, inputs, state):\n    return {}\n")
    write(Path("box.py"), BOX)
    write(Path("made.py"), BOX.replace("class", "np.tanh(1)\nclass"))
    write(Path("soiled.py"), BOX.replace("def loss", "np.tanh = np.exp\n    def loss"))
    found = by_method(check("--kernel", "bad.py:bad", "--kernel", "good.py:grad")[1])
    assert ("pass", "missing (bad.py:4)") == (found["kernel:grad"][0], found["kernel:bad"][1])
    document = json.loads(run("check", "soiled.py:Box", "made.py:Box", "box.py:Box", "--format", "json").stdout)
    verdicts = {(f["spec"], f["verdict"]) for f in document["findings"]}
    assert {("made.py:Box", "pass"), ("box.py:Box", "pass")} == {v for v in verdicts if v[0] != "soiled.py:Box"}
    assert [] == document["errors"]


def test_a_thread_that_crashes_later() -> None:
    """A crash by a thread that another function left behind is blamed on neither; in its own call it is a finding."""
    later = f"threading.Timer(0.2, lambda: {CRASH}).start()"
    write(Path("bad.py"), KERNEL.format(code=later))
    write(Path("slow.py"), KERNEL.format(code="time.sleep(0.5)").replace("bad(", "slow("))
    assert 0 == check("--kernel", "bad.py:bad", "--kernel", "slow.py:slow")[0]
    write(Path("bad.py"), KERNEL.format(code=f"{later}; time.sleep(1)"))
    assert {"W": ("wrong", "crashes with SIGSEGV (bad.py:7)")} == outcomes(check("--kernel", "bad.py:bad")[1])


def test_one_process_for_all() -> None:
    """Two kernels share a process that imports each file once; without user code none is started."""
    text = "import os, pathlib\nwith open('log', 'a') as log:\n    print(os.getpid(), __name__[4:8], file=log)\n"
    for name in ("mine", "late"):
        write(Path(f"{name}.py"), text + GOOD)
    for spec in ("a.toml", "b.toml"):
        write(Path(spec), RECURRENT)
    assert 0 == run("check", "a.toml", "b.toml", "--kernel", "mine.py:grad", "--kernel", "late.py:grad").exit_code
    lines = [line.split() for line in Path("log").read_text().splitlines()]
    assert ["mine", "late"] == [name for _, name in lines]
    assert 1 == len({pid for pid, _ in lines} - {str(os.getpid())})


def test_what_is_printed_before_a_crash() -> None:
    """It is on stderr, by Python and by descriptor; nothing of ours is, and stdout is one document."""
    write(Path("bad.py"), KERNEL.format(code=f"print('python'); os.write(1, b'descriptor\\n'); {CRASH}"))
    write(Path("good.py"), GOOD)
    command = [sys.executable, "-m", "bpcli", "check", write(Path("net.toml"), RECURRENT), "--kernel", "bad.py:bad"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    assert (1, ["python", "descriptor"]) == (done.returncode, done.stderr.split())
    assert {"W": ("wrong", f"crashes with SIGSEGV (bad.py:{LINE})")} == outcomes(json.loads(done.stdout))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_who_ends_bp_ends_user_code(number: signal.Signals, code: int) -> None:
    """At once, also what that has started; Ctrl-C with the code for it, and without a traceback."""
    log = "open('log', 'w').write(f'{os.getpid()} {pid}')"
    write(Path("bad.py"), KERNEL.format(code=f"pid = os.fork()\n    pid and {log}\n    {HANG}"))
    write(Path("good.py"), GOOD)
    command = [sys.executable, "-m", "bpcli", "check", write(Path("net.toml"), RECURRENT), "--kernel", "bad.py:bad"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: Path("log").exists() and len(Path("log").read_text().split()) == 2)
        pids = [int(pid) for pid in Path("log").read_text().split()]
        assert all(alive(pid) for pid in pids)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert code == process.returncode and "Traceback" not in errors
    wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """Whether there is such a process, other than one that nobody has asked how it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, twenty seconds at most."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


ECHO = "def echo(params):\n    return {n: a if n != 'wrong' else a + 1 for n, a in params.items()}\n"
ARRAYS = {
    "scalar": np.array(-0.0),
    "none": np.zeros((0, 3)),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "single": np.array([np.nan, -np.inf], np.float32),
    "large": np.arange(400_000.0),
    "wrong": np.zeros(3),
}


def test_arrays_come_back_as_they_went() -> None:
    """Of any size and order, bit by bit, also when the shared memory has to grow."""
    path = str(Path(write(Path("echo.py"), ECHO)).absolute())
    shapes = {name: array.shape for name, array in ARRAYS.items()}
    message = {"do": "call", "file": path, "name": "echo", "part": "", "groups": [list(ARRAYS)]}
    with contextlib.closing(Process({"--user-time": 10.0}, lambda: 1 << 34)) as process:
        for _ in range(2):
            asked = {**message, "shapes": shapes, "known": [], "dtypes": ["<f8", "<f4"]}
            answer, found = process.ask(asked, list(ARRAYS.values()))
            back = dict(zip(answer["names"], found, strict=True))
            assert {n: (a.dtype, a.shape) for n, a in ARRAYS.items()} == {
                n: (a.dtype, a.shape) for n, a in back.items()
            }
            assert ["wrong"] == [name for name, array in ARRAYS.items() if array.tobytes() != back[name].tobytes()]


def test_an_interpreter_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not start is an error of its own, not of user code."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    code, document = check("--kernel", "good.py:grad")
    assert (2, ["process-lost"]) == (code, [error["code"] for error in document["errors"]])


def test_the_process_imports_little() -> None:
    """NumPy and the standard library: what it takes to start is paid by every call."""
    heavy = ("numba", "llvmlite", "scipy", "pydantic", "rich", "click", "pandas", "bpcli.problem", "bpcli.spec")
    code = f"import bpcli.checking.sources.user_child, sys; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


@pytest.mark.parametrize(
    ("args", "environment", "project", "told"),
    [
        (["--user-time", "0.25"], {}, "", "0.25 seconds, the limit of --user-time"),
        ([], {"BP_USER_TIME": "0.25"}, "", "0.25 seconds, the limit of --user-time"),
        ([], {}, "[tool.bp]\nuser-time = 0.25\n", "0.25 seconds, the limit of --user-time"),
        (["--max-time", "0.3"], {}, "", "0.3 seconds, the limit of --max-time"),
    ],
)
def test_where_the_limit_comes_from(args: list[str], environment: dict[str, str], project: str, told: str) -> None:
    """A flag, a variable, the project's settings; a limit of the whole is one of its parts."""
    write(Path("bad.py"), KERNEL.format(code=HANG))
    write(Path("good.py"), GOOD)
    write(Path("pyproject.toml"), project)
    command = ["check", write(Path("net.toml"), RECURRENT), "--kernel", "bad.py:bad", "--format", "json", *args]
    result = run(*command, env=environment)
    assert {"W": ("wrong", f"takes longer than {told} (bad.py:{LINE})")} == outcomes(json.loads(result.stdout))
    assert "for example --user-time 600" in run(*command, "--user-time", "-1").stderr
