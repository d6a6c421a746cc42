"""The text of `bp check` on wrong gradients and on those at a kink, for functions and objects in files."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking_cases import SPECS
from cli_cases import RECURRENT, run, write
from user_code_cases import GOOD

from bpcli.checking.blame.signatures import extent, proportional, single_precision
from bpcli.checking.findings import distinct_digits
from bpcli.references.numerics.rounding import FACTOR

OWN = Path(__file__).parent
SLIPS = """
def one(params, inputs, state):
    g = grad(params, inputs, state)
    g["W"][1, 0] += 1e-7 * abs(g["W"]).max()
    return g

def row(params, inputs, state):
    g = grad(params, inputs, state)
    g["W"][1] *= 1 + 1e-7 * np.arange(1, len(g["W"]) + 1)
    return g

def single(*groups):
    low = [{name: a.astype(np.float32) for name, a in group.items()} for group in groups]
    return {name: a.astype(np.float64) for name, a in grad(*low).items()}

def multiple(params, inputs, state):
    g = grad(params, inputs, state)
    g["W"] *= 1 + 1e-8
    return g

def raises(params, inputs, state):
    raise ValueError("no luck")

def lists(params, inputs, state):
    return {name: a.tolist() for name, a in grad(params, inputs, state).items()}

def nothing(params, inputs, state):
    return {name: None for name in grad(params, inputs, state)}

def writes(params, inputs, state):
    g = grad(params, inputs, state)
    params["W"] *= 2
    return g
"""
BOX = """import numpy as np

class Ridge:
    X, y = np.vander(np.linspace(-1, 1, 20), 4), np.linspace(-1, 1, 20) ** 2
    params = {"w": np.ones(4), "b": np.array(0.5)}

    def loss(self, p):
        return np.sum((self.X @ p["w"] + p["b"] - self.y) ** 2)

    def right(self, p):
        off = 2 * (self.X @ p["w"] + p["b"] - self.y)
        return {"w": self.X.T @ off, "b": off.sum()}

    def grad(self, p):
        return self.right(p)

class Half(Ridge):
    def grad(self, p):
        return {name: np.asarray(g / 2) for name, g in self.right(p).items()}

class Decayed(Ridge):
    def grad(self, p):
        return {**self.right(p), "w": self.right(p)["w"] + 0.1 * p["w"]}

class Raising(Ridge):
    def grad(self, p):
        raise ValueError("no luck")

class Square:
    params = {"W": np.arange(9.0).reshape(3, 3) / 7}

    def loss(self, p):
        return np.sum(np.triu(p["W"]) ** 3)

    def grad(self, p):
        return {"W": (3 * np.triu(p["W"]) ** 2).T}

class Kinked:
    params = {"w": np.array([0.3, 0.0, -0.2])}
    slope = 0.25

    def loss(self, p):
        return np.maximum(p["w"], 0).sum()

    def grad(self, p):
        return {"w": np.where(p["w"] == 0, self.slope, p["w"] > 0)}

class Beyond(Kinked):
    slope = 3.0
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def told(*command: str) -> tuple[str, list[dict[str, Any]]]:
    """The table and the findings of a command."""
    table = run(*command, "--output", "json=found.json").stdout
    return table, json.loads(Path("found.json").read_text(encoding="utf-8"))["findings"]


@cache
def kernel(function: str, *args: str) -> tuple[str, list[dict[str, Any]]]:
    """The table and the findings of a slip on a recurrent network with a matrix of 6 × 6."""
    write(Path("mine.py"), GOOD + SLIPS)
    spec = write(Path("net.toml"), RECURRENT.replace("n = 2", "n = 6"))
    return told("check", spec, "--kernel", f"mine.py:{function}", *args)


def blames(findings: list[dict[str, Any]]) -> dict[str, str]:
    """The texts of what is wrong, by tensor."""
    return {f["tensor"]: f["blame"]["text"] for f in findings if f["verdict"] == "wrong"}


