"""`[tool.bp]` of the nearest pyproject.toml: below flags, variables and the spec; its errors have their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_cases import RECURRENT, install_check, install_methods, run, write

GIVEN = 'dtype = "float64"\n'


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Toys for methods and the check, an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    install_methods(monkeypatch)
    return install_check(monkeypatch, lambda name: "inconclusive")


@pytest.mark.parametrize(
    ("spec", "environment", "flags", "expected"),
    [
        ("", {}, [], "float32"),
        (GIVEN, {}, [], "float64"),
        ("", {"BP_DTYPE": "float64"}, [], "float64"),
        ("", {"BP_DTYPE": "float64"}, ["--dtype", "float32"], "float32"),
        (GIVEN, {"BP_DTYPE": "float32"}, [], "float32"),
    ],
)
def test_precedence(spec: str, environment: dict[str, str], flags: list[str], expected: str, calls: list[Any]) -> None:
    """Flag, variable, spec, project, in this order."""
    write(Path("pyproject.toml"), '[tool.bp]\ndtype = "float32"\n')
    path = write(Path("a.toml"), RECURRENT.replace("[params]", f"{spec}[params]", 1))
    assert 0 == run("check", path, *flags, env=environment).exit_code
    assert expected == str(calls[0][0].dtype)


@pytest.mark.parametrize(
    ("line", "flags", "expected"),
    [
        ("seed = 5", [], ("seed", 5)),
        ('wrt = ["inputs"]', [], ("wrt", ["x"])),
        ('wrt = "inputs"', [], ("wrt", ["x"])),
        ('wrt = ["inputs"]', ["--wrt", "params"], ("wrt", ["W"])),
        ('method = ["rtrl"]', [], ("methods", ["bptt"])),
        ('method = ["rtrl"]', ["-m", "rtrl"], ("methods", ["rtrl"])),
    ],
)
def test_what_a_spec_can_say(line: str, flags: list[str], expected: tuple[str, Any], calls: list[Any]) -> None:
    """The project's word counts where the spec is silent; the spec names its methods here."""
    write(Path("pyproject.toml"), f"[tool.bp]\n{line}\n")
    run("check", write(Path("a.toml"), RECURRENT), *flags)
    setup, methods, _ = calls[0]
    found = {"seed": setup.spec.data.seed, "wrt": [t.name for t in setup.wrt], "methods": methods}
    assert expected[1] == found[expected[0]]


def test_methods_of_the_project(calls: list[Any]) -> None:
    """A spec that names no methods gets the project's."""
    write(Path("pyproject.toml"), '[tool.bp]\nmethod = ["rtrl"]\n')
    run("check", write(Path("a.toml"), RECURRENT.replace('methods = ["bptt"]', "")))
    assert ["rtrl"] == calls[0][1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[tool.bp]\nstrict = true\n", 4),
        ("[tool.bp]\nmax-memory = 10\n", 2),
        ("[tool.bp]\nmax_memory = '10B'\n", 2),
        ("[tool.bp]\nformat = 'json'\n", 0),
        ("[tool.other]\nx = 1\n", 0),
        ("tool = 3\n", 0),
    ],
)
def test_plain_defaults(text: str, expected: int) -> None:
    """Options that no spec can express are simply set, with dashes or underscores."""
    write(Path("pyproject.toml"), text)
    assert expected == run("check", write(Path("a.toml"), RECURRENT)).exit_code


def test_the_nearest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the folder above is found; one nearer hides it."""
    write(Path("pyproject.toml"), "[tool.bp]\nstrict = true\n")
    path = str(Path(write(Path("deep/er/a.toml"), RECURRENT)).resolve())
    monkeypatch.chdir("deep/er")
    assert 4 == run("check", path).exit_code
    write(Path("pyproject.toml"), "[project]\n")
    assert 0 == run("check", path).exit_code


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("[tool.bp\n", "pyproject.toml:1:", "toml-syntax"),
        ("[tool.bp]\nthreds = 2\n", "pyproject.toml:2:1", 'did you mean "threads"?'),
        ("[tool.bp]\nthreads = 'two'\n", "pyproject.toml:2:1", "threads must be an integer"),
        ("[tool.bp]\nthreads = true\n", "pyproject.toml:2:1", "threads must be an integer"),
        ("[tool.bp]\nthreads = 0\n", "pyproject.toml:2:1", "0 is not in the range"),
        ("[tool.bp]\nthreads = [1]\n", "pyproject.toml:2:1", "threads must be an integer"),
        ("[tool.bp]\nstrict = 1\n", "pyproject.toml:2:1", "strict must be true or false"),
        ("[tool.bp]\nmax-time = 'x'\n", "pyproject.toml:2:1", "max-time must be a number"),
        ("[tool.bp]\nwrt = [1.5, true]\n", "pyproject.toml:2:1", "wrt must be a string or a list of such"),
        ("[tool.bp]\nformat = 'jsn'\n", "pyproject.toml:2:1", 'did you mean "json"?'),
        ("[tool.bp]\nset = ['n=3']\n", "pyproject.toml:2:1", 'unknown key "set"'),
        ("[tool]\nbp = 3\n", "pyproject.toml:2:1", "[tool.bp] must be a table"),
        ("[tool.bp]\na = 1\nb = 2\n", "pyproject.toml:3:1", 'unknown key "b"'),
    ],
)
def test_errors_have_their_place(text: str, place: str, part: str) -> None:
    """A broken file, an unknown key and a bad value point into the file."""
    write(Path("pyproject.toml"), text)
    result = run("check", write(Path("a.toml"), RECURRENT))
    assert 2 == result.exit_code
    assert place in result.stderr and part in result.stderr


def test_keys_of_other_commands_are_known() -> None:
    """`[tool.bp]` serves all commands: a key that this one has not is no error."""
    write(Path("pyproject.toml"), "[tool.bp]\nstrict = true\nmode = 'full'\n")
    assert 0 == run("list", "tasks").exit_code


def test_help_in_spite_of_a_broken_project() -> None:
    """Help is shown where nothing else works."""
    write(Path("pyproject.toml"), "[tool.bp\n")
    assert 0 == run("check", "--help").exit_code
    assert 0 == run("--help").exit_code
