"""J, M̄, q and the rest of a step against the loops; rules made of them against RTRL; and twins that must fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import RECURRENT, SPECS, distance, gradient, loops, problem_of, small, written
from naive_dual import Dual
from naive_step import Local, sample_path

from bpcli.methods import load
from bpcli.methods._online import Online
from bpcli.methods.base import NoOptions, OnlineRule, StepGradient
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.runtime import forward_mode
from bpcli.runtime.jacobian import DenseJacobian
from bpcli.runtime.local_derivatives import (
    LocalDerivatives,
    influence_layout,
    local_derivatives,
    local_derivatives_at,
)
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.tape.probing import PATHS

Array = np.ndarray[Any, Any]
# The loss looks past a(t) in every way; V enters transposed, and the sum within the step is of a state and an input.
ODD = """bp = 1
[inputs]
x = [3]
[params]
W = [3, 3]
V = [2, 3]
c = []
U = [2]
[state]
a = [3]
s = { shape = [2], init = "normal", scale = 0.5 }
[equations]
h = "W @ a[t-1] + c * x"
a = "tanh(h) + V.T @ s[t-1]"
s = "sigmoid(s[t-1] + a[0:2]) * U"
loss = "dot(h, h) + sum(a[t-1] * a) + 0.5 * sum(s**2) + dot(U, s[t-1]) + sum(V @ x)"
[objective]
over_time = "mean"
[data]
T = 5
batch = 2
"""


@pytest.fixture(params=[*RECURRENT, "odd"])
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    """Every shipped recurrent spec at a size for loops, and one whose loss looks past the new state."""
    return written(tmp_path, ODD) if request.param == "odd" else small(request.param)


def row(dual: Dual, kind: str, sizes: Mapping[str, int]) -> Array:
    """Partials by the numbers of one kind, name after name."""
    return np.array([dual.parts.get((kind, n, i), 0.0) for n, size in sizes.items() for i in range(size)])


def size(x: Tensor) -> dict[str, int]:
    """The entries of a parameter, or of an input at one step and sample, by its name."""
    return {x.name: int(np.prod(x.shape if x.kind == "param" else x.shape[2:]))}


@dataclass(frozen=True)
class Expected:
    """The derivatives of one step and sample by the loops' duals, as `LocalDerivatives` have them."""

    setup: Setup
    dual: Local
    weight: float

    @property
    def states(self) -> dict[str, int]:
        """The entries of each state."""
        return {name: int(np.prod(s.shape)) for name, s in self.setup.spec.states.items()}

    @property
    def J(self) -> Array:
        """(N, N)."""
        return np.stack([row(new, "previous", self.states) for new in self.dual.new.values()])

    def Mbar(self, x: Tensor) -> Array:
        """(N, columns) of a parameter or of this step's input."""
        found = np.stack([row(new, x.kind, size(x)) for new in self.dual.new.values()])
        return found if x.pattern is None else found[:, x.pattern]

    def credit(self, kind: str) -> Array:
        """q of kind "now", q_before of kind "previous": (N,)."""
        return self.weight * row(self.dual.direct, kind, self.states)

    def direct(self, x: Tensor) -> Array:
        """d(loss of the step) / d(a parameter or the input of the step), at fixed states."""
        return self.weight * row(self.dual.direct, x.kind, size(x))


def test_local_derivatives_are_the_loops(problem: Problem) -> None:
    """J, q, q_before, every column of M̄ that is a parameter's own, and what the loss owes directly."""
    setup, weights = problem.setup, loss_weights(problem.setup)
    samples = [sample_path(setup.spec, loops(problem), b) for b in range(setup.batch)]
    columns = influence_layout(setup).columns
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    for local in local_derivatives(problem):
        each = [Expected(setup, samples[b][local.t], weights[local.t, b]) for b in range(setup.batch)]
        close(local.losses, [e.dual.loss.value for e in each])
        close(local.J, [e.J for e in each])
        close(local.q, [e.credit("now") for e in each])
        close(local.q_before, [e.credit("previous") for e in each])
        for x in (x for x in setup.wrt if x.kind != "state"):
            direct = np.array([e.direct(x) for e in each])
            direct = direct.sum(axis=0) if x.kind == "param" else direct
            close(local.direct[x.name].ravel(), direct.ravel())
            if x.name in columns:
                own = local.Mbar[:, :, columns[x.name]]
                here = slice(local.t * size(x)[x.name], (local.t + 1) * size(x)[x.name])
                close(own if x.kind == "param" else own[:, :, here], [e.Mbar(x) for e in each])


