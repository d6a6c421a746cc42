"""The worked examples of the README, run as they stand, each beside a twin that must fail."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = {
    text.split()[1]: text
    for text in re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
}


def check(*args: str) -> tuple[int, dict[str, set[str]]]:
    """Exit code and verdicts by method of `bp check` in a process of its own: frameworks warn and change settings."""
    command = [sys.executable, "-m", "bpcli", "check", *args, "--format", "json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    found: dict[str, set[str]] = {}
    for row in json.loads(done.stdout)["findings"]:
        found.setdefault(row["method"], set()).add(row["verdict"])
    return done.returncode, found


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_gradient_of_a_framework(name: str, tmp_path: Path) -> None:
    """It passes on the lecture's network, and with another nonlinearity it is wrong."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    right, wrong = tmp_path / f"{name}_rnn.py", tmp_path / "other.py"
    right.write_text(BLOCKS[right.name], encoding="utf-8")
    wrong.write_text(BLOCKS[right.name].replace("tanh(", "sin("), encoding="utf-8")
    kernels = [f"{file}:gradient" for file in (right, wrong)]
    spec = str(ROOT / "specs" / "vanilla_rnn.toml")
    code, found = check(spec, "--kernel", kernels[0], "--kernel", kernels[1])
    assert 1 == code and {"pass"} == found[f"kernel:{kernels[0]}"]
    assert "wrong" in found[f"kernel:{kernels[1]}"]


def test_a_black_box(tmp_path: Path) -> None:
    """It passes, and with a wrong factor it is wrong."""
    file = tmp_path / "box.py"
    codes = []
    for text in (BLOCKS["box.py"], BLOCKS["box.py"].replace("2 *", "2.01 *")):
        file.write_text(text, encoding="utf-8")
        codes.append(check(f"{file}:Ridge")[0])
    assert [0, 1] == codes
