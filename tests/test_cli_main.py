"""The group: help, version, refusals of usage, and what happens when things go wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli_cases import run

from bpcli import __version__
from bpcli.commands import COMMANDS

HEAVY = ("numba", "numpy", "scipy", "pandas", "rich", "pydantic", "tree_sitter", "bpcli.kernels")
PRESENT = [n for n, e in COMMANDS.items() if importlib.util.find_spec(e.module)]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_help_is_light() -> None:
    """Help and version load click and nothing heavy."""
    calls = [["--help"], ["--version"], *([name, "--help"] for name in PRESENT)]
    done = python(
        "import sys\nfrom bpcli.cli import main\n"
        f"for args in {calls!r}:\n"
        "    try: main(args)\n    except SystemExit as e: code = e.code\n"
        f"    print(*args, [m for m in {HEAVY!r} if m in sys.modules], code, file=sys.stderr)"
    )
    assert [" ".join([*args, "[] 0"]) for args in calls] == done.stderr.splitlines()


def test_group_help_imports_no_command() -> None:
    """`bp --help` gets its lines from the table."""
    done = python(
        "import sys\nfrom bpcli.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print([m for m in sys.modules if 'commands' in m], file=sys.stderr)"
    )
    assert "['bpcli.commands']" == done.stderr.strip()


def test_help_is_quick() -> None:
    """Best of five, as seen from a shell; the budget leaves room for a loaded machine."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bpcli", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_version() -> None:
    """The version is the package's."""
    assert f"bp {__version__}\n" == run("--version").output


@pytest.mark.parametrize("name", PRESENT)
def test_every_command_has_help(name: str) -> None:
    """Every command says what it does, and every option of it too."""
    command = getattr(importlib.import_module(COMMANDS[name].module), name)
    assert isinstance(command, click.Command) and command.name == name
    assert command.help and COMMANDS[name].help.endswith(".")
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PRESENT)
def test_every_option_has_a_variable(name: str) -> None:
    """`BP_<OPTION>` in capitals sets an option."""
    from bpcli.cli import main

    command = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.envvar == f"BP_{max(parameter.opts, key=len)[2:].replace('-', '_').upper()}"


