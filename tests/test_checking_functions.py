"""Functions of NumPy with handwritten derivatives, and what functions of all frameworks share."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cli_cases import run, write
from user_code_cases import texts, verdicts

import bpcli
from bpcli.checking.sources import functions
from bpcli.checking.sources.black_box import losses_taken
from bpcli.checking.sources.differentiable import Given
from bpcli.checking.sources.frameworks import open_function
from bpcli.checking.sources.pytree import flatten, rebuild
from bpcli.problem.definition import Tensor

X, W = np.linspace(-1.0, 1.0, 12).reshape(4, 3), np.linspace(0.3, 1.0, 6).reshape(3, 2)


def layer(x: Any, w: Any) -> Any:
    return np.tanh(x @ w)


def layer_vjp(x: Any, w: Any, u: Any) -> Any:
    d = u * (1 - np.tanh(x @ w) ** 2)
    return d @ w.T, x.T @ d


def layer_jvp(x: Any, w: Any, dx: Any, dw: Any) -> Any:
    return (1 - np.tanh(x @ w) ** 2) * (dx @ w + x @ dw)


def layer_hvp(x: Any, w: Any, u: Any, dx: Any, dw: Any) -> Any:
    y = np.tanh(x @ w)
    d, dz = u * (1 - y**2), dx @ w + x @ dw
    dd = -2 * u * y * (1 - y**2) * dz
    return dd @ w.T + d @ dw.T, x.T @ dd + dx.T @ d


def ignoring(x: Any, w: Any, u: Any) -> Any:
    return layer_vjp(x, w, u)[0], layer_vjp(x, w, np.ones_like(u))[1]


def for_a_sum(x: Any, w: Any, u: Any) -> Any:
    return layer_vjp(x, w, np.full_like(u, u.mean()))


def raising(x: Any, w: Any, u: Any) -> Any:
    raise KeyError("v")


# A vjp, the leaves that are wrong, and words about them.
VJPS: list[tuple[Callable[..., Any], str, str]] = [
    (layer_vjp, "", ""),
    (lambda *a: list(layer_vjp(*a)), "", ""),
    (ignoring, "w", "the backward pass ignores its cotangent"),
    (for_a_sum, "xw", "right only where all cotangents are equal"),
    (lambda *a: (layer_vjp(*a)[0], 2 * layer_vjp(*a)[1]), "w", "2 times the right one, for a random cotangent"),
    (lambda x, w, u: layer_vjp(x, w, u[::-1]), "xw", "should be"),
    (lambda *a: (layer_vjp(*a)[0].T, layer_vjp(*a)[1]), "x", "wrong shape: (3, 4), not (4, 3)"),
    (lambda *a: (None, layer_vjp(*a)[1]), "x", "missing"),
    (lambda *a: layer_vjp(*a)[0], "xw", "a derivative returns ndarray, for 2 inputs"),
    (lambda *a: (*layer_vjp(*a), 0.0), "xw", "a derivative returns 3 gradients, for 2 inputs"),
    (raising, "xw", "raises KeyError: 'v' (test_checking_functions.py:"),
]


@pytest.mark.parametrize(("vjp", "wrong", "words"), VJPS, ids=range(len(VJPS)))
def test_a_vjp(vjp: Callable[..., Any], wrong: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leaves that it gets wrong are wrong, and the others pass."""
    monkeypatch.chdir(Path(__file__).parent)
    report = bpcli.check_gradient(layer, X, W, vjp=vjp)
    assert {n: "wrong" if n in wrong else "pass" for n in "xw"} == verdicts(report)
    assert words in texts(report)


