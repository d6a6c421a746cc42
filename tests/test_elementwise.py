"""The elementwise functions against mpmath, at the edges of the number formats, and cut anywhere."""

import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from elementwise_callers import (
    cos_into,
    erf_into,
    exp_into,
    log_into,
    products_into,
    quotients_into,
    sigmoid_into,
    sin_into,
    softplus_into,
    tanh_into,
)

INF, NAN = np.inf, np.nan
EXP_EDGES = [709.782712893384, 709.7827128933841, -708.3964185322641, -745.1332191019411, -745.1332191019412, 710.0]
LN2_HALVES = [k * 0.34657359027997264 for k in range(-9, 10)]
SEVENTHS = [k / 7 for k in range(-30, 31)]


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def softplus(x):
    return mpmath.log1p(mpmath.exp(x))


def erf_slope(x):
    return 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-(x**2))


# name: (reference, its derivative, points where the method switches or a result changes its nature)
FUNCTIONS = {
    "exp": (mpmath.exp, mpmath.exp, [*EXP_EDGES, *LN2_HALVES]),
    "tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2, [*(k / 2 for k in LN2_HALVES), 19.06, 22.0, -22.0]),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x), [*EXP_EDGES, *LN2_HALVES, 36.7, 37.5]),
    "softplus": (softplus, sigmoid, [*EXP_EDGES, *LN2_HALVES, -0.881373587019543, 0.881373587019543, 37.0]),
    "log": (mpmath.log, lambda x: 1 / x, [1.0, 0.7071067811865476, 1.4142135623730951, 2.2250738585072014e-308]),
    "sin": (mpmath.sin, mpmath.cos, [*(k * np.pi / 4 for k in range(-9, 10)), 1048576.0, -1048576.0, 1048576.1]),
    "cos": (mpmath.cos, lambda x: -mpmath.sin(x), [*(k * np.pi / 4 for k in range(-9, 10)), 1048576.0, -1048576.1]),
    "erf": (mpmath.erf, erf_slope, [0.84375, 1.25, 2.857, 5.9, 6.0, 26.5, 27.2, -0.46875, -27.3, 30.0]),
}
NAMES = list(FUNCTIONS)

