"""Functions of JAX: plain, jitted, with custom VJPs and JVPs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cli_cases import run, write
from user_code_cases import texts, verdicts

import bpcli

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
X = np.linspace(-1.0, 1.0, 4).reshape(2, 2)
W = np.array([0.5, 1.0])
RIGHT = {"x": "pass", "w": "pass"}


@pytest.fixture(params=[False, True], ids=["float32", "float64"], autouse=True, scope="module")
def x64(request: pytest.FixtureRequest) -> Iterator[bool]:
    """As JAX is configured by default, and with 64-bit types; tests of one mode share what is compiled."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    jax.clear_caches()  # of constants of the other mode
    yield request.param
    jax.config.update("jax_enable_x64", before)


def scaled(x: Any, w: Any) -> Any:
    return x**3 * w


def with_vjp(back: Any) -> Any:
    """`scaled` with a VJP."""
    found = jax.custom_vjp(scaled)
    found.defvjp(lambda x, w: (scaled(x, w), (x, w)), back)
    return found


def right(kept: Any, g: Any) -> Any:
    x, w = kept
    return 3 * x**2 * w * g, (x**3 * g).sum(0)


def with_jvp(forward: Any) -> Any:
    """`scaled` with a JVP."""
    found = jax.custom_jvp(scaled)
    found.defjvp(lambda at, along: (scaled(*at), forward(*at, *along)))
    return found


@pytest.mark.parametrize(
    ("back", "wrong", "words"),
    [
        (right, "", ""),
        (
            lambda kept, g: (right(kept, g)[0], right(kept, g * 0 + 1)[1]),
            "w",
            "the backward pass ignores its cotangent",
        ),
        (lambda kept, g: right(kept, g * 0 + g.mean()), "xw", "right only where all cotangents are equal"),
    ],
    ids=["right", "ignoring", "for a sum"],
)
def test_vjp(back: Any, wrong: str, words: str, x64: bool) -> None:
    """Jitted or not, in the precision that JAX is set to."""
    for function in (with_vjp(back), jax.jit(with_vjp(back))):
        report = bpcli.check_gradient(function, jnp.asarray(X), jnp.asarray(W))
        assert {n: "wrong" if n in wrong else "pass" for n in "xw"} == verdicts(report)
        assert words in texts(report)
        errors = [f.kernel_error for f in report.findings if f.verdict == "pass" and f.kernel_error]
        assert all((error < 1e-10) == x64 for error in errors)


def test_forward_mode() -> None:
    """A wrong JVP shows in both modes, as the VJP is its transpose."""
    good = with_jvp(lambda x, w, dx, dw: 3 * x**2 * w * dx + x**3 * dw)
    report = bpcli.check_gradient(good, X, W, forward=True)
    assert RIGHT == verdicts(report) == verdicts(report, "jvp")
    bad = bpcli.check_gradient(with_jvp(lambda x, w, dx, dw: 3 * x**2 * w * dx + 2 * x**3 * dw), X, W, forward=True)
    assert {"x": "pass", "w": "wrong"} == verdicts(bad) == verdicts(bad, "jvp")
    with pytest.raises(bpcli.BpError, match="has no forward mode"):
        bpcli.check_gradient(with_vjp(right), X, W, forward=True)


def test_second_order() -> None:
    """The derivative of the gradient by the inputs and by the cotangent."""
    report = bpcli.check_gradient(with_vjp(right), X, W, order=2)
    assert {**RIGHT, "cotangent": "pass"} == verdicts(report, "hvp")

    def cut(kept: Any, g: Any) -> Any:
        return right((jax.lax.stop_gradient(kept[0]), kept[1]), g)

    wrong = bpcli.check_gradient(with_vjp(cut), X, W, order=2)
    assert RIGHT == verdicts(wrong) and "wrong" == verdicts(wrong, "hvp")["x"]


class Params(NamedTuple):
    layers: Any
    power: int