# A function of few values, a right derivative by each, and one that is wrong.
FEW: list[tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = [
    (lambda x: (x**2).sum(), lambda x, u: 2 * x * u, lambda x, u: 2 * x),
    (
        lambda x: np.stack([x.sum(), (x**2).sum()]),
        lambda x, u: u[0] + 2 * x * u[1],
        lambda x, u: u.mean() * (1 + 2 * x),
    ),
    (
        lambda x: {"a": x[0, 0], "n": 3, "b": [float(x[1, 1] ** 2)]},
        lambda x, u: np.outer([u["a"], 0, 0, 0], [1, 0, 0]) + np.outer([0, u["b"][0], 0, 0], [0, 2 * x[1, 1], 0]),
        lambda x, u: np.outer([u["a"], 0, 0, 0], [1, 0, 0]) + np.outer([0, u["a"], 0, 0], [0, 2 * x[1, 1], 0]),
    ),
]


@pytest.mark.parametrize(("function", "right", "wrong"), FEW, ids=["scalar", "vector", "several"])
def test_few_values(function: Any, right: Any, wrong: Any) -> None:
    """Cotangents other than one are tried of a single value too."""
    assert {"x": "pass"} == verdicts(bpcli.check_gradient(function, X, vjp=right))
    assert {"x": "wrong"} == verdicts(bpcli.check_gradient(function, X, vjp=wrong))


def test_forward_mode() -> None:
    """A JVP is judged by differences and by the VJP, each leaf by itself."""
    both = {"vjp": layer_vjp, "forward": True}
    report = bpcli.check_gradient(layer, X, W, jvp=layer_jvp, **both)
    assert {"x": "pass", "w": "pass"} == verdicts(report, "vjp") == verdicts(report, "jvp")
    assert {(4, 3), (3, 2)} == {f.shape for f in report.findings}
    half = bpcli.check_gradient(layer, X, W, jvp=lambda x, w, dx, dw: layer_jvp(x, w, dx, dw / 2), **both)
    assert {"x": "pass", "w": "wrong"} == verdicts(half, "jvp")
    assert "w along direction" in texts(half) and "1/2 times the right one" in texts(half)
    off = bpcli.check_gradient(layer, X, W, jvp=lambda *a: (1 + 1e-12) * layer_jvp(*a), **both)
    assert {"x": "inconclusive", "w": "inconclusive"} == verdicts(off, "jvp")
    assert all(f.cause.startswith("differs from the vjp by ") for f in off.findings if f.method == "jvp")
    alone = bpcli.check_gradient(layer, X, W, jvp=layer_jvp)
    assert ({}, {"x": "pass", "w": "pass"}) == (verdicts(alone, "vjp"), verdicts(alone, "jvp"))


def test_second_order() -> None:
    """The derivative of the gradient, if that is right."""
    more = {"vjp": layer_vjp, "order": 2}
    right = bpcli.check_gradient(layer, X, W, hvp=layer_hvp, **more)
    assert {"x": "pass", "w": "pass"} == verdicts(right, "vjp") == verdicts(right, "hvp")
    wrong = bpcli.check_gradient(layer, X, W, hvp=lambda x, w, u, dx, dw: layer_hvp(x, w, u, dx, 0 * dw), **more)
    assert ({"x": "pass", "w": "pass"}, {"x": "wrong", "w": "wrong"}) == (verdicts(wrong), verdicts(wrong, "hvp"))
    skipped = bpcli.check_gradient(layer, X, W, hvp=layer_hvp, **{**more, "vjp": for_a_sum})
    assert {} == verdicts(skipped, "hvp") and "second derivatives are not judged" in str(skipped)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (1.0 + 1e-6, "wrong")])
def test_float32(factor: float, verdict: str) -> None:
    """Values and derivatives in float64 at the numbers of float32: a formula that is off by 1e-6 is found."""
    report = bpcli.check_gradient(
        layer, X.astype("f4"), W.astype("f4"), vjp=lambda *a: tuple(factor * g for g in layer_vjp(*a))
    )
    assert {"x": verdict, "w": verdict} == verdicts(report)
    assert all(1e-9 < f.kernel_error < 1e-3 for f in report.findings if f.kernel_error is not None)


def test_what_is_wrong_in_float32_only() -> None:
    """The gradient in float64 is right; rounding, also that of saturated units, is not accused."""

    def rough(x: Any, w: Any, u: Any) -> Any:
        by_x, by_w = layer_vjp(x, w, u)
        return by_x, by_w * (1.001 if w.dtype == "f4" else 1)

    report = bpcli.check_gradient(layer, X.astype("f4"), W.astype("f4"), vjp=rough)
    assert {"x": "pass", "w": "wrong"} == verdicts(report) and "in float32 only" in texts(report)
    assert {"x": "pass", "w": "pass"} == verdicts(bpcli.check_gradient(layer, X, W, vjp=rough))
    nan = {"vjp": lambda x, u: u * x.dtype.type("nan" if x.dtype == "f4" else 1)}
    not_a_number = bpcli.check_gradient(lambda x: 1 * x, X.astype("f4"), **nan)
    assert ["not finite"] == [f.cause for f in not_a_number.findings]
    saturated = np.array([[10.0, -10.0, 20.0], [0.0, 5.0, 30.0]], dtype="f4")
    more = {"vjp": lambda x, u: u * (1 - np.tanh(x) ** 2)}
    for x in (saturated, saturated.ravel()[:4]):
        assert {"x": "pass"} == verdicts(bpcli.check_gradient(lambda x: np.tanh(x), x, **more))


def test_chaos() -> None:
    """Where float32 has no digits left its gradient is not judged, and nothing is accused."""

    def iterated(x: Any) -> Any:
        for _ in range(24):
            x = x.dtype.type(3.9) * x * (1 - x)
        return x

    def vjp(x: Any, u: Any) -> Any:
        for _ in range(24):
            u, x = u * x.dtype.type(3.9) * (1 - 2 * x), x.dtype.type(3.9) * x * (1 - x)
        return u

    report = bpcli.check_gradient(iterated, np.array([0.3, 0.7], dtype="f4"), vjp=vjp)
    assert {"x": "inconclusive"} == verdicts(report)
    assert "wrong" not in verdicts(bpcli.check_gradient(iterated, np.array([0.3, 0.7]), vjp=vjp)).values()