def test_a_loss_that_looks_past_the_state(tmp_path: Path) -> None:
    """The odd spec has what the shipped ones lack: a credit of the states before, and a matrix used transposed."""
    steps = list(local_derivatives(written(tmp_path, ODD)))
    assert all(np.abs(local.q_before).max() > 1e-3 for local in steps)
    assert any(factor.turned for factor in steps[0].factors)
    assert all(not np.any(local.q_before) for local in local_derivatives(small("lstm")))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_chunks_and_single_steps(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """However many steps are taken at once, and for one step alone, the derivatives have the same bits."""
    whole = list(local_derivatives(small("lstm")))
    monkeypatch.setattr(forward_mode, "MOST_STEPS", most)
    fresh = draw(replace(small("lstm").setup))
    for t, local in enumerate(local_derivatives(fresh)):
        for other in (whole[t], local_derivatives_at(fresh, t)):
            for name in ("J", "q", "q_before", "Mbar"):
                assert np.array_equal(getattr(local, name), getattr(other, name))
    with pytest.raises(IndexError, match="step 4 of 4"):
        local_derivatives_at(fresh, 4)
    with pytest.raises(ValueError, match="there is no state"):
        local_derivatives(small("linear"))


def test_rows_and_columns_have_names() -> None:
    """States in the order of the spec; parameters, equations of parameters alone, initial states and inputs."""
    layout = influence_layout(small("lru").setup)
    assert {"re": slice(0, 3), "im": slice(3, 6)} == dict(layout.states)
    assert {"B_re", "B_im", "l_re", "l_im", "gamma", "re", "im", "x"} == set(layout.columns)
    assert layout.P == max(columns.stop for columns in layout.columns.values())
    M = layout.initial(2, np.dtype(np.float64))
    assert np.array_equal(M[1][:, layout.columns["re"]], np.eye(6)[:, :3])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RECURRENT)
def test_dense_rtrl_is_rtrl(name: str, dtype: str) -> None:
    """Beyond the size of loops, for everything that may be differentiated."""
    problem = problem_of(SPECS / f"{name}.toml", {"T": 40, "batch": 3, "dtype": dtype})
    exact, dense = gradient(problem, "rtrl"), gradient(problem, "rtrl-dense")
    assert distance(dense.arrays, exact.arrays) < {"float64": 1e-12, "float32": 2e-4}[dtype]
    assert exact.loss == pytest.approx(dense.loss, rel=1e-6)


@dataclass(frozen=True)
class Planted:
    """A rule that is given local derivatives, and those of the step before, spoiled."""

    rule: OnlineRule[Any]
    spoil: Callable[[LocalDerivatives, LocalDerivatives], LocalDerivatives]

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> Any:
        """The rule's state, with what the last step was and what it was made to be."""
        return self.rule.start(setup, options, rng), None, None

    def step(self, state: Any, local: LocalDerivatives) -> Any:
        """The rule's step, on spoiled derivatives."""
        own = self.spoil(local, local if state[1] is None else state[1])
        return self.rule.step(state[0], own), local, own

    def credit(self, state: Any, local: LocalDerivatives) -> StepGradient:
        """The rule's credit, from spoiled derivatives."""
        return self.rule.credit(state[0], state[2])


def with_J(local: LocalDerivatives, J: Array) -> LocalDerivatives:
    """The same with another J; the parts along paths are as they were."""
    return replace(local, jacobian=DenseJacobian(J, {kind: local.jacobian.along(kind) for kind in PATHS}))


SPOILED: Mapping[str, Callable[[LocalDerivatives, LocalDerivatives], LocalDerivatives]] = {
    "J transposed": lambda local, before: with_J(local, local.J.swapaxes(1, 2)),
    "J of the step before": lambda local, before: with_J(local, before.J),
    "no J": lambda local, before: with_J(local, 0 * local.J),
    "no M̄": lambda local, before: replace(local, factors=()),
    "M̄ of the step before": lambda local, before: replace(local, factors=before.factors),
    "M̄ without its last term": lambda local, before: replace(local, factors=local.factors[:-1]),
    "stale q": lambda local, before: replace(local, q=before.q),
    "no q": lambda local, before: replace(local, q=0 * local.q),
    "nothing direct": lambda local, before: replace(local, direct={}),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["vanilla_rnn", "leaky_rnn", "gru", "lstm", "stacked_rnn", "lru"])
def test_a_wrong_rule_is_wrong(name: str, how: str) -> None:
    """Each of J, M̄, q and the direct part counts, and each at its own step."""
    problem, method = small(name), load("rtrl-dense")
    assert isinstance(method, Online)
    exact = gradient(problem, "rtrl").arrays
    same = replace(method, rule=Planted(method.rule, lambda local, before: local))
    wrong = replace(method, rule=Planted(method.rule, SPOILED[how]))
    unchanged = {("lru", "J of the step before")}  # that of a linear recurrence is the same at every step
    assert distance(same.gradient(problem, NoOptions()).arrays, exact) < 1e-12
    assert (distance(wrong.gradient(problem, NoOptions()).arrays, exact) > 1e-6) != ((name, how) in unchanged)


def test_a_rule_and_its_draws() -> None:
    """The generator of a rule is the same at every call, another for another seed, and none of anything else's."""
    drawn: list[float] = []

    @dataclass(frozen=True)
    class Drawing:
        """The dense rule, and a draw."""

        rule: OnlineRule[Any]

        def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> Any:
            """Draw."""
            drawn.append(rng.random())
            return self.rule.start(setup, options, rng)

        def step(self, state: Any, local: LocalDerivatives) -> Any:
            """The rule's."""
            return self.rule.step(state, local)

        def credit(self, state: Any, local: LocalDerivatives) -> StepGradient:
            """The rule's."""
            return self.rule.credit(state, local)

    method = load("rtrl-dense")
    assert isinstance(method, Online)
    random = replace(method, rule=Drawing(method.rule))
    for seed in (0, 0, 1):
        random.gradient(problem_of(SPECS / "lstm.toml", {"seed": seed, "T": 3}), NoOptions())
    assert drawn[0] == drawn[1] != drawn[2]