@pytest.mark.parametrize(
    ("args", "what", "advice"),
    [
        (["chek"], 'bp has no command "chek"', 'did you mean "check"?'),
        (["--hlep"], 'bp has no option "--hlep"', 'did you mean "--help"?'),
        (["list", "--fromat", "x"], 'bp list has no option "--fromat"', 'did you mean "--format"?'),
        (["list", "--format", "jsno"], '--format: unknown value "jsno"', 'did you mean "json"?'),
        (["list", "formatz"], 'unknown value "formatz"', 'did you mean "formats"?'),
        (["list", "--output", "csv"], '--output: expected FORMAT=PATH, got "csv"', "csv="),
        (["list", "--output", "cvs=a"], '--output: unknown format "cvs"', 'did you mean "csv"?'),
        (["list", "--output", "csv=-"], '--output: "-" is not a file', "--format csv"),
        (["list", "--output", "csv=/dev/stdout"], '--output: "/dev/stdout" is not a file', "--format csv"),
        (["list", "--format"], "option '--format' requires an argument", "--help"),
        (["list", "formats", "tasks"], "unexpected extra argument", "`bp list --help`"),
        (["grad"], "bp grad needs SPEC", "`bp grad --help`"),
        (["grad", "a.toml"], "bp grad needs -m/--method", "`bp grad --help`"),
        (["check", "--threads", "two"], "--threads: 'two' is not an integer", "--help"),
        (["check", "--threads", "0"], "--threads: 0 is not in the range 1 to 1024", "--help"),
        (["check", "--seed", "-1"], "--seed: -1 is not in the range from 0 up", "--help"),
        (["check", "--dtype", "float46"], '--dtype: unknown value "float46"', 'did you mean "float64"?'),
        (["check", "--mode", "ful"], '--mode: unknown value "ful"', 'did you mean "full"?'),
        (["check", "--reference", "centrall"], '--reference: unknown value "centrall"', 'did you mean "central"?'),
        (["check", "--max-memory", "lots"], '--max-memory: "lots" is not an amount of memory', "500MB"),
        (["check", "--max-time", "0"], "--max-time: expected a positive number", "--max-time 600"),
        (["check", "--max-time", "nan"], "--max-time: expected a positive number", "--max-time 600"),
        (["check", "--set", "n"], '"n" is not KEY=VALUE', "--set n=64"),
        (["check", "--set", "seed=1", "--seed", "2"], "--set seed=1 contradicts --seed 2", "give one of them"),
        (["check", "--output", "csv=a", "--output", "json=a"], "two outputs go to a", "path of its own"),
        (["check", "--output", "csv=/no/such/folder/a.csv"], "its folder does not exist", "another output path"),
    ],
)
def test_usage_errors(args: list[str], what: str, advice: str) -> None:
    """A usage error reads like a spec error: what, and the nearest that exists; exit code 2, nothing on stdout."""
    result = run(*args)
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error[")
    assert what in result.stderr and f"help: {advice}"[:6] in result.stderr and advice in result.stderr


@pytest.mark.parametrize(
    "args", [["chek", "--format=json"], ["check", "--nope", "--format", "json"], ["list", "x", "--format", "json"]]
)
def test_a_refused_call_is_a_document(args: list[str]) -> None:
    """With JSON, stdout is one document even where the command never ran."""
    result = run(*args)
    document = json.loads(result.stdout)
    assert (2, ["usage"]) == (result.exit_code, [e["code"] for e in document["errors"]])
    assert {"schema_version", "context", "errors", "summary"} <= set(document)


def test_a_refused_check_has_the_keys_of_a_check() -> None:
    """A program that reads findings finds the key."""
    document = json.loads(run("check", "--nope", "--format", "json").stdout)
    assert ([], {"passed": 0, "wrong": 0, "inconclusive": 0}) == (document["findings"], document["summary"])


def test_no_command_shows_help() -> None:
    """`bp` alone is a usage error that shows the way."""
    result = run()
    assert 2 == result.exit_code and "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RuntimeError("boom"), 2, "error[internal]: RuntimeError: boom"),
        (MemoryError(), 2, "error[memory]: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "error[system]: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_what_goes_wrong(error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens, the user gets a line and an exit code, never a traceback."""
    import bpcli.commands.list

    def broken(what: str | None) -> None:
        raise error

    monkeypatch.setattr(bpcli.commands.list, "catalogue", broken)
    result = run("list")
    assert (code, "") == (result.exit_code, result.stdout)
    assert text in result.stderr and "Traceback" not in result.stderr


def test_the_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """`BP_TRACEBACK=1` shows where a bug arose."""
    import bpcli.commands.list

    monkeypatch.setattr(bpcli.commands.list, "catalogue", lambda what: 1 / 0)
    assert "Traceback" in run("list", env={"BP_TRACEBACK": "1"}).stderr


def test_a_closed_pipe_is_quiet() -> None:
    """`bp list … | head -1` says nothing on stderr."""
    command = f"{sys.executable} -m bpcli list operations --format json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ("{\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(("closed", "code", "said"), [(">&-", 2, "error[usage]: stdout is closed"), ("2>&-", 0, "")])
def test_a_closed_stream(closed: str, code: int, said: str) -> None:
    """Where nobody sees what is found that is an error; without stderr there are no notes."""
    command = f"{sys.executable} -m bpcli list tasks {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert code == done.returncode and done.stderr.startswith(said) and "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("folder", ["kernels", "./kernels"])
def test_a_relative_folder_of_kernels_counts_from_where_one_is(folder: str) -> None:
    """It stays the same folder for every process that is started."""
    done = python("import os, bpcli.cli; print(os.environ['NUMBA_CACHE_DIR'])", NUMBA_CACHE_DIR=folder)
    assert str(Path.cwd() / "kernels") == done.stdout.strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error() -> None:
    """What could not be written is said."""
    done = subprocess.run(
        f"{sys.executable} -m bpcli list tasks > /dev/full", shell=True, capture_output=True, text=True, check=False
    )
    assert 2 == done.returncode and done.stderr.startswith("error[system]") and "Traceback" not in done.stderr


def test_a_narrow_encoding_does_not_stop_it() -> None:
    """A terminal that knows ASCII alone gets escapes."""
    done = subprocess.run(
        [sys.executable, "-m", "bpcli", "list", "formats"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (0, b"") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "first"), [("BP_FORMAT", "csv", "kind,name,"), ("BP_FORMAT", "json", "{")]
)
def test_variables(variable: str, value: str, first: str) -> None:
    """A variable sets an option; the flag wins over it."""
    assert run("list", "tasks", env={variable: value}).stdout.startswith(first)
    assert run("list", "tasks", "--format", "table", env={variable: value}).stdout.startswith("name")


def test_a_bad_variable_is_named() -> None:
    """A refusal names the variable that the value came from."""
    result = run("check", env={"BP_THREADS": "many"})
    assert 2 == result.exit_code and "--threads (BP_THREADS): 'many' is not an integer" in result.stderr


@pytest.mark.parametrize("what", ["tasks", "operations", "formats", "references"])
def test_list(what: str) -> None:
    """Every entry of a catalogue has a name and a line."""
    entries = json.loads(run("list", what, "--format", "json").stdout)["entries"]
    assert entries and all(e["name"] and e["summary"] for e in entries)


def test_help_of_topics_and_commands() -> None:
    """Pages as they are written, commands as `--help` shows them, and both in a list; another word is refused."""
    from bpcli.commands.help_page import PAGES, topics

    assert not {*topics()} & {*COMMANDS}
    for topic in topics():
        assert (PAGES / f"{topic}.md").read_text(encoding="utf-8") == run("help", topic).stdout
    assert run("check", "--help").stdout == run("help", "check").stdout
    listed = run("help").stdout
    assert all(f"  {name} " in listed for name in (*topics(), *COMMANDS))
    refused = run("help", "verdict")
    assert 2 == refused.exit_code and 'did you mean "verdicts"' in refused.stderr
