"""Peers: other programs that run the same Graph."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from naive import backprop, bptt, loss

from bpcli import backends
from bpcli.backends.jax import PEER as JAX
from bpcli.backends.torch import PEER as TORCH
from bpcli.bench.precheck import judge_peer
from bpcli.errors import BpError
from bpcli.methods import parse
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

SPECS = sorted((Path(__file__).parents[1] / "specs").glob("*.toml"))
SMALL = {"n": 3, "n1": 2, "n2": 3, "T": 3, "batch": 2}
VANILLA = next(p for p in SPECS if p.stem == "vanilla_rnn")
RECURRENT = ("gru", "indrnn", "leaky_rnn", "lru", "lstm", "masked_rnn", "stacked_rnn", "vanilla_rnn")
PEERS = [
    pytest.param(p, marks=pytest.mark.skipif(p.available() is not None, reason=f"no {p.name}"), id=p.name)
    for p in (JAX, TORCH)
]
each_peer = pytest.mark.parametrize("peer", PEERS)
needs_torch = pytest.mark.skipif(TORCH.available() is not None, reason="no torch")
TOLERANCE = {"float64": 1e-10, "float32": 2e-3}

ODD = """bp = 1
dtype = "{dtype}"
[dims]
n = 2
[constants]
slope = 0.1
[inputs]
x = ["n"]
[params]
W = {{ shape = ["n", "n"], density = 0.75 }}
V = ["n", "n"]
b = ["n"]
g = []
[state]
a = {{ shape = ["n"], init = "normal", trainable = true }}
s = []
[equations]
U = "g * V + V.T @ W"
r = "relu(U @ a[t-1] + x) + leaky_relu(b, slope) + abs(x) + erf(x + b) + m"
m = "max(x, b) * min(b, a[t-1]) + clip(x, slope, 0.5) * stop_gradient(r0) + stop_gradient(V) @ x"
r0 = "tanh(b * a[t-1]) * step(b - x, 0.5) + step(a[t-1] + 0.3)"
a = "softmax(r)[0:n] * s[t-1] + log_softmax(b) - a[t-1]**3"
s = "dot(a[t-1], x) + 0.1 * logsumexp(concat(a[t-1], s[t-1], g)) + a[t-1][0]"
loss = "mean(r)**2 + sum(a) + s[t-1] * mean(a) + sum(V) / (2 + cos(s)) - sqrt(exp(g)) + cross_entropy(a, softmax(x))"
[objective]
over_time = "{over_time}"
over_batch = "{over_batch}"
[data]
T = 4
batch = 3
"""


PHASES = """bp = 1
[inputs]
x = [2]
[params]
w = [2]
v = [2]
[state]
a = { shape = [2], init = "normal" }
fed = { shape = [2], init = "normal" }
fixed = { shape = [2], init = "normal" }
total = []
[equations]
a = "tanh(w * a[t-1] + v * fed[t-1])"
fed = "v * x"
fixed = "exp(w)"
loss = "sum(a * fixed[t-1]) + 0.1 * dot(fed[t-1], a)"
total = "loss + 0.5 * total[t-1]"
[data]
T = 4
batch = 3
"""


def opened(path: Path, overrides: dict[str, object], wrt: tuple[str, ...] = ()) -> Setup:
    """The setup of a spec with those overrides that it knows."""
    spec = open_setup(path, {}, (), Limits()).spec
    known = {
        k: v for k, v in overrides.items() if k in spec.dims or k in ("batch", "dtype") or (k == "T" and spec.states)
    }
    return open_setup(path, known, wrt, Limits())


def truth(problem: Problem) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the gradient by the loop-only twin, zero where a density leaves entries out."""
    setup = problem.setup
    arrays = {"params": problem.params, "inputs": problem.inputs, "state": problem.state}
    found = (bptt if setup.graph.recurrent else backprop)(setup.spec, arrays)
    gradients = {}
    for tensor in setup.wrt:
        kept = np.ones(tensor.shape) if tensor.pattern is None else np.zeros(tensor.shape)
        if tensor.pattern is not None:
            kept.reshape(-1)[tensor.pattern] = 1.0
        gradients[tensor.name] = np.asarray(found[tensor.name]).reshape(tensor.shape) * kept
    return loss(setup.spec, arrays), gradients


def assert_equal(peer, setup: Setup, method: str) -> None:
    """The peer's loss and gradient equal those of the twin, relative to the largest entry of each tensor."""
    problem, tolerance = draw(setup), TOLERANCE[setup.dtype.name]
    expected, gradients = truth(cast(problem, np.dtype(np.float64)))
    found = peer.gradient_function(problem, method)()
    assert expected == pytest.approx(found.loss, rel=tolerance)
    for tensor in setup.wrt:
        assert (tensor.shape, setup.dtype) == (found.arrays[tensor.name].shape, found.arrays[tensor.name].dtype)
        scale = max(np.abs(gradients[tensor.name]).max(), 1e-300)
        np.testing.assert_allclose(found.arrays[tensor.name], gradients[tensor.name], rtol=0, atol=tolerance * scale)


