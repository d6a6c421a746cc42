"""`bp completion`: what is completed, how quickly, and the scripts in the shells that are installed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import run
from kernel_cases import SPECS

from bpcli.checking.check_options import Mode
from bpcli.commands.completion import MODES, SHELLS

SPEC = str(SPECS / "vanilla_rnn.toml")
HEAVY = ("numba", "llvmlite", "numpy", "pandas", "pydantic", "rich", "scipy")


def completions(line: str) -> list[str]:
    """The values that Bash is told for a line with the cursor at its end."""
    env = {"COMP_LINE": line, "_BP_COMPLETE": "bash_complete"}
    return [item.partition(",")[2] for item in run(env=env).stdout.splitlines() if item]


@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        ("bp ", ["check", "bench", "new", "completion"], ["gru"]),
        ("bp ch", ["check"], ["bench"]),
        ("bp check --se", ["--set", "--seed"], ["--mode"]),
        (f"bp check {SPEC} -m ", ["bptt", "rtrl", "tbptt"], ["base"]),
        ("bp check -m tbptt:", ["tbptt:k1=", "tbptt:k2="], ["tbptt"]),
        ("bp check -m tbptt:k1=4,", ["tbptt:k1=4,k2="], ["tbptt:k1=4,k1="]),
        ("bp train x.toml --watch snap:", ["snap:k="], []),
        ("bp check --reference c", ["complex-step", "central"], ["auto", "jax"]),
        ("bp check --mode ", list(MODES), []),
        ("bp check --mode=d", ["directional"], ["auto"]),
        ("bp check --format j", ["json", "jsonl", "junit"], ["csv"]),
        ("bp check --output j", ["json=", "jsonl=", "junit="], ["csv="]),
        ("bp explain x.toml --format ", ["latex"], ["json"]),
        (f"bp check {SPEC} --set ", ["n=", "n_in=", "T=", "task="], ["threads=", "alpha="]),
        (f"bp check {SPEC} --set n", ["n=", "n_in=", "n_out="], ["T="]),
        (f"bp bench {SPEC} -g ", ["n=", "threads=", "k2="], ["task="]),
        (f"bp bench {SPEC} -m snap:k=1 -g k", ["k=", "k1=", "k2="], ["n="]),
        ("bp check --set task=co", ["task=copy"], ["task=add"]),
        (f"bp check {SPEC} --wrt ", ["params", "inputs", "state", "W_out", "y_star", "a"], ["n"]),
        ("bp help ", ["verdicts", "spec", "check"], []),
        ("bp new --cell l", ["leaky", "lru", "lstm"], ["gru"]),
        ("bp new --task ", ["copy", "random"], []),
        ("bp new --output ", ["torch-kernel"], ["json="]),
        ("bp bench --peer ", ["jax", "torch"], []),
        ("bp train x.toml --optimizer ", ["adam"], []),
        ("bp list ", ["methods", "cells"], []),
        ("bp completion ", list(SHELLS), []),
        ("bp check no-such.toml --set ", ["T="], ["n="]),
    ],
)
def test_completions(line: str, among: list[str], not_among: list[str]) -> None:
    """Names, options of methods, and the sizes of the specs on the line."""
    found = completions(line)
    assert [] == [word for word in among if word not in found]
    assert [] == [word for word in not_among if word in found]


@pytest.mark.parametrize("line", ["bp check ", "bp check --output json=", "bp check -m ", "bp report "])
def test_files(line: str) -> None:
    """Shells complete files themselves, where one can stand."""
    env = {"COMP_LINE": line, "_BP_COMPLETE": "bash_complete"}
    assert "file," in run(env=env).stdout.splitlines()
    assert "file," not in run(env={**env, "COMP_LINE": "bp help "}).stdout


def test_specs_that_cannot_be_read(tmp_path: Path) -> None:
    """They add nothing, and nothing is said in the middle of a line."""
    path = tmp_path / "a.toml"
    for text in ("[dims\n", "dims = 3\n", ""):
        path.write_text(text)
        assert ["T=", "batch=", "dtype=", "seed=", "task="] == completions(f"bp check {path} --set ")


def test_modes() -> None:
    """They stand in two places, one of which is quick to import."""
    assert Mode.__args__ == MODES


@pytest.mark.parametrize("line", ["bp ch", f"bp check {SPEC} --set ", f"bp check {SPEC} -m ", "bp check --reference "])
def test_nothing_heavy_is_imported(line: str) -> None:
    """Completion happens while the user types."""
    code = "import sys; from bpcli.cli import main\ntry: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    env = {**os.environ, "COMP_LINE": line, "_BP_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout and "click" in done.stderr.split()
    assert [] == [name for name in HEAVY if name in done.stderr.split()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a spec, and with `bp` to be found in `bin`."""
    (tmp_path / "bin").mkdir()
    bp = tmp_path / "bin" / "bp"
    bp.write_text(f'#!/bin/sh\nexec {sys.executable} -m bpcli "$@"\n')
    bp.chmod(0o755)
    shutil.copy(SPEC, tmp_path / "net.toml")
    return tmp_path


SETUP = {
    "bash": (["--norc", "--noprofile", "-i"], "bind 'set bell-style none'; "),
    "zsh": (["-f", "-i"], "autoload -Uz compinit; compinit -u -D; unsetopt beep; "),
}


@pytest.mark.parametrize("shell", SETUP)
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("bp ben\t", "bp bench"),
        ("bp check net.toml --refer\tcomp\t", "bp check net.toml --reference complex-step"),
        ("bp check net.toml --set n_i\t3", "bp check net.toml --set n_in=3"),
        ("bp bench net.toml -m tbptt:k1=1,\t8", "bp bench net.toml -m tbptt:k1=1,k2=8"),
        ("bp help verd\t", "bp help verdicts"),
        ("bp check ne\t", "bp check net.toml"),
    ],
)
def test_shells(shell: str, typed: str, line: str, home: Path) -> None:
    """A line with tabs, as typed at a prompt, becomes the line that it should, but for a space that Zsh takes back."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    words, setup = SETUP[shell]
    assert line == typed_in([shell, *words], f'{setup}eval "$(bp completion {shell})"', typed, home).rstrip()


def typed_in(command: list[str], setup: str, typed: str, home: Path) -> str:
    """The line that a shell makes of what is typed, printed by a command that is put before it."""
    package = str(Path(__file__).parents[1])
    env = {**os.environ, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ ", "HOME": str(home)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe(command[0], command, {**env, "PYTHONPATH": package})
    try:
        os.write(terminal, f"{setup}; echo rea''dy\n".encode())
        shown_until(terminal, "ready\r\n")
        os.write(
            terminal, f"{typed}\x01printf '<%s>\\n' \"\x05\"\n".encode()
        )  # to the start and to the end of the line
        return re.findall(r"\n<(.*)>\r\n", shown_until(terminal, ">\r\n"))[-1]
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def shown_until(terminal: int, mark: str) -> str:
    """What the terminal shows, up to a mark."""
    shown, end = "", time.monotonic() + 120
    while mark not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown
