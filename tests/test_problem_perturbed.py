"""Perturbed copies, rounding magnitudes and the search for the first value that is not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import FEED_FORWARD, RECURRENT, SPECS, by_copies, distance, gradient, problem_of, small, written

from bpcli.errors import BpError
from bpcli.graph.operations import OPERATIONS
from bpcli.methods import parse
from bpcli.problem.definition import Problem, cast
from bpcli.references.numerics.rounding import magnitude
from bpcli.references.perturbation import perturbed
from bpcli.runtime.evaluation import check_finite
from bpcli.runtime.reverse_mode import Window
from bpcli.runtime.reverse_mode import merged as join

METHODS = [
    *((name, method) for name in RECURRENT for method in ("bptt", "tbptt:k1=1,k2=2", "tbptt:k1=3,k2=3")),
    *((name, "backprop") for name in FEED_FORWARD),
]
UNIT = float(np.finfo(np.float32).eps) / 2


def analytic(problem: Problem) -> bool:
    """Whether the complex step applies."""
    return all(OPERATIONS[node.op].analytic for node in problem.setup.graph.nodes if node.op in OPERATIONS)


@pytest.mark.parametrize(("name", "method"), [case for case in METHODS if analytic(small(case[0]))])
def test_complex_copies(name: str, method: str) -> None:
    """Imaginary perturbations of every entry give the gradient to rounding."""
    problem = small(name)
    assert distance(by_copies(problem, method, 1e-40j), gradient(problem, method).arrays) < 1e-13


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_real_copies(name: str, method: str) -> None:
    """Central differences of every entry give the gradient to truncation and cancellation."""
    problem = small(name)
    assert distance(by_copies(problem, method, 1e-5), gradient(problem, method).arrays) < 1e-6


def test_the_twin() -> None:
    """Copies of a truncation are not copies of the whole."""
    problem = small("vanilla_rnn")
    assert distance(by_copies(problem, "fbptt:2", 1e-40j), gradient(problem, "bptt").arrays) > 1e-3


@pytest.mark.parametrize("entries", [1, 100, 1000])
@pytest.mark.parametrize("name", ["lstm", "lru", "masked_rnn", "tied_autoencoder"])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, entries: int) -> None:
    """However few copies are run at a time."""
    method = "tbptt:k1=2,k2=3" if name in RECURRENT else "backprop"
    monkeypatch.setattr(perturbed, "BLOCK_ENTRIES", entries)
    assert distance(by_copies(small(name), method, 1e-40j), gradient(small(name), method).arrays) < 1e-13


STATIC = """bp = 1
[inputs]
x = [3]
[params]
W = {{ shape = [3, 3], density = 0.7 }}
b = [3]
g = {{ shape = [], value = 0.8 }}
[state]
a = {{ shape = [3], init = "normal", trainable = true }}
c = []
[equations]
S = "{matrix}"
v = "{vector}"
a = "tanh(S @ a[t-1] + S.T @ x + v * a[t-1]) + 0.1 * c[t-1]"
c = "sin(c[t-1] + dot(a[t-1], v))"
loss = "dot(S @ a, x) + {loss} + c * g"
[data]
T = 4
batch = 3
"""


@pytest.mark.parametrize("loss", ["g", "sum(S * S)", "dot(v, a)", "logsumexp(v)"])
@pytest.mark.parametrize("vector", ["b", "exp(-exp(b))", "g * b", "W @ b", "concat(b[1:3], g)"])
@pytest.mark.parametrize("matrix", ["W + 0", "W", "g * (W - W.T)", "W.T @ W", "tanh(W) * sum(b)", "W / g"])
def test_copies_of_what_is_computed_once(tmp_path: Path, matrix: str, vector: str, loss: str) -> None:
    """A parameter's change reaches static matrices and vectors, each copy its own."""
    problem = written(tmp_path, STATIC.format(matrix=matrix, vector=vector, loss=loss))
    assert distance(by_copies(problem, "bptt", 1e-40j), gradient(problem, "bptt").arrays) < 1e-13
    assert distance(by_copies(problem, "fbptt:2", 1e-40j), gradient(problem, "fbptt:2").arrays) < 1e-13
    assert distance(by_copies(problem, "bptt", 1e-5), gradient(problem, "bptt").arrays) < 1e-6