def box(name: str, *args: str) -> tuple[str, list[dict[str, Any]]]:
    """The table and the findings of a check of an object."""
    write(Path("box.py"), BOX)
    return told("check", f"box.py:{name}", *args)


@pytest.mark.parametrize(
    ("function", "words"), [("one", "a single entry is wrong"), ("row", "row 1 alone is wrong"), ("single", "float32")]
)
def test_the_accuracy_of_float32_is_that_of_all_entries(function: str, words: str) -> None:
    """One entry or one row that is off by 1e-7 is just that."""
    (text,) = (text for name, text in blames(kernel(function, "--wrt", "W")[1]).items() if name == "W")
    assert words in text
    assert ("float32" in text) == (function == "single")


@pytest.mark.parametrize("function", ["one", "row", "single", "multiple"])
def test_figures_have_the_digits_that_differ(function: str) -> None:
    """Given and right entry are never the same number in print, nor is a factor that is wrong 1."""
    for text in blames(kernel(function, "--wrt", "W")[1]).values():
        found = re.search(r"= (\S+), should be (\S+) \(", text)
        assert found is not None and found[1] != found[2]
        assert "is 1 times" not in text


def test_what_is_true_of_all_tensors_is_said_once() -> None:
    """A kernel that raises: one row of the table, one line below it, one command."""
    table, findings = kernel("raises", "--wrt", "W", "--wrt", "x")
    assert ["W", "x"] == [f["tensor"] for f in findings]
    assert 2 == table.count("raises ValueError: no luck (mine.py:")
    assert 1 == table.count("  reproduce: bp check")
    assert "kernel:raises W, x: raises ValueError" in table and "all 2" in table


@pytest.mark.parametrize(("function", "what"), [("lists", "list, not an array"), ("nothing", "None, not an array")])
def test_what_is_no_array_is_called_what_it_is(function: str, what: str) -> None:
    """The dtype is not blamed."""
    texts = set(blames(kernel(function)[1]).values())
    assert 1 == len(texts) and what in texts.pop()


def test_numbers_that_are_right_are_not_shown_as_wrong() -> None:
    """The cause of a kernel that writes into its arguments."""
    table, findings = kernel("writes", "--wrt", "W")
    assert "should be" not in table and "changes its arguments: W" in table
    assert [(None, None, None, None)] == [(f["worst"], f["kernel_error"], f["bias"], f["cosine"]) for f in findings]


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("Half", "w", "1/2 times the right one"),
        ("Decayed", "w", "the error is 0.1 times w itself"),
        ("Raising", "w", "raises ValueError: no luck"),
        ("Square", "W", "the gradient is transposed"),
    ],
)
def test_black_boxes_are_blamed(name: str, tensor: str, words: str) -> None:
    """Blame of an object: the pattern of its error and its worst entry."""
    table, findings = box(name)
    assert words in blames(findings)[tensor]
    found = next(f for f in findings if f["tensor"] == tensor)
    assert f"  reproduce: {found['blame']['reproduce']}\n" in table
    assert 1 == run(*found["blame"]["reproduce"].split()[1:]).exit_code
    assert [] == list(blames(box("Ridge")[1]))


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_a_kink_is_an_interval(mode: str) -> None:
    """The one-sided derivatives are shown for values that pass and that do not, without a bias."""
    table, (found,) = box("Kinked", "--mode", mode)
    assert ("pass", "kink", None, None) == tuple(found[k] for k in ("verdict", "cause", "bias", "cosine"))
    assert {"index": [1], "value": 0.25, "low": 0.0, "high": 1.0} == {
        k: v if isinstance(v, list) else round(v, 9) for k, v in found["kink"].items()
    }
    assert "w[1] = 0.25, any value between" in table
    (text,) = blames(box("Beyond")[1]).values()
    assert text.startswith("w[1] = 3, should be between")


