"""U_g: wide enough for correct gradients, and no wider than it must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checking_cases import LIMITS, SMALL, naive_gradient, small_setup

from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.references.numerics.rounding import bound, rounding, unit_roundoff
from bpcli.runtime.reverse_mode import Window

F64, F32 = np.dtype(np.float64), np.dtype(np.float32)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_correct_gradients_are_within_their_rounding(name: str, dtype: np.dtype[np.floating]) -> None:
    """The kernels stay well inside, and the bound is some thousand roundings of the tensor's largest entry at most."""
    setup = small_setup(name, dtype=dtype.name)
    problem = draw(setup)
    method = parse("bptt" if setup.graph.recurrent else "backprop")
    found = method.gradient(problem).arrays
    bounds = rounding(problem, (Window(0, 0, setup.T),), dtype).gradient
    exact = naive_gradient(draw(small_setup(name, dtype=dtype.name)), in_double=True)
    for tensor in setup.wrt:
        error = np.abs(found[tensor.name].astype(np.float64) - exact[tensor.name])
        assert np.all(error <= 0.5 * bounds[tensor.name])
        assert np.all(bounds[tensor.name] <= 3e3 * unit_roundoff(dtype) * np.abs(exact[tensor.name]).max())


def test_no_contribution_has_no_rounding() -> None:
    """Exactly zero, whatever the dtype."""
    zero = np.zeros(3)
    for dtype in (F64, F32):
        assert np.array_equal(zero, bound(zero, zero, zero, dtype))


def test_an_entry_that_float32_loses_is_judged_by_the_size_of_its_tensor() -> None:
    """Saturated units have roundings of the unsaturated size."""
    size = np.array([1.0, 1.0, 1e-12])
    found = bound(size, np.array([1e-7, 1e-7, 1e-12]), np.array([2.0, 2.0, 1.0]), F64)
    assert found[2] >= 32 * 2.0**-53
    assert found[2] <= found[0]


def test_the_bound_scales_with_unit_roundoff() -> None:
    """From float32, where it is measured, to float64."""
    size = spread = np.array([1.0, 2.0])
    ratio = bound(size, 1e-7 * spread, size, F64) / bound(size, 1e-7 * spread, size, F32)
    assert ratio == pytest.approx(2.0**-29)


@pytest.mark.parametrize("p", [8.06e-15, 1.0, 3e12])
def test_an_exact_cancellation_rounds_as_its_terms_do(tmp_path: Path, p: float) -> None:
    """d(p / p) = 1/p - p/p² is nothing here, and a rounding of 1/p by another order of operations."""
    path = tmp_path / "cancel.toml"
    text = f'bp = 1\nparams = {{ p = {{ shape = [2], value = [{p}, {p}] }} }}\nequations = {{ loss = "sum(p / p)" }}\n'
    path.write_text(text, encoding="utf-8")
    setup = open_setup(path, {}, ("params",), LIMITS)
    (bounds,) = rounding(draw(setup), (Window(0, 0, 1),), F64).gradient.values()
    assert np.all(bounds > 2.0**-52 / p)
    assert np.all(bounds < 1e-3 / p)


def test_an_edge_of_a_domain_leaves_other_tensors_their_bounds(tmp_path: Path) -> None:
    """sqrt(1 - cos(p)²) is 0 where cos(p) rounds to 1, and about 1e-8, or not a number, where it is disturbed."""
    spec = tmp_path / "edge.toml"
    spec.write_text(
        "bp = 1\nparams = { p = { shape = [], value = 1e-20 }, w = { shape = [], value = 3 } }\nequations = "
        '{ loss = "w**2 * (1 + sqrt(1 - cos(p)**2))" }\n[data]\nbatch = 1\n',
        encoding="utf-8",
    )
    bounds = rounding(draw(open_setup(spec, {}, (), LIMITS)), (Window(0, 0, 1),), F64).gradient
    assert 0 < bounds["w"] < 1e-5
