"""Approximate online rules: the identities that define them, each with a twin that must fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import RECURRENT, SPECS, distance, gradient, problem_of, small
from test_local_derivatives import SPOILED, Planted

from bpcli.bench.profiling import allocated_bytes
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.methods import MethodCall, load, parse
from bpcli.methods._online import Online, Steps, follow
from bpcli.methods.base import NoOptions, OnlineRule
from bpcli.methods.snap import Options
from bpcli.methods.uoro import UORO, Factors
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.local_derivatives import (
    LocalDerivatives,
    LocalSteps,
    influence_layout,
    local_derivatives,
)
from bpcli.runtime.sparse_plan import influence_pattern

EVERY = ("params", "inputs", "state")


@pytest.mark.parametrize("name", RECURRENT)
def test_nothing_is_outside_the_pattern(name: str) -> None:
    """M̄ is within that of one step, M after t steps within that of t + 1; from two steps on the first is too small."""
    problem = small(name)
    layout = influence_layout(problem.setup)
    M, outside = layout.initial(problem.setup.batch, problem.setup.dtype), False
    for t, local in enumerate(local_derivatives(problem)):
        M = local.J @ M + local.Mbar
        assert not ((local.Mbar != 0).any(axis=0) & ~influence_pattern(layout, 1)).any()
        assert not ((M != 0).any(axis=0) & ~influence_pattern(layout, t + 2)).any()
        outside |= bool(((M != 0).any(axis=0) & ~influence_pattern(layout, 1)).any())
    assert outside != (name == "indrnn")


@pytest.mark.parametrize("name", RECURRENT)
def test_factors_are_the_dense_term(name: str) -> None:
    """Row vectors times a term, and entries of it, without its dense form."""
    rng, problem = np.random.default_rng(0), problem_of(SPECS / f"{name}.toml", {"T": 3}, EVERY)
    for local in local_derivatives(problem):
        for factor in local.factors:
            dense, rows = factor.dense(), rng.standard_normal(local.q.shape)
            np.testing.assert_allclose(factor.times(rows), np.einsum("bi,bip->bp", rows, dense), atol=1e-13)
            at = rng.integers(0, dense.shape[1], 20), rng.integers(0, dense.shape[2], 20)
            assert np.array_equal(factor.at(*at), dense[:, at[0], at[1]])


def masked(problem: Problem, k: int) -> dict[str, Array]:
    """SnAp as it is written, with a dense M."""
    setup, steps = problem.setup, LocalSteps(problem)
    layout = influence_layout(setup)
    mask, M = influence_pattern(layout, k), layout.initial(setup.batch, setup.dtype)
    total = np.zeros((setup.batch, layout.P))
    direct = {x.name: np.zeros(x.shape) for x in setup.wrt if x.kind != "state"}
    for local in steps.since(0):
        total += np.einsum("bi,bip->bp", local.q_before, M)
        M = mask * (local.J @ M + local.Mbar)
        total += np.einsum("bi,bip->bp", local.q, M)
        for name, values in local.direct.items():
            direct[name][local.t if values.ndim < direct[name].ndim else ...] += values
    return steps.gradient(total, direct)


@pytest.mark.parametrize("name", RECURRENT)
def test_snap(name: str) -> None:
    """The masked recursion; exact where the mask is that of M, and with k = 1 where J is diagonal."""
    problem = problem_of(SPECS / f"{name}.toml", {"T": 7, "batch": 2}, ("params", "state"))
    exact = gradient(problem, "bptt").arrays
    for k in (1, 2):
        assert distance(gradient(problem, f"snap:k={k}").arrays, masked(problem, k)) < 1e-12
    assert distance(gradient(problem, "snap:k=8").arrays, exact) < 1e-12
    assert (distance(gradient(problem, "snap:k=1").arrays, exact) > 1e-2) != (name == "indrnn")


class Signs:
    """A source of given signs, step by step."""

    def __init__(self, bits: tuple[int, ...]) -> None:
        self.bits: Iterator[int] = iter(bits)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Array:
        """The next ones."""
        return np.array([next(self.bits) for _ in range(int(np.prod(shape)))]).reshape(shape)


class Taken:
    """Steps that have been taken once, and are given again and again."""

    def __init__(self, problem: Problem) -> None:
        self.setup, self._steps = problem.setup, LocalSteps(problem)
        self._taken = list(self._steps.since(0))

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """The steps from `start` on."""
        return iter(self._taken[start:])

    def gradient(self, influence: Array, direct: Any) -> dict[str, Array]:
        """The gradient by tensor."""
        return self._steps.gradient(influence, direct)


def mean(problem: Problem, rule: OnlineRule[Any], signs: int) -> tuple[dict[str, Array], float]:
    """The mean gradient over all patterns of so many signs, and the largest distance of one draw from it."""
    steps: Steps = Taken(problem)

    class Drawn:
        """The rule, with given signs."""

        bits: tuple[int, ...] = ()

        def start(self, setup: Setup, options: Any, rng: Any) -> Any:
            """With the signs in place of the generator."""
            return rule.start(setup, options, Signs(self.bits))  # type: ignore[arg-type]

        step, credit = rule.step, rule.credit

    draws = []
    for bits in itertools.product((0, 1), repeat=signs):
        drawn = Drawn()
        drawn.bits = bits
        draws.append(follow(drawn, steps, NoOptions(), "").arrays)
    average = {name: np.asarray(sum(d[name] for d in draws) / len(draws)) for name in draws[0]}
    return average, max(distance(d, average) for d in draws)


class Unbalanced(UORO):
    """A slip: what enters the parameters' part is not divided by its norm."""

    def step(self, state: Factors, local: LocalDerivatives) -> Factors:
        """As it ought to be, but for ρ₁ = 2 in one of the two places."""
        right = super().step(state, local)
        return replace(right, theta=right.theta * 1.25)