def test_a_kink_of_a_spec_is_an_interval() -> None:
    """b = 0 has slopes on its sides that differ by v; beside it v has a bias and a cosine."""
    result = run("check", str(OWN / "checking_kink.toml"), "--format", "json")
    b, v = json.loads(result.stdout)["findings"]
    assert (None, None) == (b["bias"], b["cosine"]) and b["kink"]["high"] - b["kink"]["low"] > 0.9
    assert (0.0, 1.0, None) == (v["bias"], round(v["cosine"], 12), v["kink"])


KINKED = """bp = 1
[params]
w = { shape = [3], value = [0.0, 1.0, 2.0] }
[equations]
loss = "0.5 * sum(relu(w))**2"
"""


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        ("[3.0, 3.0, 3.003]", "a single entry is wrong"),  # by the slope 1 at the kink
        ("[1.5, 3.003, 3.0]", "a single entry is wrong"),
        ("[0.0, 3.003, 3.0]", "a single entry is wrong"),
        ("[3.0, 3.003, 2.995]", "rows 1 to 2 alone are wrong"),
    ],
)
def test_a_slope_at_a_kink_is_no_part_of_what_is_wrong(gradient: str, words: str) -> None:
    """An error beside a kink is counted separately."""
    spec = write(Path("kinked.toml"), KINKED)
    code = f"import numpy as np\ndef gradient(*groups):\n    return {{'w': np.array({gradient})}}\n"
    write(Path("slope.py"), code)
    result = run("check", spec, "--kernel", "slope.py:gradient", "--format", "json")
    (text,) = blames(json.loads(result.stdout)["findings"]).values()
    assert words in text


@pytest.mark.usefixtures("free_directions")
def test_directions_have_numbers() -> None:
    """In the table and in JSON, beside an entry that has an index."""
    args = ["check", str(SPECS / "square.toml"), "--mode"]
    assert re.search(r"direction [1-8] ", run(*args, "directional", "-v").stdout)
    assert "direction" not in run(*args, "full", "-v").stdout.splitlines()[4]
    (found,) = json.loads(run(*args, "directional", "--format", "json").stdout)["findings"]
    assert found["worst"]["index"] is None and found["worst"]["direction"] in range(1, 9)


def test_signatures() -> None:
    """Each on numbers that show it, and on numbers that do not."""
    generator = np.random.default_rng(5)
    right, slack = generator.normal(size=(4, 4)), np.full((4, 4), 1e-14)
    assert "0.3 times W" in proportional(right + 0.3 * np.eye(4), right, slack, np.eye(4), "W")
    assert "" == proportional(right + 0.3, right, slack, np.eye(4), "W")
    spread = np.full((4, 4), 1e-7)
    errors = spread * generator.normal(size=(4, 4))
    assert single_precision(right + errors, right, slack, FACTOR * spread)
    for few in (errors * np.eye(4), 1e-4 * errors, 1e3 * errors, np.zeros((4, 4))):
        assert not single_precision(right + few, right, slack, FACTOR * spread)
    assert not single_precision(right + errors, right, slack, np.zeros((4, 4)))
    once = right.astype(np.float32).astype(float)
    assert single_precision(once, right, slack, np.full((4, 4), 1e-10))
    assert not single_precision(once + 1e-6, right, slack, np.full((4, 4), 1e-10))
    assert not single_precision(once * np.eye(4), right, slack, np.full((4, 4), 1e-10))
    rows = np.zeros((4, 4), bool)
    rows[1:3] = True
    assert extent(rows).startswith("rows 1 to 2")


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [
        (0.25, 0.5, ("0.25", "0.5")),
        (1.0, 1.00000001, ("1", "1.00000001")),
        (0.1, 0.1, ("0.10000000000000001", "0.10000000000000001")),
        (float("nan"), 1.0, ("nan", "1")),
    ],
)
def test_numbers_are_told_apart(one: float, other: float, texts: tuple[str, str]) -> None:
    """By as many digits as it takes."""
    assert texts == distinct_digits(one, other)
