"""The reference interpreter: equal to the kernels on every spec, and to the loop-only twin."""

from __future__ import annotations

import numpy as np
import pytest
from checking_cases import OURS, SMALL, SPECS, naive_gradient, small_setup

from bpcli.checking.faults.fault import as_method
from bpcli.checking.interpreter import RIGHT, Hooks
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.references.numerics.rounding import rounding

NAMES = [*sorted(p.stem for p in SPECS.glob("*.toml")), *OURS]


@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_kernels(name: str) -> None:
    """Loss and gradients of parameters, inputs and initial states equal those of the kernels to within rounding."""
    setup = small_setup(name)
    problem, method = draw(setup), parse("bptt" if setup.graph.recurrent else "backprop")
    expected, found = method.gradient(problem), as_method("right", RIGHT).gradient(problem)
    slack = rounding(problem, method.definition(setup).over(setup), setup.dtype)
    assert abs(expected.loss - found.loss) <= slack.loss
    for name, array in expected.arrays.items():
        assert array.shape == found.arrays[name].shape
        assert (np.abs(array - found.arrays[name]) <= slack.gradient[name]).all()


@pytest.mark.parametrize("method", ["tbptt:k1=1,k2=2", "tbptt:k1=2,k2=3", "ebptt:2"])
def test_it_follows_windows(method: str) -> None:
    """Truncated gradients equal those of the kernels, and differ from the whole one."""
    setup = small_setup("leaky_rnn")
    problem, call = draw(setup), parse(method)
    expected = call.gradient(problem).arrays
    found = as_method("right", RIGHT, call.definition(setup)).gradient(problem).arrays
    whole = as_method("right", RIGHT).gradient(problem).arrays
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-11, atol=1e-13)
    assert not np.allclose(whole["W"], expected["W"], rtol=1e-3)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_equals_the_loops(name: str) -> None:
    """The interpreter equals the loop-only twin."""
    problem = draw(small_setup(name))
    found = as_method("right", RIGHT).gradient(problem).arrays
    for name, array in naive_gradient(problem).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-12)


def test_a_replaced_rule_shows() -> None:
    """A hook changes the gradient."""
    problem = draw(small_setup("vanilla_rnn"))
    right = as_method("right", RIGHT).gradient(problem).arrays["W"]
    other = as_method("wrong", Hooks(edge=lambda e: 2 * e.vjp())).gradient(problem).arrays["W"]
    assert not np.allclose(right, other)