@pytest.mark.parametrize("inside", ["W @ a[t-1] + W @ x", "W.T @ a[t-1] + W.T @ x", "W @ a[t-1] + W.T @ x"])
def test_copies_of_a_matrix_before_and_in_the_loop(tmp_path: Path, inside: str) -> None:
    """One packed copy of a matrix serves what all copies share and what each computes for itself."""
    text = STATIC.format(matrix="W", vector="b", loss="g")
    problem = written(tmp_path, text.replace("S @ a[t-1] + S.T @ x", inside))
    for step, near in ((1e-40j, 1e-13), (1e-5, 1e-6)):
        assert distance(by_copies(problem, "bptt", step), gradient(problem, "bptt").arrays) < near


@pytest.mark.parametrize("loss", ["g", "g + dot(b, b)", "sum(W * W)", "dot(x, x)"])
def test_losses_that_copies_hardly_touch(tmp_path: Path, loss: str) -> None:
    """A loss of parameters or inputs alone counts once a step and sample."""
    text = STATIC.format(matrix="W", vector="b", loss="g").replace("dot(S @ a, x) + g + c * g", loss)
    problem = written(tmp_path, text)
    assert distance(by_copies(problem, "bptt", 1e-40j), gradient(problem, "bptt").arrays) < 1e-13


@pytest.mark.parametrize("name", [*RECURRENT, *FEED_FORWARD])
def test_magnitudes_cover_rounding(name: str) -> None:
    """What float32 and float64 make of the same numbers differs by some units of roundoff of a tensor's magnitude."""
    problem = problem_of(SPECS / f"{name}.toml", {"dtype": "float32"})
    methods = ("bptt", "rtrl", "tbptt:k1=2,k2=3") if name in RECURRENT else ("backprop",)
    for method in methods:
        rough = gradient(problem, method).arrays
        fine = gradient(cast(problem, np.dtype(np.float64)), method).arrays
        for key, size in magnitude(problem, parse(method).definition(problem.setup).over(problem.setup)).items():
            assert (np.abs(rough[key] - fine[key]) <= 64 * UNIT * size.max()).all(), (method, key)
            assert (np.abs(fine[key]) <= size * (1 + 1e-12)).all(), (method, key)


def test_magnitudes_of_dead_paths(tmp_path: Path) -> None:
    """Nothing flows through a unit that is off or a factor that is zero: the magnitude there is exactly zero."""
    text = """bp = 1
[inputs]
x = [2]
[params]
b = { shape = [3], value = [-9.0, 9.0, -9.0] }
w = { shape = [3], value = [1.0, 0.0, 2.0] }
u = [2]
[equations]
loss = "dot(w, relu(b)) + sum(0 * u) + dot(x, x)"
"""
    problem = written(tmp_path, text)
    size = magnitude(problem, parse("backprop").definition(problem.setup).over(problem.setup))
    assert [0.0, 0.0, 0.0] == size["b"].tolist()
    assert [0.0, 9.0, 0.0] == size["w"].tolist()
    assert [0.0, 0.0] == size["u"].tolist()
    assert (size["x"] > 0).all()


