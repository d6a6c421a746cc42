"""The loop-only twin against itself: three ways to the same gradient, and the definition of truncation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from naive_dual import ELEMENTWISE

from bpcli.errors import Collector
from bpcli.spec.load import load
from bpcli.spec.specification import Spec

SPECS = Path(__file__).parent.parent / "specs"
SMALL = {"T": 3, "batch": 2}
RECURRENT = {
    "vanilla_rnn": {"n": 2, "n_in": 2, "n_out": 1},
    "leaky_rnn": {"n": 2, "n_in": 1, "n_out": 2},
    "gru": {"n": 2, "n_in": 1, "n_out": 1},
    "lstm": {"n": 2, "n_in": 1, "n_out": 1},
    "stacked_rnn": {"n1": 2, "n2": 3, "n_in": 1, "n_out": 1},
    "lru": {"n": 2, "n_in": 1, "n_out": 1},
    "indrnn": {"n": 3, "n_in": 1, "n_out": 2},
    "masked_rnn": {"n": 4, "n_in": 1, "n_out": 1},
}
FEEDFORWARD: dict[str, dict[str, int]] = {
    "square": {},
    "linear": {},
    "many_to_many": {"n_in": 2, "n_mid": 3},
    "elementwise": {"n": 3},
    "exercise": {"n_in": 2, "n_hidden": 3},
    "residual_mlp": {"n": 2, "m": 3, "n_in": 1, "n_out": 2},
    "tied_autoencoder": {"n": 3, "n_code": 2},
    "classifier": {"n_in": 2, "n_hidden": 3, "n_classes": 3},
}
# The loss looks at the earlier state, at a recurrent intermediate and at parameters; one state is slow, one a scalar.
AWKWARD = """
bp = 1
[dims]
n = 3
[constants]
c = 0.7
[inputs]
x = ["n"]
[params]
W = ["n", "n"]
u = ["n"]
g = []
k = { shape = ["n"], trainable = false }
[state]
a = ["n"]
m = []
[equations]
S = "g * (W - W.T) + W @ W"
h = "S @ a[t-1] + x * sigmoid(k) + m"
a = "c * a[t-1] + tanh(h) * u[0]"
m = "0.5 * m[t-1] + mean(a[t-1][1:n]) * g"
loss = "sum(h**2) / n + dot(u, a[t-1]) * m[t-1] + 0.1 * sum(W**2) + logsumexp(concat(a, m)) - u[n // 2]"
[objective]
over_time = "OVER_TIME"
over_batch = "OVER_BATCH"
"""
# Each is put into loss = "…" with a vector u = s * x + 2 (entries in 1 … 3), a vector s, a matrix W and a scalar g.
FUNCTIONS = (
    *(
        f"sum({f}(u) * s)"
        for f in ("tanh", "sigmoid", "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs", "erf")
    ),
    *(f"sum({f}(-u) * s)" for f in ("tanh", "sigmoid", "relu", "softplus", "abs", "erf")),
    *(f"dot({f}(u), s)" for f in ("softmax", "log_softmax")),
    "dot(leaky_relu(u - 2, 0.1), s)",
    "dot(max(u, 2), s) + dot(min(2 * s, u), u) + sum(clip(u * s, -0.5, 0.5)) + max(g, u[0]) + sum(max(g, u))",
    "mean(u) + g * mean(W)",
    "dot(u, u)",
    "logsumexp(u)",
    "cross_entropy(u, softmax(s))",
    "sum(concat(u, g, s)[2:5] * u)",
    "u[1] * s[n - 1]",
    "sum(u[:2]) - sum(u[1:n]) + u[0] / u[2]",
    "sum(u**2 + u**-1 + u**0.5 + u**3 + u**1 + u**0)",
    "sum(s**2) + sum((g * W)**3)",
    "dot(W.T @ (W @ u), s)",
    "dot((W @ exp(W)).T @ u, u) / g",
)

Arrays = dict[str, dict[str, np.ndarray[Any, Any]]]


def _load(path: Path, **overrides: object) -> Spec:
    collector = Collector()
    spec = load(path, overrides, collector)
    collector.finish()
    assert spec is not None
    return spec


def _written(folder: Path, text: str, **overrides: object) -> Spec:
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return _load(path, **overrides)


def _arrays(spec: Spec, shared: bool = False) -> Arrays:
    """Generic arrays of every shape; a pattern where the spec has a density."""
    rng = np.random.default_rng(5)
    batch = spec.data.batch or 4
    lead = (spec.data.T or 20, batch) if spec.states else (batch,)
    params = {name: 0.6 * rng.standard_normal(p.shape) for name, p in spec.params.items()}
    mask = {name: rng.random(p.shape) < 0.5 for name, p in spec.params.items() if p.density is not None}
    return {
        "params": {name: np.where(mask.get(name, True), value, 0.0) for name, value in params.items()},
        "inputs": {name: rng.standard_normal(lead + x.shape) for name, x in spec.inputs.items()},
        "state": {
            n: 0.5 * rng.standard_normal(s.shape if shared else (batch, *s.shape)) for n, s in spec.states.items()
        },
        "mask": mask,
    }


def _nudged(spec: Spec, arrays: Arrays, step: complex) -> Iterator[tuple[str, tuple[int, ...], Arrays]]:
    """Every entry that is differentiated, with the arrays in which it alone has moved by the step."""
    for group in ("params", "inputs", "state"):
        for name, value in arrays[group].items():
            if group == "params" and not spec.params[name].trainable:
                continue
            for index in np.ndindex(value.shape):
                if name in arrays["mask"] and not arrays["mask"][name][index]:
                    continue
                moved = value.astype(np.result_type(value, type(step)))
                moved[index] += step
                yield name, index, arrays | {group: arrays[group] | {name: moved}}


def _zeros(spec: Spec, arrays: Arrays) -> naive.Gradient:
    names = [name for name, p in spec.params.items() if p.trainable]
    groups = {n: arrays["params"][n] for n in names} | arrays["inputs"] | arrays["state"]
    return {name: np.zeros(value.shape) for name, value in groups.items()}


def _central(spec: Spec, arrays: Arrays, h: float = 1e-5) -> naive.Gradient:
    """(L(θ + h) - L(θ - h)) / 2h, entry by entry."""
    gradient = _zeros(spec, arrays)
    for sign in (1.0, -1.0):
        for name, index, moved in _nudged(spec, arrays, sign * h):
            gradient[name][index] += sign * naive.loss(spec, moved) / (2 * h)
    return gradient


def _complex_step(spec: Spec, arrays: Arrays, h: float = 1e-40) -> naive.Gradient:
    """Im L(θ + i h) / h, entry by entry."""
    gradient = _zeros(spec, arrays)
    for name, index, moved in _nudged(spec, arrays, 1j * h):
        gradient[name][index] = naive.loss(spec, moved).imag / h
    return gradient


def _same(expected: naive.Gradient, actual: naive.Gradient, tolerance: float) -> bool:
    assert list(expected) == list(actual)
    return all(np.allclose(expected[n], actual[n], rtol=tolerance, atol=tolerance) for n in expected)


@pytest.fixture(scope="module", params=[*RECURRENT, "sum mean", "mean sum", "last mean"])
def recurrent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A small recurrent spec: those of the folder, and the awkward one under each objective."""
    if request.param in RECURRENT:
        return _load(SPECS / f"{request.param}.toml", **SMALL, **RECURRENT[request.param])
    over_time, over_batch = request.param.split()
    text = AWKWARD.replace("OVER_TIME", over_time).replace("OVER_BATCH", over_batch)
    return _written(tmp_path_factory.mktemp("awkward"), text, **SMALL)