@jax.tree_util.register_pytree_node_class
class Registered:
    """A pytree by its own rules."""

    def __init__(self, a: Any) -> None:
        self.a = a

    def tree_flatten(self) -> Any:
        return (self.a,), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Any:
        return cls(*children)


@pytest.mark.parametrize("x64", [False], indirect=True, scope="module")
def test_pytrees() -> None:
    """Python floats are differentiated; objects that JAX knows are pytrees too."""

    def network(params: Params, other: Registered, rate: float, key: Any) -> Any:
        h = X
        for layer in params.layers:
            h = jnp.tanh(h @ layer["w"] + layer["b"]) ** params.power
        return {"y": h + 0 * jax.random.normal(key), "sizes": len(h)}, other.a * rate

    layers = [{"w": np.eye(2), "b": jnp.zeros(2)}, {"w": np.ones((2, 1)), "b": np.ones(1)}]
    report = bpcli.check_gradient(network, Params(layers, 1), Registered(jnp.ones(2)), 0.5, jax.random.key(0))
    names = [f"params.layers[{i}].{name}" for i in (0, 1) for name in ("w", "b")]
    assert [*names, "other[<flat index 0>]", "rate"] == list(verdicts(report))
    assert {"pass"} == set(verdicts(report).values())
    assert "not differentiated: params.power (int), key (key<" in str(report)


@pytest.mark.parametrize("x64", [False], indirect=True, scope="module")
def test_code_that_varies() -> None:
    """Compiling a function with jit does not hide that its values vary."""
    found = bpcli.check_gradient(lambda x: jnp.sum(x) * np.random.random(), jnp.asarray(X))
    assert "pass" not in {f.verdict for f in found.findings}
    branches = bpcli.check_gradient(lambda x: x**2 if float(jnp.sum(x)) > 5 else x**3, jnp.ones(3))
    assert {"x": "wrong"} == verdicts(branches)  # float() ends the trace
    assert "ConcretizationTypeError" in texts(branches) or "TracerError" in texts(branches)
    with pytest.raises(bpcli.BpError, match=r"returns values of type bfloat16|float16"):
        bpcli.check_gradient(lambda x: x.astype("float16"), jnp.ones(3))


FILE = """import jax
import jax.numpy as jnp

@jax.jit
def loss(params, x):
    return jnp.sum(jnp.tanh(params["w"] @ x) ** 2)

loss_inputs = ({"w": jnp.ones((2, 3))}, jnp.arange(3.0) / 8)
"""


@pytest.mark.parametrize("x64", [False], indirect=True, scope="module")
def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A jitted function of a file, forwards and to second order."""
    monkeypatch.chdir(tmp_path)
    write(Path("nets.py"), FILE)
    done = run("check", "nets.py:loss", "--forward", "--order", "2", "--format", "json")
    found = json.loads(done.stdout)["findings"]
    assert (0, {"pass"}) == (done.exit_code, {f["verdict"] for f in found})
    assert {("vjp", "params.w"), ("jvp", "x"), ("hvp", "cotangent")} <= {(f["method"], f["tensor"]) for f in found}


@pytest.mark.parametrize(("factor", "found"), [(1.0, (False, False)), (1.001, (False, True)), (1.1, (True, True))])
def test_beside_check_grads(factor: float, found: tuple[bool, bool], x64: bool) -> None:
    """The table of the README: in float32 an error of 0.1% shows to one of the two, and right code to neither."""
    from jax.test_util import check_grads

    function = with_vjp(lambda kept, g: tuple(factor * part for part in right(kept, g)))
    try:
        check_grads(function, (jnp.asarray(X), jnp.asarray(W)), order=2, modes=["rev"])
        rejected = False
    except AssertionError:
        rejected = True
    assert (found[0] or (x64 and factor > 1)) == rejected
    assert found[1] == (bpcli.check_gradient(function, X, W).verdict == "wrong")
