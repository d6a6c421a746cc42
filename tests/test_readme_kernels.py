"""The worked examples of the README, run as they stand, each beside a twin that must fail."""

from __future__ import annotations

import importlib.util
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


def check(*args: str) -> int:
    """The exit code of `bp check` in a process of its own: frameworks warn and change settings."""
    command = [sys.executable, "-m", "bpcli", "check", *args]
    return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_gradient_of_a_framework(name: str, tmp_path: Path) -> None:
    """It passes on the lecture's network, and with another nonlinearity it is wrong."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    spec, file = str(ROOT / "specs" / "vanilla_rnn.toml"), tmp_path / f"{name}_rnn.py"
    codes = []
    for text in (BLOCKS[f"{name}_rnn.py"], BLOCKS[f"{name}_rnn.py"].replace("tanh(", "sin(")):
        file.write_text(text, encoding="utf-8")
        codes.append(check(spec, "--kernel", f"{file}:gradient"))
    assert [0, 1] == codes


def test_a_black_box(tmp_path: Path) -> None:
    """It passes, and with a wrong factor it is wrong."""
    file = tmp_path / "box.py"
    codes = []
    for text in (BLOCKS["box.py"], BLOCKS["box.py"].replace("2 *", "2.01 *")):
        file.write_text(text, encoding="utf-8")
        codes.append(check(f"{file}:Ridge"))
    assert [0, 1] == codes
