"""Users' gradients: functions in Python files, saved gradients, and objects with a loss of their own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bpcli.checking.check_options import Mode
from bpcli.checking.findings import Finding
from bpcli.checking.sources.black_box import check_box, open_box
from bpcli.checking.sources.gradient_source import GradientSource, saved_gradient, user_function
from bpcli.checking.sources.user_file import UserFile, load
from bpcli.checking.sources.user_process import USER_TIME_OPTION, Process
from bpcli.errors import BpError, Collector, Diagnostic, Place, nearest, printable
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits, default_memory
from bpcli.spec.paths import resolve

USER_TIME = 60.0
"""The default time limit for each call of user code, in seconds."""
IN_FILE = re.compile(r"(?P<file>.+\.pyw?):(?P<name>[^:/\\]*)", re.DOTALL | re.IGNORECASE)
"""`FILE.py:NAME`."""


@dataclass(frozen=True)
class Asked:
    """The users' gradients that a call asks for.

    `given` are judged on every spec, `names` are kernels declared in specs; all run in `process`. `refused` has the
    refusals of others, `kernels` and `gradients` the texts of the options.
    """

    given: tuple[GradientSource, ...]
    names: tuple[str, ...]
    process: Process
    refused: tuple[Diagnostic, ...] = ()
    kernels: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.given or self.names)

    @property
    def texts(self) -> list[str]:
        """The names of the gradients in reports."""
        return [*(f.text for f in self.given), *(f"kernel:{name}" for name in self.names)]

    def option(self, method: str) -> tuple[str, str]:
        """The option of `bp check` and its value that select `method`, by its name in reports."""
        for text in self.kernels:
            if method in (f"kernel:{text}", f"kernel:{text.rpartition(':')[2]}"):
                return "--kernel", text
        for text in self.gradients:
            if method == f"gradient:{Path(text).name}":
                return "--gradient", text
        return "-m", method


def user_process(limits: Limits, user_time: float | None = None) -> Process:
    """A process for user code, which the caller must close; it is not started yet.

    `user_time` is the time limit for each call in seconds, by default `USER_TIME`.
    """
    seconds = {USER_TIME_OPTION: user_time or USER_TIME, "--max-time": limits.max_time}
    # A small memory limit is meant for arrays of bp; the needs of a framework are unknown, and get the default.
    return Process(seconds, lambda: max(default_memory(), limits.max_memory))


def read(kernels: Sequence[str], gradients: Sequence[str], process: Process) -> Asked:
    """Load `kernels`, given as `FILE.py:FUNC` or as names in specs, and files of saved `gradients`.

    Raises BpError if none of them can be judged.
    """
    collector = Collector()
    given: list[GradientSource] = []
    parts = {text: IN_FILE.fullmatch(text) for text in dict.fromkeys(kernels)}
    used = [found["name"] for found in parts.values() if found]
    for text, found in parts.items():
        if not found:
            if re.search(r"[:/\\]|\.py$", text):
                advice = "write FILE.py:FUNC, or the NAME of a [kernel.NAME] table of the spec"
                collector.add("usage", f'--kernel "{printable(text)}" names no function in a Python file', help=advice)
            continue
        called = found["name"] if used.count(found["name"]) == 1 else text
        try:
            given.append(user_function(_file(found["file"], process), found["name"], f"kernel:{called}", process))
        except BpError as error:
            collector.diagnostics += error.diagnostics
    for path in dict.fromkeys(gradients):
        try:
            given.append(saved_gradient(Path(path), f"gradient:{Path(path).name}"))
        except BpError as error:
            collector.diagnostics += error.diagnostics
    names = tuple(text for text, found in parts.items() if not found)
    if not given:
        collector.finish()
    return Asked(tuple(given), names, process, tuple(collector.diagnostics), tuple(kernels), tuple(gradients))


def of_spec(
    setup: Setup, path: Path, asked: Asked, limits: Limits
) -> tuple[tuple[GradientSource, ...], tuple[Diagnostic, ...]]:
    """The gradients to judge on one spec: all that are given, and the kernels that the spec declares by those names.

    Also the refusals of declared kernels that cannot be loaded. Raises BpError if nothing is left to judge.
    """
    if not asked.names:
        return asked.given, ()
    collector = Collector()
    own: list[GradientSource] = []
    for name in (n for n in asked.names if n in setup.spec.kernels):
        kernel, source = setup.spec.kernels[name], setup.spec.source
        place = source.value("kernel", name, "file")
        file = resolve(path, kernel.file, place, limits.allow_outside, collector, (".py",))
        if file is not None:
            shown = str(path.parent / kernel.file)
            where = source.value("kernel", name, "function")
            try:
                loaded = load(file, shown, asked.process, place)
                own.append(user_function(loaded, kernel.function, f"kernel:{name}", asked.process, where))
            except BpError as error:
                collector.diagnostics += error.diagnostics
    if not own and not asked.given:
        collector.finish()
    return (*asked.given, *own), tuple(collector.diagnostics)


def unknown(asked: Asked, declared: Sequence[str]) -> list[Diagnostic]:
    """A refusal for each kernel that no spec declares."""
    return [
        Diagnostic(
            "unknown-name",
            f'no spec declares a kernel "{printable(name)}"',
            help=nearest(name, declared, "declare [kernel.NAME] in the spec, or write FILE.py:FUNC"),
        )
        for name in asked.names
        if name not in declared
    ]


def judge(
    target: str, process: Process, wrt: Sequence[str], limits: Limits, mode: Mode, tolerance: float = 0.0
) -> list[tuple[Finding, Place]]:
    """The findings on the object `FILE.py:NAME`, each with the place of its gradient; raises BpError for no object.

    `wrt` names arrays of its params, all by default.
    """
    parts = IN_FILE.fullmatch(target)
    assert parts is not None
    path, name = _absolute(parts["file"]), parts["name"]

    def judged() -> list[tuple[Finding, Place]]:
        box = open_box(_file(parts["file"], process), name)
        found = check_box(box, wrt, limits, mode, tolerance)
        return [(_again(f, target, mode, tolerance), box.place(f.tensor)) for f in found]

    try:
        found = judged()
    except BpError:
        if process.restart(str(path), name):
            return judged()
        raise
    wrong = any(f.verdict == "wrong" for f, _ in found)
    return judged() if wrong and process.restart(str(path), name) else found


def _again(finding: Finding, target: str, mode: Mode, tolerance: float) -> Finding:
    """The finding, with the command line that reproduces it in its blame."""
    if finding.blame is None:
        return finding
    words = ["bp", "check", target, *(("--wrt", finding.tensor) if finding.checked else ())]
    words += ["--mode", mode] if mode != "auto" else []
    words += ["--tolerance", f"{tolerance:g}"] if tolerance > 0 else []
    return replace(finding, blame={**finding.blame, "reproduce": shlex.join(words)})


def _file(text: str, process: Process) -> UserFile:
    return load(_absolute(text), text, process)


def _absolute(text: str) -> Path:
    return Path(text).absolute()
