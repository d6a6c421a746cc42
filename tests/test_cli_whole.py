"""The command line on the real thing: the specs that ship with the package, real methods, real references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cli_cases import run

SPECS = Path(__file__).parent.parent / "specs"


def test_check_passes_on_what_ships() -> None:
    """Every gradient of the packaged specs passes."""
    result = run("check", str(SPECS), "--format", "json")
    document = json.loads(result.stdout)
    assert (0, []) == (result.exit_code, document["errors"])
    assert len(document["findings"]) == document["summary"]["passed"] > 0


def test_check_of_a_truncated_method_shows_its_bias() -> None:
    """Truncation passes for what it is, and its bias is reported."""
    result = run("check", str(SPECS / "vanilla_rnn.toml"), "-m", "tbptt:k1=1,k2=2", "--format", "json")
    found = {f["tensor"]: f for f in json.loads(result.stdout)["findings"]}
    assert 0 == result.exit_code and found["W"]["bias"] > 1e-3 > found["W"]["kernel_error"]


def test_grad_of_the_square(tmp_path: Path) -> None:
    """x² at 2 has the derivative 4."""
    assert 0 == run("grad", str(SPECS / "square.toml"), "-m", "backprop", "-o", str(tmp_path / "g.npz")).exit_code
    with np.load(tmp_path / "g.npz") as file:
        assert (4.0, 4.0) == (float(file["loss"]), float(file["d_x"]))


def test_doctor_is_content() -> None:
    """Every line of a good installation is ok or a warning."""
    result = run("doctor", "--format", "json")
    document = json.loads(result.stdout)
    assert (0, 0) == (result.exit_code, document["summary"]["fail"])


def test_list_methods() -> None:
    """Every method has a line, and shows its options."""
    entries = {e["name"]: e for e in json.loads(run("list", "methods", "--format", "json").stdout)["entries"]}
    assert {"backprop", "bptt", "rtrl", "tbptt"} <= set(entries)
    assert all(e["summary"] and e["tags"] for e in entries.values())
    assert {"k1", "k2"} == {o.partition("=")[0] for o in entries["tbptt"]["options"]}
