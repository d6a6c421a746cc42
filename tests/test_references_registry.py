"""The references: found by file name, and true to what a loop-only gradient says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checking_cases import SMALL, naive_gradient, small_setup, truncation_windows

from bpcli.errors import BpError
from bpcli.problem.draw import draw
from bpcli.references import get, known
from bpcli.references.central import REFERENCE
from bpcli.references.numerics.probe import probe
from bpcli.runtime.reverse_mode import Window


def test_references_are_found_by_their_files() -> None:
    """Names, and objects that carry them."""
    assert ("central", "complex-step", "ladder") == known()
    for name in known():
        assert get(name).name == name
        assert get(name).summary


def test_an_unknown_reference_is_answered_with_the_nearest() -> None:
    """As everywhere."""
    with pytest.raises(BpError, match='did you mean "central"'):
        get("centrall")


@pytest.mark.parametrize("truncation", [(0, 0), (1, 2), (2, 3)])
@pytest.mark.parametrize("reference", known())
@pytest.mark.parametrize("name", SMALL)
def test_estimates_cover_the_naive_gradient(name: str, reference: str, truncation: tuple[int, int]) -> None:
    """The loop-only gradient lies within every estimate's bound, over windows too."""
    setup = small_setup(name)
    if truncation[0] and not setup.graph.recurrent:
        pytest.skip("does not apply")
    problem = draw(setup)
    windows = truncation_windows(setup.T, *truncation) if truncation[0] else (Window(0, 0, setup.T),)
    estimates = get(reference).estimate(problem, windows, setup.wrt)
    expected = naive_gradient(problem, *truncation)
    for tensor in setup.wrt:
        found = estimates[tensor.name]
        allowed = found.bound + 1e-14 * np.abs(expected[tensor.name]).max()
        assert np.all(np.abs(found.value - expected[tensor.name]) <= allowed)
        assert np.all(found.bound <= 1e-7 * max(1e-3, np.abs(expected[tensor.name]).max()))


def test_a_sample_of_entries_leaves_the_rest_unknown() -> None:
    """Where differences are expensive they are taken of some entries; the bound of the others is infinite."""
    setup = small_setup("leaky_rnn", ("params",), n=600, T=2)
    limited = REFERENCE.within(setup, 1.0)
    windows = (Window(0, 0, setup.T),)
    found = limited.estimate(draw(setup), windows, setup.wrt)["W"]
    assert limited.sample == np.isfinite(found.bound).sum() == 16
    assert limited.cost(setup, windows) < REFERENCE.cost(setup, windows)
    assert REFERENCE.within(setup, 1e12) == REFERENCE


def test_no_sample_is_taken_where_all_entries_are_cheaper() -> None:
    """Differences with respect to preactivations may cost less than a few entries by themselves."""
    setup = small_setup("vanilla_rnn", ("params",), n=8)
    assert REFERENCE.within(setup, 1.0) == REFERENCE


def test_a_probe_puts_derivatives_where_they_belong() -> None:
    """Each array's own numbers, scattered, give the array back."""
    setup = small_setup("leaky_rnn")
    problem = draw(setup)
    for tensor in setup.wrt:
        around = probe(problem, tensor)
        assert np.array_equal(problem.array(tensor), around.scatter(around.points, tensor.shape))
        assert around.points.shape[1] == (1 if around.summed else setup.batch)


@pytest.mark.parametrize("reference", known())
def test_a_tensor_without_entries_has_an_estimate_of_zeros(reference: str) -> None:
    """A density may leave nothing to differentiate."""
    setup = small_setup("vanilla_rnn", ("params",))
    empty = replace(setup.wrt[0], pattern=np.zeros(0, dtype=np.int64))
    setup = replace(setup, wrt=(empty, *setup.wrt[1:]))
    found = get(reference).estimate(draw(setup), (Window(0, 0, setup.T),), setup.wrt)[empty.name]
    for array in (found.value, found.bound, found.noise, found.kink):
        assert empty.shape == array.shape
        assert not array.any()