def test_code_that_insists_on_float32() -> None:
    """Nothing is accused for the rounding of its values."""

    def short(x: Any) -> Any:
        return np.sin(x.astype("f4"))

    found = bpcli.check_gradient(short, X.astype("f4"), vjp=lambda x, u: u * np.cos(x))
    assert "wrong" not in verdicts(found).values()
    assert "wrong" in verdicts(bpcli.check_gradient(short, X.astype("f4"), vjp=lambda x, u: u * x)).values()
    assert not open_function(Given(short, (X.astype("f4"),), {"vjp": print})).wide


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass(frozen=True)
class Layer:
    weight: Any
    name: str = "dense"
    size: int = 2


TREE = {"layers": [Layer(W, size=3), Layer(X)], "pair": Pair(1.5, None), "odd key": (True,), 3: OrderedDict(z=X)}


def test_pytrees() -> None:
    """Names as a user writes them, and trees of the same types from other leaves."""
    leaves = flatten(TREE)
    names = ["layers[0].weight", "layers[0].name", "layers[0].size", "layers[1].weight", "layers[1].name"]
    names += ["layers[1].size", "pair.a", "pair.b", "['odd key'][0]", "[3].z"]
    assert names == list(leaves)
    again = rebuild(TREE, iter(range(10)))
    assert Layer(0, 1, 2) == again["layers"][0] and Pair(6, 7) == again["pair"]
    assert OrderedDict(z=9) == again[3] and isinstance(again[3], OrderedDict)
    assert {"x": X} == flatten(X, "x") and ["x", "x[1]"] != list(flatten([X, X], "x"))


def test_leaves_have_names() -> None:
    """A finding has the path of its leaf; leaves that are no floats are named."""

    def network(layers: Any, x: Any, power: int) -> Any:
        return layers[1].weight @ np.tanh(layers[0].weight @ x) ** power

    def vjp(layers: Any, x: Any, power: int, u: Any) -> Any:
        h = np.tanh(layers[0].weight @ x)
        d = (layers[1].weight.T @ u) * power * h ** (power - 1) * (1 - h**2)
        first = np.outer(d, x)
        first[2, 1] += 0.01
        return [Layer(first), Layer(np.outer(u, h**power))], layers[0].weight.T @ d

    report = bpcli.check_gradient(network, [Layer(W), Layer(X)], np.array([0.4, -0.3]), 2, vjp=vjp)
    assert {"layers[0].weight": "wrong", "layers[1].weight": "pass", "x": "pass"} == verdicts(report)
    assert "layers[0].weight[2, 1] = " in texts(report)
    fixed = "layers[0].name (str), layers[0].size (int), layers[1].name (str), layers[1].size (int), power (int)"
    assert [f"test_checking_functions.py:{network.__qualname__}".replace(".<locals>", "")] == [
        note.partition(": not differentiated: ")[0].rpartition("/")[2] for note in report.notes if fixed in note
    ]
    only = bpcli.check_gradient(network, [Layer(W), Layer(X)], np.array([0.4, -0.3]), 2, vjp=vjp, wrt="x")
    assert {"x": "pass"} == verdicts(only)
    held = bpcli.check_gradient(lambda p: p["w"] ** 2, {"w": W, "n": 3}, vjp=lambda p, u: {"w": 2 * u * p["w"]})
    assert {"w": "pass"} == verdicts(held)


FILE = """import numpy as np

def layer(x, w):
    return np.tanh(x @ w)

def layer_vjp(x, w, u):
    d = u * (1 - np.tanh(x @ w) ** 2)
    return d @ w.T, x.T @ d

def layer_jvp(x, w, dx, dw):
    return (1 - np.tanh(x @ w) ** 2) * (dx @ w + x @ dw)

def layer_inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 2)), rng.standard_normal((2, 1))

def square(x):
    return x**2

square.vjp = lambda x, u: 2 * u * x
example_inputs = np.ones(3)

def count(x):
    return len(x)

class Scale:
    example_inputs = (np.ones(2),)
    def __call__(self, x):
        return 3 * x
    def vjp(self, x, u):
        return 3 * u
"""


