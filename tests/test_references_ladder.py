"""Differences with measured bounds: on functions whose derivatives are known, the bound covers the error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from bpcli.references.central import differentiate
from bpcli.references.numerics.derivatives import Derivatives
from bpcli.references.numerics.noise import POINTS, loss_noise, table_noise
from bpcli.references.numerics.probe import Probe, Sampler

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A function of one number and its derivative."""

    name: str
    f: Callable[[Array], Array]
    df: Callable[[float], float]


def hashed(x: Array) -> Array:
    """Deterministic noise in ±0.5, a function of the bits of x."""
    bits = (np.asarray(x, dtype=np.float64) + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (bits >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5


CASES = (
    Case("square", lambda x: x * x, lambda x: 2 * x),
    Case("cubic", lambda x: x**3 - x, lambda x: 3 * x * x - 1),
    Case("fifth power", lambda x: x**5, lambda x: 5 * x**4),
    Case("tanh", np.tanh, lambda x: 1 / math.cosh(min(abs(x), 300)) ** 2),
    Case("fast sine", lambda x: np.sin(50 * x), lambda x: 50 * math.cos(50 * x)),
    Case("huge offset", lambda x: 1e12 + np.sin(x), math.cos),
    Case("huge", lambda x: 1e12 * np.cos(x), lambda x: -1e12 * math.sin(x)),
    Case("tiny", lambda x: 1e-200 * np.cos(x), lambda x: -1e-200 * math.sin(x)),
    Case("nearly flat", lambda x: 1 + 1e-9 * np.sin(x), lambda x: 1e-9 * math.cos(x)),
    Case("constant", lambda x: 0 * x + 3.0, lambda x: 0.0),
    Case("linear", lambda x: 3 * x + 1, lambda x: 3.0),
    Case("cancelling", lambda x: (1e6 + np.sin(x)) - 1e6, math.cos),
    Case("saturated", lambda x: np.tanh(100 + x), lambda x: 0.0),
    Case("noisy", lambda x: np.sin(x) + 1e-10 * hashed(x), math.cos),
    Case("narrow", lambda x: 1 / (1 + (1e4 * x) ** 2), lambda x: -2e8 * x / (1 + (1e4 * x) ** 2) ** 2),
    Case("near kink", lambda x: np.abs(x - 1e-5) + np.sin(x), lambda x: math.copysign(1, x - 1e-5) + math.cos(x)),
    Case(
        "kinks",
        lambda x: sum(np.abs(x - 0.3 - 0.001 * i) for i in range(-9, 10)),
        lambda x: sum(math.copysign(1, x - 0.3 - 0.001 * i) for i in range(-9, 10)),
    ),
)
POINTS_OF_INTEREST = (0.0, 1e-8, -1e-4, 0.3012345, -1.7, 1e3, 1e6)
LADDERS = (1.0, 0.75)


def at(f: Callable[[Array], Array], points: list[float], offset: float = 1.0) -> Derivatives:
    """The derivatives of Σ f(x_i) at `points`."""
    x = np.array(points)
    places = np.arange(len(x))[:, None]
    probe = Probe(np.arange(len(x)), x[:, None], places, summed=True)

    def losses(entries: NDArray[np.int64], deltas: Array) -> Array:
        shifted = np.tile(x, (len(entries), 1))
        shifted[np.arange(len(entries)), entries] += deltas
        return np.asarray(f(shifted))

    with np.errstate(all="ignore"):
        return differentiate(Sampler.of(losses, probe), 1e-4, offset)


def random_points() -> list[float]:
    """Five points over six orders of magnitude, drawn with a fixed seed."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=5) * 10 ** rng.uniform(-4, 2, size=5)
    return [float(point) for point in points]


@pytest.mark.parametrize("offset", LADDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_bound_covers_the_error(case: Case, offset: float) -> None:
    """The derivative is within the bound, whatever the size of the entry and of the function."""
    for point in (*POINTS_OF_INTEREST, *random_points()):
        found = at(case.f, [point], offset)
        argument_rounding = 2e-16 * abs(case.df(point)) * (1 + 50 * abs(point))
        assert np.abs(found.value - case.df(point)).max() <= found.bound.max() + argument_rounding, point


@pytest.mark.parametrize("name", ["square", "cubic", "tanh"])
def test_smooth_functions_are_resolved_sharply(name: str) -> None:
    """A generic entry of a smooth function is known to ten digits."""
    case = next(c for c in CASES if c.name == name)
    found = at(case.f, [0.3])
    assert found.bound.max() <= 1e-10 * abs(case.df(0.3))


def test_entries_of_one_tensor_have_steps_of_their_own() -> None:
    """Entries of 0, 1e-8, 1 and 1e6 side by side are all resolved."""
    points = [0.0, 1e-8, 1.0, 1e6]
    found = at(lambda x: np.sin(x) + x**2 / 1e6, points)
    expected = np.array([math.cos(x) + 2 * x / 1e6 for x in points])[:, None]
    assert np.all(np.abs(found.value - expected) <= found.bound)
    assert np.all(found.bound <= 1e-3 * np.abs(expected))


def test_an_exact_kink_is_an_interval() -> None:
    """At the kink of relu the value is the mean of the one-sided derivatives, and the kink half their difference."""
    found = at(lambda x: np.maximum(x, 0) + 0.5 * np.sin(x), [0.0, 0.7])
    assert found.value[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert found.kink[0, 0] == pytest.approx(0.5, abs=1e-6)
    assert found.kink[1, 0] == 0.0


def test_a_loss_that_is_not_finite_around_teaches_nothing() -> None:
    """Where no step gives finite losses the bound is infinite and the value 0."""
    found = at(lambda x: np.where(x == 1.0, 1.0, np.nan), [1.0])
    assert found.value[0, 0] == 0.0
    assert found.bound[0, 0] == np.inf


def test_steps_stay_inside_the_domain() -> None:
    """The logarithm close to 0 is differentiated with a step that stays positive."""
    found = at(np.log, [1e-6, 10.0])
    expected = np.array([[1e6], [0.1]])
    assert np.all(np.abs(found.value - expected) <= found.bound)
    assert np.all(found.bound <= 1e-3 * expected)


def test_samples_are_differentiated_together() -> None:
    """A number that each sample owns yields a derivative per sample from one shift."""
    x = np.array([[0.3, -2.0], [1e-3, 5.0]])
    probe = Probe(np.arange(2), x, np.arange(4).reshape(2, 2), summed=False)

    def losses(entries: NDArray[np.int64], deltas: Array) -> Array:
        shifted = np.tile(x.T, (len(entries), 1, 1))
        shifted[np.arange(len(entries)), :, entries] += deltas[:, None]
        return np.asarray(np.sin(shifted).sum(axis=2))

    found = differentiate(Sampler.of(losses, probe), 1e-4)
    assert np.all(np.abs(found.value - np.cos(x)) <= found.bound)
    assert np.all(found.bound <= 1e-6)


@pytest.mark.parametrize("level", [1e-14, 1e-10, 1e-3])
def test_noise_is_measured_under_a_smooth_function(level: float) -> None:
    """ECnoise finds the standard deviation of Gaussian noise within a factor of two, on average."""
    rng = np.random.default_rng(0)
    t = np.arange(POINTS) * 1e-3
    values = np.sin(t) + level * rng.normal(size=(200, POINTS))
    assert 0.5 * level <= np.median(table_noise(values)) <= 2 * level


def test_noise_is_never_less_than_one_rounding_of_the_loss() -> None:
    """A loss without visible noise still rounds."""
    x = np.array([[1.0]])
    probe = Probe(np.arange(1), x, np.arange(1)[:, None], summed=True)
    sampler = Sampler.of(lambda e, d: np.full((len(e), 1), 5.0), probe)
    assert loss_noise(sampler, np.array([1e-3]))[0] == 5.0 * 2.0**-53
