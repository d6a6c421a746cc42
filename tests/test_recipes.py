"""The recipes of CONTRIBUTING.md, to the letter: their files are added to the package, and the methods checked."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import run
from kernel_cases import RECURRENT, SPECS, distance, gradient, small

import bpcli
import bpcli.methods as methods

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
FENCE = re.compile(r"^```python\n# (bpcli/\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(FENCE.findall(GUIDE.read_text(encoding="utf-8")))


@pytest.fixture(autouse=True)
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files of all recipes, in a folder that the package of methods takes for its own."""
    before = set(sys.modules)
    for name, text in FILES.items():
        (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods.built_in.cache_clear()
    yield
    methods.built_in.cache_clear()
    for name in (name for name in set(sys.modules) - before if name.startswith("bpcli.methods.")):
        leaf = name.rpartition(".")[2]
        if f"bpcli/methods/{leaf}.py" in FILES:
            del sys.modules[name], vars(methods)[leaf]


def test_the_guide_has_recipes() -> None:
    """None is lost, and none takes the place of a file of the package."""
    assert {"bpcli/methods/lasting.py", "bpcli/methods/diagonal.py"} == set(FILES)
    assert not [name for name in FILES if (Path(bpcli.__file__).parents[1] / name).exists()]


def test_the_methods_are_listed() -> None:
    """A file is all that it takes."""
    entries = json.loads(run("list", "methods", "--format", "json").stdout)["entries"]
    assert {"lasting": ["k=…"], "diagonal": []} == {
        e["name"]: e["options"] for e in entries if e["name"] in ("lasting", "diagonal")
    }


@pytest.mark.parametrize("method", ["lasting:2", "diagonal"])
@pytest.mark.parametrize("name", ["lstm", "stacked_rnn"])
def test_a_check_passes(name: str, method: str) -> None:
    """The references judge them by their definitions."""
    small_ones = ["--set", "T=5", "--set", "batch=2"]
    assert 0 == run("check", str(SPECS / f"{name}.toml"), "-m", method, *small_ones).exit_code


def test_a_recursion_is_judged_by_the_complex_step_alone() -> None:
    """Differences of losses say nothing about it; a method given by windows they can judge."""
    asked = ["check", str(SPECS / "lstm.toml"), "--set", "T=3", "--set", "n=3", "--reference", "central"]
    refused = run(*asked, "-m", "diagonal")
    assert 2 == refused.exit_code and "error[reference-refused]" in refused.stderr
    assert 0 == run(*asked, "-m", "lasting:2").exit_code


@pytest.mark.parametrize("name", RECURRENT)
def test_equalities(name: str) -> None:
    """All losses are the exact gradient, the last alone is not; where J is diagonal its diagonal is enough."""
    problem = small(name)
    exact = gradient(problem, "bptt").arrays
    assert distance(gradient(problem, "lasting:9").arrays, exact) < 1e-12
    assert distance(gradient(problem, "lasting:1").arrays, exact) > 1e-6
    assert (distance(gradient(problem, "diagonal").arrays, exact) < 1e-12) == (name == "indrnn")
