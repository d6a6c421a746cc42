"""Arguments at a kink: found where they are zero as far as rounding tells, and only what moves them is in doubt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checking_cases import LIMITS

from bpcli.methods import parse
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.references.complex_step import REFERENCE
from bpcli.references.numerics.probe import directions
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.kinks import find_kinks, slopes_of
from bpcli.runtime.reverse_mode import Window

FEED_FORWARD = """bp = 1
[inputs]
x = [2]
[params]
w = {{ shape = [2], value = {w} }}
v = {{ shape = [2], value = [1.0, -2.0] }}
[equations]
loss = "{loss}"
[data]
batch = 2
values = {{ x = {x} }}
"""
RECURRENT = """bp = 1
[params]
w = {{ shape = [2], value = [0.5, 0.25] }}
v = {{ shape = [2], value = [1.0, -2.0] }}
[state]
a = {{ shape = [2], value = {a} }}
[equations]
a = "v + w * {before}"
loss = "sum(a) + {after}"
[data]
T = 3
batch = 2
"""


def opened(folder: Path, text: str, dtype: str = "float64", wrt: tuple[str, ...] = ("params",)) -> Problem:
    """The problem of a spec's text."""
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return draw(open_setup(path, {"dtype": dtype}, wrt, LIMITS))


def unknown(problem: Problem) -> dict[str, list[int]]:
    """The flat entries of each tensor of which the complex step knows nothing."""
    found = REFERENCE.estimate(problem, (Window(0, 0, problem.setup.T),), problem.setup.wrt)
    return {name: np.flatnonzero(~np.isfinite(e.bound)).tolist() for name, e in found.items()}


@pytest.mark.parametrize(
    ("loss", "w", "x", "expected"),
    [
        ("dot(v, relu(w))", "[0.0, 0.5]", "[1.0, 1.0]", {"w": [0], "v": []}),  # a static argument
        ("dot(v, relu(w * x))", "[0.5, 0.5]", "[1.0, 0.0]", {"w": [], "v": []}),  # nothing moves it
        ("dot(v, abs(w - x))", "[1.0, 0.5]", "[1.0, 1.0]", {"w": [0], "v": []}),  # before the loop, or without one
        ("abs(dot(v, w)) + sum(v)", "[2.0, 1.0]", "[1.0, 1.0]", {"w": [0, 1], "v": [0, 1]}),
        ("leaky_relu(w, 0.1)[0] + sum(v) * relu(w)[1]", "[0.3, 0.0]", "[1.0, 1.0]", {"w": [1], "v": []}),
        ("dot(v, relu(w[0:1] * x[1])[0] * x) + sum(w)", "[0.0, 0.0]", "[1.0, 1.0]", {"w": [0], "v": []}),
        ("dot(v, relu(w))", "[0.1, 0.5]", "[1.0, 1.0]", {"w": [], "v": []}),  # the twin: no kink near by
        ("dot(v, max(w, 0.5))", "[0.1, 0.5]", "[1.0, 1.0]", {"w": [1], "v": []}),
        ("dot(v, min(x, w))", "[1.0, 0.5]", "[1.0, 1.0]", {"w": [0], "v": []}),
        ("max(dot(v, w), dot(v, w) * x[0])", "[1.0, 0.25]", "[1.0, 1.0]", {"w": [], "v": []}),  # equal, and its slopes
        ("dot(v, clip(w, -0.5, 0.5))", "[0.1, -0.5]", "[1.0, 1.0]", {"w": [1], "v": []}),
        ("dot(v, clip(w, -0.6, 0.6))", "[0.1, -0.5]", "[1.0, 1.0]", {"w": [], "v": []}),
    ],
)
def test_what_moves_an_argument_at_a_kink_is_unknown(
    tmp_path: Path, loss: str, w: str, x: str, expected: dict[str, list[int]]
) -> None:
    """And nothing else is."""
    assert expected == unknown(opened(tmp_path, FEED_FORWARD.format(loss=loss, w=w, x=x)))


@pytest.mark.parametrize(
    ("a", "before", "after", "expected"),
    [
        ("[0.0, 1.0]", "relu(a[t-1])", "0.0", {"w": [], "v": [], "a": [0]}),  # the state before the first step
        ("[2.0, 1.0]", "a[t-1]", "abs(a[1] + 1.75)", {"w": [1], "v": [1], "a": [1]}),  # a new state
        ("[2.0, 1.0]", "a[t-1]", "abs(a[1] + 0.1)", {"w": [], "v": [], "a": []}),
    ],
)
def test_states_at_a_kink(tmp_path: Path, a: str, before: str, after: str, expected: dict[str, list[int]]) -> None:
    """Before a step and after it."""
    text = RECURRENT.format(a=a, before=before, after=after)
    assert expected == unknown(opened(tmp_path, text, wrt=("params", "state")))


