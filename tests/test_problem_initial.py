"""Seeded draws: initialisers, density patterns, and generators that know nothing of each other."""

from __future__ import annotations

import numpy as np
import pytest

from bpcli.errors import Place
from bpcli.problem.draw import generator, initial, outside, pattern
from bpcli.spec.specification import ArrayDecl

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)


def param(shape: tuple[int, ...], **fields: object) -> ArrayDecl:
    """A parameter called W."""
    return ArrayDecl(name="W", kind="param", shape=shape, place=Place("s", 1, 1), **fields)


@pytest.mark.parametrize(
    ("init", "shape", "expected"),
    [
        ("zeros", (2, 3), np.zeros((2, 3))),
        ("ones", (), np.array(0.5)),
        ("ones", (3,), np.full(3, 0.5)),
        ("identity", (2, 2), 0.5 * np.eye(2)),
        ("identity", (2, 3), 0.5 * np.eye(2, 3)),
        ("identity", (3, 2), 0.5 * np.eye(3, 2)),
    ],
)
def test_fixed_initialisers(init, shape, expected):
    """Each is its matrix times the scale, in a writable array of the shape asked for."""
    array = initial(param(shape, init=init, scale=0.5), 0, FLOAT64)
    assert shape == array.shape
    assert array.flags.writeable and array.flags.c_contiguous
    np.testing.assert_array_equal(expected, array)


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 0.9, -2.0])
def test_orthogonal_has_orthonormal_rows_or_columns(shape, scale):
    """The Gram matrix of the shorter side is the identity times scale squared."""
    array = initial(param(shape, init="orthogonal", scale=scale), 3, FLOAT64)
    gram = array @ array.T if shape[0] < shape[1] else array.T @ array
    np.testing.assert_allclose(scale**2 * np.eye(min(shape)), gram, atol=1e-13)


@pytest.mark.parametrize(
    ("init", "scale", "deviation", "bound"),
    [
        ("normal", 0.3, 0.3, np.inf),
        ("uniform", 0.3, 0.3 / np.sqrt(3), 0.3),
        ("glorot", 2.0, 2.0 * np.sqrt(2 / 700), 2.0 * np.sqrt(6 / 700)),
    ],
)
def test_drawn_initialisers_have_their_moments(init, scale, deviation, bound):
    """Mean 0, the standard deviation of the definition, and entries within the bound."""
    array = initial(param((300, 400), init=init, scale=scale), 0, FLOAT64)
    assert abs(array.mean()) < 4 * deviation / np.sqrt(array.size)
    assert abs(array.std() / deviation - 1) < 0.01
    assert np.abs(array).max() <= bound


@pytest.mark.parametrize(
    ("init", "shape"),
    [("orthogonal", (7, 9)), ("glorot", (70, 1000)), ("normal", (70, 1000)), ("uniform", (70, 1000))],
)
def test_float32_is_float64_rounded(init, shape):
    """The type changes the last rounding alone."""
    wide = initial(param(shape, init=init), 0, FLOAT64)
    narrow = initial(param(shape, init=init), 0, FLOAT32)
    assert FLOAT32 == narrow.dtype
    np.testing.assert_array_equal(wide.astype(np.float32), narrow)


@pytest.mark.parametrize(
    ("value", "shape"), [(2.5, ()), ((1.0, 2.0), (2,)), (((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), (2, 3))]
)
def test_value_is_taken_as_it_is(value, shape):
    """Numbers given in the spec are the array."""
    array = initial(param(shape, init="value", value=value), 0, FLOAT64)
    np.testing.assert_array_equal(np.array(value), array)
    assert shape == array.shape


def test_generators_depend_on_seed_kind_and_name_alone():
    """Equal labels give equal numbers; any difference gives others. The first number is fixed for good."""
    labels = [(s, k, n) for s in (0, 1, 2**70) for k in ("inputs", "params", "states") for n in ("a", "b", "α")]
    draws = [generator(*label).random() for label in labels]
    assert len(labels) == len(set(draws))
    assert draws == [generator(*label).random() for label in reversed(labels)][::-1]
    assert FIRST == generator(0, "params", "W").random()


FIRST = 0.9206428812833373


@pytest.mark.parametrize(
    ("shape", "density", "count"),
    [((10, 10), 0.1, 10), ((3, 3), 0.5, 4), ((100, 100), 0.001, 10), ((7, 5), 0.99, 35), ((2, 2), 0.01, 0)],
)
def test_density_keeps_the_rounded_count(shape, density, count):
    """round(density * size) distinct entries, sorted; the mask is what is left."""
    decl = param(shape, init="normal", density=density)
    kept = pattern(decl, 0)
    assert np.dtype(np.int64) == kept.dtype
    assert count == len(kept) == len(set(kept.tolist()))
    assert kept.tolist() == sorted(kept.tolist())
    mask = outside(decl, 0)
    np.testing.assert_array_equal(kept, np.flatnonzero(~mask))
    assert shape == mask.shape


def test_a_full_density_is_no_pattern():
    """Density 1 is a dense array."""
    assert pattern(param((3, 3), density=1.0), 0) is None
    assert outside(param((3, 3)), 0) is None


def test_patterns_are_spread_evenly_and_follow_the_seed():
    """Every entry is kept about equally often over seeds, and seeds give different patterns."""
    decl = param((4, 5), density=0.25)
    counts = np.bincount(np.concatenate([pattern(decl, seed) for seed in range(800)]), minlength=20)
    assert 800 * 5 == counts.sum()
    assert np.abs(counts - 200).max() < 60
