"""Workflow commands of GitHub Actions: annotations of what is wrong, and all rows in a folded group of the log.

A command is one line, so its text is escaped. The log itself is Markdown, no line of which can be taken for a command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from bpcli.errors import Diagnostic, Place, printable
from bpcli.render import Look, markdown
from bpcli.render.document import Case, Document

SUMMARY = "annotations for GitHub Actions, the worst ten first"
MACHINE = True

_SHOWN = 10
"""Errors, and warnings, of a step that GitHub shows."""
_LONG = 10_000


@dataclass(frozen=True)
class _Annotation:
    title: str
    lines: Sequence[str]
    place: Place | None


def render(document: Document, look: Look) -> str:
    """Refusals and the worst wrong rows as errors, the worst inconclusive ones as warnings; the rest is counted."""
    cases = document.cases()
    errors = [*map(_refused, document.errors), *_worst(cases, "wrong")]
    warnings = _worst(cases, "inconclusive")
    lines = [_command("error", a) for a in errors[:_SHOWN]] + [_command("warning", a) for a in warnings[:_SHOWN]]
    rest = {"errors": len(errors[_SHOWN:]), "warnings": len(warnings[_SHOWN:])}
    if counted := [f"{number} more {noun}" for noun, number in rest.items() if number]:
        lines.append(f"::notice title=bp::{_data(' and '.join(counted))}, in the log of this step")
    if document.rows:
        table = replace(document, sentences=(), notes=(), errors=())
        lines.append(f"::group::{_data(_clean(' '.join(document.sentences) or document.title))}")
        lines += markdown.render(table, Look(verbose=True)).splitlines()
        lines += [*(f"- {markdown.escape(note)}" for note in document.notes), "::endgroup::"]
    return "".join(f"{line}\n" for line in lines)


def _worst(cases: Sequence[Case], verdict: str) -> list[_Annotation]:
    """The cases of a verdict, worst first; NaN ranks as infinite."""
    found = [c for c in cases if c.verdict == verdict]
    found.sort(key=lambda c: c.badness if c.badness == c.badness else float("inf"), reverse=True)
    return [_Annotation(f"{c.suite} {c.name} is {c.said or verdict}", c.text(), c.place) for c in found]


def _refused(diagnostic: Diagnostic) -> _Annotation:
    lines = [diagnostic.what, *([f"help: {diagnostic.help}"] if diagnostic.help else [])]
    return _Annotation(f"error[{diagnostic.code}]", lines, diagnostic.place)


def _command(name: str, annotation: _Annotation) -> str:
    place = annotation.place
    where = {"file": _relative(place.file), "line": place.line, "col": place.column} if place else {}
    given = ",".join(f"{k}={_property(_clean(str(v)))}" for k, v in {**where, "title": annotation.title}.items())
    return f"::{name} {given}::{_data(chr(10).join(map(_clean, annotation.lines)))}"


def _relative(file: str) -> str:
    """The path from the root of the checkout, which annotations take; unchanged where there is none."""
    try:
        path = os.path.relpath(file, os.environ.get("GITHUB_WORKSPACE") or os.curdir)
    except ValueError:  # another drive, or no path at all
        return file
    return PurePath(path).as_posix()


def _clean(text: str) -> str:
    return printable(text, _LONG)


def _data(text: str) -> str:
    """`text` as the message of a command, in which the runner decodes these three escapes."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """`text` as the value of a property, which would end at a comma or a colon."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