@pytest.mark.parametrize(
    ("name", "wrt", "signs"),
    [("vanilla_rnn", ("params",), 8), ("leaky_rnn", ("params", "state"), 10), ("gru", ("params",), 8)],
)
def test_uoro_is_right_in_the_mean(name: str, wrt: tuple[str, ...], signs: int) -> None:
    """Over all patterns of signs, to rounding, though single draws are far off; with a wrong normaliser it is not."""
    problem = problem_of(SPECS / f"{name}.toml", {"n": 2, "T": 4, "batch": 1}, wrt)
    exact = gradient(problem, "bptt").arrays
    average, furthest = mean(problem, UORO(), signs)
    assert distance(average, exact) < 1e-12 and furthest > 0.1
    assert distance(mean(problem, Unbalanced(), signs)[0], exact) > 1e-2


def judged(problem: Problem, text: str, how: str | None = None) -> list[Finding]:
    """The findings of a check; `how` makes the local derivatives wrong that the method runs on."""
    call = parse(text)
    method: Any = call.method
    assert isinstance(method, Online)
    if how is not None:
        defined = lambda setup, options, rule=method: rule.definition(setup, options)  # noqa: E731
        method = replace(method, rule=Planted(method.rule, SPOILED[how]), defined=defined, compiled=None)
    return check_problem(problem, [MethodCall(text, method, call.options)], CheckOptions())


@pytest.mark.parametrize("text", ["snap:k=1", "snap:k=2", "uoro"])
@pytest.mark.parametrize("name", ["leaky_rnn", "gru", "lstm", "stacked_rnn", "masked_rnn", "lru"])
def test_an_approximation_is_no_error_and_a_slip_is(name: str, text: str) -> None:
    """Judged against the recursion itself, in both dtypes, with the bias beside it."""
    for dtype in ("float64", "float32"):
        assert {"pass"} == {f.verdict for f in judged(small(name, dtype), text)}
    for how in ("no J", "M̄ without its last term", "stale q"):
        assert "wrong" in {f.verdict for f in judged(small(name), text, how)}, how


@pytest.mark.parametrize("text", ["snap:k=1", "uoro"])
def test_memory_is_as_predicted(text: str) -> None:
    """No dense M: far less than RTRL's, and no more than foretold."""
    problem = problem_of(SPECS / "vanilla_rnn.toml", {"n": 48, "T": 8, "batch": 2}, ("params",))
    call = parse(text)
    call.gradient(problem)
    cost = call.cost(problem.setup)
    assert 0.5 * cost.bytes <= allocated_bytes(lambda: call.gradient(problem)) <= cost.bytes + 100_000
    assert cost.bytes < load("rtrl-dense").cost(problem.setup, NoOptions()).bytes / 4


def test_options_of_snap() -> None:
    """At least one step."""
    with pytest.raises(ValueError, match="k must be at least 1"):
        Options(0)
