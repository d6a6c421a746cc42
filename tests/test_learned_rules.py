"""Rules that learn, and random feedback: the identities that define them, slips that are found, and twins that fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import SPECS, distance, gradient, problem_of, small, written
from test_local_derivatives import SPOILED, Planted
from test_random_methods import FEW
from test_sparse_influence import DEEP

from bpcli.bench.profiling import allocated_bytes
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.errors import BpError
from bpcli.methods import MethodCall, eprop_random, load, parse
from bpcli.methods._online import Online, follow
from bpcli.methods.base import NoOptions
from bpcli.methods.dni import DNI, Synthetic
from bpcli.methods.kernl import Kernel, KeRNL, Options, fitted
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.references.numerics.expectation import Taken
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps, local_derivatives

LEARNED = ("kernl", "dni", "eprop-random")
NAMES = ("vanilla_rnn", "leaky_rnn", "gru", "lstm", "stacked_rnn", "masked_rnn", "lru")
# A leak, and nothing else between a unit and the others.
LEAK = """bp = 1
[inputs]
x = [2]
[params]
U = [2, 2]
[state]
a = { shape = [2], init = "normal", scale = 0.5 }
[equations]
a = "0.7 * a[t-1] + tanh(U @ x)"
loss = "sum(a**2) + sum(a[t-1] * a)"
[data]
T = 60
batch = 2
"""


def online(text: str) -> tuple[Online, Any]:
    """A method and its options."""
    call = parse(text)
    assert isinstance(call.method, Online)
    return call.method, call.options


LEAKS = {"vanilla_rnn": 0, "leaky_rnn": 0.5, "indrnn": 0, "stacked_rnn": 0, "masked_rnn": 0}


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(("name", "leak"), LEAKS.items())
def test_a_fixed_kernel_of_the_leak_is_rflo(name: str, leak: float, dtype: str, limit: float) -> None:
    """Not with another decay, nor once it learns."""
    problem = small(name, dtype)
    rflo = gradient(problem, "rflo").arrays
    assert distance(gradient(problem, f"kernl:rate=0,decay={leak}").arrays, rflo) < limit
    assert distance(gradient(problem, "kernl:rate=0,decay=0.8").arrays, rflo) > 1e-3
    assert distance(gradient(problem, f"kernl:rate=0.5,decay={leak}").arrays, rflo) > 1e-3


def test_a_kernel_of_the_jacobian_is_exact(tmp_path: Path) -> None:
    """Where the influence of a unit is its decay; a kernel that starts elsewhere learns it."""
    problem = written(tmp_path, LEAK)
    exact = gradient(problem, "rtrl").arrays
    assert distance(gradient(problem, "kernl:rate=0,decay=0.7").arrays, exact) < 1e-12
    assert distance(gradient(problem, "kernl:rate=0,decay=0.3").arrays, exact) > 0.1
    state = KeRNL().start(problem.setup, Options(rate=0.5, decay=0.3), np.random.default_rng(0))
    for local in local_derivatives(problem):
        state = KeRNL().step(state, local)
    assert np.abs(state.kappa - 0.7).max() < 0.05 and np.abs(state.A - np.eye(2)).max() < 0.1


def test_the_kernel_follows_its_gradient() -> None:
    """Equation (4) by loops, from differences of the error."""
    rng = np.random.default_rng(3)
    problem = small("gru")
    state = KeRNL().start(problem.setup, Options(), rng)
    for local in local_derivatives(problem):
        state = KeRNL().step(state, local)
    A, kappa = state.A + 0.1 * rng.standard_normal(state.A.shape), state.kappa
    held = replace(state, A=A, kappa=kappa)
    new = fitted(held)

    def error(b: int, A: Array, kappa: Array) -> float:
        modelled = A @ (state.Omega[b] + (kappa - state.kappa) * state.Lambda[b])
        return float(((modelled - state.d[b]) ** 2).sum() / 2)

    for i, j in np.ndindex(*A.shape):
        slopes = [_slope(lambda h, b=b, i=i, j=j: error(b, _moved(A, (i, j), h), kappa)) for b in range(len(state.d))]
        wanted = -0.1 * np.mean([s / _scale(held, b) for b, s in enumerate(slopes)])
        assert abs(new.A[i, j] - A[i, j] - wanted) < 1e-9
    for j in range(len(kappa)):
        slopes = [_slope(lambda h, b=b, j=j: error(b, A, _moved(kappa, (j,), h))) for b in range(len(state.d))]
        wanted = -0.1 * np.mean([s / _scale(held, b) for b, s in enumerate(slopes)])
        assert abs(new.kappa[j] - kappa[j] - wanted) < 1e-9


def _slope(value: Any) -> float:
    return float((value(1e-4) - value(-1e-4)) / 2e-4)


def _moved(array: Array, place: tuple[int, ...], by: float) -> Array:
    found = array.copy()
    found[place] += by
    return found


def _scale(state: Kernel, b: int) -> float:
    columns = [float((state.A[:, j] ** 2).sum() * state.Lambda[b, j] ** 2) for j in range(len(state.kappa))]
    return 1 + float((state.Omega[b] ** 2).sum()) + sum(columns)


@dataclass(frozen=True)
class KnownCredit:
    """DNI with the true credit of later losses in place of its model's."""

    later: list[Array]
    start = DNI().start

    def step(self, state: Synthetic, local: LocalDerivatives) -> Synthetic:
        """λ = q + φ."""
        credit = local.q + self.later[local.t]
        return replace(state, credit=credit, earlier=local.q_before + (credit[:, None] @ local.J)[:, 0])

    credit = DNI().credit


