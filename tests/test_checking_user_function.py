"""A user's gradient function: judged when it is right, and a finding with its line whatever it does wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_cases import FORWARD, RECURRENT, run, write
from user_code_cases import GOOD, check, outcomes

HEAD = "import numpy as np, os, sys\nfrom good import grad, loss\ncalls = []\n"
BAD = HEAD + "def bad(params, inputs, state):\n    calls.append(1)\n    g = dict(W=grad(params, inputs, state)['W'])\n"
FIRST, LINE = 4, 7  # the line of the function, and that of what a case adds


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("wrt", [["params"], ["params", "inputs", "state"]])
def test_a_right_gradient_passes(dtype: str, wrt: list[str]) -> None:
    """In both dtypes, for parameters, inputs and a state that all samples share; what was not asked for is ignored."""
    code, document = check("--kernel", "good.py:grad", "--dtype", dtype, *(p for w in wrt for p in ("--wrt", w)))
    names = ["W"] if wrt == ["params"] else ["W", "x", "a"]
    assert (0, dict.fromkeys(names, ("pass", ""))) == (code, outcomes(document))
    assert {"kernel:grad"} == {f["method"] for f in document["findings"]}


def test_an_annotation_is_at_the_function() -> None:
    """The annotation of a pull request is in the function's file, not at the spec's declaration."""
    write(Path("bad.py"), HEAD + "def bad(*arrays):\n    return {'W': 2 * grad(*arrays)['W']}\n")
    write(Path("good.py"), GOOD)
    write(Path("net.toml"), RECURRENT)
    lines = run("check", "net.toml", "--kernel", "bad.py:bad", "--format", "github").stdout.splitlines()
    assert lines[0].startswith(f"::error file=bad.py,line={HEAD.count(chr(10)) + 1},")


def test_a_state_for_each_sample() -> None:
    """Its gradient has a row a sample."""
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.normal(size=(3, 2, 2)), a=rng.normal(size=(2, 2)))
    spec = RECURRENT.replace("T = 3\nbatch = 2\n", 'file = "data.npz"\n')
    code, document = check("--kernel", "good.py:grad", "--wrt", "state", spec=spec)
    assert (0, [2, 2]) == (code, document["findings"][0]["shape"])


def test_a_feed_forward_network() -> None:
    """Its state is an empty dict; a number of Python's will do for a scalar."""
    write(
        Path("f.py"),
        "def f(params, inputs, state):\n    assert state == {}\n    return {'w': 2 * float(params['w'])}\n",
    )
    assert 0 == check("--kernel", "f.py:f", spec=FORWARD)[0]
    write(Path("f.py"), "def f(params, inputs, state):\n    return {'w': 3 * float(params['w'])}\n")
    assert 1 == check("--kernel", "f.py:f", spec=FORWARD)[0]


def test_a_fourth_parameter() -> None:
    """It is a dict of constants and dims."""
    body = "    assert numbers == {'n': 2, 'c': 0.5}, numbers\n    return grad(params, inputs, state)\n"
    write(Path("four.py"), HEAD + "def four(params, inputs, state, numbers=None):\n" + body)
    code, document = check(
        "--kernel", "four.py:four", spec=RECURRENT.replace("[inputs]", "[constants]\nc = 0.5\n[inputs]")
    )
    assert (0, {"W": ("pass", "")}) == (code, outcomes(document))


def test_entries_that_a_density_leaves_out() -> None:
    """Values outside a density's pattern are ignored, also NaN and values that change from call to call."""
    spec = RECURRENT.replace('W = ["n", "n"]', 'W = { shape = ["n", "n"], density = 0.5 }')
    junk = "    g['W'] = np.where(params['W'] == 0, [np.nan, 1.0][len(calls) % 2], g['W'])\n    return g\n"
    write(Path("bad.py"), BAD + junk)
    assert 0 == check("--kernel", "bad.py:bad", spec=spec)[0]
    write(Path("bad.py"), BAD + junk.replace("== 0", "!= 0"))
    assert 1 == check("--kernel", "bad.py:bad", spec=spec)[0]


@pytest.mark.parametrize(
    ("factor", "expected"),
    [("1", ("pass", "")), ("1.001", ("wrong", "")), ("np.nan", ("wrong", "not finite (bad.py:4)"))],
)
def test_a_loss_is_judged_too(factor: str, expected: tuple[str, str]) -> None:
    """One that comes beside the gradient."""
    write(Path("bad.py"), BAD + f"    return loss(params, inputs, state) * {factor}, g\n")
    assert {"W": ("pass", ""), "loss": expected} == outcomes(check("--kernel", "bad.py:bad")[1])