def test_rtrl_equals_bptt(recurrent: Spec) -> None:
    """Forwards or backwards, with q and J or with M, the gradient is the same to rounding."""
    arrays = _arrays(recurrent)
    assert _same(naive.bptt(recurrent, arrays), naive.rtrl(recurrent, arrays), 1e-13)


def test_bptt_equals_the_complex_step(recurrent: Spec) -> None:
    """Gradients of parameters, inputs and initial states are derivatives of the loss."""
    arrays = _arrays(recurrent)
    assert _same(_complex_step(recurrent, arrays), naive.bptt(recurrent, arrays), 1e-13)


@pytest.mark.parametrize("name", ["vanilla_rnn", "lru"])
def test_bptt_equals_central_differences(name: str) -> None:
    """A difference that shares no complex arithmetic agrees at its own resolution."""
    spec = _load(SPECS / f"{name}.toml", **SMALL, **RECURRENT[name])
    arrays = _arrays(spec)
    assert _same(_central(spec, arrays), naive.bptt(spec, arrays), 1e-8)


def test_a_shared_initial_state_has_one_gradient() -> None:
    """Where one state serves all samples its gradient has its shape and adds up over the batch."""
    spec = _load(SPECS / "leaky_rnn.toml", **SMALL, **RECURRENT["leaky_rnn"])
    shared = _arrays(spec, shared=True)
    each = shared | {"state": {"a": np.stack([shared["state"]["a"]] * 2)}}
    expected = naive.bptt(spec, each)["a"].sum(axis=0)
    for method in (naive.bptt, naive.rtrl):
        np.testing.assert_allclose(method(spec, shared)["a"], expected, rtol=1e-13)


