"""`Report`, the result of a check: a table as text or HTML, a DataFrame, a JSON document, or an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bpcli import __version__
from bpcli.api.check_document import brief_document, findings_document, with_cases
from bpcli.checking.findings import Finding, Verdict
from bpcli.errors import USAGE, Diagnostic, Place
from bpcli.render import Case, Document, render
from bpcli.runtime.machine import describe as describe_machine

if TYPE_CHECKING:
    import pandas as pd

NOTHING_JUDGED, INCONCLUSIVE = 5, 4


class GradientError(AssertionError):
    """A wrong gradient; the text has the worst entry, the cause and a command that reproduces it."""


def describe(command: str, **more: Any) -> Mapping[str, Any]:
    """The context of a result: version, machine, and `more` about the call; the same for the same call."""
    machine = asdict(describe_machine())
    return {"program": "bp", "version": __version__, "command": command, "machine": machine, **more}


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of a check, one for each method and tensor; `str` gives the table of `bp check`.

    `context` has versions, machine and settings, `notes` are remarks below the table, `errors` are the errors of other
    targets, and `places` has the declarations of tensors and users' functions.

    >>> import numpy as np
    >>> report = check_gradient(lambda p: float(p["w"] @ p["w"]), lambda p: {"w": 2 * p["w"]}, {"w": np.ones(3)})
    >>> report.verdict, report.exit_code, [f.tensor for f in report.findings]
    ('pass', 0, ['w'])
    """

    findings: tuple[Finding, ...]
    context: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    errors: tuple[Diagnostic, ...] = ()
    places: Mapping[tuple[str, str], Place] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict: "wrong", else "inconclusive", else "pass"; nothing judged is inconclusive."""
        found = {f.verdict for f in self.findings}
        if "wrong" in found:
            return "wrong"
        return "inconclusive" if "inconclusive" in found or not found else "pass"

    @property
    def exit_code(self) -> int:
        """That of `bp check`: 2 error, 5 nothing judged, 1 wrong, 4 inconclusive if the context is `strict`, else 0."""
        if self.errors:
            return USAGE
        if not self.findings:
            return NOTHING_JUDGED
        strict = bool(self.context.get("strict")) and self.verdict == "inconclusive"
        return 1 if self.verdict == "wrong" else INCONCLUSIVE if strict else 0

    def of(self, method: str) -> Report:
        """The report restricted to one method, by its name in the table."""
        return replace(self, findings=tuple(f for f in self.findings if f.method == method))

    def raise_for_wrong(self, strict: bool = False) -> None:
        """Raise GradientError if a finding is wrong or, when `strict`, inconclusive.

        The text has the explanation of these findings, and the table.

        >>> import numpy as np
        >>> report = check_gradient(lambda p: float(p["w"] @ p["w"]), lambda p: {"w": p["w"]}, {"w": np.ones(3)})
        >>> report.raise_for_wrong()
        Traceback (most recent call last):
        bpcli.api.check_report.GradientError: ...
        """
        __tracebackhide__ = True
        if text := self.explain("wrong", "inconclusive") if strict else self.explain("wrong"):
            table = render(replace(self.brief(quiet=True), sentences=(), notes=()), "table")
            raise GradientError(f"{text}\n\n{table}".rstrip())

    def explain(self, *verdicts: Verdict) -> str:
        """A text about the findings with one of `verdicts`; "" without any.

        It has the figures of the worst entry, the cause, the command that reproduces it, and the place in the file.
        """
        cases = [case for case in self.document().cases() if case.verdict in verdicts]
        return "\n\n".join(map(_told, cases))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `bp check --format json`: context, findings, errors and summary.

        Numbers that JSON lacks become the strings "nan", "inf" and "-inf".
        """
        from bpcli.render.data import plain, whole

        found: dict[str, Any] = plain(whole(self.document()))
        return found

    def to_frame(self) -> pd.DataFrame:
        """A row for each finding, with the columns of `bp check --format csv`.

        `shape` and `index` are tuples, missing figures are NaN.
        """
        from bpcli.render.data import frame

        return frame(self.document())

    def document(self, quiet: bool = False) -> Document:
        """The full document, with a row for each finding; if `quiet`, without notes on how it was judged."""
        notes = () if quiet else self.notes
        full = findings_document(self.findings, self.errors, self.context, notes)
        return with_cases(full, self.places)

    def brief(self, quiet: bool = False) -> Document:
        """The brief document: passing tensors of a method in one row; if `quiet`, only tensors that do not pass."""
        return brief_document(self.findings, self.document(quiet), quiet)

    def __str__(self) -> str:
        return render(self.brief(), "table").rstrip("\n")

    def __repr__(self) -> str:
        return f"<Report: {' '.join(self.document().sentences)}>"

    def _repr_html_(self) -> str:
        from bpcli.render.page import fragment

        return fragment(self.brief())


def _told(case: Case) -> str:
    lines: Sequence[str] = [f"{case.suite} {case.name}: {case.message}", *(f"  {line}" for line in case.lines)]
    return "\n".join([*lines, *case.where()])
