"""Users' gradients: functions in Python files, saved gradients, and objects with a loss of their own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpcli.checking.findings import Finding
from bpcli.checking.sources.black_box import check_box, open_box
from bpcli.checking.sources.contractions import OPTIONS
from bpcli.checking.sources.functions import HVP, JVP, Judged, Wanted, check_function, is_function, open_function
from bpcli.checking.sources.gradient_source import GradientSource, UserFunction, saved_gradient, user_function
from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import IN_FILE, Function, UserFile, file_of, load
from bpcli.checking.sources.user_process import USER_TIME_OPTION, Process
from bpcli.checking.sources.user_rule import UserRule, is_rule, method_of, open_rule
from bpcli.errors import BpError, Collector, Diagnostic, Place, fail, nearest, printable
from bpcli.methods import MethodCall, advice, parse
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits, default_memory
from bpcli.spec.paths import resolve

USER_TIME = 60.0
"""The default time limit for each call of user code, in seconds."""


@dataclass(frozen=True)
class Asked:
    """The users' gradients that a call asks for.

    `given` are judged on every spec, `names` are kernels declared in specs; all run in `process`. `refused` has the
    refusals of others, `kernels` and `gradients` the texts of the options. `meant` is the method that all of them are
    to agree with; None for the exact gradient, or for kernels of specs what the spec says. `functions` are the names of
    functions of the caller's program.
    """

    given: tuple[GradientSource, ...]
    names: tuple[str, ...]
    process: Process
    refused: tuple[Diagnostic, ...] = ()
    kernels: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    meant: MethodCall | None = None
    functions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.given or self.names)

    @property
    def texts(self) -> list[str]:
        """The names of the gradients in reports."""
        return [*(f.text for f in self.given), *(f"kernel:{name}" for name in self.names)]

    def option(self, method: str) -> tuple[str, ...]:
        """The options of `bp check` and their values that select `method`, by its name in reports."""
        meant = () if self.meant is None else ("--as", self.meant.text)
        for text in self.kernels:
            if method in (f"kernel:{text}", f"kernel:{text.rpartition(':')[2]}"):
                return "--kernel", text, *meant
        for text in self.gradients:
            if method == f"gradient:{Path(text).name}":
                return "--gradient", text, *meant
        return "-m", method, *(meant if is_rule(method) else ())


def user_process(limits: Limits, user_time: float | None = None) -> Process:
    """A process for user code, which the caller must close; it is not started yet.

    `user_time` is the time limit for each call in seconds, by default `USER_TIME`.
    """
    seconds = {USER_TIME_OPTION: user_time or USER_TIME, "--max-time": limits.max_time}
    # A small memory limit is meant for arrays of bp; the needs of a framework are unknown, and get the default.
    return Process(seconds, lambda: max(default_memory(), limits.max_memory))


def read(
    kernels: Sequence[str],
    gradients: Sequence[str],
    process: Process,
    method: str | None = None,
    rules: Sequence[str] = (),
) -> Asked:
    """Load `kernels`, given as `FILE.py:FUNC` or as names in specs, files of saved `gradients`, and online `rules`.

    All are to agree with `method`, if it is given. Raises BpError if none of them can be judged.
    """
    meant = None if method is None else parse(method)
    if meant and not (kernels or gradients or rules):
        advice = "add --kernel FILE.py:FUNC, --gradient FILE.npz or -m FILE.py:RULE; other -m are methods of bp"
        fail("usage", "--as applies to your own gradient or rule, and none is given", help=advice)
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
            given.append(
                user_function(_file(found["file"], process), found["name"], f"kernel:{called}", process, meant)
            )
        except BpError as error:
            collector.diagnostics += error.diagnostics
    for path in dict.fromkeys(gradients):
        try:
            given.append(saved_gradient(Path(path), f"gradient:{Path(path).name}", meant))
        except BpError as error:
            collector.diagnostics += error.diagnostics
    for text in dict.fromkeys(rules):
        with collector.gather():
            rule = open_rule(text, process)
            given.append(UserRule(text, rule, process, meant or rule.meant))
    names = tuple(text for text, found in parts.items() if not found)
    if not given:
        collector.finish()
    refused = tuple(collector.diagnostics)
    return Asked(tuple(given), names, process, refused, tuple(kernels), tuple(gradients), meant)


def with_function(asked: Asked, function: Callable[..., Any], method: str | None) -> Asked:
    """Judge a function of this program too, called in its own process, as `method` if it is given."""
    meant = None if method is None else parse(method)
    name = getattr(function, "__qualname__", type(function).__qualname__).replace(".<locals>", "")
    # It is part of the caller's program, so that Ctrl-C must interrupt it.
    runner = UserCodeRunner(passing=(KeyboardInterrupt,))
    file = file_of(function, runner)
    runner.put(str(file.path), name, function)
    source = UserFunction(f"kernel:{name}", Function(file, name, file.line_of(name)), runner, meant)
    return replace(asked, given=(source, *asked.given), functions=(source.text,), meant=meant)


def split_rules(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of methods, and those of users' rules, `FILE.py:RULE`."""
    stripped = [text.strip() for text in texts]
    return tuple(t for t in texts if not is_rule(t)), tuple(t for t in stripped if is_rule(t))


