"""Specs and pairs of functions as tests: which there are, and what a check says of each."""

from __future__ import annotations

import gc
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bpcli.errors import UNADVISED, BpError, Diagnostic, Place

if TYPE_CHECKING:
    from bpcli.checking.sources.user_file import Host, UserFile
    from bpcli.commands.check_document import Places
    from bpcli.render.document import Case

_KERNEL = "kernel:"


@dataclass(frozen=True)
class Plan:
    """The methods and kernels that a spec is checked with, why others are not, and where its tensors are declared."""

    methods: tuple[str, ...]
    skipped: Mapping[str, str]
    places: Places


def plan(path: Path, methods: Sequence[str]) -> Plan:
    """What to check of the spec at `path`: its own methods, `methods` where it names none, else what suits it.

    Raises `BpError` with everything that is wrong with the spec or the methods.
    """
    from bpcli.commands.check import check
    from bpcli.commands.check_document import places_of
    from bpcli.commands.common import Common
    from bpcli.commands.method_selection import applying, choose, read
    from bpcli.commands.settings import defaults
    from bpcli.commands.specs import open_spec

    setup = open_spec(path, Common(allow_outside=bool(defaults(check).get("allow_outside"))))
    calls, skipped = applying(setup, choose(setup, read(methods), weak=True), alone=False)
    kernels = (f"{_KERNEL}{name}" for name in setup.spec.kernels)
    return Plan((*(c.text for c in calls), *kernels), skipped, places_of(setup.spec))


def check_spec(path: Path, methods: Sequence[str], places: Places) -> Mapping[str, list[Case] | BpError]:
    """What `bp check` says of the spec at `path`, by method, or why it refuses it: a kernel may be refused alone."""
    try:
        return _checked(path, methods, places)
    except BpError as error:
        kernels = [m for m in methods if m.startswith(_KERNEL)]
        own = [m for m in methods if m not in kernels]
        if not kernels or len(methods) == 1:
            return dict.fromkeys(methods, error)
        parts = (check_spec(path, part, places) for part in (own, *([k] for k in kernels)) if part)
        return {method: found for part in parts for method, found in part.items()}


def _checked(path: Path, methods: Sequence[str], places: Places) -> dict[str, list[Case] | BpError]:
    from click.testing import CliRunner

    from bpcli.cli import main
    from bpcli.commands.check_document import case

    flags = [part for method in methods for part in _asked(method)]
    thresholds = gc.get_threshold()  # which the command sets for a process that is its own
    try:
        result = CliRunner().invoke(main, ["check", "--format", "json", *flags, "--", str(path)], prog_name="bp")
    finally:
        gc.set_threshold(*thresholds)
    document = json.loads(result.stdout)
    if document["errors"]:
        raise BpError([_diagnostic(error) for error in document["errors"]])
    found = document["findings"]
    return {m: [case(row, places) for row in found if row["method"] == m] for m in methods}


def check_functions(
    loss: Callable[[dict[str, Any]], Any], grad: Callable[[dict[str, Any]], Any], params: Mapping[str, Any]
) -> list[Case]:
    """Judge `grad(params)`, a dict of arrays, against differences of `loss(params)`; `params` is a dict of arrays.

    Raises `BpError` for params that are no arrays of floats, and for a loss that takes too long.
    """
    from bpcli.checking.sources.black_box import check_box, open_box
    from bpcli.checking.sources.user_workshop import Workshop
    from bpcli.commands.check_document import case
    from bpcli.problem.limits import Limits

    name = getattr(grad, "__qualname__", type(grad).__name__).replace(".<locals>", "")
    # They are part of the test, and run where it does, which Ctrl-C interrupts.
    shop = Workshop(passing=(KeyboardInterrupt,))
    file = _file_of(grad, shop)
    shop.put(str(file.path), name, SimpleNamespace(loss=loss, grad=grad, params=params))
    findings = check_box(open_box(file, name), (), Limits())
    return [case(asdict(finding), {}) for finding in findings]


def _asked(method: str) -> tuple[str, str]:
    """The option that asks for what reports call `method`."""
    return ("--kernel", method.removeprefix(_KERNEL)) if method.startswith(_KERNEL) else ("-m", method)


def told(case: Case) -> str:
    """All there is to say of a case that does not pass."""
    lines = [f"{case.suite} {case.name}: {case.message}", *(f"  {line}" for line in case.lines), *case.where()]
    return "\n".join(lines)


def _file_of(function: Callable[..., Any], host: Host) -> UserFile:
    """The file that a function is written in; without lines where there is none."""
    from bpcli.checking.sources.user_file import UserFile

    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        source = path.read_bytes()
    except (TypeError, ValueError, OSError):
        path, source = Path.cwd() / "function", b""
    return UserFile(path, _shown(path), source, host)


def _shown(path: Path) -> str:
    return str(path.relative_to(here)) if path.is_relative_to(here := Path(os.getcwd())) else str(path)


def _diagnostic(error: Mapping[str, Any]) -> Diagnostic:
    """A refusal from its JSON."""
    place = Place(error["file"], error["line"], error["column"]) if error["file"] else None
    return Diagnostic(error["code"], error["message"], place, help=error["help"] or UNADVISED)