FAULTS = {
    "raise ValueError('boom')": f"raises ValueError: boom (bad.py:{LINE})",
    "sys.exit(3)": f"raises SystemExit: 3 (bad.py:{LINE})",
    "os._exit(0)": f"raises SystemExit: 0 (bad.py:{LINE})",
    "raise type('Odd', (BaseException,), {})()": f"raises Odd (bad.py:{LINE})",
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()": f"raises Mute (bad.py:{LINE})",
    "return {}": f"missing (bad.py:{FIRST})",
    "return None": f"wrong type: returns None, not a dict of gradients by name (bad.py:{FIRST})",
    "return {'W': g['W'][0]}": f"wrong shape: (2,), not (2, 2) (bad.py:{FIRST})",
    "return {'W': g['W'].astype('f4')}": f"wrong type: float32, not float64 (bad.py:{FIRST})",
    "return {'W': g['W'].astype(int)}": f"wrong type: int64, not float64 (bad.py:{FIRST})",
    "return {'W': g['W'].astype(object)}": f"wrong type: object, not float64 (bad.py:{FIRST})",
    "return {'W': g['W'].tolist()}": f"wrong type: list, not an array (bad.py:{FIRST})",
    "return {'W': 'W'}": f"wrong type: str, not an array (bad.py:{FIRST})",
    "return {'W': g['W'] * np.inf}": f"not finite (bad.py:{FIRST})",
    "params['W'][0, 0] += 1; return g": f"changes its arguments: W (bad.py:{FIRST})",
    "params['W'] = g['W']; return g": f"changes its arguments: W (bad.py:{FIRST})",
    "del inputs['x']; return g": f"changes its arguments: x (bad.py:{FIRST})",
    "state['b'] = 1; return g": f"changes its arguments: b (bad.py:{FIRST})",
    "return {'W': g['W'] * (1 + 1e-15 * len(calls))}": f"not deterministic (bad.py:{FIRST})",
    "return {'W': g['W'] * (1 + 1e-13 * np.random.random())}": f"not deterministic (bad.py:{FIRST})",
    "return {} if len(calls) > 1 else g": f"not deterministic: called again, missing (bad.py:{FIRST})",
    "return {'W': 2 * g['W']}": "",
}


@pytest.mark.parametrize("code", FAULTS)
def test_what_a_function_does_wrong(code: str) -> None:
    """Each fault is a wrong finding with its cause, and the user's own file and line."""
    write(Path("bad.py"), f"{BAD}    {code}\n")
    exit_code, document = check("--kernel", "bad.py:bad")
    assert (1, {"W": ("wrong", FAULTS[code])}) == (exit_code, outcomes(document))
    write(Path("bad.py"), f"{BAD}    return g\n")
    assert 0 == check("--kernel", "bad.py:bad")[0]


@pytest.mark.parametrize(
    ("key", "tensor", "cause"),
    [
        ("'W_'", "W_", 'unknown key: did you mean "W"? known: W, a, x'),
        ("3", "3", "unknown key: int, not a name"),
        ("'loss'", "loss", "unknown key: a loss goes beside the dict, as in (loss, gradients)"),
    ],
)
def test_unknown_keys(key: str, tensor: str, cause: str) -> None:
    """Unknown keys are wrong beside tensors that are right."""
    write(Path("bad.py"), f"{BAD}    return {{**g, {key}: g['W']}}\n")
    code, document = check("--kernel", "bad.py:bad")
    assert (1, {"W": ("pass", ""), tensor: ("wrong", f"{cause} (bad.py:{FIRST})")}) == (code, outcomes(document))


def test_too_few_parameters() -> None:
    """A call that fails before the function begins has the function's line."""
    write(Path("bad.py"), "\n\ndef bad(params):\n    return {}\n")
    (_, cause) = outcomes(check("--kernel", "bad.py:bad")[1])["W"]
    assert cause.startswith("raises TypeError: bad() takes 1 positional argument") and cause.endswith("(bad.py:3)")


def test_the_process_stays_as_it_was(tmp_path: Path) -> None:
    """Folder, environment, path, warnings, random states and NumPy's settings."""
    spoil = (
        "import random, warnings\n    os.chdir('/'); os.environ['BP_SPOILED'] = '1'\n"
        "    warnings.simplefilter('ignore'); np.seterr(all='raise'); np.set_printoptions(precision=1)\n"
        "    np.random.seed(1); random.seed(1); sys.setrecursionlimit(500); sys.stdout = None\n"
        "    sys.path.clear(); sys.argv.clear(); return g\n"
    )
    write(Path("bad.py"), BAD + "    " + spoil)

    def state() -> tuple[object, ...]:
        numbers = (np.geterr(), np.get_printoptions()["precision"], np.random.get_state()[1].tolist())
        here = (Path.cwd(), os.environ.get("BP_SPOILED"), list(sys.path), list(sys.argv), sys.getrecursionlimit())
        return (*numbers, *here, random.getstate(), list(warnings.filters))

    before = state()
    assert 0 == check("--kernel", "bad.py:bad")[0]
    assert before == state()


