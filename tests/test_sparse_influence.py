"""Methods on the pattern of M: their identities, compiled code against the rules in NumPy, and twins that must fail."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import RECURRENT, SPECS, distance, gradient, problem_of, small, written
from test_local_derivatives import ODD, Planted
from test_recursions import ADDEND

from bpcli.bench.profiling import allocated_bytes
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.methods import MethodCall, load, parse
from bpcli.methods._online import Online
from bpcli.methods._patterned import OnPattern, SparseKernels, credited
from bpcli.methods.base import NoOptions
from bpcli.methods.rtrl_block import Options
from bpcli.problem.definition import Array, Problem
from bpcli.runtime import sparse_plan as sizes
from bpcli.runtime.jacobian import DenseJacobian
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps, influence_layout
from bpcli.runtime.local_plan import local_plan
from bpcli.runtime.sparse_plan import Sparsity, sets_of, sparse_plan
from bpcli.tape.probing import PATHS, Paths

PATTERNED = ("rtrl-sparse", "rtrl-block:h=3", "snap:k=1", "snap:k=2", "rflo", "eprop")
# Two layers with leaks, of which the upper one reads the new state of the lower; a gate applied before its product.
DEEP = """bp = 1
[inputs]
x = [2]
[params]
U = [3, 2]
W = [3, 3]
R = [3, 3]
V = [2, 3]
Z = [2, 2]
[state]
a = { shape = [3], init = "normal", scale = 0.5 }
b = { shape = [2], init = "normal", scale = 0.5 }
[equations]
r = "sigmoid(R @ a[t-1] + U @ x)"
a = "0.7 * a[t-1] + 0.3 * tanh(W @ (r * a[t-1]) + U @ x)"
b = "0.6 * b[t-1] + 0.4 * tanh(V @ a + Z @ b[t-1])"
loss = "sum(b**2) + dot(a, a[t-1])"
[data]
T = 7
batch = 2
"""
# A sum over all units mixes them without a matrix: J takes unit seeds.
MIXED = """bp = 1
[inputs]
x = [3]
[params]
w = [3]
u = [3]
[state]
a = { shape = [3], init = "normal", scale = 0.5 }
[equations]
a = "tanh(w * a[t-1] + u * x + 0.3 * sum(a[t-1]))"
loss = "sum(a**2)"
[data]
T = 6
batch = 2
"""
TEXTS = {"deep": DEEP, "mixed": MIXED, "odd": ODD, "addend": ADDEND}


def opened(folder: Path, name: str, **overrides: object) -> Problem:
    """A shipped spec, or one of the texts, with everything differentiated."""
    if name in TEXTS:
        return written(folder, TEXTS[name], overrides)
    return problem_of(SPECS / f"{name}.toml", {"T": 7, "batch": 2, **overrides})


def online(text: str) -> tuple[Online, Any]:
    """A method and its options."""
    call = parse(text)
    assert isinstance(call.method, Online)
    return call.method, call.options


def in_numpy(problem: Problem, text: str) -> dict[str, Array]:
    """The gradient by the rule."""
    method, options = online(text)
    return dict(replace(method, compiled=None).gradient(problem, options).arrays)


BLOCKS: tuple[dict[str, float], ...] = (
    {"MOST_STEPS": 1},
    {"MOST_STEPS": 3, "TERM": 1e9},
    {"MOST_STEPS": 2, "BUNDLE_ROWS": 2, "PIECE_ENTRIES": 7},
    {},
)


@pytest.mark.parametrize("constants", BLOCKS, ids=str)
@pytest.mark.parametrize("name", [*RECURRENT, *TEXTS])
def test_compiled_code_is_the_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, constants: dict[str, float]
) -> None:
    """In blocks of any length, by unit seeds and by the parts of J, with groups one by one; in float32 too."""
    for constant, value in constants.items():
        monkeypatch.setattr(sizes, constant, value)
    for dtype, limit in (("float64", 1e-12), ("float32", 1e-5))[: 1 if constants else 2]:
        problem = opened(tmp_path, name, dtype=dtype)
        for text in PATTERNED:
            assert distance(gradient(problem, text).arrays, in_numpy(problem, text)) < limit, (text, dtype)


def test_how_jacobians_are_taken(tmp_path: Path) -> None:
    """By parts where a matrix mixes units, with few passes where cells are elementwise; else by unit seeds."""

    def passes(problem: Problem, text: str) -> dict[str, int]:
        sparsity = online(text)[0].compiled.sparsity(parse(text).options)  # type: ignore[union-attr]
        probes = sparse_plan(problem.setup, sparsity).local.probes
        return {name: probe.passes for name, probe in probes.items()}

    lstm = problem_of(SPECS / "lstm.toml", {"n": 32}, ("params",))
    assert passes(lstm, "snap:k=1") == {"deltas": 2, "elementwise": 2}
    assert passes(lstm, "rflo") == {"deltas": 2, "affine": 1}
    assert passes(opened(tmp_path, "mixed"), "snap:k=1") == {"deltas": 3}
    assert local_plan(influence_layout(opened(tmp_path, "mixed").setup).plan).firsts is None


@pytest.mark.parametrize("name", RECURRENT)
def test_exact_methods(name: str) -> None:
    """Equal to `bptt` in both dtypes; one step less of the pattern, or blocks that forget, are not."""
    for dtype, limit in (("float64", 1e-12), ("float32", 1e-5)):
        problem = problem_of(SPECS / f"{name}.toml", {"T": 9, "batch": 2, "dtype": dtype})
        exact = gradient(problem, "bptt").arrays
        for text in ("rtrl-sparse", "rtrl-block:h=1", "rtrl-block:h=4", "rtrl-block:h=40"):
            assert distance(gradient(problem, text).arrays, exact) < limit
    assert distance(gradient(problem, "ebptt:4").arrays, exact) > 1e-2
    assert (distance(gradient(problem, "snap:k=1").arrays, exact) > 1e-2) != (name == "indrnn")


def changed(problem: Problem, W: Array) -> Problem:
    """The problem with another recurrent matrix."""
    return replace(problem, params={**problem.params, "W": W})


@pytest.mark.parametrize("name", ["leaky_rnn", "vanilla_rnn"])
def test_rflo_without_recurrence(name: str) -> None:
    """Exact where W is zero; `snap:k=1` where its diagonal is; neither with the W of the spec."""
    # An input reaches all units at once, which the mask lets feed each other.
    problem = problem_of(SPECS / f"{name}.toml", {"alpha": 0.3}, ("params", "state"))
    W = problem.params["W"]
    none, hollow = changed(problem, 0 * W), changed(problem, W - np.diag(np.diag(W)))
    assert distance(gradient(none, "rflo").arrays, gradient(none, "rtrl").arrays) < 1e-12
    assert distance(gradient(hollow, "rflo").arrays, gradient(hollow, "snap:k=1").arrays) < 1e-12
    assert distance(gradient(problem, "rflo").arrays, gradient(problem, "rtrl").arrays) > 1e-2
    assert distance(gradient(problem, "rflo").arrays, gradient(problem, "snap:k=1").arrays) > 1e-3


@pytest.mark.parametrize(
    ("name", "affine", "elementwise"),
    [
        ("leaky_rnn", "leak", "leak"),
        ("vanilla_rnn", "nothing", "nothing"),
        ("gru", "gate", "gate"),
        ("indrnn", "nothing", "J"),
        ("lru", "J", "J"),
    ],
)
def test_paths(name: str, affine: str, elementwise: str) -> None:
    """The leak of known cells, from their equations."""
    problem = small(name)
    layout = influence_layout(problem.setup)
    states = problem.state["h"] if name == "gru" else None
    for local in LocalSteps(problem).since(0):
        diagonal = np.eye(layout.N)
        known: dict[str, Array] = {"leak": 0.5 * diagonal, "nothing": 0 * diagonal, "J": local.J}
        if states is not None and local.t == 0:
            p, x = problem.params, problem.inputs["x"][0]
            z = 1 / (1 + np.exp(-(x @ p["W_z"].T + states @ p["U_z"].T + p["b_z"])))
            known["gate"] = z[:, :, None] * diagonal
        for paths, which in zip(PATHS, (affine, elementwise), strict=True):
            if which in known:
                wanted = np.broadcast_to(known[which], local.J.shape)
                np.testing.assert_allclose(local.jacobian.along(paths), wanted, atol=1e-13)


def test_the_leak_of_an_lstm() -> None:
    """diag(f) from cell to cell; to the output by no affine path, but by an elementwise one."""
    problem = small("lstm")
    n = influence_layout(problem.setup).N // 2
    for local in LocalSteps(problem).since(0):
        affine, elementwise = (local.jacobian.along(paths) for paths in PATHS)
        assert np.array_equal(affine[:, n:, n:], elementwise[:, n:, n:]) and np.all(np.diagonal(affine[0])[n:] > 0)
        assert not affine[:, :n].any() and np.all(np.diagonal(elementwise[0, :n, n:]) != 0)
        assert not elementwise[:, :, :n].any()


def by_total_signal(problem: Problem, paths: Paths, stale: bool = False) -> dict[str, Array]:
    """Σ λ(t) ε(t) with the total derivative along the paths that eligibility leaves out as the learning signal λ."""
    setup, steps = problem.setup, LocalSteps(problem)
    rule, every = OnPattern(lambda options: Sparsity(None, paths)), list(steps.since(0))
    # c(t) = λ(t) + A(t+1)ᵀ c(t+1), all as row vectors
    total, signals = 0 * every[0].q, list[Array]()
    for local, later in zip(every[::-1], [None, *every[:0:-1]], strict=True):
        signal = local.q
        if later is not None:
            A = later.jacobian.along(paths)
            signal = signal + later.q_before + ((later.J - A).swapaxes(1, 2) @ total[:, :, None])[:, :, 0]
            total = signal + (A.swapaxes(1, 2) @ total[:, :, None])[:, :, 0]
        else:
            total = signal
        signals.insert(0, signal)
    state, rng = rule.start(setup, NoOptions(), np.random.default_rng(0)), np.zeros_like(total)
    first, A = every[0], every[0].jacobian.along(paths)
    back = first.q_before + ((first.J - A).swapaxes(1, 2) @ total[:, :, None])[:, :, 0]
    influence = credited(replace(state, before=state.M), rng, back)
    direct = {x.name: np.zeros(x.shape) for x in setup.wrt if x.kind != "state"}
    for local, signal in zip(every, signals, strict=True):
        state = rule.step(state, local)
        influence = influence + credited(state, local.q if stale else signal, rng)
        for name, values in local.direct.items():
            direct[name][local.t if values.ndim < direct[name].ndim else ...] += values
    return steps.gradient(influence, direct)


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("name", [*RECURRENT, *TEXTS])
def test_eligibility_and_the_total_derivative(tmp_path: Path, name: str, paths: Paths) -> None:
    """Equation (1) of Bellec et al.: with the total derivative as the learning signal, BPTT; with q alone, not."""
    problem = opened(tmp_path, name)
    exact = gradient(problem, "bptt").arrays
    assert distance(by_total_signal(problem, paths), exact) < 1e-12
    without = {("indrnn", "elementwise"), ("lru", "elementwise"), ("lru", "affine"), ("addend", "affine")}
    if name not in ("addend",) and (name, paths) not in without:
        assert distance(by_total_signal(problem, paths, stale=True), exact) > 1e-2


def test_eprop_and_rflo() -> None:
    """The same on a leaky tanh RNN with symmetric feedback, not where a state passes a nonlinearity elementwise."""
    leaky, lstm, indrnn = (problem_of(SPECS / f"{n}.toml") for n in ("leaky_rnn", "lstm", "indrnn"))
    assert distance(gradient(leaky, "eprop").arrays, gradient(leaky, "rflo").arrays) < 1e-13
    assert distance(gradient(lstm, "eprop").arrays, gradient(lstm, "rflo").arrays) > 1e-2
    assert distance(gradient(indrnn, "eprop").arrays, gradient(indrnn, "bptt").arrays) < 1e-12


def sets(problem: Problem, k: int | None) -> int:
    """Entries of a pattern."""
    return sets_of(influence_layout(problem.setup), Sparsity(k, None)).entries


def test_patterns_are_sparse() -> None:
    """Of elementwise recurrences M has a few entries a column; a density saves some, a full W none."""
    masked, lru, full = (problem_of(SPECS / f"{n}.toml", {}, ("params",)) for n in ("masked_rnn", "lru", "vanilla_rnn"))
    layout = influence_layout(lru.setup)
    assert sets(lru, None) == 2 * layout.P and layout.N == 12
    assert sets(full, None) == influence_layout(full.setup).N * influence_layout(full.setup).P
    whole = influence_layout(masked.setup)
    assert sets(masked, 1) == whole.P < sets(masked, 2) < sets(masked, None) <= whole.N * whole.P


def with_paths(local: LocalDerivatives, change: Any) -> LocalDerivatives:
    """The same with J and its parts changed."""
    parts = {kind: change(local.jacobian.along(kind)) for kind in PATHS}
    return replace(local, jacobian=DenseJacobian(change(local.J), parts))


SLIPS: dict[str, Any] = {
    "wrong leak": lambda local, before: with_paths(local, lambda A: 0.9 * A),
    "leak of the step before": lambda local, before: replace(local, jacobian=before.jacobian),
    "wrong slope": lambda local, before: replace(
        local, factors=tuple(replace(f, delta=f.delta * 1.01) for f in local.factors)
    ),
    "stale q": lambda local, before: replace(local, q=before.q),
}


def judged(problem: Problem, text: str, slip: Any = None, pattern: Sparsity | None = None) -> list[Finding]:
    """The findings of a check; `slip` spoils the derivatives that a method runs on, `pattern` replaces its own."""
    method, options = online(text)
    defined = lambda setup, options, method=method: method.definition(setup, options)  # noqa: E731
    if slip is not None:
        method = replace(method, rule=Planted(method.rule, slip), defined=defined, compiled=None)
    if pattern is not None:
        method = replace(method, defined=defined, compiled=SparseKernels(lambda options: pattern))
    return check_problem(problem, [MethodCall(text, method, options)], CheckOptions())


@pytest.mark.parametrize("text", ["rflo", "eprop"])
@pytest.mark.parametrize("name", ["leaky_rnn", "gru", "lstm", "stacked_rnn", "masked_rnn", "lru"])
def test_slips_are_found(name: str, text: str) -> None:
    """The method passes in both dtypes, whatever its bias; a wrong slope, leak or q does not."""
    for dtype in ("float64", "float32"):
        assert {"pass"} == {f.verdict for f in judged(small(name, dtype), text)}
    for how, slip in SLIPS.items():
        leakless = name in ("stacked_rnn", "masked_rnn") or (name, text) == ("lstm", "rflo")
        constant = how == "leak of the step before" and name in ("leaky_rnn", "lru")
        if not constant and not (leakless and "leak" in how):
            assert "wrong" in {f.verdict for f in judged(small(name), text, slip)}, how


@pytest.mark.parametrize("name", ["leaky_rnn", "gru", "stacked_rnn", "masked_rnn"])
def test_wrong_patterns_are_found(name: str) -> None:
    """The mask of another number of steps, and another part of J."""
    wrong = {
        "rtrl-sparse": Sparsity(1, None),
        "snap:k=1": Sparsity(2, None),
        "rflo": Sparsity(1, None),
        "eprop": Sparsity(None, None),
    }
    for text, pattern in wrong.items():
        assert "wrong" in {f.verdict for f in judged(small(name), text, pattern=pattern)}, text


@pytest.mark.parametrize("text", ["rflo", "eprop", "snap:k=1", "rtrl-block:h=4", "rtrl-sparse"])
def test_memory_is_as_predicted(text: str) -> None:
    """No more than foretold, and of a diagonal recurrence far less than RTRL's."""
    for name in ("vanilla_rnn", "lru"):
        problem, call = problem_of(SPECS / f"{name}.toml", {"n": 48, "T": 8, "batch": 2}, ("params",)), parse(text)
        call.gradient(problem)
        cost = call.cost(problem.setup)
        assert allocated_bytes(partial(call.gradient, problem)) <= cost.bytes + 100_000
        if name == "lru" or text in ("rflo", "eprop", "snap:k=1"):
            assert cost.bytes < load("rtrl").cost(problem.setup, NoOptions()).bytes / 4


def test_costs() -> None:
    """Predicted operations a step grow as n² on the pattern of one step, as n³ in blocks of n, as n⁴ in RTRL."""

    def slope(method: str) -> float:
        costs = []
        for n in (64, 256):
            setup = problem_of(SPECS / "vanilla_rnn.toml", {"n": n, "T": 512, "batch": 1}, ("params",)).setup
            costs.append(parse(method.format(n=n)).cost(setup).flops)
        return float(np.log(costs[1] / costs[0]) / np.log(4))

    slopes = {m: slope(m) for m in ("bptt", "snap:k=1", "rflo", "eprop", "uoro", "rtrl-block:h={n}", "rtrl")}
    expected = dict(zip(slopes, (2, 2, 2, 2, 2, 3, 4), strict=True))
    assert all(abs(slopes[m] - power) < 0.3 for m, power in expected.items()), slopes


def test_options_of_blocks() -> None:
    """At least one step."""
    with pytest.raises(ValueError, match="h must be at least 1"):
        Options(0)
