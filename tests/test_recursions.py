"""Recursions as definitions: local derivatives measured without reverse kernels, and rules judged on them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from typing import cast as typed

import numpy as np
import pytest
from kernel_cases import RECURRENT, distance, gradient, small, written
from test_local_derivatives import ODD, SPOILED, Planted, with_J

from bpcli.checking.blame.explain import Reproducer, explain
from bpcli.checking.check_options import CheckOptions, Mode, check_bytes, choose, unjudged
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.errors import BpError
from bpcli.methods import MethodCall, load
from bpcli.methods._online import Online, follow
from bpcli.methods.base import Exact, NoOptions, Recursion
from bpcli.problem.definition import Problem
from bpcli.references.numerics.recursion import MeasuredSteps, recursion_flops
from bpcli.runtime.local_derivatives import LocalDerivatives, local_derivatives
from bpcli.tape.probing import PATHS

DENSE = typed("Online", load("rtrl-dense"))
# The new value of b is an addend of a product, whose sum would be built up in its place if nobody wanted it.
ADDEND = """bp = 1
[params]
W = [3, 3]
[state]
a = { shape = [3], init = "normal", scale = 0.5 }
b = { shape = [3], init = "normal", scale = 0.5 }
[equations]
a = "tanh(W @ a[t-1] + b)"
b = "0.5 * b[t-1] + 0.1"
loss = "0.5 * sum(a**2)"
[data]
T = 4
batch = 2
"""
TEXTS = {"odd": ODD, "addend": ADDEND}


def diagonal(local: LocalDerivatives, before: LocalDerivatives) -> LocalDerivatives:
    """J without what units feed each other."""
    return with_J(local, local.J * np.eye(local.J.shape[1], dtype=local.J.dtype))


def dense() -> Online:
    """The exact method."""
    method = load("rtrl-dense")
    assert isinstance(method, Online)
    return method


def approximate(spoil: Any = None) -> MethodCall:
    """RTRL with the diagonal of J, defined by that recursion; `spoil` makes kernels wrong that it runs on."""
    rule = Planted(dense().rule, diagonal)
    defined = partial(lambda rule, setup, options: Recursion(setup, rule, options, ""), rule)
    own = replace(dense(), name="diagonal", rule=rule, defined=defined)
    method: Any = own if spoil is None else replace(own, rule=Planted(rule, spoil))
    return MethodCall("diagonal", method, NoOptions())


def judged(problem: Problem, spoil: Any = None, mode: Mode = "full") -> list[Finding]:
    """The findings of a check."""
    return check_problem(problem, [approximate(spoil)], CheckOptions(mode=mode))


@pytest.mark.parametrize("name", [*RECURRENT, *TEXTS])
def test_measured_steps_are_the_kernels(tmp_path: Path, name: str) -> None:
    """Every number of every step to rounding, and the gradient that comes of them, through static values too."""
    problem = written(tmp_path, TEXTS[name]) if name in TEXTS else small(name)
    measured = MeasuredSteps(problem)
    for local, other in zip(local_derivatives(problem), measured.since(0), strict=True):
        names = ("J", "Mbar", "q", "q_before", "losses", "a")
        for one, two in ((getattr(x, n) for x in (local, other)) for n in names):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-13)
        for kind in PATHS:
            one, two = local.jacobian.along(kind), other.jacobian.along(kind)
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-13)
        for tensor, values in local.direct.items():
            np.testing.assert_allclose(values, other.direct[tensor], rtol=0, atol=1e-13)
    found = follow(dense().rule, measured, NoOptions(), "")
    assert distance(found.arrays, gradient(problem, "bptt").arrays) < 1e-12


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize(("dtype", "mode"), [("float64", "full"), ("float32", "full"), ("float64", "directional")])
@pytest.mark.parametrize("name", RECURRENT)
def test_an_approximation_passes_with_its_bias(name: str, dtype: str, mode: Mode) -> None:
    """Terms that a recursion leaves out are no error; a recursion that leaves out none is exact."""
    findings = judged(small(name, dtype), mode=mode)
    assert {"pass"} == {f.verdict for f in findings}
    limit = {"float64": 1e-13, "float32": 1e-5}[dtype]
    assert max(f.kernel_error or 0.0 for f in findings) < limit
    assert (max(f.bias or 0.0 for f in findings) > 1e-2) == (name != "indrnn")


@pytest.mark.parametrize("how", [how for how in SPOILED if how != "J transposed"])  # a diagonal is not changed by it
@pytest.mark.parametrize("name", ["leaky_rnn", "gru", "stacked_rnn"])
def test_wrong_local_derivatives_are_caught(name: str, how: str) -> None:
    """The measured ones are right, so that a fault of the kernels shows in an approximation too."""
    problem = small(name, "float32" if name == "gru" else "float64")
    assert "wrong" in {f.verdict for f in judged(problem, SPOILED[how])}


@pytest.mark.usefixtures("free_directions")
def test_directions_catch_them_too() -> None:
    """Where directions are wrong, entries are judged against the same recursion."""
    findings = judged(small("leaky_rnn"), SPOILED["stale q"], "directional")
    assert {"wrong"} == {f.verdict for f in findings if f.tensor in ("W", "W_in", "b_rec")}


def test_a_small_error_is_caught() -> None:
    """A part in a million of q, in all that reaches it: the initial cell does not by the diagonal alone."""
    findings = judged(small("lstm"), lambda local, before: replace(local, q=local.q * 1.000001))
    assert {f.tensor for f in findings if f.verdict == "wrong"} == {"W", "U", "b", "h", "x"}


def test_only_the_complex_step_judges() -> None:
    """Differences of losses do not; what it takes is foretold."""
    setup, call = small("gru").setup, approximate()
    wanted = ("auto", "complex-step", "central", "ladder", "jax")
    refused = {reference: bool(unjudged(setup, [call], CheckOptions(reference))) for reference in wanted}
    assert {"auto": False, "complex-step": False, "central": True, "ladder": True, "jax": True} == refused
    definition = call.definition(setup)
    assert isinstance(definition, Recursion)
    assert choose(setup, [call], CheckOptions()).flops > recursion_flops(definition) > 0
    assert check_bytes(setup, [call], CheckOptions()) > 0


def test_a_part_is_judged_as_the_whole() -> None:
    """A recursion is that of its own setup, whatever part of it is asked for."""
    problem, rule = small("lstm"), Planted(dense().rule, diagonal)
    whole = Recursion(problem.setup, rule, NoOptions(), "")
    method: Any = replace(dense(), rule=rule, defined=lambda setup, options: whole)
    part = replace(problem.setup.wrt[0], pattern=np.array([1, 5, 6]))
    own = replace(problem, setup=replace(problem.setup, wrt=(part,)))
    found = check_problem(own, [MethodCall("part", method, NoOptions())], CheckOptions())
    assert ["pass"] == [f.verdict for f in found] and 3 == found[0].checked


def test_the_blame_of_a_recursion() -> None:
    """No cause is made up: the interpreter knows exact gradients and windows alone."""
    problem, call = small("lstm"), approximate(SPOILED["no M̄"])
    findings = check_problem(problem, [call], CheckOptions())
    again = Reproducer(open=lambda settings: problem.setup, command=lambda method, settings: "again")
    blames = [f.blame for f in explain(findings, problem.setup, [call], again) if f.blame is not None]
    assert blames and all("by the complex step" in str(b["cause"]) and b["node"] is None for b in blames)


def test_equal_recursions() -> None:
    """An estimate is reused for the same rule and setup and equal options."""
    setup, rule = small("lstm").setup, dense().rule
    one = Recursion(setup, rule, NoOptions(), "")
    assert one == Recursion(setup, rule, NoOptions(), "") and len({one, Recursion(setup, rule, NoOptions(), "")}) == 1
    assert one not in (Recursion(setup, Planted(rule, diagonal), NoOptions(), ""), Recursion(setup, rule, 1, ""))
    assert one != Recursion(small("gru").setup, rule, NoOptions(), "") and one != Exact()


def test_a_gradient_of_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    """It would be broadcast over the parameters."""

    class Narrow:
        start, step = staticmethod(DENSE.rule.start), staticmethod(DENSE.rule.step)

        def credit(self, state: Any, local: LocalDerivatives) -> Any:
            found = DENSE.rule.credit(state, local)
            return replace(found, influence=found.influence[:, :1])

    problem = written(tmp_path, ADDEND)
    with pytest.raises(BpError, match="influence of shape"):
        replace(DENSE, rule=Narrow()).gradient(problem, DENSE.Options())
