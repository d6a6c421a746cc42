"""`bp export` and `bp grad` round-trip: arrays that went through files give the same gradient, bit by bit."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bpcli.cli import main

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.toml"))


def bp(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_round_trip(spec, tmp_path):
    """The gradient of a spec whose arrays are read from its export has the bytes of the spec's own."""
    text = spec.read_text(encoding="utf-8")
    method = "bptt" if "[state]" in text else "backprop"
    (tmp_path / "spec.toml").write_text(text, encoding="utf-8")
    bp("export", tmp_path / "spec.toml", "-o", tmp_path / "arrays.npz", "-q")
    bp("grad", tmp_path / "spec.toml", "-m", method, "-o", tmp_path / "first.npz", "-q")
    without = re.sub(r"(?m)^\[data\]\n(?:[^\[\n].*\n|\n)*", "", text)
    files = '\n[weights]\nfile = "arrays.npz"\n' + ('\n[data]\nfile = "arrays.npz"\n' if "[inputs]" in text else "")
    (tmp_path / "again.toml").write_text(without + files, encoding="utf-8")
    bp("grad", tmp_path / "again.toml", "-m", method, "-o", tmp_path / "second.npz", "-q")
    with np.load(tmp_path / "first.npz") as first, np.load(tmp_path / "second.npz") as second:
        assert {name: first[name].tobytes() for name in first} == {name: second[name].tobytes() for name in second}
