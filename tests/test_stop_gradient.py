"""Values behind `stop_gradient` are constants of every derivative, also of real differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checking_cases import (
    REFERENCES,
    Arrays,
    compare_reference,
    judged,
    naive_gradient,
    not_passed,
    opened,
    truncation_windows,
)

from bpcli.backends.torch import PEER as TORCH
from bpcli.problem.definition import Problem
from bpcli.references.perturbation.frozen import frozen
from bpcli.references.perturbation.kinks import analytic, find_kinks
from bpcli.runtime.evaluation import whole_loss

HEAD = """bp = 1
inputs = { x = [3] }
[params]
W = [3, 3]
V = [3, 3]
b = [3]
g = []
"""
STATE = """[state]
a = { shape = [3], init = "normal" }
"""
TAIL = """[data]
batch = 2
seed = 4
"""
# Each stops something in another phase, or in another place of the graph: as a state, a loss, a factor, a sum.
RECURRENT = {
    "a parameter": 'a = "tanh(stop_gradient(W) @ a[t-1] + W @ x + b)"\nloss = "sum((a - x)**2)"',
    "an input": 'h = "W @ stop_gradient(x * b) + x * b"\na = "tanh(V @ a[t-1] + h)"\nloss = "dot(a, x)"',
    "a state": 'a = "tanh(W @ stop_gradient(a[t-1]) + x + b * a[t-1])"\nloss = "sum(a**2)"',
    "an output": 'a = "tanh(W @ a[t-1] + x)"\nloss = "sum(a**2) + stop_gradient(dot(V @ a, b)) * mean(a)"',
    "an addend": 'a = "tanh(W @ a[t-1] + stop_gradient(b * a[t-1]))"\nloss = "sum(a**2 + W @ a + stop_gradient(b))"',
    "a whole step": 'a = "stop_gradient(tanh(W @ a[t-1] + x + b))"\nloss = "sum((V @ a)**2)"',
    "a part of the loss": 'a = "tanh(W @ a[t-1] + x)"\nh = "stop_gradient(V @ a)"\nloss = "dot(h, a) + g * h[0]"',
    "of parameters alone": 'a = "tanh((stop_gradient(W @ V) + W) @ a[t-1] + x)"\nloss = "sum(a**2) * stop_gradient(g)"',
    "a relu": 'a = "tanh(W @ a[t-1] + x)"\nloss = "sum(a * stop_gradient(relu(V @ a - b)) + relu(b - a))"',
}
FEED_FORWARD = {
    "a layer": 'h = "tanh(W @ x + b)"\nloss = "sum((V @ stop_gradient(h) - h)**2) + stop_gradient(g) * g"',
    "a target": 'loss = "0.5 * sum((W @ x - stop_gradient(V @ W @ x))**2)"',
}
TEXTS = {
    **{name: HEAD + STATE + "[equations]\n" + text + "\n" + TAIL + "T = 5\n" for name, text in RECURRENT.items()},
    **{name: HEAD + "[equations]\n" + text + "\n" + TAIL for name, text in FEED_FORWARD.items()},
}


def leaking(folder: Path, text: str, dtype: str = "float64") -> Arrays:
    """The gradient of a program that forgets to stop."""
    return naive_gradient(opened(folder, text.replace("stop_gradient(", "("), dtype))


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", TEXTS)
def test_references_hold_it_constant(tmp_path: Path, name: str, reference: str) -> None:
    """Their estimates are the twin's gradient within their bounds, and far from that of a program that leaks."""
    problem = opened(tmp_path, TEXTS[name])
    compare_reference(problem, reference, leaking(tmp_path, TEXTS[name]))


@pytest.mark.parametrize("reference", REFERENCES)
def test_windows_hold_it_constant(tmp_path: Path, reference: str) -> None:
    """A window that begins later has the same values behind it."""
    problem = opened(tmp_path, TEXTS["a state"].replace("T = 5", "T = 7"))
    found = REFERENCES[reference].estimate(problem, truncation_windows(7, 2, 3), problem.setup.wrt)
    right, whole = naive_gradient(problem, 2, 3), naive_gradient(problem)
    for tensor in ("W", "b"):
        assert (np.abs(found[tensor].value - right[tensor]) <= found[tensor].bound + 1e-12).all()
        assert (np.abs(found[tensor].value - whole[tensor]) > 10 * found[tensor].bound).any()


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_program_that_leaks_is_wrong(tmp_path: Path, name: str, dtype: str, mode: str) -> None:
    """The methods pass; the gradient of a program that forgets to stop does not."""
    problem = opened(tmp_path, TEXTS[name], dtype)
    assert [] == not_passed(problem, mode)
    assert "wrong" in {f.verdict for f in judged(problem, leaking(tmp_path, TEXTS[name], dtype), mode)}


def test_kinks_behind_it_are_none(tmp_path: Path) -> None:
    """Where no derivative passes, nothing has to be chosen."""
    text = HEAD + '[equations]\nloss = "sum(stop_gradient(relu(x - x)) + b)"\n' + TAIL
    problem, twin = opened(tmp_path, text), opened(tmp_path, text.replace("stop_gradient(", "("))
    assert analytic(problem.setup.graph) and not find_kinks(problem).any
    assert not analytic(twin.setup.graph) and find_kinks(twin).any


def test_the_frozen_network_has_the_same_loss(tmp_path: Path) -> None:
    """To the last bit; where nothing is stopped it is the network itself."""
    problem = opened(tmp_path, TEXTS["a whole step"])
    held = frozen(problem)
    assert held is frozen(problem) and frozen(held) is held
    assert whole_loss(problem) == whole_loss(held)
    assert "stop_gradient" not in {node.op for node in held.setup.graph.nodes}
    moved = Problem(held.setup, {**held.params, "W": held.params["W"] + 1.0}, held.inputs, held.state)
    assert whole_loss(problem) == whole_loss(moved)
    plain = opened(tmp_path, TEXTS["a whole step"].replace("stop_gradient(", "("))
    assert frozen(plain) is plain


def test_gradcheck_does_not_apply(tmp_path: Path) -> None:
    """PyTorch's differences move what is held."""
    problem = opened(tmp_path, TEXTS["a layer"])
    assert "gradcheck's differences perturb what stop_gradient holds constant" == TORCH.refusal(problem.setup, "check")
    assert TORCH.refusal(opened(tmp_path, TEXTS["a layer"].replace("stop_gradient(", "(")).setup, "check") is None
