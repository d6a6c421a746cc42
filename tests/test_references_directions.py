"""Directions, the ladder of many orders and the Taylor rate: on functions whose derivatives are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checking_cases import SMALL, naive_gradient, small_setup, truncation_windows
from numpy.typing import NDArray

from bpcli.problem.definition import Tensor
from bpcli.problem.draw import draw
from bpcli.references import get, known
from bpcli.references.central import differentiate
from bpcli.references.ladder import extrapolate
from bpcli.references.numerics.derivatives import rates
from bpcli.references.numerics.probe import COUNT, Probe, Sampler, directions, dot, norms
from bpcli.runtime.reverse_mode import Window

Array = NDArray[np.float64]


def sampler(f: Callable[[Array], Array], points: list[float]) -> Sampler:
    """Σ f(x_i) around `points`."""
    x = np.array(points)

    def losses(entries: NDArray[np.int64], deltas: Array) -> Array:
        shifted = np.tile(x, (len(entries), 1))
        shifted[np.arange(len(entries)), entries] += deltas
        return np.asarray(f(shifted))

    return Sampler.of(losses, Probe(np.arange(len(x)), x[:, None], np.arange(len(x))[:, None], summed=True))


def hashed(x: Array) -> Array:
    """Deterministic noise in ±0.5, a function of the bits of x."""
    bits = (np.asarray(x, dtype=np.float64) + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (bits >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5


def noisy(x: Array) -> Array:
    """A sine whose last nine digits are noise."""
    return np.asarray(np.sin(x) + 1e-7 * hashed(x))


SMOOTH: tuple[tuple[Callable[[Array], Array], Callable[[Array], Array]], ...] = (
    (np.sin, np.cos),
    (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    (lambda x: x**5, lambda x: 5 * x**4),
    (lambda x: 1e9 + np.exp(x / 2), lambda x: np.exp(x / 2) / 2),
    (noisy, np.cos),
    (lambda x: 0 * x, lambda x: 0 * x),
)
POINTS = [0.3, -1.2, 2.0, 0.01]


@pytest.mark.parametrize("offset", [1.0, 0.75])
@pytest.mark.parametrize("case", range(len(SMOOTH)))
def test_the_ladder_covers_the_derivative(case: int, offset: float) -> None:
    """Whatever the function, the error is within the bound."""
    f, df = SMOOTH[case]
    found = extrapolate(sampler(f, POINTS), offset)
    assert np.all(np.abs(found.value[:, 0] - df(np.array(POINTS))) <= found.bound[:, 0])
    assert np.isfinite(found.bound).all()


def test_the_ladder_is_sharper_where_there_is_noise() -> None:
    """Higher orders allow larger steps, in which the noise counts for less."""
    ladder, central = extrapolate(sampler(noisy, [1.0])), differentiate(sampler(noisy, [1.0]), 1e-9)
    assert ladder.bound[0, 0] < 0.5 * central.bound[0, 0]


def test_the_ladder_has_no_power_at_a_kink() -> None:
    """Half the jump of the slope stays in the bound."""
    assert extrapolate(sampler(np.abs, [0.0])).bound[0, 0] >= 0.9


@pytest.mark.parametrize("case", range(len(SMOOTH) - 1))
@pytest.mark.parametrize(("factor", "expected"), [(1.0, (True, False)), (1.1, (False, True)), (0.0, (False, True))])
def test_the_taylor_rate_tells_right_from_wrong(case: int, factor: float, expected: tuple[bool, bool]) -> None:
    """A residual that falls as h³ is right, one that falls as h is wrong."""
    f, df = SMOOTH[case]
    true = df(np.array([0.7]))[:, None]
    right, wrong = rates(sampler(f, [0.7]), factor * true, 1e-3 * np.abs(true))
    assert expected == (right[0, 0], wrong[0, 0])


def test_the_taylor_rate_says_nothing_of_what_noise_hides() -> None:
    """Neither right nor wrong where the loss is noise alone."""
    right, wrong = rates(sampler(lambda x: 1e-3 * hashed(x), [0.7]), np.array([[1e-6]]), np.array([[1e-9]]))
    assert not right.any() and not wrong.any()


def test_directions_are_drawn_by_name() -> None:
    """The same for the same name, others for another, and zero where no entry exists."""
    tensor = Tensor("W", "param", (3, 4))
    assert (COUNT, 12) == directions(tensor).shape
    assert np.array_equal(directions(tensor), directions(Tensor("W", "param", (3, 4))))
    assert not np.array_equal(directions(tensor), directions(Tensor("V", "param", (3, 4))))
    sparse = directions(Tensor("W", "param", (3, 4), np.array([1, 5])))
    assert [1, 5] == np.flatnonzero(sparse.any(axis=0)).tolist()


def test_bounds_add_up_along_a_direction_as_independent_errors_do() -> None:
    """The square root of the sum of squares, at any scale; an unknown entry leaves all unknown."""
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert np.allclose([5.0, 0.0], norms(rows, np.ones(2)))
    assert np.allclose([5e-200, 0.0], norms(rows, np.full(2, 1e-200)), atol=0)
    assert np.inf == norms(rows, np.array([1.0, np.inf]))[0]


@pytest.mark.parametrize("truncation", [(0, 0), (1, 2)])
@pytest.mark.parametrize("reference", known())
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_along_directions_are_those_of_the_naive_gradient(
    name: str, reference: str, truncation: tuple[int, int]
) -> None:
    """Parameters, inputs and states, over windows too."""
    setup = small_setup(name)
    if truncation[0] and not setup.graph.recurrent:
        pytest.skip("does not apply")
    problem = draw(setup)
    windows = truncation_windows(setup.T, *truncation) if truncation[0] else (Window(0, 0, setup.T),)
    expected = naive_gradient(problem, *truncation)
    rows = {tensor: directions(tensor, 3) for tensor in setup.wrt}
    found = get(reference).along(problem, windows, rows)
    for tensor in setup.wrt:
        size = 1e-14 * np.abs(expected[tensor.name]).sum()
        off = np.abs(found[tensor.name].value - dot(rows[tensor], expected[tensor.name]))
        assert np.all(off <= found[tensor.name].bound + size)
        assert np.all(found[tensor.name].bound <= 1e-6 * max(1e-3, np.abs(expected[tensor.name]).max()))
