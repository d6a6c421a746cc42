"""Kinks over time: any slope at an argument of zero is right, with its consequences for later steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import naive_dual
import numpy as np
import pytest
from checking_cases import LIMITS, Arrays, judged, naive_gradient
from naive_dual import Dual, chain

from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup

# All numbers are multiples of powers of two, so that arguments are zero exactly.
SPEC = """bp = 1
inputs = {{ x = [2], y_star = [1] }}
state = {{ a = {{ shape = [2], value = [0.5, 0.25] }} }}
[params]
W = {{ shape = [2, 2], value = [[0.5, 0.25], [-0.25, 0.75]] }}
b = {{ shape = [2], value = [-0.5, 0.75] }}
v = {{ shape = [1, 2], value = [[1.0, 0.5]] }}
[equations]
a = "{function}"
loss = "0.5 * sum((v @ a - y_star)**2)"
[data]
batch = {batch}
T = {T}
"""
FUNCTIONS = {
    "relu": ("relu(W @ a[t-1] + x + b)", 0.0),
    "leaky_relu": ("leaky_relu(W @ a[t-1] + x + b, 0.25)", 0.25),
    "abs": ("abs(W @ a[t-1] + x + b)", -1.0),
    "max": ("max(W @ a[t-1] + x + b, 0.25 * (W @ a[t-1] + x + b))", 0.25),
    "min": ("-min(0, -(W @ a[t-1] + x + b))", 0.0),
    "clip": ("clip(W @ a[t-1] + x + b, 0, 1000)", 0.0),
}
KINDS = ("params", "inputs", "state")


@dataclass(frozen=True)
class Case:
    """A network that meets a kink at one step in one sample, in its first `units`."""

    function: str
    T: int
    at: int
    batch: int = 1
    units: int = 1
    dtype: str = "float64"

    def problem(self, folder: Path) -> Problem:
        """Inputs that lead to it; all other arguments are an eighth away from zero, and more."""
        path, function = folder / "kinked.toml", FUNCTIONS[self.function][0]
        path.write_text(SPEC.format(function=function, batch=self.batch, T=self.T), encoding="utf-8")
        drawn = draw(open_setup(path, {"dtype": self.dtype}, KINDS, LIMITS))
        W, b = (np.asarray(drawn.params[n], float) for n in ("W", "b"))
        slope, who = FUNCTIONS[self.function][1], self.batch - 1
        x, a = np.zeros((self.T, self.batch, 2)), np.tile([0.5, 0.25], (self.batch, 1))
        for t in range(self.T):
            for s in range(self.batch):
                before = W @ a[s] + b
                x[t, s] = np.array([1.5 + 0.5 * s, 1.0]) * (-1) ** (t + s) - before + 0.125 * (t % 2)
                if (t, s) == (self.at, who):
                    x[t, s, : self.units] = -before[: self.units]
                z = before + x[t, s]
                a[s] = np.where(z > 0, z, slope * z)
        inputs = {"x": x.astype(self.dtype), "y_star": np.full((self.T, self.batch, 1), -3.0, self.dtype)}
        return Problem(drawn.setup, drawn.params, inputs, drawn.state)


def slopes_taken(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let the loop-only twin take a slope at zero: 0 is the one below it, 1 the one above."""

    def leaky(x: float, slope: float) -> tuple[float, float]:
        return (x, 1.0) if x > 0 else (slope * x, slope if x < 0 else slope + share * (1 - slope))

    def extreme(sign: float) -> Callable[[Dual, Dual], Dual]:
        def rule(u: Dual, v: Dual) -> Dual:
            above = sign * (u.value - v.value)
            first = share if above == 0 else float(above > 0)
            return chain(u.value if above > 0 else v.value, (first, u), (1 - first, v))

        return rule

    monkeypatch.setattr(naive_dual, "_leaky", leaky)
    monkeypatch.setattr(naive_dual, "MAX", extreme(1.0))
    monkeypatch.setattr(naive_dual, "MIN", extreme(-1.0))
    monkeypatch.setitem(naive_dual.ELEMENTWISE, "abs", lambda x: (abs(x), float(np.sign(x)) if x else 2 * share - 1))


def gradient(monkeypatch: pytest.MonkeyPatch, problem: Problem, share: float) -> Arrays:
    """The gradient with this slope at every kink."""
    with monkeypatch.context() as patch:
        slopes_taken(patch, share)
        return naive_gradient(problem)