needs_jax = pytest.mark.skipif(JAX.available() is not None, reason="no jax")
# Of each method in JAX another one that it must not equal.
RULES = {"sqrt": "tbptt:k1=1,k2=2", "snap:k=1": "rflo", "uoro": "bptt"}
LOOKING_BACK = """bp = 1
[inputs]
x = [2]
[params]
W = [2, 2]
V = [2, 2]
b = [2]
[state]
a = { shape = [2], init = "normal" }
[equations]
h = "V @ x + W @ a[t-1] + b"
a = "0.3 * a[t-1] + 0.7 * tanh(h)"
loss = "sum((a - a[t-1])**2) + sum(h**2)"
[data]
T = 5
batch = 3
"""


@needs_jax
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("name", ["vanilla_rnn", "gru", "masked_rnn", "looking back"])
def test_a_rule_in_jax_is_that_of_bp(name, method, tmp_path):
    """The same loss and gradient, of UORO with the same signs, and not those of another method."""
    path = tmp_path / "back.toml"
    path.write_text(LOOKING_BACK)
    problem = draw(opened(path if name == "looking back" else VANILLA.with_stem(name), {**SMALL, "T": 7}, ("params",)))
    found = JAX.gradient_function(problem, method)()
    ours, other = (parse(m).gradient(problem) for m in (method, RULES[method]))
    assert ours.loss == pytest.approx(found.loss, rel=1e-12)
    apart = {m: max(float(np.abs(g.arrays[k] - found.arrays[k]).max()) for k in g.arrays) for m, g in
             (("ours", ours), ("other", other))}  # fmt: skip
    scale = max(np.abs(g).max() for g in ours.arrays.values())
    assert apart["ours"] < 1e-12 * scale and apart["other"] > 1e-3 * scale


@needs_jax
@pytest.mark.parametrize("T", [1, 2, 9, 10])
def test_checkpoints_of_any_number_of_steps(T):
    """Whole segments, and a shorter one at the end."""
    assert_equal(JAX, opened(VANILLA, {**SMALL, "T": T}), "sqrt")


@needs_jax
def test_a_rule_in_jax_is_judged_by_that_of_bp():
    """A gradient that is off is wrong; where bp's own fails, the true gradient says nothing about an approximation."""
    problem, call = draw(opened(VANILLA, SMALL, ("params",))), parse("snap:k=1")
    found, true = JAX.gradient_function(problem, "snap:k=1")(), parse("bptt").gradient(problem)
    off = dataclasses.replace(found, arrays={name: 1.01 * g for name, g in found.arrays.items()})
    verdicts = [judge_peer(problem, call, g, true, ours).verdict for g, ours in
                ((found, "pass"), (off, "pass"), (found, "wrong"))]  # fmt: skip
    assert ["pass", "wrong", "inconclusive"] == verdicts


@each_peer
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_reverse_mode_equals_the_twin_on_every_spec(peer, path, dtype):
    """BPTT and backprop with respect to everything."""
    wrt = ("params", "state", "inputs") if path.stem in RECURRENT else ("params", "inputs")
    setup = opened(path, {**SMALL, "dtype": dtype}, wrt)
    assert_equal(peer, setup, "bptt" if setup.graph.recurrent else "backprop")


@each_peer
@pytest.mark.parametrize("path", [p for p in SPECS if p.stem in ("lru", "lstm", "masked_rnn")], ids=lambda p: p.stem)
def test_rtrl_equals_the_twin_on_recurrent_specs(peer, path):
    """RTRL with respect to parameters and initial states."""
    assert_equal(peer, opened(path, SMALL, ("params", "state")), "rtrl")


@each_peer
@pytest.mark.parametrize(
    ("method", "over_time", "over_batch"), [("bptt", "sum", "mean"), ("bptt", "mean", "sum"), ("rtrl", "last", "mean")]
)
def test_peers_know_all_operations_and_reductions(peer, tmp_path, method, over_time, over_batch):
    """A spec that uses every operation, a shared trainable state, a density, and losses that look at t-1."""
    path = tmp_path / "odd.toml"
    path.write_text(ODD.format(dtype="float64", over_time=over_time, over_batch=over_batch))
    assert_equal(peer, opened(path, {}, ("params", "state")), method)


@each_peer
@pytest.mark.parametrize("method", ["rtrl"])
def test_peers_stay_in_float32(peer, tmp_path, method):
    """The spec's precision is the peer's."""
    path = tmp_path / "odd.toml"
    path.write_text(ODD.format(dtype="float32", over_time="sum", over_batch="mean"))
    assert_equal(peer, opened(path, {}, ("params",)), method)


@each_peer
@pytest.mark.parametrize("method", ["bptt", "rtrl"])
def test_peers_know_states_of_every_phase(peer, tmp_path, method):
    """States that are computed from inputs or parameters alone, and one that sums up the loss."""
    path = tmp_path / "phases.toml"
    path.write_text(PHASES)
    assert_equal(peer, opened(path, {}, ("params", "state")), method)