@pytest.mark.parametrize(("k1", "k2"), [(1, 3), (2, 9)])
def test_tbptt_through_all_steps_is_bptt(recurrent: Spec, k1: int, k2: int) -> None:
    """With k2 of T or more nothing is cut."""
    arrays = _arrays(recurrent)
    assert _same(naive.bptt(recurrent, arrays), naive.tbptt(recurrent, arrays, k1, k2), 1e-13)


@pytest.mark.parametrize(("k1", "k2"), [(1, 2), (2, 2)])
def test_tbptt_cut_short_is_not_bptt(recurrent: Spec, k1: int, k2: int) -> None:
    """The twin that must fail: with k2 below T something is missing."""
    if recurrent.objective.over_time == "last":
        k1 = 1
    arrays = _arrays(recurrent)
    assert not _same(naive.bptt(recurrent, arrays), naive.tbptt(recurrent, arrays, k1, k2), 1e-6)


def test_tbptt_keeps_its_staircase() -> None:
    """T = 5, k1 = 2, k2 = 3: the blocks end at 2, 4 and 5 and go back to steps 0, 2 and 3."""
    spec = _load(SPECS / "leaky_rnn.toml", T=5, batch=2, n=2)
    arrays = _arrays(spec)
    kept = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (2, 4), (3, 4), (4, 4)]
    G = naive.triangle(spec, arrays)
    actual = naive.tbptt(spec, arrays, 2, 3)
    for name in G:
        np.testing.assert_allclose(actual[name], sum(G[name][s, t] for s, t in kept), rtol=1e-12, atol=1e-15)


def test_the_triangle_is_what_each_step_s_copy_of_the_parameters_does(recurrent: Spec) -> None:
    """G[s, t] is the derivative of step t's loss when the parameter moves at step s alone."""
    arrays = _arrays(recurrent)
    steps, batch = naive.sizes(recurrent, arrays)
    G = naive.triangle(recurrent, arrays)
    name = next(iter(G))
    index = tuple(int(i) for i in np.argwhere(arrays["mask"].get(name, np.ones(G[name].shape[2:])))[-1])
    moved = arrays["params"][name].astype(complex)
    moved[index] += 1e-40j
    actual = np.zeros((steps, steps))
    for s in range(steps):
        for b in range(batch):
            prev = {n: v[b] for n, v in arrays["state"].items()}
            for t in range(steps):
                params = arrays["params"] | ({name: moved} if s == t else {})
                inputs = {n: v[t, b] for n, v in arrays["inputs"].items()}
                now = naive.evaluate(recurrent, params, inputs, prev)
                actual[s, t] += naive.weight(recurrent, arrays, t) * now[recurrent.objective.loss].imag / 1e-40
                prev = {n: now[n] for n in recurrent.states}
    expected = [[G[name][s, t][index] for t in range(steps)] for s in range(steps)]
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


def test_factors_of_one_step(tmp_path: Path) -> None:
    """J, M̄ and the partials of the loss make up one step's derivative, each with its shape and order."""
    spec = _written(tmp_path, AWKWARD.replace("OVER_TIME", "sum").replace("OVER_BATCH", "sum"), T=1, batch=1)
    arrays = _arrays(spec)
    args = (spec, arrays, 0, 0)
    J, M, q = naive.jacobian(*args), naive.immediate(*args), naive.q(*args)
    assert [(4, 4), (4, 13), (4,)] == [J.shape, M.shape, q.shape]
    expected = _complex_step(spec, arrays)
    state, params = q @ J + naive.q_previous(*args), q @ M + naive.q_params(*args)
    np.testing.assert_allclose(state, np.concatenate([expected[n].ravel() for n in ("a", "m")]), rtol=1e-12)
    np.testing.assert_allclose(params, np.concatenate([expected[n].ravel() for n in ("W", "u", "g")]), rtol=1e-12)


