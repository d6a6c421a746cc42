"""Functions of PyTorch: autograd functions, modules, and plain functions of tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_cases import run, write
from user_code_cases import texts, verdicts

import bpcli

torch = pytest.importorskip("torch")
X = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64).reshape(2, 2)
W = torch.tensor([0.5, 1.0], dtype=torch.float64)


class Scaled(torch.autograd.Function):
    """x³ w."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, power: int = 3) -> Any:
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        return x**3 * w

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        return 3 * x**2 * w * g, (x**3 * g).sum(0), None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dw: Any, _: Any = None) -> Any:
        x, w = ctx.saved_tensors
        return 3 * x**2 * w * dx + x**3 * dw


class Ignoring(Scaled):
    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        return 3 * x**2 * w, (x**3 * g).sum(0), None


class ForASum(Scaled):
    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return Scaled.backward(ctx, g.mean().expand(g.shape))


class Detached(Scaled):
    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        return 3 * x.detach() ** 2 * w * g, (x**3 * g).sum(0), None


class Once(Scaled):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        return Scaled.backward(ctx, g)


class Halved(Scaled):
    @staticmethod
    def jvp(ctx: Any, dx: Any, dw: Any, _: Any = None) -> Any:
        return Scaled.jvp(ctx, dx, dw / 2)


class Reversing(torch.autograd.Function):
    """Forward mode is not defined."""

    @staticmethod
    def forward(x: Any) -> Any:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return 2 * g


RIGHT = {"x": "pass", "w": "pass"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("function", "wrong", "words"),
    [
        (Scaled, "", ""),
        (Ignoring, "x", "the backward pass ignores its cotangent"),
        (ForASum, "xw", "right only where all cotangents are equal"),
    ],
)
def test_backward(function: Any, wrong: str, words: str, dtype: Any) -> None:
    """The class or its `apply`; leaves have the names of forward's parameters."""
    for call in (function, function.apply):
        report = bpcli.check_gradient(call, X.to(dtype), W.to(dtype), 3)
        assert {n: "wrong" if n in wrong else "pass" for n in "xw"} == verdicts(report)
        assert words in texts(report) and "not differentiated: power (int)" in str(report)


