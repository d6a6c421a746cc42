"""Gradients saved in .npz files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import RECURRENT, run, write
from user_code_cases import check, outcomes

Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with the gradient of the toy spec in `g.npz`."""
    monkeypatch.chdir(tmp_path)
    assert 0 == run("grad", write(Path("net.toml"), RECURRENT), "-m", "bptt", "-o", "g.npz").exit_code


def test_what_bp_grad_writes_passes() -> None:
    """Gradient and loss, under the name of the file."""
    code, document = check("--gradient", "g.npz")
    assert (0, {"W": ("pass", ""), "loss": ("pass", "")}) == (code, outcomes(document))
    assert {"gradient:g.npz"} == {f["method"] for f in document["findings"]}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda a: {**a, "d_W": -a["d_W"]}, {"W": "", "loss": None}),
        (lambda a: {**a, "loss": a["loss"] + 1e-9}, {"W": None, "loss": ""}),
        (lambda a: {"d_W": a["d_W"] * np.nan}, {"W": "not finite (g.npz)"}),
        (lambda a: {"d_W": a["d_W"][:1]}, {"W": "wrong shape: (1, 2), not (2, 2) (g.npz)"}),
        (lambda a: {"d_W": a["d_W"].astype("f4")}, {"W": "wrong type: float32, not float64 (g.npz)"}),
        (lambda a: {"d_x": a["d_W"]}, {"W": "missing (g.npz)"}),
        (lambda a: {**a, "d_V": a["d_W"]}, {"W": None, "loss": None, "V": "unknown key: known: W, a, x (g.npz)"}),
        (lambda a: {**a, "other": a["d_W"]}, {"W": None, "loss": None}),
        (lambda a: {**a, "loss": np.zeros(2)}, {"W": None, "loss": "wrong shape: (2,), not a scalar (g.npz)"}),
    ],
)
def test_what_is_wrong_with_a_file(spoil: Callable[[Arrays], Arrays], expected: dict[str, str | None]) -> None:
    """Every fault is a finding; None stands for what passes."""
    with np.load("g.npz") as held:
        arrays = dict(held)
    np.savez("g.npz", **spoil(arrays))
    code, document = check("--gradient", "g.npz")
    wrong = {name: ("pass", "") if cause is None else ("wrong", cause) for name, cause in expected.items()}
    assert (int(any(v == "wrong" for v, _ in wrong.values())), wrong) == (code, outcomes(document))


@pytest.mark.usefixtures("free_directions")
@pytest.mark.parametrize("mode", ["full", "directional"])
def test_tolerance(mode: str) -> None:
    """A gradient that is off by less of its largest entry passes, and one that is off by more does not."""
    with np.load("g.npz") as held:
        np.savez("g.npz", d_W=(1 + 3e-7) * held["d_W"])
    for tolerance, outcome in (("1e-6", ("pass", "within tolerance")), ("1e-7", ("wrong", "")), ("0", ("wrong", ""))):
        _, document = check("--gradient", "g.npz", "--mode", mode, "--tolerance", tolerance)
        assert {"W": outcome} == outcomes(document)
        (finding,) = document["findings"]
        assert abs(finding["kernel_error"] - 3e-7) <= 1e-9 and document["context"].get("tolerance", 0) == float(
            tolerance
        )


def test_a_file_fails_again_as_it_is() -> None:
    """The reproducing command keeps all sizes, as the file holds the gradient of one case."""
    with np.load("g.npz") as held:
        np.savez("g.npz", **{**held, "d_W": held["d_W"].T})
    (finding,) = (f for f in check("--gradient", "g.npz")[1]["findings"] if f["verdict"] == "wrong")
    assert "bp check net.toml --gradient g.npz" == finding["blame"]["reproduce"]
    assert "a gradient is transposed" in finding["blame"]["text"]


def test_files_that_cannot_be_used() -> None:
    """Unusable files are usage errors, and so is one file for two specs."""
    np.savez("empty.npz", W=np.zeros(2))
    np.savez("pickled.npz", d_W=np.array([None]))
    Path("cut.npz").write_bytes(Path("g.npz").read_bytes()[:200])
    Path("g.txt").write_text("d_W")
    for name in ("none.npz", "empty.npz", "pickled.npz", "cut.npz", "g.txt"):
        code, document = check("--gradient", name)
        assert (2, 1, []) == (code, len(document["errors"]), document["findings"]), name
    write(Path("other.toml"), RECURRENT)
    assert 2 == check("other.toml", "--gradient", "g.npz")[0]