STEPS = ((1, 0), (2, 0), (2, 1), (3, 1), (6, 0), (6, 3), (6, 5))
CASES = [
    *(Case("relu", T, at) for T, at in STEPS),
    *(Case(function, T, at) for function in ("leaky_relu", "abs", "max", "min") for T, at in STEPS[3:6]),
    *(Case(function, 3, at, batch=3) for function, at in zip(FUNCTIONS, (0, 1, 2, 0, 1, 2), strict=True)),
    *(Case(function, T, at, units=2) for function in FUNCTIONS for T, at in ((1, 0), (6, 3))),
    *(Case(function, 3, 1, batch=3, units=2) for function in FUNCTIONS),
    *(Case(function, 3, 1, dtype="float32") for function in FUNCTIONS),
]
DIRECTIONAL = [Case("relu", 6, 3, units=2), Case("abs", 3, 1, batch=3), Case("leaky_relu", 3, 0, dtype="float32")]


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize(
    ("case", "mode"), [*((c, "full") for c in CASES), *((c, "directional") for c in DIRECTIONAL)], ids=str
)
def test_the_slope_at_a_kink_is_the_programs_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case, mode: str
) -> None:
    """The left one, the mean and the right one pass; those beyond are wrong in what depends on them."""
    problem = case.problem(tmp_path)
    left, right = (gradient(monkeypatch, problem, share) for share in (0.0, 1.0))
    moved = {name for name in left if not np.array_equal(left[name], right[name])}
    assert "b" in moved and "v" not in moved
    for share in (0.0, 0.5, 1.0):
        found = judged(problem, gradient(monkeypatch, problem, share), mode)
        assert {"pass"} == {f.verdict for f in found}
        assert "b" in {f.tensor for f in found if f.cause == "kink"} <= moved
    for share in (2.0, -0.5):
        found = judged(problem, gradient(monkeypatch, problem, share), mode)
        wrong = {f.tensor for f in found if f.verdict == "wrong"}
        assert {"b", "x"} <= wrong <= moved
        assert {"pass", "wrong"} >= {f.verdict for f in found}


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("reference", ["auto", "central"])
@pytest.mark.parametrize(
    ("case", "mode"),
    [(Case("relu", 3, 0), "full"), (Case("abs", 6, 0), "full"), (Case("leaky_relu", 3, 0), "directional")],
    ids=str,
)
def test_entries_off_the_kink_keep_their_power(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case, mode: str, reference: str
) -> None:
    """An error of 0.05% is wrong in entries that no slope affects, beside others at the kink."""
    problem = case.problem(tmp_path)
    left, mean, right = (gradient(monkeypatch, problem, share) for share in (0.0, 0.5, 1.0))
    spoiled = set()
    for name, array in mean.items():
        free = np.flatnonzero((left[name] == right[name]) & (array != 0))
        for entry in free[:2]:
            answer = {**mean, name: array.copy()}
            answer[name].flat[entry] *= 1.0005
            verdicts = {f.tensor: f.verdict for f in judged(problem, answer, mode, reference)}
            assert {name} == {n for n, verdict in verdicts.items() if verdict == "wrong"}
            assert {"pass"} == {verdict for n, verdict in verdicts.items() if n != name}
            spoiled.add(name)
    assert {"W", "b", "x", "v"} <= spoiled


# At every step the argument is zero, and so it stays: by b the slopes of all steps are multiplied.
ZEROS = """bp = 1
state = {{ a = {{ shape = [1], value = [0.0] }} }}
[params]
w = {{ shape = [1], value = [{w}] }}
b = {{ shape = [1], value = [0.0] }}
[equations]
a = "relu(w * a[t-1] + b)"
loss = "sum(a)"
[objective]
over_time = "last"
[data]
batch = 2
T = {T}
"""


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize(
    ("w", "T", "value", "expected"),
    [
        (-1.5, 2, 0.0, ("pass", "kink")),  # all off
        (-1.5, 2, 0.5 - 0.375, ("pass", "kink")),  # the mean slope at both, beyond those with all on or off
        (-1.5, 2, -0.5, ("pass", "kink")),  # all on
        (-1.5, 2, 1.0, ("pass", "kink")),  # on at the last step alone
        (-1.5, 2, 1.01, ("wrong", "")),
        (-1.5, 2, -0.51, ("wrong", "")),
        # More kinks than are tried one by one: the same slope at each, some off, and beyond what any may come to.
        (1.5, 8, 0.0, ("pass", "kink")),
        (1.5, 8, sum(0.5 * 0.75**k for k in range(8)), ("pass", "kink")),
        (1.5, 8, sum(1.5**k for k in range(8)), ("pass", "kink")),
        (-1.5, 8, 1.0, ("inconclusive", "kink")),
        (-1.5, 8, 100.0, ("wrong", "")),
        (-1.5, 8, -100.0, ("wrong", "")),
    ],
)
def test_kinks_that_follow_on_each_other(
    tmp_path: Path, w: float, T: int, value: float, expected: tuple[str, str], mode: str
) -> None:
    """Patterns of slopes: all are tried if there are few; if there are many, none is called wrong."""
    path = tmp_path / "zeros.toml"
    path.write_text(ZEROS.format(w=w, T=T), encoding="utf-8")
    problem = draw(open_setup(path, {}, ("params",), LIMITS))
    found = {f.tensor: (f.verdict, f.cause) for f in judged(problem, {"b": np.array([value])}, mode)}
    assert found == {"w": ("pass", ""), "b": expected}
