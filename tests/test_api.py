"""The Python API: it says what the command line says, finds what is planted, refuses in words, and loads late."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_cases import FORWARD, RECURRENT, finding, run, write

import bpcli
from bpcli.errors import Diagnostic

ROOT = Path(__file__).parents[1]
TRUNCATED = "tbptt:k1=1,k2=2"
KERNELS = """def right(params, inputs, state):
    return {"w": 2 * params["w"]}

def wrong(params, inputs, state):
    return {"w": params["w"]}
"""


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small recurrent network in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    write(Path("forward.toml"), FORWARD)
    write(Path("broken.toml"), RECURRENT.replace("a[t-1]", "b[t-1]"))
    return write(Path("net.toml"), RECURRENT)


# A call of the API, and of bp that comes to the same; the twin comes to something else.
CALLS = [
    ({}, {}, []),
    ({"n": 3, "T": 2}, {"methods": ["bptt", TRUNCATED]},
     ["--set", "n=3", "--set", "T=2", "-m", "bptt", "-m", TRUNCATED]),
    ({"dtype": np.float32, "seed": np.int64(4)}, {"mode": "directional"},
     ["--set", "dtype=float32", "--set", "seed=4", "--mode", "directional"]),
    ({"wrt": ["inputs", "W"]}, {"reference": "central"}, ["--wrt", "inputs", "--wrt", "W", "--reference", "central"]),
]  # fmt: skip


@pytest.mark.parametrize(("loaded", "checked", "args"), CALLS)
def test_a_report_is_what_bp_check_says(spec: str, loaded: Any, checked: Any, args: list[str]) -> None:
    """The document, the table and the CSV are those of the terminal; another seed gives others."""
    report, twin = (bpcli.load(spec, **{**loaded, **more}).check(**checked) for more in ({}, {"seed": 99}))
    asked = json.loads(run("check", spec, *args, "--format", "json").stdout)
    assert asked == json.loads(json.dumps(report.to_dict()))
    assert asked["findings"] != json.loads(json.dumps(twin.to_dict()))["findings"]
    assert run("check", spec, *args).stdout == f"{report}\n" != f"{twin}\n"
    written = pd.read_csv(io.StringIO(run("check", spec, *args, "--format", "csv").stdout))
    frames = [r.to_frame() for r in (report, twin)]
    assert list(written.columns) == list(frames[0].columns)
    figures = ["checked", "value", "reference", "bound", "z", "kernel_error"]
    same = [np.array_equal(written[figures], frame[figures], equal_nan=True) for frame in frames]
    assert [True, False] == same


def test_a_gradient_is_what_bp_grad_writes(spec: str) -> None:
    """Bit by bit; a truncation differs."""
    run("grad", spec, "-m", "rtrl", "-o", "g.npz", "--set", "n=3", "--seed", "2")
    with np.load("g.npz") as file:
        written = dict(file)
    net = bpcli.load(spec, n=3, seed=2)
    for method, expected in (("rtrl", True), ("tbptt:k1=1,k2=1", False)):
        gradient = net.gradient(method)
        assert written["loss"] == gradient.loss
        assert expected == (written["d_W"] == gradient.arrays["W"]).all()


def test_local_derivatives(spec: str) -> None:
    """J of a step is the derivative of its state by the state before it; that of another step is not."""
    net = bpcli.load(spec, n=3, T=4)
    local, a, W = net.local_derivatives(2), net.forward("a")["a"], net.params["W"]
    expected = (1 - a[2][:, :, None] ** 2) * W
    np.testing.assert_allclose(local.J, expected, rtol=1e-12)
    assert not np.allclose(net.local_derivatives(1).J, expected)


def test_what_is_loaded(spec: str) -> None:
    """Arrays have the documented shapes and cannot be written to; the loss is that of the equations' values."""
    net = bpcli.load(spec, n=5, T=4)
    held = {**net.params, **net.inputs, **net.state}
    assert {"W": (5, 5), "x": (4, 2, 5), "a": (5,)} == {name: array.shape for name, array in held.items()}
    with pytest.raises(ValueError, match="read-only"):
        net.params["W"][0, 0] = 1.0
    values = net.forward()
    assert {"a": (4, 2, 5), "loss": (4, 2)} == {name: array.shape for name, array in values.items()}
    a = np.tanh(values["a"][0] @ net.params["W"].T + net.inputs["x"][1])
    np.testing.assert_allclose(a, values["a"][1], rtol=1e-14)
    assert not np.allclose(a, values["a"][2])
    np.testing.assert_allclose(values["loss"].sum() / 2, net.loss(), rtol=1e-14)
    assert ["a"] == list(net.forward("a"))
    more = RECURRENT.replace('loss = "sum(a)"', 'before = "a[t-1]"\ndata = "x"\nloss = "sum(before * data + a)"')
    values = bpcli.load(write(Path("more.toml"), more)).forward()
    assert (values["before"][1:] == values["a"][:-1]).all() and (values["before"][1:] != values["a"][1:]).any()
    assert {"loss": ()} == {name: array.shape for name, array in bpcli.load("forward.toml").forward().items()}


