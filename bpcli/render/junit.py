"""JUnit XML: a suite for each spec, a test for each row, an error for each refusal; valid by Jenkins' junit-10.xsd."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from bpcli.errors import Diagnostic, format_diagnostic, printable
from bpcli.render import Look
from bpcli.render.document import Case, Document

SUMMARY = "JUnit XML, a test a row, for test reports"
MACHINE = True

_LONG = 10_000
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
"""Counts that a suite carries, and the element of a test that each of them counts."""


def render(document: Document, look: Look) -> str:
    """Every row and column of the document; an inconclusive row is skipped, or fails under `--strict`.

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


def _clean(text: str) -> str:
    """`text` on one line, without the characters that XML cannot represent."""
    return printable(text, _LONG)


def _body(lines: Iterable[str]) -> str:
    return "\n" + "".join(f"{_clean(line)}\n" for line in lines)
