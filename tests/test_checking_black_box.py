"""Black boxes: objects with params, loss and grad, judged by differences of their loss."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_cases import RECURRENT, run, write
from user_code_cases import outcomes

BOX = """import numpy as np
calls = []

class Box:
    params = {"w": np.array([0.5, -2.0, 1e-3]), "b": np.array(0.5), "u": np.zeros(2)}

    def loss(self, p):
        return np.sum(np.tanh(p["w"]) ** 2) * p["b"]

    def grad(self, p):
        t = np.tanh(p["w"])
        g = {"w": 2 * t * (1 - t * t) * p["b"], "b": np.sum(t**2), "u": np.zeros(2)}
        return g

box = Box()
"""
LOSS, GRAD = 7, 10
UNSTEADY = f"not deterministic: calls differ by N of the loss (box.py:{LOSS})"
RANDOM = UNSTEADY.replace("not deterministic", "draws random numbers")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def judge(text: str, target: str = "box.py:box", *args: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a check of the object in the file `text`."""
    write(Path("box.py"), text)
    result = run("check", target, *args, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_gradient_that_forks() -> None:
    """A child process that grad forks exits by itself and judges nothing."""
    text = BOX.replace("import numpy as np", "import os\nimport numpy as np")
    code, document = judge(text.replace("return g", "os.fork() or os._exit(0)\n        return g"))
    assert (0, 3) == (code, len(document["findings"]))


def test_an_annotation_is_at_the_gradient() -> None:
    """The annotation of a pull request is in the file that defines the gradient."""
    write(Path("box.py"), BOX.replace("2 * t", "3 * t"))
    lines = run("check", "box.py:box", "--format", "github").stdout.splitlines()
    assert lines[0].startswith(f"::error file=box.py,line={GRAD},")


@pytest.mark.parametrize("target", ["box.py:box", "box.py:Box"])
def test_a_right_gradient_passes(target: str) -> None:
    """An object, or a class whose instance is one; a parameter that the loss ignores has gradient zero."""
    code, document = judge(BOX, target)
    assert (0, dict.fromkeys("wbu", ("pass", ""))) == (code, outcomes(document))
    assert {(target, "grad")} == {(f["spec"], f["method"]) for f in document["findings"]}


@pytest.mark.parametrize(
    ("old", "new", "tensor", "cause"),
    [
        ("2 * t * (1", "2.002 * t * (1", "w", ""),
        ("2 * t * (1", "-2 * t * (1", "w", ""),
        ('"u": np.zeros(2)}\n        r', '"u": np.full(2, 1e-9)}\n        r', "u", ""),
        ("return g", "g['b'] *= np.nan; return g", "b", f"not finite (box.py:{GRAD})"),
        ("return g", "del g['b']; return g", "b", f"missing (box.py:{GRAD})"),
        ("return g", "g['w'] = g['w'][:2]; return g", "w", f"wrong shape: (2,), not (3,) (box.py:{GRAD})"),
        ("return g", "g['w'] = 'w'; return g", "w", f"wrong type: str, not an array (box.py:{GRAD})"),
        ("return g", "g['v'] = t; return g", "v", f"unknown key: known: b, u, w (box.py:{GRAD})"),
        (
            "return g",
            "calls.append(1); g['b'] += 0.01 * len(calls); return g",
            "b",
            f"not deterministic: two calls differ by 0.0087 of the largest entry (box.py:{GRAD})",
        ),
    ],
)
def test_what_grad_does_wrong(old: str, new: str, tensor: str, cause: str) -> None:
    """A finding on the tensor alone; the others pass."""
    code, document = judge(BOX.replace(old, new))
    others = {name: ("pass", "") for name in "wbu" if name != tensor}
    assert (1, {**others, tensor: ("wrong", cause)}) == (code, outcomes(document))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("return 1 / 0", f"raises ZeroDivisionError: division by zero (box.py:{GRAD + 1})"),
        ("exit(2)", f"raises SystemExit: 2 (box.py:{GRAD + 1})"),
        ("return []", f"wrong type: returns list, not a dict of gradients by name (box.py:{GRAD})"),
    ],
)
def test_a_grad_that_gives_nothing(line: str, cause: str) -> None:
    """Every tensor is wrong."""
    code, document = judge(BOX.replace('t = np.tanh(p["w"])\n', f"{line}\n        t = 0\n"))
    assert (1, dict.fromkeys("wbu", ("wrong", cause))) == (code, outcomes(document))


