"""Methods of other packages: found by their entry points, used like our own, and told about when they are broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_cases import RECURRENT, run, write

import bpcli.methods as methods

PLUG_IN = """import dataclasses
from bpcli.methods import load

@dataclasses.dataclass(frozen=True)
class Options:
    factor: float = 1.0

class Twin:
    name = "twin"
    summary = "bptt times a factor"
    tags = frozenset({"exact", "recurrent"})
    Options = Options
    def refusal(self, graph): return load("bptt").refusal(graph)
    def definition(self, setup, options): return load("bptt").definition(setup, load("bptt").Options())
    def cost(self, setup, options): return load("bptt").cost(setup, load("bptt").Options())
    def gradient(self, problem, options):
        found = load("bptt").gradient(problem, load("bptt").Options())
        return dataclasses.replace(found, arrays={n: a * options.factor for n, a in found.arrays.items()})

METHOD = Twin()
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that installs a package of one module with an entry point."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def installed(text: str, value: str = "bp_twin", name: str = "twin") -> None:
        write(Path("site/bp_twin.py"), text)
        write(Path("site/bp_twin-1.0.dist-info/METADATA"), "Metadata-Version: 2.1\nName: bp-twin\nVersion: 1.0\n")
        write(Path("site/bp_twin-1.0.dist-info/entry_points.txt"), f"[bpcli.methods]\n{name} = {value}\n")
        sys.modules.pop("bp_twin", None)
        methods.installed.cache_clear()

    yield installed
    sys.modules.pop("bp_twin", None)
    methods.installed.cache_clear()


@pytest.mark.parametrize("value", ["bp_twin", "bp_twin:METHOD"])
def test_an_installed_method(install: Callable[..., None], value: str) -> None:
    """It is listed, takes options, and is judged like any other."""
    install(PLUG_IN, value)
    entries = json.loads(run("list", "methods", "--format", "json").stdout)["entries"]
    assert [["factor=1.0"]] == [e["options"] for e in entries if e["name"] == "twin"]
    spec = write(Path("net.toml"), RECURRENT)
    codes = [run("check", spec, "-m", method).exit_code for method in ("twin", "twin:factor=1.1", "twin:fact=2")]
    assert [0, 1, 2] == codes


BROKEN = {
    "import nowhere_to_be_found": "ModuleNotFoundError",
    "raise SystemExit(1)": "SystemExit: 1",
    "x = 1": "it lacks name",
    PLUG_IN.replace('name = "twin"', 'name = "tween"'): 'calls itself "tween"',
    PLUG_IN.replace("Options = Options", "Options = 3"): "not a dataclass",
    PLUG_IN.replace("METHOD =", "MEHTOD ="): "it lacks name",
    PLUG_IN.replace("def definition", "def windows"): "it has `windows` where a `definition` is wanted",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_plug_in(install: Callable[..., None], text: str) -> None:
    """One clear error when it is asked for, a warning in the list, and nothing otherwise."""
    install(text)
    spec = write(Path("net.toml"), RECURRENT)
    asked = run("check", spec, "-m", "twin")
    assert 2 == asked.exit_code and 1 == asked.stderr.count("error[") and "error[plug-in]" in asked.stderr
    assert BROKEN[text] in asked.stderr and "bp-twin" in asked.stderr
    listed = run("list", "methods", "--format", "json")
    assert 0 == listed.exit_code and "warning: " in listed.stderr and BROKEN[text] in listed.stderr
    assert {"bptt", "rtrl"} <= {e["name"] for e in json.loads(listed.stdout)["entries"]} - {"twin"}
    other = run("check", spec, "-m", "bptt")
    assert (0, "") == (other.exit_code, other.stderr)


def test_a_plug_in_that_fails_in_use(install: Callable[..., None]) -> None:
    """The error is the package's, not ours."""
    install(PLUG_IN.replace("found =", "1 / 0; found ="))
    result = run("check", write(Path("net.toml"), RECURRENT), "-m", "twin")
    assert 2 == result.exit_code and "ZeroDivisionError" in result.stderr and "a bug in bp" not in result.stderr


def test_a_plug_in_whose_definition_is_none(install: Callable[..., None]) -> None:
    """Bare windows, as methods used to give, are refused by name."""
    call = 'return load("bptt").definition(setup, load("bptt").Options())'
    install(PLUG_IN.replace(call, f"{call}.over(setup)"))
    result = run("check", write(Path("net.toml"), RECURRENT), "-m", "twin")
    assert 2 == result.exit_code and "definition gives tuple, not Exact() or Windows(windows)" in result.stderr


def test_our_own_methods_come_first(install: Callable[..., None]) -> None:
    """A plug-in can't take the name of one."""
    install("raise SystemExit(1)", name="bptt")
    assert 0 == run("check", write(Path("net.toml"), RECURRENT), "-m", "bptt").exit_code