def later_losses(steps: Taken, stale: bool = False) -> list[Array]:
    """φ(t) of all steps; `stale` leaves out what a step itself adds."""
    found = list[Array]()
    phi: Any = 0.0
    for local in reversed(list(steps.since(0))):
        found.append(np.zeros_like(local.q) + phi)
        phi = (0 if stale else local.q_before) + ((local.q + phi)[:, None] @ local.J)[:, 0]
    return found[::-1]


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("name", [*NAMES, "deep"])
def test_true_credit_is_bptt(tmp_path: Path, name: str, dtype: str, limit: float) -> None:
    """With the model's credit in place of it, it is not; nor without what a loss owes to the state before."""
    problem = written(tmp_path, DEEP, {"dtype": dtype}) if name == "deep" else small(name, dtype)
    steps = Taken(problem)
    exact = gradient(problem, "bptt").arrays
    assert distance(follow(KnownCredit(later_losses(steps)), steps, parse("dni").options, "").arrays, exact) < limit
    assert distance(gradient(problem, "dni").arrays, exact) > 1e-2
    if name == "deep":
        wrong = KnownCredit(later_losses(steps, stale=True))
        assert distance(follow(wrong, steps, parse("dni").options, "").arrays, exact) > 1e-2


def test_the_synthetic_gradient_learns() -> None:
    """Nearer to the true credit of later losses, late in a long sequence, than no credit; at rate 0 there is none."""
    problem = problem_of(SPECS / "leaky_rnn.toml", {"n": 4, "T": 1500, "batch": 4, "alpha": 0.2}, ("params",))
    constant = {"x": 0 * problem.inputs["x"], "y_star": 0 * problem.inputs["y_star"] + 0.5}
    problem = replace(problem, inputs={**problem.inputs, **constant})
    steps = Taken(problem)
    later, rule = later_losses(steps), DNI()
    state, off = rule.start(problem.setup, online("dni:0.5")[1], np.random.default_rng(0)), list[float]()
    for local in steps.since(0):
        state = rule.step(state, local)
        off.append(float(np.linalg.norm(state.credit - local.q - later[local.t])))
    assert off[0] == np.linalg.norm(later[0]) and max(off[1200:1400]) < 0.2 * np.linalg.norm(later[1200])
    without = follow(rule, steps, online("dni:0")[1], "").arrays
    assert distance(without, gradient(problem, "fbptt:1").arrays) < 1e-12


def test_random_feedback_of_a_leaky_rnn() -> None:
    """Equation (3): (y − y*) B times the traces; the read-out learns as ever, and B = W_out is `eprop`."""
    problem = small("leaky_rnn")
    _, matrices = eprop_random.with_feedback(problem.setup)
    (B,) = matrices.values()
    found, exact = gradient(problem, "eprop-random").arrays, gradient(problem, "bptt").arrays
    assert distance(found, gradient(problem, "eprop").arrays) > 0.1
    for name in ("W_out", "b_out"):
        assert np.array_equal(found[name], exact[name])
    assert distance({"W_in": found["W_in"]}, {"W_in": traced(problem, B)}) < 1e-12
    assert distance({"W_in": found["W_in"]}, {"W_in": traced(problem, problem.params["W_out"])}) > 0.1


