"""What `bp check` is given besides methods: functions in Python files, saved gradients, and objects as targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpcli.errors import BpError, Collector, Diagnostic, Place, fail, nearest, printable

if TYPE_CHECKING:
    from bpcli.checking.check_options import Mode
    from bpcli.checking.findings import Finding
    from bpcli.checking.sources.gradient_source import Foreign
    from bpcli.checking.sources.user_file import UserFile
    from bpcli.checking.sources.user_process import Process
    from bpcli.commands.common import Common
    from bpcli.problem.definition import Setup


USER_TIME = 60.0
"""Seconds that a call of user code may take."""
_IN_FILE = re.compile(r"(?P<file>.+\.pyw?):(?P<name>[^:/\\]*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """`given` is judged on every spec; `names` are those of kernels that specs declare. All run in `process`.

    `refused` says why others cannot be judged.
    """

    given: tuple[Foreign, ...]
    names: tuple[str, ...]
    process: Process
    refused: tuple[Diagnostic, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.given or self.names)


def objects(targets: Sequence[str]) -> tuple[list[str], list[str], list[Diagnostic]]:
    """The targets that are objects in Python files, the others, and a refusal for each file without an object."""
    boxes, others, refused = [], [], []
    for target in dict.fromkeys(targets):
        if _IN_FILE.fullmatch(target):
            boxes.append(target)
        elif target.endswith(".py") and not Path(target).is_dir():
            what = f'"{printable(target)}" names no object'
            refused.append(Diagnostic("usage", what, help=f"write {printable(target)}:OBJECT"))
        else:
            others.append(target)
    return boxes, others, refused


def process(common: Common, wanted: bool) -> Process:
    """The process for user code of this call of bp, which ends with it; it starts now where it is `wanted`."""
    import contextlib

    import click

    from bpcli.checking.sources.user_process import USER_TIME_OPTION, Process
    from bpcli.problem.limits import default_memory

    limits = {USER_TIME_OPTION: common.user_time or USER_TIME, "--max-time": common.limits().max_time}
    # What a framework needs by itself nobody has counted: a small --max-memory is for bp's own arrays.
    found = Process(limits, lambda: max(default_memory(), common.max_memory or 0))
    click.get_current_context().with_resource(contextlib.closing(found))
    if wanted:
        found.start()
    return found


def read(kernels: Sequence[str], gradients: Sequence[str], process: Process) -> Asked:
    """What `--kernel` and `--gradient` ask for; raises BpError where nothing of it can be judged."""
    if not kernels and not gradients:
        return Asked((), (), process)
    from bpcli.checking.sources.saved_gradient import captured
    from bpcli.checking.sources.user_function import supplied

    collector = Collector()
    given: list[Foreign] = []
    parts = {text: _IN_FILE.fullmatch(text) for text in dict.fromkeys(kernels)}
    used = [found["name"] for found in parts.values() if found]
    for text, found in parts.items():
        if not found:
            if re.search(r"[:/\\]|\.py$", text):
                advice = "write FILE.py:FUNC, or the NAME of a [kernel.NAME] of the spec"
                collector.add("usage", f'--kernel "{printable(text)}" names no function in a Python file', help=advice)
            continue
        called = found["name"] if used.count(found["name"]) == 1 else text
        try:
            given.append(supplied(_file(found["file"], process), found["name"], f"kernel:{called}", process))
        except BpError as error:
            collector.diagnostics += error.diagnostics
    for path in dict.fromkeys(gradients):
        try:
            given.append(captured(Path(path), f"gradient:{Path(path).name}"))
        except BpError as error:
            collector.diagnostics += error.diagnostics
    names = tuple(text for text, found in parts.items() if not found)
    if not given:
        collector.finish()
    return Asked(tuple(given), names, process, tuple(collector.diagnostics))


def of_spec(
    setup: Setup, path: Path, asked: Asked, common: Common
) -> tuple[tuple[Foreign, ...], tuple[Diagnostic, ...]]:
    """What of `asked` is judged on one spec: everything given, and the kernels that it declares under those names.

    And why others are not: a declared file or function is missing, or may not be read. Raises BpError where all are.
    """
    if not asked.names:
        return asked.given, ()
    from bpcli.checking.sources.user_file import load
    from bpcli.checking.sources.user_function import supplied
    from bpcli.spec.paths import resolve

    collector = Collector()
    own: list[Foreign] = []
    for name in (n for n in asked.names if n in setup.spec.kernels):
        kernel, source = setup.spec.kernels[name], setup.spec.source
        place = source.value("kernel", name, "file")
        file = resolve(path, kernel.file, place, common.allow_outside, collector, (".py",))
        if file is not None:
            shown = str(path.parent / kernel.file)
            where = source.value("kernel", name, "function")
            try:
                loaded = load(file, shown, asked.process, place)
                own.append(supplied(loaded, kernel.function, f"kernel:{name}", asked.process, where))
            except BpError as error:
                collector.diagnostics += error.diagnostics
    if not own and not asked.given:
        collector.finish()
    return (*asked.given, *own), tuple(collector.diagnostics)


def unknown(asked: Asked, declared: Sequence[str]) -> list[Diagnostic]:
    """A refusal of each name that none of the specs declares."""
    return [
        Diagnostic(
            "unknown-name",
            f'no spec declares a kernel "{printable(name)}"',
            help=nearest(name, declared, "declare [kernel.NAME] in the spec, or write FILE.py:FUNC"),
        )
        for name in asked.names
        if name not in declared
    ]


def judge(target: str, process: Process, common: Common, mode: Mode) -> list[tuple[Finding, Place]]:
    """The findings on one object, and where to mend it; raises BpError where there is none."""
    parts = _IN_FILE.fullmatch(target)
    assert parts is not None
    path, name = _absolute(parts["file"]), parts["name"]

    def judged() -> list[tuple[Finding, Place]]:
        from bpcli.checking.sources.black_box import check_box, open_box

        box = open_box(_file(parts["file"], process), name)
        found = check_box(box, common.wrt, common.limits(), mode)
        return [(_again(f, target, mode), box.place(f.tensor)) for f in found]

    try:
        found = judged()
    except BpError:
        if process.afresh(str(path), name):
            return judged()
        raise
    wrong = any(f.verdict == "wrong" for f, _ in found)
    return judged() if wrong and process.afresh(str(path), name) else found


def _again(finding: Finding, target: str, mode: Mode) -> Finding:
    """With the command line that judges its tensor again."""
    if finding.blame is None:
        return finding
    words = ["bp", "check", target, *(("--wrt", finding.tensor) if finding.checked else ())]
    words += ["--mode", mode] if mode != "auto" else []
    return replace(finding, blame={**finding.blame, "reproduce": shlex.join(words)})


def refuse_for_objects(boxes: Sequence[str], options: dict[str, bool]) -> None:
    """Raise BpError for options that mean nothing to an object; `options` says which of them are given."""
    for option, given in options.items():
        if boxes and given:
            advice = "an object has its own gradient and is judged by differences of its own loss"
            fail("usage", f'{option} goes with specs, not with an object ("{printable(boxes[0])}")', help=advice)


def refuse_for_several(gradients: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise BpError for a saved gradient among several specs: it belongs to one."""
    if gradients and len(paths) > 1:
        fail("usage", f"--gradient goes with one spec, not with {len(paths)}", help="name the spec that it belongs to")


def refuse_for_power(options: dict[str, Sequence[str]]) -> None:
    """Raise BpError for gradients beside --power, which plants faults in place of any; `options` says what is given."""
    for option, given in options.items():
        if given:
            advice = "what it could reveal is a property of the spec; check the gradient by a call of its own"
            fail("usage", f"{option} does not go with --power", help=advice)


def _file(text: str, process: Process) -> UserFile:
    from bpcli.checking.sources.user_file import load

    return load(_absolute(text), text, process)


def _absolute(text: str) -> Path:
    return Path(text).absolute()