def test_forward_mode() -> None:
    """By `jvp` of the function."""
    report = bpcli.check_gradient(Scaled.apply, X, W, forward=True)
    assert RIGHT == verdicts(report, "jvp"), str(report)
    assert {**RIGHT, "w": "wrong"} == verdicts(bpcli.check_gradient(Halved.apply, X, W, forward=True), "jvp")
    assert {"x": "pass"} == verdicts(bpcli.check_gradient(Reversing.apply, X))
    with pytest.raises(bpcli.BpError, match="has no forward mode"):
        bpcli.check_gradient(Reversing.apply, X, forward=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_double_backward(dtype: Any) -> None:
    """The derivatives of a right gradient by the inputs and by the cotangent."""
    at = X.to(dtype), W.to(dtype)
    assert {**RIGHT, "cotangent": "pass"} == verdicts(bpcli.check_gradient(Scaled.apply, *at, order=2), "hvp")
    wrong = bpcli.check_gradient(Detached.apply, *at, order=2)
    assert RIGHT == verdicts(wrong) and "wrong" == verdicts(wrong, "hvp")["x"]
    with pytest.raises(bpcli.BpError, match="has no double backward"):
        bpcli.check_gradient(Once.apply, *at, order=2)


@dataclass
class Point:
    a: Any
    more: dict[str, Any]


def test_functions_of_tensors() -> None:
    """Several outputs, in trees of any kind; what does not flow back has gradient zero."""

    def function(p: Point, n: int, mask: Any) -> Any:
        return {"y": p.a.sin() * mask, "z": [p.more["b"] @ p.a.T, torch.arange(3)]}, p.a.sum()

    report = bpcli.check_gradient(function, Point(X, {"b": W}), 2, X > 0)
    assert {"p.a": "pass", "p.more.b": "pass"} == verdicts(report)
    assert "not differentiated: n (int), mask (bool)" in str(report)
    cut = bpcli.check_gradient(lambda x, w: (x * w.detach()).sum(), X, W)
    assert {"x": "pass", "w": "wrong"} == verdicts(cut)
    one = bpcli.check_gradient(lambda x, w: x.detach() * w, X, W.clone().requires_grad_())
    assert {"w": "pass"} == verdicts(one) and "not differentiated: x (float64)" in str(one)
    assert {"x": "wrong"} == verdicts(bpcli.check_gradient(lambda x: x.detach() ** 2, X))
    torch.manual_seed(0)
    noisy = bpcli.check_gradient(lambda x: x * torch.rand(()), X)
    assert "pass" not in {f.verdict for f in noisy.findings}


class Blocks(torch.nn.Module):
    """A recurrent and a normalising part, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = torch.nn.LSTM(3, 3), torch.nn.BatchNorm1d(3)
        self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.two.bias.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.two(self.one(self.norm(self.rnn(x)[0])))


def test_modules() -> None:
    """Parameters and inputs of a float32 module, whose values are computed in float64; its buffers are left alone."""
    torch.manual_seed(0)
    module = Blocks()
    before = module.norm.running_mean.clone()
    report = bpcli.check_gradient(module, torch.randn(5, 3), mode="directional")
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {*trained, "x"} == set(verdicts(report)) and {"pass"} == set(verdicts(report).values())
    assert torch.equal(before, module.norm.running_mean) and torch.float32 == module.one.weight.dtype
    linear = torch.nn.Linear(2, 2)
    linear.weight.register_hook(lambda g: g)
    found = bpcli.check_gradient(linear, X.float())
    assert {"weight": "pass", "bias": "pass", "input": "pass"} == verdicts(found)
    assert {"Linear"} == {f.spec for f in found.findings}

    class Wrong(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(W.float())

        def forward(self, x: Any) -> Any:
            return Ignoring.apply(x, self.weight)

    assert {"weight": "pass", "x": "wrong"} == verdicts(bpcli.check_gradient(Wrong(), X.float()))


def test_layout() -> None:
    """Tensors that are not contiguous stay so."""
    seen = []

    def function(x: Any) -> Any:
        seen.append(x.is_contiguous())
        return x**2

    assert {"x": "pass"} == verdicts(bpcli.check_gradient(function, X.T)) and {False} == set(seen)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((X.half(),), "of type torch.float16"),
        ((X.to(torch.complex64),), "of type torch.complex64"),
        ((X.to_sparse(),), "sparse"),
        ((torch.arange(3),), "has no input to differentiate: x (int64)"),
    ],
)
def test_refusals(inputs: Any, words: str) -> None:
    """Types without a gradient that could be judged."""
    with pytest.raises(bpcli.BpError) as caught:
        bpcli.check_gradient(lambda x: x * 1, *inputs)
    assert words in str(caught.value)
    with pytest.raises(bpcli.BpError, match=r"returns values of type torch\.float16"):
        bpcli.check_gradient(lambda x: x.half(), X)


FILE = """import torch

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

Cube_inputs = torch.linspace(-1, 1, 5)

class Net(torch.nn.Linear):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(3, 2)

net = Net()
example_inputs = (torch.ones(4, 3),)

def loss(x, y):
    return (x - y).square().mean()

def loss_inputs():
    return torch.zeros(4, requires_grad=True), torch.linspace(0, 1, 4)
"""


@pytest.mark.parametrize("name", ["Cube", "Net", "net", "loss"])
def test_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Classes and objects of a file; a wrong gradient is placed at its backward pass."""
    monkeypatch.chdir(tmp_path)
    write(Path("ops.py"), FILE)
    args = ["--order", "2"] if name != "loss" else ["--forward"]
    done = run("check", f"ops.py:{name}", *args, "--format", "json")
    document = json.loads(done.stdout)
    assert (0, {"pass"}) == (done.exit_code, {f["verdict"] for f in document["findings"]})
    write(Path("ops.py"), FILE.replace("3 * x**2 * g", "2 * x**2 * g"))
    if name == "Cube":
        assert "::error file=ops.py,line=10," in run("check", "ops.py:Cube", "--format", "github").stdout


def test_inputs_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error has the lines to add."""
    monkeypatch.chdir(tmp_path)
    write(Path("bare.py"), "import torch\ndef f(x, y): return x + y\n")
    lines = "import torch; torch.manual_seed(0); f_inputs = (torch.randn(4, 3), torch.randn(4, 3),)  # x, y"
    assert lines in run("check", "bare.py:f").stderr


class Off(Scaled):
    """A gradient that is off by a factor."""

    factor = 1.0003

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        by_x, by_w, _ = Scaled.backward(ctx, g)
        return Off.factor * by_x, by_w, None


# A function, its precision, and whether `gradcheck`, its forward mode and `gradgradcheck` are content with it.
BESIDE: list[tuple[Any, Any, tuple[bool, bool, bool]]] = [
    (Scaled, torch.float64, (True, True, True)),
    (Ignoring, torch.float64, (False, False, True)),
    (ForASum, torch.float64, (False, False, True)),
    (Halved, torch.float64, (True, False, True)),
    (Detached, torch.float64, (True, True, False)),
    (Off, torch.float64, (True, True, True)),
    (Scaled, torch.float32, (False, False, False)),
]


@pytest.mark.filterwarnings("ignore:Input #")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(("function", "dtype", "content"), BESIDE, ids=lambda value: str(value))
def test_beside_gradcheck(function: Any, dtype: Any, content: tuple[bool, bool, bool]) -> None:
    """The table of the README: faults that only one of the two finds, and right code that only one accepts."""
    at = X.to(dtype).requires_grad_(), W.to(dtype).requires_grad_()
    quiet: dict[str, Any] = {"raise_exception": False}
    found = (
        torch.autograd.gradcheck(function.apply, at, **quiet),
        torch.autograd.gradcheck(function.apply, at, check_forward_ad=True, **quiet),
        torch.autograd.gradgradcheck(function.apply, at, **quiet),
    )
    assert content == found
    ours = bpcli.check_gradient(function.apply, *at, forward=True, order=2)
    assert ("pass" if function is Scaled else "wrong") == ours.verdict