@contextmanager
def opened_method(text: str, limits: Limits, user_time: float | None = None) -> Iterator[MethodCall]:
    """A method to run, given as for `-m`; a user's rule runs in a process, which ends with the block."""
    if not is_rule(text):
        yield parse(text)
        return
    with closing(user_process(limits, user_time)) as process:
        yield method_of(open_rule(text, process), text.strip())


def of_spec(
    setup: Setup, path: Path, asked: Asked, limits: Limits
) -> tuple[tuple[GradientSource, ...], tuple[Diagnostic, ...]]:
    """The gradients to judge on one spec: all that are given, and the kernels that the spec declares by those names.

    Also the refusals of declared kernels that cannot be loaded, and of methods that do not apply to the graph. Raises
    BpError if nothing is left to judge.
    """
    collector = Collector()
    _refuse_method(asked.meant, setup, None, collector)
    for given in (s for s in asked.given if s.meant is not asked.meant):
        _refuse_method(given.meant, setup, given.place, collector)
    own: list[GradientSource] = []
    for name in (n for n in asked.names if n in setup.spec.kernels):
        kernel, source = setup.spec.kernels[name], setup.spec.source
        place = source.value("kernel", name, "file")
        file = resolve(path, kernel.file, place, limits.allow_outside, collector, (".py",))
        if file is not None:
            shown = str(path.parent / kernel.file)
            where = source.value("kernel", name, "function")
            try:
                meant = asked.meant or _declared(setup, name, collector)
                loaded = load(file, shown, asked.process, place)
                own.append(user_function(loaded, kernel.function, f"kernel:{name}", asked.process, meant, where))
            except BpError as error:
                collector.diagnostics += error.diagnostics
    found = tuple(s for s in (*asked.given, *own) if s.meant is None or _refusal(s.meant, setup) is None)
    if not found:
        collector.finish()
    return found, tuple(collector.diagnostics)


def _declared(setup: Setup, name: str, collector: Collector) -> MethodCall | None:
    """The method that the spec says its kernel `name` is; refused if it does not apply. Raises BpError if unknown."""
    text, place = setup.spec.kernels[name].meant, setup.spec.source.value("kernel", name, "as")
    meant = None if text is None else parse(text, place)
    _refuse_method(meant, setup, place, collector)
    return meant


def _refuse_method(meant: MethodCall | None, setup: Setup, place: Place | None, collector: Collector) -> None:
    if meant is not None and (reason := _refusal(meant, setup)):
        collector.add("method-refused", f"{meant.text}: {reason}", place, help=advice(setup.graph))


def _refusal(meant: MethodCall, setup: Setup) -> str | None:
    """Why a user's gradient cannot be judged as a method; None if it can."""
    if "random" in meant.method.tags:
        return "it draws random numbers, which another program cannot repeat"
    return meant.refusal(setup.graph)


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
    target: str, process: Process, wanted: Wanted, limits: Limits
) -> tuple[list[tuple[Finding, Place]], list[str]]:
    """The findings on the object or function `FILE.py:NAME`, each with the place of its gradient, and remarks.

    Raises BpError if it is neither.
    """
    parts = IN_FILE.fullmatch(target)
    assert parts is not None
    path, name = _absolute(parts["file"]), parts["name"]

    def judged() -> tuple[list[tuple[Finding, Place]], list[str]]:
        file = _file(parts["file"], process)
        if is_function(file, name):
            function = open_function(file, name, wanted)
            box, found = function.box, check_function(function, wanted, limits)
        else:
            _refuse_more(target, wanted)
            box = open_box(file, name)
            found = Judged(check_box(box, wanted.wrt, limits, wanted.mode, wanted.tolerance))
        return [(_again(f, target, wanted), box.place(f.tensor)) for f in found.findings], found.notes

    try:
        found = judged()
    except BpError:
        if process.restart(str(path), name):
            return judged()
        raise
    wrong = any(f.verdict == "wrong" for f, _ in found[0])
    return judged() if wrong and process.restart(str(path), name) else found


def _refuse_more(target: str, wanted: Wanted) -> None:
    """Raise BpError for options that do not apply to an object with a loss and its gradient."""
    for label in wanted.also:
        what = f'{OPTIONS[label]} applies to functions, not to an object with params, loss and grad ("{target}")'
        fail("usage", what, help="leave it out, or name a function of PyTorch, JAX or NumPy")


def _again(finding: Finding, target: str, wanted: Wanted) -> Finding:
    """The finding, with the command line that reproduces it in its blame."""
    if finding.blame is None:
        return finding
    words = ["bp", "check", target, *(("--wrt", finding.tensor) if finding.checked else ())]
    words += ["--mode", wanted.mode] if wanted.mode != "auto" else []
    words += ["--tolerance", f"{wanted.tolerance:g}"] if wanted.tolerance > 0 else []
    words += {JVP: ["--forward"], HVP: ["--order", "2"]}.get(finding.method, [])
    return replace(finding, blame={**finding.blame, "reproduce": shlex.join(words)})


def _file(text: str, process: Process) -> UserFile:
    return load(_absolute(text), text, process)


def _absolute(text: str) -> Path:
    return Path(text).absolute()
