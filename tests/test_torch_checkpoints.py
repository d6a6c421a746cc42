"""Weights from PyTorch checkpoints, names with dots and prefixes, and matrices that are sparse in the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from spec_cases import RECURRENT, changed

from bpcli.errors import BpError
from bpcli.problem.array_files import open_arrays
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

torch = pytest.importorskip("torch")

FLOAT64 = np.dtype(np.float64)
MAP = '{ W = "weight_hh_l0", V = "weight_ih_l0", b = "bias_hh_l0" }'


@pytest.fixture
def network() -> dict[str, object]:
    """Trained weights of a recurrent layer of 4 units, half of W zero."""
    torch.manual_seed(0)
    layer = torch.nn.RNN(2, 4)
    with torch.no_grad():
        layer.weight_hh_l0[torch.eye(4) + torch.eye(4).roll(1, 0) == 0] = 0
    return {f"rnn.{name}": value for name, value in layer.state_dict().items()}


def opened(folder: Path, weights: str, W: str = '["n", "n"]'):
    """The setup of the recurrent network under a table of weights."""
    text = changed(changed(RECURRENT, 'W = ["n", "n"]', f"W = {W}"), "[data]", f"[weights]\n{weights}\n[data]")
    (folder / "net.toml").write_text(text, encoding="utf-8")
    return open_setup(folder / "net.toml", {}, (), Limits())


def refused(folder: Path, weights: str, W: str = '["n", "n"]') -> str:
    """The messages with which the network is refused."""
    with pytest.raises(BpError) as caught:
        draw(opened(folder, weights, W))
    return str(caught.value)


def test_weights_of_a_checkpoint(tmp_path, network):
    """Nested dicts are dotted names; a prefix comes before all of them; other contents are ignored."""
    torch.save({"model": network, "epoch": 3, "losses": [0.5]}, tmp_path / "w.pt")
    problem = draw(opened(tmp_path, f'file = "w.pt"\nprefix = "model.rnn."\nmap = {MAP}'))
    np.testing.assert_array_equal(network["rnn.weight_hh_l0"].numpy(), problem.params["W"])
    np.testing.assert_array_equal(network["rnn.bias_hh_l0"].numpy(), problem.params["b"])
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(network["rnn.bias_ih_l0"].numpy(), problem.params["b"])


def test_a_prefix_that_is_missing(tmp_path, network):
    """The help has the prefix, and the whole name."""
    torch.save({"model": network}, tmp_path / "w.pth")
    told = refused(tmp_path, f'file = "w.pth"\nmap = {MAP}')
    assert 'prefix = "model.rnn."' in told and 'map = { W = "model.rnn.weight_hh_l0" }' in told


def test_pattern_from_the_file(tmp_path, network):
    """The entries that are not zero are the parameters; a density of a number has a pattern of its own."""
    torch.save(network, tmp_path / "w.pt")
    weights = f'file = "w.pt"\nprefix = "rnn."\nmap = {MAP}'
    setup = opened(tmp_path, weights, '{ shape = ["n", "n"], density = "file" }')
    kept = np.flatnonzero(network["rnn.weight_hh_l0"].numpy())
    (W,) = (tensor for tensor in setup.wrt if tensor.name == "W")
    np.testing.assert_array_equal(kept, W.pattern)
    np.testing.assert_array_equal(network["rnn.weight_hh_l0"].numpy(), draw(setup).params["W"])
    told = refused(tmp_path, weights, '{ shape = ["n", "n"], density = 0.5 }')
    assert "[outside-pattern]" in told and 'density = "file"' in told


def test_a_dense_matrix_has_no_pattern(tmp_path):
    """Where the file has no zero."""
    np.savez(tmp_path / "w.npz", W=np.ones((4, 4)), V=np.ones((4, 2)), b=np.ones(4))
    (W,) = (t for t in opened(tmp_path, 'file = "w.npz"', '{ shape = [4, 4], density = "file" }').wrt if t.name == "W")
    assert W.pattern is None


TYPES = ("float64", "float32", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16")


@pytest.mark.parametrize("name", TYPES)
def test_types(tmp_path, name):
    """Every real type, transposed, and a scalar."""
    values = torch.arange(6.0).reshape(2, 3).to(getattr(torch, name))
    torch.save({"W": values.T, "s": values[1, 2]}, tmp_path / "w.pt")
    file = open_arrays(tmp_path / "w.pt", None)
    np.testing.assert_array_equal([[0, 3], [1, 4], [2, 5]], file.read("W", FLOAT64))
    assert (5.0, ()) == (file.read("s", FLOAT64), file.shape("s"))


def test_a_sparse_tensor_is_read_dense(tmp_path):
    """As trained with a mask and saved small."""
    torch.save({"W": torch.eye(3).to_sparse()}, tmp_path / "w.pt")
    np.testing.assert_array_equal(np.eye(3), open_arrays(tmp_path / "w.pt", None).read("W", FLOAT64))


def _program(path: Path) -> None:
    with pytest.MonkeyPatch.context():
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


REFUSALS = {
    "a whole module": (lambda p: torch.save(torch.nn.Linear(2, 2), p), "state_dict()"),
    "the format before 1.6": (
        lambda p: torch.save({"W": torch.zeros(2)}, p, _use_new_zipfile_serialization=False), "state_dict()",
    ),
    "no checkpoint": (lambda p: p.write_bytes(b"hello"), "state_dict()"),
    "complex numbers": (lambda p: torch.save({"W": torch.zeros(2, dtype=torch.complex64)}, p), ".float()"),
    "a huge view": (lambda p: torch.save({"W": torch.zeros(1).expand(10**9)}, p), ".contiguous()"),
    "another name": (lambda p: torch.save({"V": torch.zeros(2)}, p), "the file holds: V"),
    "two of a name": (lambda p: torch.save({"W.a": torch.ones(1), "W": {"a": torch.ones(1)}}, p), "name of its own"),
    "not finite": (lambda p: torch.save({"W": torch.full((2,), torch.nan)}, p), "without nan"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals(tmp_path, what):
    """What cannot be read is refused with a remedy; nothing is unpickled but weights."""
    save, remedy = REFUSALS[what]
    save(tmp_path / "w.pt")
    with pytest.raises(BpError) as caught:
        open_arrays(tmp_path / "w.pt", None).read("W", FLOAT64)
    assert remedy in caught.value.diagnostics[0].help


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_refused(tmp_path):
    """TorchScript holds code."""
    _program(tmp_path / "w.pt")
    with pytest.raises(BpError, match="TorchScript"):
        open_arrays(tmp_path / "w.pt", None)


def test_without_torch(tmp_path, monkeypatch):
    """The extra is named."""
    torch.save({"W": torch.zeros(2)}, tmp_path / "w.pt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BpError) as caught:
        open_arrays(tmp_path / "w.pt", None)
    assert 'pip install "bp-check[torch]"' in caught.value.diagnostics[0].help