def test_a_grad_that_changes_its_arguments() -> None:
    """Every tensor is wrong, even those with right numbers."""
    code, document = judge(BOX.replace("return g", "p['w'][0] = 0; return g"))
    assert (1, {("wrong", f"changes its arguments: w (box.py:{GRAD})")}) == (code, set(outcomes(document).values()))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("return 1 / 0", f"raises ZeroDivisionError: division by zero (box.py:{LOSS + 1})"),
        ("return p['w']", f"wrong shape: (3,), not a scalar (box.py:{LOSS})"),
        ("return 'low'", f"wrong type: str, not a number (box.py:{LOSS})"),
        ("return p['b'] + 0j", f"wrong type: complex, not a real number (box.py:{LOSS})"),
        ("return 1.0 + 0j", f"wrong type: complex, not a real number (box.py:{LOSS})"),
        ("return np.nan", f"not finite (box.py:{LOSS})"),
        ("p['b'] += 1; return 1.0", f"changes its arguments: b (box.py:{LOSS})"),
        ("calls.append(1); return float(len(calls))", UNSTEADY),
        ("return p['b'] * np.random.normal()", RANDOM),
        ("import random; return float(p['b']) * random.random()", RANDOM),
        ("return float(p['b']) + 0.1 * np.random.randint(2)", RANDOM),
        ("return p['b'] * np.random.default_rng().normal()", UNSTEADY),
        ("return float(p['b']) * (1 + 1e-4 * np.random.default_rng().random())", UNSTEADY),
        ("np.random.seed(len(calls) // 2); calls.append(1); return p['b'] * np.random.normal()", UNSTEADY),
    ],
)
def test_a_loss_that_nothing_can_be_judged_by(line: str, cause: str) -> None:
    """The loss is the only finding."""
    code, document = judge(BOX.replace('return np.sum(np.tanh(p["w"]) ** 2) * p["b"]', line))
    found = {
        name: (verdict, re.sub(r"by [0-9.e-]+", "by N", why)) for name, (verdict, why) in outcomes(document).items()
    }
    assert (1, {"loss": ("wrong", cause)}) == (code, found)


@pytest.mark.parametrize("size", [1e-15, 1e-12, 1e-9])
def test_noise_that_differs_from_call_to_call(size: float) -> None:
    """Noise like rounding, in the loss and in the gradient, accuses nothing; a wrong gradient is found under it."""
    text = BOX.replace('* p["b"]\n', f'* p["b"] * (1 + {size} * np.random.default_rng().uniform(-1, 1))\n', 1)
    text = text.replace("return g", f"g['b'] *= 1 + {size} * np.random.default_rng().uniform(-1, 1); return g")
    assert "default_rng" in text.split("def grad")[0]
    assert (0, {"pass"}) == ((answer := judge(text))[0], {verdict for verdict, _ in outcomes(answer[1]).values()})
    assert 1 == judge(text.replace("2 * t", "2.02 * t"))[0]


def test_a_slope_below_the_noise_is_not_accused() -> None:
    """Differences that cannot resolve a gradient leave it undecided."""
    text = "import numpy as np\nclass Box:\n    params = {'w': np.array(1.0)}\n"
    text += "    def loss(self, p): return 1.0 + 1e-200 * float(p['w'])\n    def grad(self, p): return {'w': 1e-200}\n"
    code, document = judge(text, "box.py:Box")
    assert (0, "inconclusive") == (code, document["findings"][0]["verdict"])
    assert 4 == judge(text, "box.py:Box", "--strict")[0]


@pytest.mark.parametrize(("slope", "code"), [("1.0", 1), ("0.0", 0), ("0.5", 0)])
def test_a_kink(slope: str, code: int) -> None:
    """At a kink every value between the one-sided derivatives is right."""
    text = "import numpy as np\nclass Box:\n    params = {'w': np.array([0.0, 1.0])}\n"
    text += "    def loss(self, p): return 0.5 * np.maximum(p['w'], 0).sum()\n"
    text += f"    def grad(self, p): return {{'w': np.array([{slope}, 0.5])}}\n"
    assert code == judge(text, "box.py:Box")[0]