SPECIAL = [
    ("exp", [NAN, INF, -INF, 0.0, -0.0, 1e-320, 1e300, -1e300], [NAN, INF, 0.0, 1.0, 1.0, 1.0, INF, 0.0]),
    ("tanh", [NAN, INF, -INF, 0.0, -0.0, 1e-320, -5e-324, 1e300], [NAN, 1.0, -1.0, 0.0, -0.0, 1e-320, -5e-324, 1.0]),
    ("sigmoid", [NAN, INF, -INF, 0.0, -0.0, 1e300, -1e300], [NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
    ("softplus", [NAN, INF, -INF, 1e300, -1e300], [NAN, INF, 0.0, 1e300, 0.0]),
    ("log", [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, -1e-40], [NAN, INF, NAN, -INF, -INF, 0.0, NAN, NAN]),
    ("sin", [NAN, INF, -INF, 0.0, -0.0, 1e-320, -5e-324], [NAN, NAN, NAN, 0.0, -0.0, 1e-320, -5e-324]),
    ("cos", [NAN, INF, -INF, 0.0, -0.0, 1e-320], [NAN, NAN, NAN, 1.0, 1.0, 1.0]),
    ("erf", [NAN, INF, -INF, 0.0, -0.0, 1e300, -1e300], [NAN, 1.0, -1.0, 0.0, -0.0, 1.0, -1.0]),
]


INTO = {
    "exp": exp_into,
    "tanh": tanh_into,
    "sigmoid": sigmoid_into,
    "softplus": softplus_into,
    "log": log_into,
    "sin": sin_into,
    "cos": cos_into,
    "erf": erf_into,
}


def apply(name, x):
    """f(x) in a new array."""
    y = np.empty_like(x)
    INTO[name](x, y)
    return y


def points(name, count, dtype=np.float64):
    """Numbers of every magnitude and both signs, numbers of ordinary size, and the neighbours of the switches."""
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    signs = rng.choice([-1.0, 1.0], count)
    spread = signs * np.exp2(rng.uniform(info.minexp - info.nmant, info.maxexp, count))
    middle = np.concatenate([rng.uniform(-4, 4, count), rng.uniform(-80, 80, count), rng.uniform(-760, 760, count)])
    switches = np.array([*FUNCTIONS[name][2], *SEVENTHS])
    near = [switches, np.nextafter(switches, INF), np.nextafter(switches, -INF), switches * (1 + 1e-9)]
    x = np.concatenate([spread, signs * np.exp2(rng.uniform(-30, 6, count)), middle, *near]).astype(dtype)
    x = np.abs(x) if name == "log" else x
    return x[x != 0]


def ulp_errors(actual, expected, dtype=np.float64):
    """|actual - expected| in units of the spacing of the dtype at the expected value; overflow has to be inf."""
    info = np.finfo(dtype)
    errors = []
    for got, want in zip(actual.tolist(), expected, strict=True):
        if abs(want) >= mpmath.mpf(float(info.max)) * (1 + mpmath.mpf(2) ** -(info.nmant + 2)):
            errors.append(0.0 if got == np.copysign(INF, float(want)) else INF)
            continue
        exponent = max(mpmath.frexp(want)[1] - 1, info.minexp) - info.nmant if want else 0
        errors.append(float(mpmath.ldexp(abs(got - want), -exponent)))
    return np.array(errors)


def references(function, x):
    """The function at 50 digits more than cancellation may eat."""
    with mpmath.workdps(60):
        return [function(mpmath.mpf(v)) for v in x.tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_within_two_ulp(name):
    """Every function keeps to 2 ulp over the whole range."""
    x = points(name, 400)
    errors = ulp_errors(apply(name, x), references(FUNCTIONS[name][0], x))
    assert errors.max() <= 2.0, (x[errors.argmax()], errors.max())


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_rounded_once(name):
    """In float32 the error is that of one rounding."""
    x = points(name, 150, np.float32)
    errors = ulp_errors(apply(name, x), references(FUNCTIONS[name][0], x), np.float32)
    assert errors.max() <= 0.5001, (x[errors.argmax()], errors.max())


@pytest.mark.parametrize("name", NAMES)
def test_complex_step_is_within_four_ulp_on_both_parts(name):
    """A tiny imaginary part carries the derivative, in deep saturation too."""
    a = points(name, 100)
    a = a[np.abs(a) > 1e-12] if name == "log" else a  # h has to be small beside a
    a = a[a < 709.78] if name == "exp" else a  # beyond, e^a overflows and h e^a need not
    h = np.exp2(np.random.default_rng(3).uniform(-140, -100, a.size))
    z = apply(name, a + 1j * h)
    function, derivative, _ = FUNCTIONS[name]
    value = ulp_errors(z.real, references(function, a))
    slope = ulp_errors(z.imag, [s * mpmath.mpf(float(b)) for s, b in zip(references(derivative, a), h, strict=True)])
    assert value.max() <= 4.0, (a[value.argmax()], value.max())
    assert slope.max() <= 4.0, (a[slope.argmax()], slope.max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("h", [1e-300, 1.0, -1e200])
def test_an_imaginary_part_of_any_size_is_a_tangent(name, h):
    """It is multiplied by the slope, to the last bit as a tiny one is, and leaves the value alone."""
    a = np.array([0.25, 1.0, 3.0, 20.0])
    z, unit = apply(name, a + 1j * h), apply(name, a + 1j)
    np.testing.assert_array_equal(z.real, apply(name, a + 0j).real)
    np.testing.assert_allclose(z.imag, h * unit.imag, rtol=1e-15)
    assert (unit.imag != apply(name, a + 1.001j).imag).all()


PAIRS = [
    (products_into, 3 + 1e200j, -2 + 1e200j, -6 + 1e200j),
    (products_into, complex(INF, 0), 1 + 0j, complex(INF, 0)),
    (products_into, 0 + 1j, 0 + 1j, 0j),
    (products_into, 0.1, 3.0, 0.1 * 3.0),
    (quotients_into, complex(3, 2.0**600), complex(-2, 2.0**600), complex(-1.5, -1.25 * 2.0**600)),
    (quotients_into, 1e-200 + 0j, 1e-200 + 1j, complex(1, -1e200)),
    (quotients_into, 0.1, 3.0, 0.1 / 3.0),
]


@pytest.mark.parametrize(("function", "x", "y", "expected"), PAIRS)
def test_products_and_quotients_of_tangents(function, x, y, expected):
    """Nothing of second order, and no infinity times nothing."""
    left, right, found = np.array([x]), np.array([y]), np.zeros(1, np.array(x).dtype)
    function(left, right, found)
    assert expected == found[0]


@pytest.mark.parametrize(("name", "x", "expected"), SPECIAL, ids=NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex128])
def test_special_values(name, x, expected, dtype):
    """NaN, infinities, signed zeros and subnormal numbers give what IEEE 754 recommends, in vector and tail loops."""
    rows = [row for row in zip(x, expected, strict=True) if name != "log" or dtype is not np.complex128 or row[0] >= 0]
    with np.errstate(over="ignore"):
        arguments, values = np.tile(np.array(rows).T.astype(dtype), 3)
    actual = apply(name, arguments)
    number = ~np.isnan(values.real)
    np.testing.assert_array_equal(actual.real, values.real)
    np.testing.assert_array_equal(np.signbit(actual.real[number]), np.signbit(values.real[number]))
    np.testing.assert_array_equal(actual.imag[np.isfinite(actual.real)], 0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex128])
def test_results_do_not_depend_on_position(name, dtype):
    """Any slice, of any length and offset, in place or not, has the bits of the whole; far entries disturb nobody."""
    x = np.random.default_rng(11).normal(size=40).astype(dtype) * 3
    x = np.abs(x).astype(dtype) if name == "log" else x
    x[[3, 30]] = [2.5e7, 1e-3]
    x[20] = 1 + 1j if dtype is np.complex128 else 1
    whole = apply(name, x)
    for length in range(1, 18):
        for offset in range(8):
            part = x[offset : offset + length].copy()
            INTO[name](part, part)
            assert whole[offset : offset + length].tobytes() == part.tobytes()
            assert part.tobytes() == apply(name, x[offset : offset + length]).tobytes()


PLAIN_PYTHON = """
import numpy as np
from bpcli.kernels import elementwise
a = np.array([-750.0, -3.0, -1e-9, 0.25, 2.0, 40.0, 709.0, 1e7, np.inf, np.nan])
for name in {names}:
    x = np.abs(a) if name == "log" else a
    for dtype in (np.float64, np.complex128):
        y = x.astype(dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            getattr(elementwise, name + "_into")(y, y, 0.0)
        print(name, np.asarray(y.real).tolist())
"""


def test_the_same_source_runs_without_numba_compiling_it():
    """With NUMBA_DISABLE_JIT the routines are plain Python and agree with the compiled ones to 2 ulp."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN_PYTHON.format(names=NAMES)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    assert run.returncode == 0
    a = np.array([-750.0, -3.0, -1e-9, 0.25, 2.0, 40.0, 709.0, 1e7, INF, NAN])
    for line in run.stdout.splitlines():
        name, values = line.split(" ", 1)
        expected = apply(name, np.abs(a) if name == "log" else a)
        actual = np.array(eval(values, {"inf": INF, "nan": NAN}))
        np.testing.assert_allclose(actual, expected, rtol=4e-16)
