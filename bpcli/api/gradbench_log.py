"""Logs of GradBench: JSON lines, each a message of an eval or the response of a tool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli.api.gradbench_evals import EVALS, at, eval_of, parse_input, workload_of
from bpcli.checking.sources.gradient_source import SavedGradient, saved_gradient
from bpcli.errors import BpError, Place, fail, printable
from bpcli.problem.array_files import write_npz
from bpcli.problem.limits import Limits
from bpcli.problem.setup import SpecFile

_HELP = "each line is a JSON object: GradBench's CONTRIBUTING.md describes the protocol"


@dataclass(frozen=True)
class Logged:
    """A gradient in a log: the message that asked for it, the tool's output, and the place of the latter."""

    message: dict[str, Any]
    output: Any
    tool: str
    place: Place


def parse_line(text: str, file: str, number: int) -> dict[str, Any]:
    """A line of JSON. Raises BpError at its place where it is no object."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        column = getattr(error, "colno", 1)
        what = f"not JSON: {getattr(error, 'msg', 'nested too deep')}"
        fail("bad-message", what, Place(file, number, column, text.rstrip("\n")), help=_HELP)
    if not isinstance(found, dict):
        fail("bad-message", "a line is a JSON object", Place(file, number, 1, text.rstrip("\n")), help=_HELP)
    return found


def field(found: dict[str, Any], name: str, kind: type, place: Place) -> Any:
    """A field of a message. Raises BpError where it is missing or of another type."""
    value = found.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        has = f'has no "{name}"' if name not in found else f'has a "{name}" of another type'
        fail("bad-message", f"a message {has}", place, help=_HELP)
    return value


def logged_gradients(path: Path) -> tuple[list[Logged], list[str]]:
    """The gradients in a log, and notes on messages that hold none that can be judged.

    Raises BpError where the file cannot be read or a line is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        fail(
            "unreadable-file",
            f"cannot read {printable(str(path))}: {reason}",
            help="gradbench run --output writes logs",
        )
    asked: dict[int, dict[str, Any]] = {}
    found, failed, tool = [], 0, "tool"
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line, place = parse_line(text, str(path), number), Place(str(path), number, 1, text)
        if "message" in line:
            message = field(line, "message", dict, place)
            asked[field(message, "id", int, place)] = message
            continue
        response = field(line, "response", dict, place)
        message = asked.get(field(response, "id", int, place), {})
        tool = str(response.get("tool", tool)) if message.get("kind") == "start" else tool
        known = EVALS.get(str(message.get("module")))
        if message.get("kind") != "evaluate" or (known and message.get("function") != known.gradient):
            continue
        if response.get("success") is True and "output" in response:
            found.append(Logged(message, response["output"], tool, place))
        else:
            failed += 1
    notes = [f"{path}: {tool} failed {failed} times, which leaves no gradient to judge"] if failed else []
    return found, notes


def opened(logged: Logged, folder: Path, limits: Limits) -> tuple[SpecFile, SavedGradient]:
    """The spec of a logged gradient and the gradient, written into `folder`. Raises BpError at the line of the log."""
    try:
        found = eval_of(str(logged.message.get("module")))
        given = parse_input(found, logged.message.get("input"))
        spec = workload_of(found, given).write(folder)
        try:
            arrays = found.split(given, logged.output)
        except ValueError as error:
            fail("bad-output", f"{logged.tool}: {error}", help="the README of the eval describes its output")
    except BpError as error:
        raise at(error, logged.place) from None
    write_npz(folder / "gradient.npz", {f"d_{name}": array for name, array in arrays.items()})
    about = str(logged.message.get("description") or f"id={logged.message['id']}")
    name = printable(f"{logged.message['module']} {about}", 60)
    return SpecFile(str(spec), name, {}, (), limits), saved_gradient(
        folder / "gradient.npz", printable(logged.tool, 40)
    )