def test_float32() -> None:
    """Parameters are perturbed by float32 steps: right gradients pass, wrong ones are found."""
    text = (
        BOX.replace("1e-3])", "0.3], 'f4')")
        .replace("np.array(0.5)", "np.array(0.5, 'f4')")
        .replace("np.zeros(2)", "np.zeros(2, 'f4')")
    )
    typed = text.replace("return np.sum", 'assert p["w"].dtype == "f4"\n        return np.sum')
    assert 0 == judge(typed)[0]
    assert 1 == judge(typed.replace("2 * t", "np.float32(2.2) * t"))[0]


def test_a_loss_that_raises_near_by() -> None:
    """The end of the loss's domain makes steps smaller and no right gradient wrong."""
    text = "import numpy as np, math\nclass Box:\n    params = {'w': np.array([1e-3, 2.0])}\n"
    text += "    def loss(self, p): return sum(math.log(v) for v in p['w'])\n"
    text += "    def grad(self, p): return {'w': 1 / p['w']}\n"
    assert "wrong" not in {f["verdict"] for f in judge(text, "box.py:Box")[1]["findings"]}
    assert 1 == judge(text.replace("1 / p", "1.1 / p"), "box.py:Box")[0]


@pytest.mark.parametrize(
    ("text", "target", "code"),
    [
        (BOX, "box.py:bax", "unknown-name"),
        (BOX, "bax.py:box", "no-such-file"),
        (BOX, "box.py", "usage"),
        (BOX, "box.py:np", "usage"),
        (BOX.replace("def grad", "def gard"), "box.py:box", "usage"),
        (BOX.replace("np.array(0.5)", "np.array(1j)"), "box.py:box", "usage"),
        (BOX.replace("np.array(0.5)", "np.array(np.nan)"), "box.py:box", "not-finite"),
        ("class Box:\n    params = {}\n    loss = grad = print\n", "box.py:Box", "nothing-to-differentiate"),
        ("import numpy as np\nclass Box:\n    params = np.ones(3)\n    loss = grad = print\n", "box.py:Box", "usage"),
        ("class Box:\n    params = [1.0]\n    loss = grad = print\n", "box.py:Box", "usage"),
        ("class Box:\n    def __init__(self, n): pass\n", "box.py:Box", "user-code"),
        ("1 / 0\n", "box.py:box", "user-code"),
    ],
)
def test_what_is_no_black_box(text: str, target: str, code: str) -> None:
    """A usage error, and the other targets are judged."""
    spec = write(Path("net.toml"), RECURRENT)
    exit_code, document = judge(text, target, spec)
    assert (2, [code], ["net"]) == (
        exit_code,
        [e["code"] for e in document["errors"]],
        [f["spec"] for f in document["findings"]],
    )


def test_options() -> None:
    """--wrt chooses names; options without a meaning for objects, and checks that take too long, are refused."""
    assert {"b"} == set(outcomes(judge(BOX, "box.py:box", "--wrt", "b")[1]))
    for args in (
        ["--wrt", "c"],
        ["--set", "n=3"],
        ["--dtype", "float32"],
        ["-m", "bptt"],
        ["--reference", "complex-step"],
        ["--max-time", "1e-9"],
    ):
        assert 2 == judge(BOX, "box.py:box", *args)[0], args


def test_tolerance() -> None:
    """--tolerance passes small errors, and is part of the command that shows a larger one again."""
    text = BOX.replace("2 * t", "2.00001 * t")
    code, document = judge(text, "box.py:box", "--tolerance", "1e-4")
    assert (0, ("pass", "within tolerance")) == (code, outcomes(document)["w"])
    code, document = judge(text, "box.py:box", "--tolerance", "1e-6")
    assert (1, ("wrong", "")) == (code, outcomes(document)["w"])
    assert "bp check box.py:box --wrt w --tolerance 1e-06" == document["findings"][0]["blame"]["reproduce"]


