"""Black boxes: a part of the corpus of right and wrong gradients, and kinks, edges, oscillations and tolerances."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from black_box_alarms import run
from black_box_corpus import Case, cases, library

import bpcli

# One of each kind, in NumPy; and a layer in each of the libraries.
KINDS = [
    Case("numpy", "float64", "dense", "mse", 3, "other fit"),
    Case("numpy", "float64", "rnn", "huber", 2, "rounded fit"),
    Case("numpy", "float32", "attention", "mse", 3, "fit"),
    Case("numpy", "float64", "relu", "hinge", 4, "kink"),
    Case("numpy", "float64", "max-pool", "cross-entropy", 4, "tie"),
    Case("numpy", "float64", "batch-norm", "cross-entropy", 3, "noise", 1e-11),
    Case("numpy", "float64", "rnn", "logistic", 2, "flicker", 1e-9),
    Case("numpy", "float64", "point", "", 5, "ties", 3),
    Case("numpy", "float32", "point", "", 5, "shared corner"),
    Case("numpy", "float64", "point", "", 5, "log edge", 1e-8),
    Case("numpy", "float64", "point", "", 5, "scales", 1e8),
    Case("numpy", "float32", "layer-norm", "logistic", 3),
    Case("torch", "float64", "embedding", "huber", 3),
    Case("torch", "float32", "convolution", "mse", 3),
    Case("jax", "float32", "dense", "cross-entropy", 3),
]
EDGES = [
    Case("numpy", "float64", "point", "", 3, "power edge"),
    Case("numpy", "float64", "point", "", 2, "oscillation", 1e10),
    Case("numpy", "float32", "point", "", 2, "oscillation", 1e5),
]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_right_gradients_pass_and_wrong_ones_do_not(case: Case) -> None:
    """Each tensor, and each with a fault."""
    if case.library != "numpy":
        pytest.importorskip(case.library)
    found = run(case)
    assert [] == [row for row in found["right"] if row[2] != "pass"]
    assert [] == [row for row in found["wrong"] if row[2] == "pass"]
    assert found["wrong"] or case.kind in ("kink", "tie", "ties", "shared corner", "log edge")


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_what_steps_cannot_tell_is_not_accused(case: Case) -> None:
    """The edge of a domain, and oscillations within the smallest steps."""
    assert "wrong" not in {verdict for _, _, verdict, _, _ in run(case)["right"]}


def test_the_corpus_is_large() -> None:
    """Every layer in every library, in both dtypes."""
    every = list(cases())
    assert len(every) == len({str(case) for case in every}) > 1000
    assert 6 == len({(case.library, case.dtype) for case in every})


def test_gradients_of_the_corpus_agree_between_libraries() -> None:
    """NumPy and PyTorch differentiate the same function."""
    pytest.importorskip("torch")
    one, other = (
        library(Case(name, "float64", "point", "", 3), lambda f, p, _: f.total(f.sin(p["x"]) * f.exp(p["x"])), {})
        for name in ("numpy", "torch")
    )
    x = {"x": np.linspace(-1, 1, 5)}
    np.testing.assert_allclose(one.grad(x)["x"], other.grad(x)["x"], rtol=1e-14)
    assert not np.allclose(one.grad(x)["x"], 1.01 * other.grad(x)["x"], rtol=1e-3)


def judge(
    loss: Callable[[Any], Any], slope: Callable[[np.ndarray], Any], x: Sequence[float], **options: Any
) -> bpcli.Report:
    """The report on a function of one array."""
    with np.errstate(all="ignore"):
        return bpcli.check_gradient(
            lambda p: loss(p["x"]), lambda p: {"x": np.asarray(slope(p["x"]))}, {"x": np.array(x)}, **options
        )


@pytest.mark.parametrize(
    ("slope", "verdict"),
    [
        ([1.0, 0.0, 0.0], "pass"),
        ([0.5, 0.5, 0.0], "pass"),
        ([0.3, 0.7, 0.0], "pass"),
        ([1.0, 1.0, 0.0], "wrong"),
        ([0.0, 0.0, 0.0], "wrong"),
        ([1.5, -0.5, 0.0], "wrong"),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ties_are_judged_jointly(slope: list[float], verdict: str, sign: float) -> None:
    """The gradient of a maximum, or of a minimum, of equal entries is one convex combination."""
    found = judge(lambda x: sign * x.max(), lambda x: sign * np.array(slope), [2.0, 2.0, 1.0])
    assert verdict == found.verdict
    if slope == [1.0, 1.0, 0.0]:
        cause = "entries share a kink: the slope along x[0] + x[1] is 2, should be 1"
        assert found.findings[0].cause.startswith(cause if sign > 0 else cause.replace("is 2, should be 1", "is -2"))


def test_arrays_that_share_a_kink() -> None:
    """The maximum of two params."""
    for one, other, verdict in ((1.0, 0.0, "pass"), (0.5, 0.5, "pass"), (1.0, 1.0, "wrong")):
        grads = {"a": np.array(one), "b": np.array(other)}
        params = {"a": np.array(2.0), "b": np.array(2.0)}
        found = bpcli.check_gradient(lambda p: max(p["a"], p["b"]), lambda p, g=grads: g, params)
        assert [verdict] * 2 == [f.verdict for f in found.findings]


def test_kinks_of_their_own_are_not_judged_jointly() -> None:
    """relu(x) - relu(y): every choice of slopes is right, though along (1, 1) the loss is smooth."""
    for slope in ([0.0, 0.0], [1.0, -1.0], [0.0, -0.5], [1.0, 0.0]):
        found = judge(lambda x: max(x[0], 0) - max(x[1], 0), lambda x, s=slope: s, [0.0, 0.0])
        assert "pass" == found.verdict
    assert "wrong" == judge(lambda x: max(x[0], 0) - max(x[1], 0), lambda x: [0.0, 0.5], [0.0, 0.0]).verdict


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_units_at_zero(share: float) -> None:
    """A relu of zero weights meets a kink for each sample: 0, as frameworks take it, is between no two slopes."""
    X, c = np.random.default_rng(0).standard_normal((6, 3)), np.array([1.0, -2.0, 3.0, -1.0, 0.5, 2.0])

    def loss(p: dict[str, np.ndarray]) -> float:
        return float(c @ np.maximum(X @ p["w"] + p["b"], 0))

    params = {"w": np.zeros(3), "b": np.array(0.0)}
    right = bpcli.check_gradient(loss, lambda p: {"w": share * X.T @ c, "b": np.array(share * c.sum())}, params)
    assert "pass" == right.verdict
    wrong = bpcli.check_gradient(loss, lambda p: {"w": X.T @ c, "b": np.array(3 * c.sum())}, params)
    assert {"w": "pass", "b": "inconclusive"} == {f.tensor: f.verdict for f in wrong.findings}


def test_one_side_alone() -> None:
    """On the edge of a domain a smooth loss has a derivative; one that bends without end there has a cause."""

    def inside(x: np.ndarray) -> float:
        return float((x**2 + 3 * x).sum()) if (x >= 0).all() else np.nan

    assert "pass" == judge(inside, lambda x: 2 * x + 3, [0.0, 1.0, 2.0]).verdict
    assert "wrong" == judge(inside, lambda x: 2 * x + 3.1, [0.0, 1.0, 2.0]).verdict
    bent = judge(lambda x: (x**1.2).sum(), lambda x: 1.2 * x**0.2, [0.0, 0.0])
    assert ("inconclusive", "edge of the domain") == (bent.verdict, bent.findings[0].cause)
    assert "one-sided differences" in str(bent)


def test_an_oscillation_within_the_steps() -> None:
    """Neither a right nor a wrong gradient of sin(1e10 x) is accused, and the reason is given."""
    for factor in (1.0, 2.0):
        found = judge(lambda x: np.sin(1e10 * x).sum(), lambda x, f=factor: f * 1e10 * np.cos(1e10 * x), [0.3, 1.0])
        assert ("inconclusive", "steps disagree") == (found.verdict, found.findings[0].cause)
    assert "the loss may oscillate" in str(found)


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize(("error", "tolerance", "verdict", "cause"), [
    (5e-6, 1e-5, "pass", "within tolerance"),
    (5e-6, 1e-6, "wrong", ""),
    (5e-6, 0.0, "wrong", ""),
    (0.0, 1e-6, "pass", ""),
])  # fmt: skip
def test_tolerance(mode: str, error: float, tolerance: float, verdict: str, cause: str) -> None:
    """An error within it passes, with the error beside it."""
    report = judge(
        lambda x: np.sin(x).sum(), lambda x: (1 + error) * np.cos(x), np.linspace(-1, 1, 9), mode=mode,
        tolerance=tolerance,
    )  # fmt: skip
    (found,) = report.findings
    assert (verdict, cause) == (found.verdict, found.cause)
    assert found.kernel_error is not None and abs(found.kernel_error - error) <= 1e-9


def test_few_digits_are_counted() -> None:
    """A loss in float32 leaves a few digits of the largest entry."""

    def loss(x: np.ndarray) -> float:
        return float(np.sum(np.sin(x.astype(np.float32)) * np.float32(3), dtype=np.float32))

    x = np.array([0.1, 1.2, 1.5707])
    found = judge(loss, lambda x: 3 * np.cos(x), x)
    assert "pass" == found.verdict and found.findings[0].cause.startswith("right to ")
    assert "wrong" == judge(loss, lambda x: 3.06 * np.cos(x), x).verdict


def test_the_first_call_is_not_timed() -> None:
    """A loss that compiles in its first call is not refused for it."""
    calls: list[int] = []

    def loss(p: dict[str, np.ndarray]) -> float:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.3)
        return float(p["x"] @ p["x"])

    limits = bpcli.Limits(max_time=20.0)
    found = bpcli.check_gradient(loss, lambda p: {"x": 2 * p["x"]}, {"x": np.ones(3)}, limits=limits)
    assert "pass" == found.verdict


@pytest.mark.parametrize("seed", range(8))
def test_chaos_in_float32_is_no_error(seed: int) -> None:
    """Twenty steps of the logistic map: the loss bends within a few roundings of x, so that no difference tells."""

    def steps(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        g = np.ones_like(x)
        for _ in range(20):
            g = g * np.float32(3.9) * (np.float32(1) - np.float32(2) * x)
            x = np.float32(3.9) * x * (np.float32(1) - x)
        return x, g

    x = np.random.default_rng(seed).uniform(0.2, 0.8, 5).astype(np.float32)
    report = bpcli.check_gradient(
        lambda p: steps(p["x"].astype(np.float32))[0].sum(), lambda p: {"x": steps(p["x"])[1]}, {"x": x}
    )
    assert report.verdict == "inconclusive"