def test_the_jacobian_of_the_vanilla_rnn_is_the_lecture_s() -> None:
    """J = diag(1 - a²) W and q = W_outᵀ (y - y*)."""
    spec = _load(SPECS / "vanilla_rnn.toml", **SMALL, **RECURRENT["vanilla_rnn"])
    arrays = _arrays(spec)
    _, states = naive.run(spec, arrays)
    p, a = arrays["params"], states["a"][2, 1]
    expected = np.diag(1 - a**2) @ p["W"]
    np.testing.assert_allclose(naive.jacobian(spec, arrays, 2, 1), expected, rtol=1e-12)
    error = p["W_out"] @ a + p["b_out"] - arrays["inputs"]["y_star"][2, 1]
    np.testing.assert_allclose(naive.q(spec, arrays, 2, 1), p["W_out"].T @ error, rtol=1e-12)


def test_entries_outside_a_pattern_are_no_parameters() -> None:
    """A pattern takes columns out of M̄ and leaves their gradient at zero."""
    spec = _load(SPECS / "masked_rnn.toml", **SMALL, **RECURRENT["masked_rnn"])
    arrays = _arrays(spec)
    mask = arrays["mask"]["W"]
    assert mask.sum() + 12 == naive.immediate(spec, arrays, 0, 0).shape[1]
    assert 0.0 == np.abs(naive.bptt(spec, arrays)["W"][~mask]).max()


@pytest.mark.parametrize("name", FEEDFORWARD)
def test_backprop_equals_both_differences(name: str) -> None:
    """Feed-forward gradients of parameters and inputs, against real and complex steps."""
    spec = _load(SPECS / f"{name}.toml", batch=2, **FEEDFORWARD[name])
    arrays = _arrays(spec)
    gradient = naive.backprop(spec, arrays)
    assert _same(_complex_step(spec, arrays), gradient, 1e-13)
    assert _same(_central(spec, arrays), gradient, 1e-7)


def test_the_square_at_two() -> None:
    """x² at 2 has the gradient 4."""
    spec = _load(SPECS / "square.toml")
    assert 4.0 == naive.backprop(spec, {"params": {"x": np.array(2.0)}, "inputs": {}})["x"]


@pytest.mark.parametrize("expression", FUNCTIONS)
def test_every_function_has_its_derivative(expression: str, tmp_path: Path) -> None:
    """Values and slopes of the language's functions, against the complex step and the real one."""
    text = f"""
bp = 1
dims = {{ n = 3 }}
inputs = {{ x = ["n"] }}
params = {{ s = ["n"], W = ["n", "n"], g = [] }}
[equations]
u = "tanh(s * x) + 2"
loss = "{expression}"
"""
    spec = _written(tmp_path, text, batch=1)
    arrays = _arrays(spec)
    gradient = naive.backprop(spec, arrays)
    assert _same(_complex_step(spec, arrays), gradient, 1e-13)
    assert _same(_central(spec, arrays), gradient, 1e-7)


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        ("relu", 0.0, (0.0, 0.0)),
        ("relu", -1.0, (0.0, 0.0)),
        ("relu", 3.0, (3.0, 1.0)),
        ("abs", 0.0, (0.0, 0.0)),
        ("abs", -2.0, (2.0, -1.0)),
        ("softplus", 800.0, (800.0, 1.0)),
        ("sigmoid", -800.0, (0.0, 0.0)),
        ("tanh", 400.0, (1.0, 0.0)),
    ],
)
def test_kinks_and_saturation(function: str, x: float, expected: tuple[float, float]) -> None:
    """At a kink the language's own derivative; far out no overflow."""
    assert expected == ELEMENTWISE[function](x)


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_specs_have_generic_gradients(path: Path) -> None:
    """No array of a spec of the folder has a vanishing gradient, so each of them tests something."""
    spec = _load(path, **({"T": 3} if "[state]" in path.read_text(encoding="utf-8") else {}), batch=2)
    arrays = _arrays(spec)
    gradient = (naive.bptt if spec.states else naive.backprop)(spec, arrays)
    assert [] == [name for name, value in gradient.items() if not np.abs(value).max() > 1e-4]