@each_peer
@pytest.mark.parametrize("loss", ["sum(a)", "sum(a[t-1])", "p + sum(a) + b", "mean(a)"])
@pytest.mark.parametrize("a", ["concat(1, 1, 1)", "concat(p, p, p)", "concat(x, 1, x)"])
@pytest.mark.parametrize("method", ["bptt", "rtrl"])
def test_peers_know_states_that_do_not_vary(peer, tmp_path, method, a, loss):
    """New values without an axis of samples, read in the same step, in the next one, or by another state."""
    path = tmp_path / "still.toml"
    text = f"""bp = 1
[inputs]
x = []
[params]
p = {{ shape = [], value = 0.5 }}
[state]
a = [3]
b = []
[equations]
a = "{a}"
b = "p * sum(a[t-1])"
loss = "{loss}"
[data]
T = 3
batch = 2
"""
    path.write_text(text)
    assert_equal(peer, opened(path, {}, ("params", "state")), method)


@each_peer
def test_a_gradient_of_nothing_is_zero(peer, tmp_path):
    """The loss need not depend on what is differentiated."""
    path = tmp_path / "idle.toml"
    path.write_text('bp = 1\n[inputs]\nx = []\n[params]\nw = [2]\n[equations]\nloss = "x**2"\n')
    assert_equal(peer, opened(path, {}), "backprop")


@needs_torch
def test_gradcheck_gives_the_gradient_that_it_has_checked():
    """The call that is timed checks; it returns the gradient."""
    assert_equal(TORCH, opened(VANILLA, SMALL), "central")


@needs_torch
def test_a_gradient_that_gradcheck_rejects_is_no_row(tmp_path):
    """The step of gradcheck straddles the kink of |w| at w = 1e-9."""
    path = tmp_path / "kink.toml"
    path.write_text('bp = 1\n[params]\nw = { shape = [], value = 1e-9 }\n[equations]\nloss = "abs(w)"\n')
    with pytest.raises(BpError, match="gradcheck rejects the gradient"):
        TORCH.gradient_function(draw(opened(path, {})), "check")()


def test_peers_are_found_by_their_files():
    """Shared modules of the package are no peers."""
    assert ("jax", "torch", "torch_nn") == backends.known_names()


def test_an_unknown_peer_gets_the_nearest():
    """A usage error."""
    with pytest.raises(BpError, match='unknown peer "jacks"') as caught:
        backends.get("jacks")
    assert "jax" in caught.value.diagnostics[0].help


def test_a_peer_that_is_not_installed_says_how_to_get_it(monkeypatch):
    """The extra is named."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BpError, match="JAX is not installed") as caught:
        backends.get("jax")
    assert "bp-check[peers]" in caught.value.diagnostics[0].help


@pytest.mark.parametrize(
    ("method", "wrt", "dtype", "by"),
    [("bptt", ("params", "inputs"), "float64", "jax torch"), ("rtrl", ("params", "state"), "float32", "jax torch"),
     ("snap: 1", ("params",), "float64", "jax"), ("snap:k=2", ("params",), "float64", ""),
     ("uoro", ("params", "state"), "float64", ""), ("sqrt", ("params", "inputs"), "float32", "jax"),
     ("rtrl", ("inputs",), "float64", ""), ("tbptt:k1=1,k2=2", ("params",), "float64", ""),
     ("central", ("params",), "float64", "torch"), ("central", ("params",), "float32", ""),
     ("complex-step", ("params",), "float64", "")],
)  # fmt: skip
def test_a_peer_says_what_it_does_not_run(method, wrt, dtype, by):
    """RTRL with respect to inputs, methods that it lacks, and gradcheck in single precision."""
    setup = opened(VANILLA, {**SMALL, "dtype": dtype}, wrt)
    assert by.split() == [p.name for p in (JAX, TORCH) if p.refusal(setup, method) is None]


@pytest.mark.parametrize(("threads", "told"), [(1, True), (2, False)])
def test_one_thread_is_told_to_xla(monkeypatch, threads, told):
    """XLA takes all cores unless its flags say otherwise."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    held = JAX.prepare(threads)
    import os

    assert (1 if told else None) == held
    assert told == ("multi_thread_eigen=false" in os.environ["XLA_FLAGS"])
    assert os.environ["XLA_FLAGS"].startswith("--xla_some=1")


@needs_jax
@pytest.mark.parametrize(
    ("name", "method", "why"),
    [("lstm", "snap:k=1", "one state whose units"), ("stacked_rnn", "snap:k=1", "one state whose units"),
     ("lru", "uoro", "as they are"), ("lstm", "uoro", None), ("gru", "snap:k=1", None)],
)  # fmt: skip
def test_networks_that_a_rule_in_jax_does_not_take(name, method, why):
    """More states than one, or parameters behind a function, have no number for each parameter."""
    reason = JAX.refusal(opened(VANILLA.with_stem(name), SMALL, ("params",)), method)
    assert (reason is None) == (why is None) and (why or "") in (reason or "")