OVERFLOW = """bp = 1
[inputs]
x = [2]
[params]
b = {{ shape = [2], value = [{b}, 1.0] }}
[state]
a = {{ shape = [2], value = [1.0, 1.0] }}
[equations]
h = "{h}"
a = "{a}"
loss = "{loss}"
[data]
values = {{ x = [1.0, 1.0] }}
T = 9
batch = 2
"""
PLACES = {
    "recurrent": ({"h": "1e60 * a[t-1]", "a": "h + 0 * x"}, '"h" at step 6', 9),
    "input": ({"h": "exp(1000 * x)", "a": "0.1 * h"}, '"h" at step 1', 9),
    "static": ({"h": "exp(b)", "a": "x * h"}, '"h" at step 1', 9),
    "output": ({"h": "x", "a": "a[t-1] + x", "loss": "sum(log(5 - a))"}, "that of log at step 4", 11),
    "without a name": ({"h": "x", "a": "x / (b - b) * 0.5"}, "that of divide at step 1", 10),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_first_value_that_is_not_finite(tmp_path: Path, name: str) -> None:
    """It is named, with its step, and its place is quoted."""
    equations, named, line = PLACES[name]
    with np.errstate(all="ignore"):
        text = OVERFLOW.format(**{"h": "x", "a": "a[t-1] + h", "loss": "sum(a)", "b": 1000.0, **equations})
        problem = written(tmp_path, text)
        with pytest.raises(BpError) as refused:
            check_finite(problem)
    (diagnostic,) = refused.value.diagnostics
    assert "not-finite" == diagnostic.code
    assert diagnostic.what.endswith(named)
    assert diagnostic.place is not None
    assert line == diagnostic.place.line


@pytest.mark.parametrize("name", [*RECURRENT, *FEED_FORWARD])
def test_what_is_finite_passes(name: str) -> None:
    """The shipped specs start from finite values, and looking changes nothing."""
    problem = small(name)
    before = gradient(problem, "bptt" if name in RECURRENT else "backprop").loss
    check_finite(problem)
    assert before == gradient(problem, "bptt" if name in RECURRENT else "backprop").loss


def test_casting() -> None:
    """The same dtype is the same problem; another one has every array in it, and the same numbers where it widens."""
    problem = small("lstm", "float32")
    assert cast(problem, np.dtype(np.float32)) is problem
    wide = cast(problem, np.dtype(np.float64))
    assert np.dtype(np.float64) == wide.setup.dtype
    for tensor in problem.setup.wrt:
        assert np.dtype(np.float64) == wide.array(tensor).dtype
        assert (wide.array(tensor) == problem.array(tensor)).all()


@pytest.mark.parametrize(
    ("windows", "merged"),
    [
        ([(0, 0, 1), (0, 1, 3), (1, 3, 4)], [(0, 0, 3), (1, 3, 4)]),
        ([(0, 0, 1), (0, 1, 2), (0, 2, 4)], [(0, 0, 4)]),
        ([(0, 0, 2), (0, 0, 2)], [(0, 0, 2), (0, 0, 2)]),
        ([(0, 0, 1), (0, 2, 4)], [(0, 0, 1), (0, 2, 4)]),
        ([(0, 0, 3), (0, 2, 4)], [(0, 0, 3), (0, 2, 4)]),
        ([(0, 0, 2), (0, 0, 2), (0, 2, 4)], [(0, 0, 2), (0, 0, 4)]),
    ],
)
def test_windows_merge_where_their_losses_adjoin(
    windows: list[tuple[int, int, int]], merged: list[tuple[int, int, int]]
) -> None:
    """Identical, overlapping and gapped ones stay apart."""
    found = join([Window(*w) for w in windows])
    assert merged == [(w.start, w.loss_from, w.stop) for w in found]


@pytest.mark.parametrize("windows", [[(0, 0, 3), (0, 0, 3)], [(0, 0, 1), (0, 2, 4)], [(0, 0, 3), (0, 2, 4)]])
def test_losses_of_windows_add_up(windows: list[tuple[int, int, int]]) -> None:
    """Together they give the sum of what each gives alone."""
    problem = small("vanilla_rnn")
    tensor, step = next(t for t in problem.setup.wrt if t.kind == "param"), np.full(1, 1e-40j)
    entry = np.zeros(1, dtype=np.int64)

    def losses(several: list[tuple[int, int, int]]) -> np.ndarray:
        made = [Window(*w) for w in several]
        return perturbed.Perturbed(problem, made, np.dtype(np.complex128)).losses(tensor, entry, step)

    assert losses(windows) == pytest.approx(sum(losses([w]) for w in windows), rel=1e-13)
