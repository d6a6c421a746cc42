"""The outcome of a check: findings that print as the table of the terminal, and as much as a program wants of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bpcli.api.check_document import brief_document, findings_document, with_cases
from bpcli.checking.findings import Finding, Verdict
from bpcli.errors import USAGE, Diagnostic, Place
from bpcli.render import render
from bpcli.render.document import Case, Document

if TYPE_CHECKING:
    import pandas as pd

NOTHING_JUDGED, INCONCLUSIVE = 5, 4


class GradientError(AssertionError):
    """A gradient that is wrong; the text has the worst entry, the cause and how to see it again."""


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of a check, one a method and tensor; as text the table that `bp check` shows.

    `context` says how and where they were found: versions, machine, settings. `notes` are remarks below the table,
    `errors` the targets that were refused beside those judged, and `places` where tensors and users' functions are
    written.

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
        """That of `bp check`: 2 refused, 1 wrong, 4 inconclusive where the context is `strict`, 5 nothing judged, 0."""
        if self.errors:
            return USAGE
        if not self.findings:
            return NOTHING_JUDGED
        strict = bool(self.context.get("strict")) and self.verdict == "inconclusive"
        return 1 if self.verdict == "wrong" else INCONCLUSIVE if strict else 0

    def of(self, method: str) -> Report:
        """The findings on one method alone, under the name that the table has for it."""
        return replace(self, findings=tuple(f for f in self.findings if f.method == method))

    def raise_for_wrong(self, strict: bool = False) -> None:
        """Raise GradientError where a finding is wrong or, when `strict`, inconclusive.

        Its text is what `explain` says of these, and the table.

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
        """All there is to say of the findings with one of `verdicts`; "" where there is none.

        Figures of the worst entry, the cause, the command that shows it again, and the place in the file.
        """
        cases = [case for case in self.document().cases() if case.verdict in verdicts]
        return "\n\n".join(map(_told, cases))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `bp check --format json`: context, findings, errors and summary.

        Numbers that JSON lacks are the strings "nan", "inf" and "-inf".
        """
        from bpcli.render.json import plain, whole

        found: dict[str, Any] = plain(whole(self.document()))
        return found

    def to_frame(self) -> pd.DataFrame:
        """A row a finding, with the columns of `bp check --format csv`.

        `shape` and `index` are tuples; figures that a finding does not have are NaN.
        """
        from bpcli.render.csv import frame

        return frame(self.document())

    def document(self, quiet: bool = False) -> Document:
        """A row a finding, for programs; when `quiet`, without the notes on how it was judged."""
        notes = () if quiet else self.notes
        full = findings_document(self.findings, self.errors, self.context, notes)
        return with_cases(full, self.places)

    def brief(self, quiet: bool = False) -> Document:
        """A row a method whose tensors pass, and one a tensor that does not; when `quiet`, only the latter."""
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
