"""Tiny steps beside large ones: they deny what leaps over an oscillation, and give way where they are noise alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bpcli.references.central import differentiate
from bpcli.references.ladder import extrapolate
from bpcli.references.numerics.derivatives import Derivatives
from bpcli.references.numerics.probe import Probe, Sampler

Array = NDArray[np.float64]
Estimator = Callable[[Sampler, float], Derivatives]
TARGET = 1e-4
POINTS = np.array([0.7, -1.1, 0.4, 1.3, -0.6])
OFFSETS = (1.0, 0.75)


def climb(sampler: Sampler, offset: float) -> Derivatives:
    """`differentiate` with the target of a check."""
    return differentiate(sampler, TARGET, offset)


ESTIMATORS: tuple[Estimator, ...] = (climb, extrapolate)


def hashed(x: Array, seed: int) -> Array:
    """Noise in ±0.5, a function of the bits of x: splitmix64 (Steele, Lea & Flood 2014)."""
    bits = np.ascontiguousarray(x).view(np.uint64) + np.array([seed], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5


def sampler(f: Callable[[Array], Array], points: Array) -> Sampler:
    """`f` of rows of points, around `points`."""

    def losses(entries: NDArray[np.int64], deltas: Array) -> Array:
        shifted = np.tile(points, (len(entries), 1))
        shifted[np.arange(len(entries)), entries] += deltas
        return np.asarray(f(shifted)).reshape(-1, 1)

    places = np.arange(len(points))[:, None]
    return Sampler.of(losses, Probe(np.arange(len(points)), points[:, None], places, summed=True))


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("seed", range(8))
def test_noise_that_one_entry_alone_feels_is_in_its_bound(estimate: Estimator, offset: float, seed: int) -> None:
    """The other entries leave the rounding of the first as it is, and measure none of it."""
    around = sampler(lambda x: np.sin(x).sum(axis=1) + 1e-12 * hashed(x[:, 0], seed), POINTS)
    found = estimate(around, offset)
    assert (np.abs(found.value[:, 0] - np.cos(POINTS)) <= found.bound[:, 0]).all()
    assert (found.bound[:, 0] <= TARGET * np.abs(np.cos(POINTS))).all()


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("distance", [0.0, 3e-3, -2e-2])
def test_a_step_function_far_from_zero_is_not_leapt_over(estimate: Estimator, offset: float, distance: float) -> None:
    """A unit saturates within a hundredth of an entry of more than a thousand, as in a gate with huge inputs."""
    points = np.array([-1342.0 + distance, 2887.0])
    found = estimate(sampler(lambda x: np.tanh(100 * (x[:, 0] + 1342)) + np.sin(x[:, 1]), points), offset)
    right = np.array([100 / np.cosh(100 * (points[0] + 1342)) ** 2, np.cos(points[1])])
    assert (np.abs(found.value[:, 0] - right) <= found.bound[:, 0]).all()
    assert (found.bound[:, 0] <= 1e-3 * np.abs(right)).all()


@pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_ripple_that_is_no_noise_counts(estimate: Estimator, offset: float) -> None:
    """Large steps see the sine alone, and so well that their bounds are small."""
    points = np.array([0.7, 1.9])
    found = estimate(sampler(lambda x: (np.sin(x) + 1e-6 * np.sin(1e6 * x)).sum(axis=1), points), offset)
    right = np.cos(points) + np.cos(1e6 * points)
    assert (np.abs(found.value[:, 0] - right) <= found.bound[:, 0]).all()