def _loss(params: dict[str, Any]) -> float:
    return float(np.sum(np.tanh(X @ params["W"]) ** 2) + params["b"] @ params["b"])


def _grad(params: dict[str, Any]) -> dict[str, Any]:
    y = np.tanh(X @ params["W"])
    return {"W": X.T @ (2 * y * (1 - y**2)), "b": 2 * params["b"]}


def _but(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda params: {n: changes.get(n, lambda a: a)(a) for n, a in _grad(params).items()}


def _raising(params: dict[str, Any]) -> Any:
    raise KeyError("v")


def _changing(params: dict[str, Any]) -> Any:
    params["b"][0] = 3.0
    return _grad(params)


X = np.linspace(-1.0, 1.0, 9).reshape(3, 3)
PARAMS = {"W": np.linspace(-1.0, 0.7, 9).reshape(3, 3), "b": np.array([0.5, -1.5])}
# A gradient, the tensors that are wrong, and words about them.
GRADIENTS: dict[str, tuple[Callable[[Any], Any], list[str], str]] = {
    "right": (_grad, [], ""),
    "right, as arrays": (lambda p: list(_grad(p).values()), [], ""),
    "sign": (_but(W=np.negative), ["W"], "-1 times the right one"),
    "doubled": (_but(b=lambda a: 2 * a), ["b"], "2 times the right one"),
    "transposed": (_but(W=np.transpose), ["W"], "transposed"),
    "one entry": (_but(W=lambda a: a + np.eye(3)[0]), ["W"], "should be"),
    "shape": (_but(b=lambda a: a[:1]), ["b"], "wrong shape: (1,), not (2,)"),
    "missing": (lambda p: {"W": _grad(p)["W"]}, ["b"], "missing"),
    "swapped": (lambda p: list(_grad(p).values())[::-1], ["W", "b"], "wrong shape"),
    "too few": (lambda p: [_grad(p)["W"]], ["W", "b"], "not a dict of gradients by name"),
    "raises": (_raising, ["W", "b"], "raises KeyError: 'v' (test_api.py:"),
    "changes": (_changing, ["W", "b"], "changes its arguments: b"),
    "random": (_but(b=lambda a: a + np.random.random()), ["b"], "not deterministic"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_planted_gradient_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tensors where it is wrong, with the cause; a right one passes, and raises nothing."""
    monkeypatch.chdir(Path(__file__).parent)
    grad, wrong, words = GRADIENTS[name]
    report = bpcli.check_gradient(_loss, grad, PARAMS)
    assert wrong == [f.tensor for f in report.findings if f.verdict == "wrong"]
    assert (("wrong", 1) if wrong else ("pass", 0)) == (report.verdict, report.exit_code)
    if not wrong:
        return report.raise_for_wrong()
    with pytest.raises(AssertionError) as caught:
        report.raise_for_wrong()
    text = str(caught.value)
    assert words in text and " --> test_api.py:" in text and "worst z" in text
    assert isinstance(caught.value, bpcli.GradientError)
    return None


def test_one_array_and_one_name() -> None:
    """A gradient of one array may be that array; `wrt` leaves the wrong one out."""
    square = bpcli.check_gradient(lambda p: float(p["w"] @ p["w"]), lambda p: 2 * p["w"], {"w": np.ones(3)})
    assert "pass" == square.verdict
    wrong = _but(b=np.negative)
    verdicts = [bpcli.check_gradient(_loss, wrong, PARAMS, wrt=wrt).verdict for wrt in ("W", ("W", "b"), "b")]
    assert ["pass", "wrong", "wrong"] == verdicts
    document = bpcli.check_gradient(_loss, wrong, PARAMS).to_dict()
    keys = json.loads(run("check", "forward.toml", "--format", "json").stdout)["context"].keys()
    assert keys == document["context"].keys()


@pytest.mark.parametrize("where", ["mine.py:{}", "{}"])
def test_a_planted_kernel_is_found(where: str) -> None:
    """A function of a file, named in the call or in the spec; the report says how to see it again."""
    Path("mine.py").write_text(KERNELS, encoding="utf-8")
    declared = "".join(f'[kernel.{n}]\nfile = "mine.py"\nfunction = "{n}"\n' for n in ("right", "wrong"))
    net = bpcli.load(write(Path("square.toml"), FORWARD + declared))
    report = net.check(kernels=[where.format(name) for name in ("right", "wrong")])
    assert ["pass", "wrong"] == [report.of(f"kernel:{name}").verdict for name in ("right", "wrong")]
    report.of("kernel:right").raise_for_wrong()
    with pytest.raises(bpcli.GradientError, match="a factor 2 is missing") as caught:
        report.raise_for_wrong()
    assert f"reproduce: bp check square.toml --kernel {where.format('wrong')}" in str(caught.value)


def _square() -> bpcli.LoadedProblem:
    return bpcli.load("forward.toml")


# A call, the code of its refusal, and words in it.
REFUSALS: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: bpcli.load("nothing.toml"), "unreadable-file", "nothing.toml"),
    (lambda: bpcli.load("net.toml", m=3), "unknown-name", '"m" is not a dim'),
    (lambda: bpcli.load("broken.toml"), "unknown-name", "broken.toml:11:15"),
    (lambda: bpcli.load("net.toml", n=0), "out-of-range", "dims.n must be an integer from 1"),
    (lambda: bpcli.load("net.toml", dtype="float16"), "unknown-value", "float32"),
    (lambda: bpcli.load("net.toml", wrt="V"), "unknown-wrt", "known: W, "),
    (lambda: bpcli.load("net.toml", n=999, limits=bpcli.Limits(max_memory=1000)), "too-large", "1 kB"),
    (lambda: _square().gradient("bptz"), "unknown-method", 'did you mean "bptt"?'),
    (lambda: _square().gradient("rtrl"), "method-refused", "backprop"),
    (lambda: _square().forward("los"), "unknown-name", 'did you mean "loss"?'),
    (lambda: _square().local_derivatives(0), "no-state", "feed-forward"),
    (lambda: bpcli.load(3), "usage", "load: spec should be a valid string, got 3"),
    (lambda: bpcli.load("net.toml", n=[8, 16]), "usage", "[8, 16] is not a setting"),
    (lambda: _square().gradient(5), "usage", "gradient: method should be"),
    (lambda: _square().check(methods=[3]), "usage", "check: methods should be"),
    (lambda: _square().check(mode=3), "usage", "check: mode should be"),
    (lambda: bpcli.check_gradient(3, _grad, PARAMS), "usage", "check_gradient: fn should be callable, got 3"),
    (lambda: bpcli.check_gradient(lambda *given: 1.0, 3, PARAMS), "usage", "has no vjp"),
    (lambda: bpcli.bench("net.toml", "bptt", budget=float("nan")), "usage", "budget should be a finite number"),
    (lambda: bpcli.bench("net.toml", "bptt", budget=-1), "usage", "budget should be greater than 0"),
    (lambda: bpcli.bench("net.toml", "bptt", grid={"n": []}), "usage", 'no values for "n"'),
    (lambda: bpcli.load("net.toml", T=3).local_derivatives(3), "out-of-range", "steps are 0 to 2"),
    (lambda: _square().check("rtrl"), "method-refused", "backprop"),
    (lambda: _square().check(mode="ful"), "usage", 'mode: unknown value "ful"'),
    (lambda: _square().check(reference="centre"), "usage", 'did you mean "central"?'),
    (lambda: _square().check(kernels="mine"), "unknown-name", 'no spec declares a kernel "mine"'),
    (lambda: _square().check(gradients="g.npz"), "no-such-file", "bp grad writes such files"),
    (lambda: bpcli.check_gradient(_loss, _grad, {"W": "text"}), "usage", 'params["W"] is of type'),
    (lambda: bpcli.check_gradient(_loss, _grad, PARAMS, wrt="c"), "unknown-wrt", "known: W, b, params"),
    (lambda: bpcli.check_gradient(_loss, _grad, PARAMS, mode="fast"), "usage", "known: auto, directional, full"),
    (lambda: bpcli.check_gradient(_loss, _grad, PARAMS, limits=bpcli.Limits(max_time=1e-9)), "too-long", "a loss"),
    (lambda: bpcli.bench("net.toml", "bptz"), "unknown-method", 'did you mean "bptt"?'),
    (lambda: bpcli.bench("net.toml", "bptt", grid={"m": [1]}), "unknown-key", '"m"'),
    (lambda: bpcli.bench("net.toml", "bptt", grid={"n": [1]}, n=2), "usage", "contradicts"),
    (lambda: bpcli.bench("net.toml", "bptt", peers="numpy"), "unknown-peer", "jax"),
    (lambda: bpcli.bench("net.toml", "bptt", limits=bpcli.Limits(max_time=1e-9)), "too-long", "bptt"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[2])
def test_refusals(case: tuple[Callable[[], Any], str, str]) -> None:
    """Each is a BpError that says what, where and what to do about it."""
    call, code, words = case
    with pytest.raises(bpcli.BpError) as caught:
        call()
    assert code in [d.code for d in caught.value.diagnostics]
    assert words in str(caught.value) and "help: " in str(caught.value)


# Verdicts, and the exit code and what is raised, without and with `strict`.
OUTCOMES = [
    (["pass"], "pass", (0, 0), (False, False)),
    (["pass", "inconclusive"], "inconclusive", (0, 4), (False, True)),
    (["inconclusive", "wrong"], "wrong", (1, 1), (True, True)),
    ([], "inconclusive", (5, 5), (False, False)),
]


@pytest.mark.parametrize(("verdicts", "verdict", "codes", "raises"), OUTCOMES)
def test_outcomes(verdicts: list[Any], verdict: str, codes: tuple[int, int], raises: tuple[bool, bool]) -> None:
    """The worst finding decides; nothing judged is no pass."""
    report = bpcli.Report(tuple(finding("s", "bptt", f"W{i}", v) for i, v in enumerate(verdicts)))
    assert verdict == report.verdict
    assert codes == tuple(replace(report, context={"strict": strict}).exit_code for strict in (False, True))
    assert 2 == replace(report, errors=(Diagnostic("usage", "bad", help="mend it"),)).exit_code
    for strict, expected in zip((False, True), raises, strict=True):
        try:
            report.raise_for_wrong(strict)
            raised = False
        except bpcli.GradientError:
            raised = True
        assert expected == raised


def test_a_report_is_read_only_and_shown_in_notebooks() -> None:
    """Findings are frozen; HTML has the rows of the table, in colour where they are wrong, and every string escaped."""
    right, wrong = (bpcli.Report((finding("<a&b>", "bptt", "W", v),)) for v in ("pass", "wrong"))
    with pytest.raises(FrozenInstanceError):
        right.findings[0].verdict = "wrong"  # type: ignore[misc]
    assert "<Report: 1 gradient of <a&b>: it passes.>" == repr(right)
    for report, coloured in ((right, False), (wrong, True)):
        html = report._repr_html_()
        assert coloured == ('<tr style="color' in html)
        assert "&lt;a&amp;b&gt;" in html and "<a&b>" not in html and 1 == html.count("<tbody><tr")


def test_a_bench_is_a_frame(spec: str) -> None:
    """With the columns of the CSV; deterministic figures are those that bp writes, and others at another size."""
    args = ["-m", "bptt", "-g", "n=3,4", "--budget", "0.001", "--output", "csv=b.csv"]
    run("bench", spec, *args)
    written = pd.read_csv("b.csv")
    frame = bpcli.bench(spec, "bptt", grid={"n": np.arange(3, 5)}, budget=0.001)
    assert list(written.columns) == list(frame.columns)
    assert [3, 4] == list(frame["n"]) and (frame["time_s"] > 0).all()
    fixed = ["spec", "method", "T", "batch", "dtype", "predicted_bytes", "flops", "forward_steps"]
    assert written[fixed].equals(frame[fixed].astype(written[fixed].dtypes))
    assert frame["flops"][0] != frame["flops"][1]


PUBLIC = [name for name in bpcli.__all__ if name != "__version__"]


def test_names_are_there() -> None:
    """All are found, listed and typed; another is none."""
    stub = ast.parse((ROOT / "bpcli" / "__init__.pyi").read_text(encoding="utf-8"))
    typed = [str(alias.asname) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(PUBLIC) == sorted(typed) == sorted(n for n in PUBLIC if callable(getattr(bpcli, n)))
    assert set(PUBLIC) <= set(dir(bpcli))
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        _ = bpcli.chekc  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import bpcli", []),
        ("import bpcli; bpcli.BpError, bpcli.bench", []),
        ("import bpcli; bpcli.load('net.toml').check(['bptt'])", ["numpy"]),
        ("import bpcli; bpcli.load('net.toml').check(['bptt']).to_frame()", ["numpy", "pandas"]),
        ("import bpcli; str(bpcli.load('net.toml').check(['bptt']))", ["numpy", "rich"]),
    ],
)
def test_import_is_light(code: str, loaded: list[str]) -> None:
    """Nothing heavy is imported before something takes it."""
    heavy = ["click", "numba", "numpy", "pandas", "rich"]
    end = f"import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, check=True)
    assert str(loaded) == done.stdout.strip()


@pytest.mark.parametrize("module", ["check_report", "check_functions", "loaded", "benchmark"])
def test_the_examples_of_docstrings(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run, and come to what they say."""
    monkeypatch.chdir(ROOT)
    names = {name: getattr(bpcli, name) for name in PUBLIC}
    tried = doctest.testmod(
        importlib.import_module(f"bpcli.api.{module}"), extraglobs=names, optionflags=doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert 0 == tried.failed < tried.attempted