LARGE = """import numpy as np

class Large:
    params = {"W": np.linspace(-1, 1, 2_500).reshape(50, 50), "b": np.ones(3)}

    def loss(self, p):
        return np.sum(np.sin(p["W"])) + np.sum(p["b"] ** 2)

    def grad(self, p):
        return {"W": np.cos(p["W"]), "b": 2 * p["b"]}
"""


def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss takes a millisecond on any machine: a search by halves is affordable, all entries are not."""
    ticks = itertools.count(0.0, 2e-3)
    monkeypatch.setattr("bpcli.checking.sources.black_box.time", SimpleNamespace(perf_counter=lambda: next(ticks)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LARGE, {"W": ("pass", 8), "b": ("pass", 8)}),
        (LARGE.replace("np.cos(p", "1.002 * np.cos(p"), {"W": ("wrong", 39), "b": ("pass", 8)}),
        (LARGE.replace("2 * p", "2.01 * p"), {"W": ("pass", 8), "b": ("wrong", 3)}),
        # A loss that follows the type of its arguments is judged in float64.
        (LARGE.replace("np.ones(3)", "np.ones(3, np.float32)"), {"W": ("pass", 8), "b": ("pass", 8)}),
        (LARGE.replace("return {", "p['b'][0] *= np.nan; return {"), {"W": ("wrong", 8), "b": ("wrong", 3)}),
    ],
)
def test_directions(monkeypatch: pytest.MonkeyPatch, text: str, expected: dict[str, tuple[str, int]]) -> None:
    """Eight directions a tensor; where one does not pass, all of its entries or the last of a bisection."""
    steady(monkeypatch)
    code, document = judge(text, "box.py:Large", "--mode", "directional")
    assert expected == {f["tensor"]: (f["verdict"], f["checked"]) for f in document["findings"]}
    assert code == any(verdict == "wrong" for verdict, _ in expected.values())


@pytest.mark.parametrize(
    ("wrong", "index", "cause"),
    [
        ("g['W'][21, 9] *= 2", [21, 9], ""),
        ("g['W'][49, 49] = 0", [49, 49], ""),
        ("g['W'][3, 4] = np.nan", [3, 4], "not finite"),
        ("g['W'][3, 4] += 1e-3; g['W'][40, 4] -= 7.0", [40, 4], ""),
    ],
)
def test_a_wrong_entry_is_found_by_halves(
    monkeypatch: pytest.MonkeyPatch, wrong: str, index: list[int], cause: str
) -> None:
    """Bisection of 2,500 entries, too many to judge; without time for it the finding is on the direction."""
    box = LARGE.replace("return {", "g = {").replace('2 * p["b"]}', f"2 * p['b']}}; {wrong}; return g")
    steady(monkeypatch)
    code, document = judge(box, "box.py:Large", "--wrt", "W", "--mode", "directional")
    (found,) = document["findings"]
    assert (1, "wrong", index, None) == (code, found["verdict"], found["worst"]["index"], found["worst"]["direction"])
    assert found["cause"].startswith(cause) and found["checked"] <= 64 and str(index) in found["blame"]["text"]
    monkeypatch.setattr("bpcli.checking.sources.black_box.AFFORDABLE", 1e-9)
    (found,) = judge(box, "box.py:Large", "--wrt", "W", "--mode", "directional")[1]["findings"]
    assert ("wrong", 8, None) == (found["verdict"], found["checked"], found["worst"]["index"])


@pytest.mark.parametrize("mode", ["full", "auto"])
def test_entries_where_they_are_affordable(mode: str) -> None:
    """Every entry by default where affordable, and always with --mode full."""
    _, document = judge(BOX, "box.py:Box", "--mode", mode)
    assert {"w": 3, "b": 1, "u": 2} == {f["tensor"]: f["checked"] for f in document["findings"]}


def test_auto_takes_directions_where_entries_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions are noted; every entry is judged where that is affordable."""
    monkeypatch.setattr("bpcli.checking.sources.black_box.AFFORDABLE", 0.0)
    _, document = judge(LARGE, "box.py:Large", "--wrt", "W")
    assert [8] == [f["checked"] for f in document["findings"]]
    assert ["Random directions checked against central differences."] == document["context"]["notes"]