def judge(target: str, *args: str, text: str = FILE) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a check of a function of the file."""
    write(Path("functions.py"), text)
    done = run("check", target, *args, "--format", "json")
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "args", "methods"),
    [
        ("layer", [], {"vjp"}),
        ("layer", ["--forward"], {"vjp", "jvp"}),
        ("square", [], {"vjp"}),
        ("Scale", [], {"vjp"}),
    ],
)
def test_the_command_line(name: str, args: list[str], methods: set[str]) -> None:
    """Inputs and derivatives by their names, or as attributes."""
    code, document = judge(f"functions.py:{name}", *args)
    assert (0, methods) == (code, {f["method"] for f in document["findings"]})
    assert {f"functions.py:{name}"} == {f["spec"] for f in document["findings"]}
    text = FILE.replace("u * (1 -", "u.mean() * (1 -").replace("2 * u", "3 * u").replace("return 3 * u", "return 2 * u")
    code, document = judge(f"functions.py:{name}", *args, text=text)
    assert 1 == code
    again = {f["blame"]["reproduce"] for f in document["findings"] if f["blame"]}
    assert all(line.startswith(f"bp check functions.py:{name} --wrt ") for line in again) and again


@pytest.mark.usefixtures("folder")
def test_a_function_that_ends_its_process() -> None:
    """A finding; the other leaves and targets are judged in a fresh process."""
    text = FILE.replace("    return d @ w.T", "    import os\n    os._exit(3)\n    return d @ w.T")
    code, document = judge("functions.py:layer", text=text)
    assert 1 == code
    causes = {f["cause"] for f in document["findings"]}
    assert causes == {"raises SystemExit: 3 (functions.py:9)"}
    text = FILE.replace("    return d @ w.T", "    import ctypes\n    ctypes.string_at(0)\n    return d @ w.T")
    code, document = judge("functions.py:layer", text=text)
    assert (1, {"wrong"}) == (code, {f["verdict"] for f in document["findings"]})
    assert {"crashes with SIGSEGV (functions.py:9)"} == {f["cause"] for f in document["findings"]}


@pytest.mark.usefixtures("folder")
def test_inputs_that_are_missing() -> None:
    """The error has the lines to add."""
    write(Path("functions.py"), FILE.replace("example_inputs = np.ones(3)", ""))
    done = run("check", "functions.py:count")
    assert 2 == done.exit_code and "functions.py:count has no inputs to judge it at (functions.py:23)" in done.stderr
    lines = "import numpy; rng = numpy.random.default_rng(0); count_inputs = (rng.standard_normal((4, 3)),)  # x"
    assert f"help: add to the file: {lines}" in done.stderr
    write(Path("functions.py"), FILE.replace("example_inputs = np.ones(3)", "") + lines + "\n")
    assert "has no vjp" in run("check", "functions.py:count").stderr


# A call, and words of its refusal.
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: bpcli.check_gradient(np.sin, X), "returns no PyTorch tensors or JAX arrays, and has no vjp"),
    (lambda: bpcli.check_gradient(np.sin, 3, vjp=np.sin), "has no input to differentiate: "),
    (lambda: bpcli.check_gradient(np.sin, X.astype("c16"), vjp=np.sin), "of type complex128"),
    (lambda: bpcli.check_gradient(np.sin, X * np.nan, vjp=np.sin), " is not finite"),
    (lambda: bpcli.check_gradient(len, X, vjp=np.sin), "returns no numbers of a floating type"),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, forward=True), "sin has no jvp"),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, order=2), "sin has no hvp"),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, order=3), "order should be 1 or 2"),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, ord=2), "check_gradient: ord "),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, wrt="y"), 'with respect to "y"'),
    (lambda: bpcli.check_gradient(np.sin, X, vjp=np.sin, limits=bpcli.Limits(max_time=1e-9)), "would take about"),
    (lambda: bpcli.check_gradient(lambda x: x.y, X, vjp=np.sin), "raises AttributeError"),
    (lambda: bpcli.check_gradient(np.sum, np.sin, {"w": X}, order=2), "forward and order apply to functions"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=lambda case: case if isinstance(case, str) else "")
def test_refusals(call: Callable[[], Any], words: str) -> None:
    """One error with a remedy."""
    with pytest.raises(bpcli.BpError) as caught:
        call()
    assert words in str(caught.value) and "\nhelp: " in str(caught.value)


def test_the_time_limit_is_that_of_all_cotangents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of a second: three values take three times the time of one, and are refused before any is judged."""
    monkeypatch.setattr(functions, "_seconds_of_loss", lambda box: 1.0)
    x = np.array([0.1, 0.2, 0.3])
    most = 2.0 * losses_taken(Tensor("x", "param", x.shape), along=False)

    def verdict(fn: Callable[..., Any], seconds: float) -> str:
        def vjp(x: Any, u: Any) -> Any:
            return u * np.cos(x)

        return bpcli.check_gradient(fn, x, vjp=vjp, mode="full", limits=bpcli.Limits(max_time=seconds)).verdict

    with pytest.raises(bpcli.BpError, match="would take about"):
        verdict(np.sin, most)
    assert "pass" == verdict(np.sin, 2 * most) == verdict(lambda x: np.sin(x).sum(), most)
