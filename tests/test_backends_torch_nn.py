"""PyTorch's recurrent layers as a peer: which networks they are, and that their gradients are ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import gradient

from bpcli.backends.torch_nn import PEER, cell_of
from bpcli.checking.check_options import CheckOptions, unjudged
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

SPECS = Path(__file__).parents[1] / "specs"
needs_torch = pytest.mark.skipif(PEER.available() is not None, reason="no torch")
LAYERS = {"vanilla_rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
CHANGED = {
    "vanilla_rnn": {
        "another function": ('a    = "tanh(h)"', 'a    = "sigmoid(h)"'),
        "a leak": ('a    = "tanh(h)"', 'a    = "0.5 * a[t-1] + 0.5 * tanh(h)"'),
        "a loss of the state before": ("W_out @ a + b_out", "W_out @ a[t-1] + b_out"),
        "a weight used twice": ("W_out @ a + b_out", "W_in.T @ a + b_out"),
    },
    "gru": {
        "the reset before the product": ("r * (U_c @ h[t-1] + d_c)", "U_c @ (r * h[t-1]) + d_c"),
        "a gate that is not subtracted from 1": ("(1 - z) * c", "(2 - z) * c"),
        "one bias for two gates": ("U_z @ h[t-1] + b_z", "U_z @ h[t-1] + b_r"),
    },
    "lstm": {
        "a peephole": ('sigmoid(gates[3*n:])"', 'sigmoid(gates[3*n:] + c)"'),
        "another function of the output": ("o * tanh(c)", "o * sigmoid(c)"),
        "a gate twice": ("gates[n:2*n]", "gates[:n]"),
    },
}


def opened(text: str, folder: Path, overrides: dict[str, object] | None = None, wrt: tuple[str, ...] = ()):
    """The setup of a spec given as text."""
    path = folder / "cell.toml"
    path.write_text(text, encoding="utf-8")
    return open_setup(path, overrides or {}, wrt, Limits())


def same(setup) -> bool:
    """Whether the layer's loss and gradient are those of `bptt`."""
    problem = draw(setup)
    ours, theirs = gradient(problem, "bptt"), PEER.gradient_function(problem, "bptt")()
    tolerance = 1e-11 if setup.dtype == np.float64 else 2e-4
    close = [np.isclose(ours.loss, theirs.loss, rtol=tolerance)]
    for tensor in setup.wrt:
        one, other = ours.arrays[tensor.name], theirs.arrays[tensor.name]
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        close.append(np.abs(one - other).max() <= tolerance * np.abs(one).max())
    return all(close)


@needs_torch
@pytest.mark.parametrize("wrt", [(), ("params", "state", "inputs"), ("V", "U", "b_rec")], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_bptt(name, dtype, wrt, tmp_path):
    """By parameters, by all arrays, and by some alone; some specs lack a tensor of that name."""
    text = (SPECS / f"{name}.toml").read_text(encoding="utf-8")
    whole = opened(text, tmp_path)
    known = {*whole.spec.params, "params", "state", "inputs"}
    assert same(opened(text, tmp_path, {"dtype": dtype}, tuple(w for w in wrt if w in known)))


@needs_torch
def test_another_order_of_gates_gives_another_gradient(tmp_path, monkeypatch):
    """The twin that must fail: gates in PyTorch's places for the wrong ones."""
    setup = opened((SPECS / "lstm.toml").read_text(encoding="utf-8"), tmp_path)
    cell = cell_of(setup.graph)
    assert same(setup)
    swapped = type(cell)(cell.layer, cell.nonlinearity, cell.input, (*cell.gates[1::-1], *cell.gates[2:]), cell.states)
    monkeypatch.setattr("bpcli.backends.torch_nn.cell_of", lambda graph: swapped)
    assert not same(setup)


@pytest.mark.parametrize("name", LAYERS)
def test_cells_are_recognised(name, tmp_path):
    """Also with terms and factors in another order."""
    text = (SPECS / f"{name}.toml").read_text(encoding="utf-8")
    assert cell_of(opened(text, tmp_path).graph).layer == LAYERS[name]
    turned = text.replace("W_in @ x + b_rec", "b_rec + W_in @ x").replace("f * c[t-1] + i * g", "g * i + c[t-1] * f")
    turned = turned.replace("(1 - z) * c + z * h[t-1]", "h[t-1] * z + c * (1 - z)")
    assert turned != text
    assert cell_of(opened(turned, tmp_path).graph).layer == LAYERS[name]


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, changes in CHANGED.items() for c in changes])
def test_what_is_no_cell_is_refused(name, change, tmp_path):
    """A network that differs from a layer in one place."""
    old, new = CHANGED[name][change]
    text = (SPECS / f"{name}.toml").read_text(encoding="utf-8")
    assert old in text
    setup = opened(text.replace(old, new), tmp_path)
    assert cell_of(setup.graph) is None
    assert "no cell of torch.nn" in PEER.refusal(setup, "bptt")


@needs_torch
def test_as_an_oracle_it_judges_its_cells_alone(tmp_path):
    """Any other network is refused, with the reference that judges all."""
    options = CheckOptions("torch_nn", "full")
    calls = [parse("bptt")]
    for name, refused in (("gru", {}), ("leaky_rnn", {"bptt": "the network is no cell of torch.nn: RNN, GRU or LSTM"})):
        setup = opened((SPECS / f"{name}.toml").read_text(encoding="utf-8"), tmp_path)
        assert unjudged(setup, calls, options) == refused