def test_stdout_is_one_document() -> None:
    """What is printed goes to stderr, by Python, by descriptor, by C, by children, at import, and a lot of it."""
    noise = (
        "print('python ' * 100_000); print('dunder', file=sys.__stdout__); os.write(1, b'descriptor\\n')\n"
        "    os.system('echo child'); import ctypes; ctypes.CDLL(None).puts(b'libc'); print('end', flush=True)\n"
        "    raise ValueError('\\x1b[31m' + 'long ' * 10_000)\n"
    )
    write(Path("bad.py"), "print('import')\n" + BAD + "    " + noise)
    write(Path("good.py"), GOOD)
    command = [sys.executable, "-m", "bpcli", "check", write(Path("net.toml"), RECURRENT), "--kernel", "bad.py:bad"]
    result = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    ((_, cause),) = outcomes(json.loads(result.stdout)).values()
    assert (1, "raises ValueError: \\x1b[31mlong") == (result.returncode, cause[:31])
    assert len(cause) < 250
    for word in ("python", "dunder", "descriptor", "child", "libc", "end", "import"):
        assert word in result.stderr


def test_neighbours_of_two_files() -> None:
    """Files of two folders import their own neighbour of one name, also when they run."""
    for name, factor in (("one", 1), ("two", 2)):
        write(Path(name, "good.py"), GOOD.replace('"W": g,', f'"W": {factor} * g,'))
        write(
            Path(name, "mine.py"),
            "def mine(params, inputs, state):\n    from good import grad\n    return grad(params, inputs, state)\n",
        )
    code, document = check("--kernel", "one/mine.py:mine", "--kernel", "two/mine.py:mine")
    found = {f["method"]: f["verdict"] for f in document["findings"]}
    assert (1, {"kernel:one/mine.py:mine": "pass", "kernel:two/mine.py:mine": "wrong"}) == (code, found)
    assert "good" not in sys.modules


def test_methods_beside_a_kernel() -> None:
    """It takes the place of `[check] methods`, unless -m adds some."""
    methods = [
        [f["method"] for f in check("--kernel", "good.py:grad", *more)[1]["findings"]] for more in ([], ["-m", "rtrl"])
    ]
    assert [["kernel:grad"], ["rtrl", "kernel:grad"]] == methods


@pytest.mark.parametrize(
    ("kernel", "code", "advice"),
    [
        ("god.py:grad", "no-such-file", 'did you mean "good.py"?'),
        ("good.py:gard", "unknown-name", 'did you mean "grad"?'),
        ("good.py:np", "usage", "name a function"),
        ("good.py", "usage", "write FILE.py:FUNC"),
        ("folder.py:grad", "unreadable-file", ""),
        ("broken.py:grad", "user-code", "run it with python first"),
        ("exits.py:grad", "user-code", "run it with python first"),
        ("mine", "unknown-name", "declare [kernel.NAME]"),
    ],
)
def test_what_is_missing_is_a_usage_error(kernel: str, code: str, advice: str) -> None:
    """Exit code 2, and what to do about it."""
    Path("folder.py").mkdir()
    write(Path("broken.py"), "x = 1\ndef grad(:\n")
    write(Path("exits.py"), "import sys\nsys.exit(0)\n")
    exit_code, document = check("--kernel", kernel)
    assert (2, [code]) == (exit_code, [e["code"] for e in document["errors"]])
    assert advice in document["errors"][0]["help"]
    if code == "user-code":
        assert 2 == document["errors"][0]["line"]


KERNEL = '[kernel.mine]\nfile = "good.py"\nfunction = "grad"\n'


def test_a_kernel_that_the_spec_declares() -> None:
    """It runs when it is asked for by its name, and not before: a spec runs no code."""
    code, document = check("--kernel", "mine", spec=RECURRENT + KERNEL)
    assert (0, ["kernel:mine"]) == (code, [f["method"] for f in document["findings"]])
    unasked = check(spec=RECURRENT + KERNEL.replace("good", "absent"))[1]
    assert ["bptt"] == [f["method"] for f in unasked["findings"]]
    assert "net: the kernel mine was not run; check it with --kernel mine" in unasked["context"]["notes"]
    assert not any("was not run" in note for note in document["context"]["notes"])


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("good", "absent", "no-such-file", 19),
        ("good.py", "../good.py", "outside", 19),
        ('"grad"', '"gard"', "unknown-name", 20),
        ("function", "funktion", "unknown-key", 20),
        ('file = "good.py"\n', "", "missing-key", 18),
        ('"good.py"', "3", "wrong-type", 19),
    ],
)
def test_declarations_that_are_refused(old: str, new: str, code: str, line: int) -> None:
    """Each at its place."""
    exit_code, document = check("--kernel", "mine", spec=RECURRENT + KERNEL.replace(old, new))
    assert (2, code, line) == (exit_code, document["errors"][0]["code"], document["errors"][0]["line"])


def test_a_declared_file_outside() -> None:
    """A file outside of the spec's folder is read where that is allowed."""
    write(Path("../outside.py"), GOOD)
    spec = RECURRENT + KERNEL.replace("good.py", "../outside.py")
    assert [2, 0] == [check("--kernel", "mine", *more, spec=spec)[0] for more in ([], ["--allow-outside"])]


def test_a_kernel_does_not_go_with_an_object() -> None:
    """A usage error, whatever else is given."""
    write(Path("good.py"), GOOD)
    result = run("check", "good.py:grad", "--kernel", "good.py:grad")
    assert 2 == result.exit_code and "--kernel applies to specs" in result.stderr
