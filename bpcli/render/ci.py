"""Formats for code review and continuous integration: Markdown, annotations of GitHub Actions, JUnit XML."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePath
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from bpcli.errors import Diagnostic, Place, format_diagnostic, printable
from bpcli.render import Case, Document, Look

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
_ANNOTATIONS = 10
"""Errors, and warnings, of a step that GitHub shows."""
_LONG = 10_000
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
"""Counts that a suite of JUnit carries, and the element of a test that each of them counts."""


def render_markdown(document: Document, look: Look) -> str:
    """A pipe table of every row and column, with sentences above, notes and refusals below."""
    blocks = [_escape(s) for s in document.sentences]
    if document.rows:
        blocks.append(_table(document))
    if document.notes:
        blocks.append("\n".join(f"- {_escape(n)}" for n in document.notes))
    blocks += [_fenced(format_diagnostic(d)) for d in document.errors]
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _escape(text: str) -> str:
    """`text` on one line, escaped so that Markdown reads it as plain text."""
    return _SPECIAL.sub(r"\\\1", printable(text, 2000))


def _table(document: Document) -> str:
    lines = [[c.heading for c in document.columns]]
    lines.append(["---:" if c.right else "---" for c in document.columns])
    lines += [[_escape(c.show(c.get(row))) for c in document.columns] for row in document.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


@dataclass(frozen=True)
class _Annotation:
    title: str
    lines: Sequence[str]
    place: Place | None


def render_github(document: Document, look: Look) -> str:
    """Refusals and the worst wrong rows as errors, the worst inconclusive ones as warnings; the rest is counted.

    All rows follow in a folded group of the log. A command is one line, so its text is escaped; the log itself is
    Markdown, no line of which can be taken for a command.
    """
    cases = document.cases()
    errors = [*map(_refusal_annotation, document.errors), *_worst(cases, "wrong")]
    warnings = _worst(cases, "inconclusive")
    lines = [_command("error", a) for a in errors[:_ANNOTATIONS]] + [
        _command("warning", a) for a in warnings[:_ANNOTATIONS]
    ]
    rest = {"errors": len(errors[_ANNOTATIONS:]), "warnings": len(warnings[_ANNOTATIONS:])}
    if counted := [f"{number} more {noun}" for noun, number in rest.items() if number]:
        lines.append(f"::notice title=bp::{_data(' and '.join(counted))}, in the log of this step")
    if document.rows:
        table = replace(document, sentences=(), notes=(), errors=())
        lines.append(f"::group::{_data(_clean(' '.join(document.sentences) or document.title))}")
        lines += render_markdown(table, Look(verbose=True)).splitlines()
        lines += [*(f"- {_escape(note)}" for note in document.notes), "::endgroup::"]
    return "".join(f"{line}\n" for line in lines)


def _worst(cases: Sequence[Case], verdict: str) -> list[_Annotation]:
    """The cases of a verdict, worst first; NaN ranks as infinite."""
    found = [c for c in cases if c.verdict == verdict]
    found.sort(key=lambda c: c.badness if c.badness == c.badness else float("inf"), reverse=True)
    return [_Annotation(f"{c.suite} {c.name} is {c.said or verdict}", c.text(), c.place) for c in found]


def _refusal_annotation(diagnostic: Diagnostic) -> _Annotation:
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
    """`text` on one line, without control characters, which XML cannot represent."""
    return printable(text, _LONG)


def _data(text: str) -> str:
    """`text` as the message of a command, in which the runner decodes these three escapes."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """`text` as the value of a property, which would end at a comma or a colon."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def render_junit(document: Document, look: Look) -> str:
    """A suite for each spec, a test for each row with all columns, an error for each refusal.

    An inconclusive row is skipped, or fails under `--strict`. Valid by Jenkins' junit-10.xsd.

    ASCII with character references, so that no encoding of a terminal or a log can spoil it.
    """
    strict = bool(document.context.get("strict"))
    root = Element("testsuites", name=_clean(document.title or "bp"))
    tests = zip(document.cases(), (_columns(document, row) for row in document.rows), strict=True)
    for suite, group in groupby(tests, key=lambda test: test[0].suite):
        element = SubElement(root, "testsuite", name=_clean(suite))
        for case, columns in group:
            _add(element, case, columns, strict)
    for diagnostic in document.errors:
        _refuse(root, diagnostic)
    for suite_element in root:
        _count(suite_element, _COUNTED)
    _count(root, ("failures", "errors"))
    indent(root)
    text = tostring(root, encoding="us-ascii").decode("ascii")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add(suite: Element, case: Case, columns: Iterable[str], strict: bool) -> None:
    """A test with its result, and the row's columns as its output."""
    test = SubElement(suite, "testcase", classname=_clean(case.suite), name=_clean(case.name))
    if case.seconds is not None:
        test.set("time", f"{case.seconds:.9f}")
    if case.verdict != "pass":
        skipped = case.verdict == "inconclusive" and not strict
        _say(test, "skipped" if skipped else "failure", case.verdict, case.message, [*case.text(), *case.where()])
    SubElement(test, "system-out").text = _body(columns)


def _refuse(root: Element, diagnostic: Diagnostic) -> None:
    """A suite of one test for an input that could not be judged at all."""
    suite = SubElement(root, "testsuite", name=_clean(diagnostic.place.file if diagnostic.place else "bp"))
    test = SubElement(suite, "testcase", classname=suite.attrib["name"], name=_clean(diagnostic.code))
    _say(test, "error", diagnostic.code, diagnostic.what, format_diagnostic(diagnostic).splitlines())


def _say(test: Element, tag: str, kind: str, message: str, lines: Iterable[str]) -> None:
    SubElement(test, tag, type=_clean(kind), message=_clean(message)).text = _body(lines)


def _columns(document: Document, row: object) -> list[str]:
    """The columns of a row that are not empty, one line each."""
    shown = ((c.heading, c.show(c.get(row))) for c in document.columns)  # type: ignore[arg-type]
    return [f"{heading}: {value}" for heading, value in shown if value]


def _count(element: Element, counts: Iterable[str]) -> None:
    """Set the counts of tests below an element, and of their results."""
    element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
    for count in counts:
        element.set(count, str(sum(1 for _ in element.iter(_COUNTED[count]))))


def _body(lines: Iterable[str]) -> str:
    return "\n" + "".join(f"{_clean(line)}\n" for line in lines)