def traced(problem: Problem, B: Array) -> Array:
    """The gradient of W_in of a leaky RNN by e-prop, with feedback B, by loops."""
    p, x, alpha = problem.params, problem.inputs["x"], problem.setup.spec.constants["alpha"]
    states = np.broadcast_to(problem.state["a"], (problem.setup.batch, B.shape[1]))
    found = np.zeros_like(p["W_in"])
    for b, a in enumerate(states):
        trace = np.zeros_like(found)
        for t in range(problem.setup.T):
            h = np.tanh(p["W"] @ a + p["W_in"] @ x[t, b] + p["b_rec"])
            a = (1 - alpha) * a + alpha * h
            trace = (1 - alpha) * trace + np.outer(alpha * (1 - h * h), x[t, b])
            signal = (p["W_out"] @ a + p["b_out"] - problem.inputs["y_star"][t, b]) @ B
            found += signal[:, None] * trace
    return found / problem.setup.batch if problem.setup.spec.objective.over_batch == "mean" else found


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", NAMES)
def test_symmetric_feedback_is_eprop(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, limit: float) -> None:
    """Random matrices that are those of the network; the loss is the network's own in any case."""
    problem = small(name, dtype)
    found, eprop = gradient(problem, "eprop-random"), gradient(problem, "eprop")
    assert found.loss == eprop.loss and distance(found.arrays, eprop.arrays) > 0.1
    setup, matrices = eprop_random.with_feedback(problem.setup)
    graph = problem.setup.graph
    own = {name: problem.params[graph.nodes[int(name.split()[1])].name] for name in matrices}
    method = replace(load("eprop-random"), rewrite=lambda given: (setup, own))  # type: ignore[type-var]
    assert distance(method.gradient(problem, NoOptions()).arrays, eprop.arrays) < limit


def test_feedback_through_two_layers(tmp_path: Path) -> None:
    """Each matrix has its own, one used twice the same; a state that is read without a matrix goes back as it is."""
    text = DEEP.replace('loss = "sum(b**2) + dot(a, a[t-1])"', 'loss = "sum((P @ tanh(Q @ b) + Q @ b)**2) + sum(a)"')
    problem = written(tmp_path, text.replace("[params]", "[params]\nP = [3, 3]\nQ = [3, 2]"))
    assert [(3, 2), (3, 3)] == sorted(m.shape for m in eprop_random.with_feedback(problem.setup)[1].values())
    found, exact = gradient(problem, "eprop-random").arrays, gradient(problem, "bptt").arrays
    assert distance({"P": found["P"]}, exact) < 1e-13 and distance({"Q": found["Q"]}, exact) > 1e-2
    refusal = load("eprop-random").refusal(written(tmp_path, FEW).setup.graph)
    assert "`eprop` applies" in str(refusal)


def judged(problem: Problem, text: str, slip: Any = None) -> list[Finding]:
    """The findings of a check; `slip` makes the local derivatives wrong that the method runs on."""
    method, options = online(text)
    if slip is not None:
        given = method
        defined = lambda setup, options: given.definition(setup, options)  # noqa: E731
        method = replace(method, rule=Planted(method.rule, slip), defined=defined, compiled=None)
    return check_problem(problem, [MethodCall(text, method, options)], CheckOptions())


SLIPS: Mapping[str, Any] = {
    "wrong slope": lambda local, before: replace(
        local, factors=tuple(replace(f, delta=f.delta * 1.01) for f in local.factors)
    ),
    **{how: SPOILED[how] for how in ("stale q", "M̄ without its last term")},
}


@pytest.mark.parametrize("text", ["kernl:rate=0.5", "dni:0.5", "eprop-random"])
@pytest.mark.parametrize("name", ["leaky_rnn", "gru"])
def test_an_approximation_is_no_error_and_a_slip_is(name: str, text: str) -> None:
    """Judged against the recursion itself, in both dtypes."""
    for dtype in ("float64", "float32"):
        assert {"pass"} == {f.verdict for f in judged(small(name, dtype), text)}
    slips = {**SLIPS, "no J": SPOILED["no J"]} if text != "eprop-random" else SLIPS
    for how, slip in slips.items():
        assert "wrong" in {f.verdict for f in judged(small(name), text, slip)}, how