@pytest.mark.parametrize(("dtype", "expected"), [("float64", False), ("float32", True)])
def test_a_kink_is_as_wide_as_rounding(tmp_path: Path, dtype: str, expected: bool) -> None:
    """0.1 + 0.2 - 0.3 + 1e-9 is zero for all that float32 can tell."""
    text = FEED_FORWARD.format(loss="sum(relu(w * x - v)) ", w="[0.1, 0.7]", x="[3.0, 3.0]")
    problem = opened(tmp_path, text.replace("[1.0, -2.0]", "[0.299999998, -2.0]"), dtype)
    assert expected == find_kinks(problem).any


def test_a_direction_that_moves_an_argument_at_a_kink_is_unknown(tmp_path: Path) -> None:
    """In the static phase and after it; other tensors' directions are known."""
    for loss, w in (("dot(v, relu(w))", "[0.0, 0.5]"), ("dot(v, abs(w - x))", "[1.0, 0.5]")):
        problem = opened(tmp_path, FEED_FORWARD.format(loss=loss, w=w, x="[1.0, 1.0]"))
        rows = {tensor: directions(tensor) for tensor in problem.setup.wrt}
        found = REFERENCE.along(problem, (Window(0, 0, 1),), rows)
        assert not np.isfinite(found["w"].bound).any()
        assert np.isfinite(found["v"].bound).all()


def test_away_from_kinks_the_complex_step_is_exact(tmp_path: Path) -> None:
    """It takes the branch of the real part."""
    loss = "dot(v, relu(w) + leaky_relu(w, 0.1) + abs(w * x) + max(w, x) * min(v, w))"
    problem = opened(tmp_path, FEED_FORWARD.format(loss=loss, w="[0.3, -0.7]", x="[-1.5, 2.0]"))
    found = REFERENCE.estimate(problem, (Window(0, 0, 1),), problem.setup.wrt)
    expected = parse("backprop").gradient(problem).arrays
    for name, estimate in found.items():
        assert np.all(np.abs(estimate.value - expected[name]) <= estimate.bound)
        assert np.all(estimate.bound <= 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_network_with_chosen_slopes_is_a_program_that_takes_them(tmp_path: Path, share: float) -> None:
    """Static operations, those of inputs and those on slices: the same loss, and at kinks these slopes."""
    loss = "dot(v, relu(w)) + dot(v, abs(w - x)) + leaky_relu(w[0:1] * x[1], 0.25)[0] + sum(max(3 * w, w) + min(w, x))"
    problem = opened(tmp_path, FEED_FORWARD.format(loss=loss, w="[0.0, 0.5]", x="[1.0, 0.5]"))
    slopes = slopes_of(problem)
    assert slopes is not None
    found, plain = (parse("backprop").gradient(p) for p in (slopes.chosen(share), problem))
    assert found.loss == plain.loss
    v = problem.params["v"]
    by_relu, by_abs, by_leaky = share * v[0], (2 * share - 1) * v[1], (0.25 + 0.75 * share) * 0.5
    by_max, by_min = 3 * share + (1 - share), 1.0 * share
    assert found.arrays["w"].tolist() == [by_relu - v[0] + by_leaky + by_max + 1, v[1] + by_abs + 3 + by_min]
    assert plain.arrays["w"].tolist() == [-v[0] + 0.125 + 1 + 1, v[1] + 3]


@pytest.mark.parametrize(
    ("loss", "w", "x", "count"),
    [
        ("dot(v, relu(w))", "[0.0, 0.5]", "[1.0, 1.0]", 2),  # one static kink
        ("dot(v, relu(w))", "[0.0, 0.0]", "[1.0, 1.0]", 4),
        ("dot(v, abs(w - x))", "[1.0, 0.5]", "[1.0, 1.0]", 2),  # one in each sample, at the same time
        ("dot(v, relu(w) + abs(w - x))", "[0.0, 1.0]", "[1.0, 1.0]", 4),  # one of either
        ("dot(v, relu(w * x))", "[0.5, 0.5]", "[1.0, 0.0]", 1),  # nothing moves it
        ("dot(v, relu(w) + relu(-w) + abs(w - x))", "[0.0, 0.0]", "[0.0, 0.0]", 0),  # too many: six
    ],
)
def test_patterns_of_slopes(tmp_path: Path, loss: str, w: str, x: str, count: int) -> None:
    """All of those that make a difference, or none where these are many."""
    slopes = slopes_of(opened(tmp_path, FEED_FORWARD.format(loss=loss, w=w, x=x)))
    assert slopes is not None
    assert count == len(slopes.patterns)


def test_rounding_at_a_kink_is_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifts of the arrays do not choose the slope, nor is a slope of zero the only one: here and at later steps."""
    text = RECURRENT.format(a="[1.0, 1.5]", before="relu(a[t-1] - v[0])", after="0.0")
    for followed in (True, False):
        problem = opened(tmp_path, text, wrt=("params", "state"))
        if not followed:
            monkeypatch.setattr("bpcli.references.numerics.rounding.slopes_of", lambda problem: None)
        found = rounding(problem, (Window(0, 0, 3),), np.dtype(np.float64)).gradient["a"]
        assert followed == (0 < found[0] < 1e-12)