def test_wrong_rules_are_found() -> None:
    """A kernel that fits the wrong way round, and a model that learns from itself alone."""

    class Transposed(KeRNL):
        """A in place of its transpose, in the credit."""

        def credit(self, state: Kernel, local: LocalDerivatives) -> Any:
            """With Aᵀ."""
            return KeRNL().credit(replace(state, A=state.A.T), local)

    class Unlearned(DNI):
        """The target of the model without the losses of the step."""

        def step(self, state: Synthetic, local: LocalDerivatives) -> Synthetic:
            """With B of no reward."""
            return replace(DNI().step(state, local), B=DNI().step(state, replace(local, q=0 * local.q)).B)

    problem = small("gru")
    for text, rule in (("kernl:rate=0.5", Transposed()), ("dni:0.5", Unlearned())):
        method, options = online(text)
        defined = lambda setup, options, given=method: given.definition(setup, options)  # noqa: E731
        wrong: Any = replace(method, rule=rule, defined=defined)
        found = check_problem(problem, [MethodCall(text, wrong, options)], CheckOptions())
        assert "wrong" in {f.verdict for f in found}, text


def test_symmetric_feedback_in_place_of_random_is_found() -> None:
    """The random matrices are part of the definition."""
    problem, right = small("lstm"), load("eprop-random")

    class Symmetric:
        """E-prop under another definition."""

        name, summary, tags, Options = right.name, "", right.tags, right.Options
        refusal, cost, gradient = right.refusal, right.cost, load("eprop").gradient

        def definition(self, setup: Setup, options: Any) -> Any:
            """That of random feedback."""
            return right.definition(setup, options)

    method: Any = Symmetric()
    found = check_problem(problem, [MethodCall("eprop-random", method, NoOptions())], CheckOptions())
    assert {"U", "W", "b"} <= {f.tensor for f in found if f.verdict == "wrong"}


@pytest.mark.parametrize("text", LEARNED)
def test_steps_sum_up_and_draws_differ(text: str) -> None:
    """The gradients of the steps are the gradient; only noise and nothing else is drawn anew."""
    problem, (method, options) = small("gru"), online(text)
    whole = method.gradient(problem, options).arrays
    steps = [found.arrays for found in method.step_gradients(problem, options)]
    assert distance({name: np.sum([s[name] for s in steps], axis=0) for name in whole}, whole) < 1e-12
    assert (distance(method.drawn(problem, options, 1).arrays, whole) > 1e-6) == (text == "kernl")


@pytest.mark.parametrize("text", LEARNED)
def test_memory_is_as_predicted(text: str) -> None:
    """No dense M, and no more than foretold."""
    problem, call = problem_of(SPECS / "vanilla_rnn.toml", {"n": 48, "T": 8, "batch": 2}, ("params",)), parse(text)
    call.gradient(problem)
    cost = call.cost(problem.setup)
    assert 0.4 * cost.bytes <= allocated_bytes(lambda: call.gradient(problem)) <= 1.05 * cost.bytes + 100_000
    assert cost.bytes < load("rtrl-dense").cost(problem.setup, NoOptions()).bytes / 4


@pytest.mark.parametrize(
    ("text", "message"),
    [("kernl:rate=2", "rate must be"), ("kernl:decay=1.5", "decay must be"), ("dni:-1", "rate must be")],
)
def test_options_out_of_range(text: str, message: str) -> None:
    """Rates that diverge, and decays that grow."""
    with pytest.raises(BpError, match=message):
        parse(text)


def test_states_after_the_step() -> None:
    """`a` of a step is what the next one starts from: J times a change of it is the change of the next."""
    problem = small("lstm")
    states = [local.a for local in LocalSteps(problem).since(0)]
    again = replace(problem.setup, T=1)
    for t in range(1, problem.setup.T):
        before = {"h": states[t - 1][:, :3], "c": states[t - 1][:, 3:]}
        one = Problem(again, problem.params, {n: x[t : t + 1] for n, x in problem.inputs.items()}, before)
        (local,) = LocalSteps(replace(one, setup=replace(again, shared=frozenset()))).since(0)
        assert np.array_equal(local.a, states[t])
