"""The smallest case that still fails: fewer steps, samples and units, as long as the check says wrong for the same.

Blame: what a wrong gradient looks like, where it comes from, and the smallest case that shows it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bpcli.checking.blame import evidence as place
from bpcli.checking.blame.cause import Cause, causes, errors_by_step, fits
from bpcli.checking.blame.evidence import Evidence, gather
from bpcli.checking.blame.wording import worst_entry
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding
from bpcli.checking.interpreter import work
from bpcli.checking.sources.gradient_source import Foreign
from bpcli.errors import BpError
from bpcli.methods import MethodCall
from bpcli.methods.base import Recursion
from bpcli.problem.definition import Setup


@dataclass(frozen=True)
class Again:
    """How to run a spec again with other sizes.

    `open(settings)` gives its Setup, or raises `BpError`; `command(method, settings)` is the command line that judges
    a method with them.
    """

    open: Callable[[Mapping[str, object]], Setup]
    command: Callable[[str, Mapping[str, object]], str]


def smallest(
    wrong: Sequence[Finding], setup: Setup, call: MethodCall | Foreign, again: Again, live: Callable[[], bool]
) -> dict[str, object]:
    """The settings that make the case small while `call` is still wrong in one of the ways of `wrong`, in any tensor.

    As far as there is time, and not at all where there is one answer alone. A loss that is wrong too does not count
    beside a gradient.
    """
    if not anywhere(call):
        return {}
    gradients = [f for f in wrong if f.tensor != "loss"]
    ways = {_way(f) for f in gradients or wrong}
    kept: dict[str, object] = {}
    sizes = {"T": setup.T} if setup.graph.recurrent else {}
    sizes |= {"batch": setup.batch, **setup.spec.dims}
    for key, size in sizes.items():
        for value in _smaller(size):
            if not live():
                return kept
            if ways & _ways(call, again, {**kept, key: value}):
                kept[key] = value
                break
    return kept


def anywhere(call: MethodCall | Foreign) -> bool:
    """Whether there is an answer for other sizes and seeds."""
    return isinstance(call, MethodCall) or call.anywhere


def _smaller(size: int) -> Iterator[int]:
    """1, 2, 3, and then halfway to `size`."""
    yield from (v for v in (1, 2, 3) if v < size)
    if size > 7:
        yield size // 2


def _ways(call: MethodCall | Foreign, again: Again, settings: Mapping[str, object]) -> set[tuple[str, bool]]:
    """How the method is wrong with these settings; one that is refused or cannot run does not count."""
    try:
        setup = again.open(settings)
        if isinstance(call, MethodCall) and call.refusal(setup.graph) is not None:
            return set()
        return {_way(f) for f in check(setup, [call], CheckOptions()) if f.verdict == "wrong"}
    except Exception:  # refused sizes, or whatever the program under test raises where it never ran before
        return set()


def _way(finding: Finding) -> tuple[str, bool]:
    """What is wrong, but for the details: a kernel that has a size written into it raises at any other."""
    kind = finding.cause.partition(": ")[0].partition(" (")[0]
    return kind, finding.tensor == "loss"


# Seconds of the processor, and at the latest by the clock, for the causes and for the shrinking of one method's answer,
# and the work that the interpreter takes on. A machine that is busy with other things gives the same blame.
_SECONDS = 5.0
_LATEST = 30.0
_WORK = 5e7
_SPOKEN = {
    "changes its arguments": "the method writes into the arrays that it is given",
    "missing": "the answer has no gradient of that name",
    "wrong shape": "the gradient has another shape than its array",
    "wrong type": "the gradient is not of the spec's dtype",
}


def explain(
    findings: Sequence[Finding], setup: Setup, calls: Sequence[MethodCall | Foreign], again: Again
) -> list[Finding]:
    """The findings, those that are wrong and have no `blame` yet with one; the others as they are.

    Bounded in time: what is not found by then is left out. A method that fails when asked again is not explained.
    """
    by_method = {call.text: call for call in calls}
    explained: dict[int, Finding] = {}
    for text, call in by_method.items():
        wrong = [f for f in findings if f.method == text and f.verdict == "wrong" and f.blame is None]
        if wrong:
            explained |= {id(f): replace(f, blame=blame) for f, blame in _tried(wrong, setup, call, again)}
    return [explained.get(id(f), f) for f in findings]


def _tried(
    wrong: Sequence[Finding], setup: Setup, call: MethodCall | Foreign, again: Again
) -> list[tuple[Finding, dict[str, object]]]:
    """Blames, or none where the program under test fails when it is asked once more."""
    try:
        return _blames(wrong, setup, call, again)
    except Exception:  # its first failure is the finding; another one is no news
        return []


def _blames(
    wrong: Sequence[Finding], setup: Setup, call: MethodCall | Foreign, again: Again
) -> list[tuple[Finding, dict[str, object]]]:
    ended = isinstance(call, Foreign) and call.ended
    small = {} if ended else smallest(wrong, setup, call, again, _deadline())
    reproduce = again.command(call.text, small)
    recursion = isinstance(call.definition(setup), Recursion)
    case = None if ended or recursion else setup if work(setup) <= _WORK else _affordable(setup, again, small)
    evidence = gather(case, call) if case is not None else None
    live = _deadline()
    found = []
    for finding in wrong:
        blame = _blame(finding, evidence, live)
        if recursion and not finding.cause:
            blame = {**blame[0], "cause": _OTHER_STEPS}, []
        if evidence is not None:
            blame = _settled(blame, finding, again, call, evidence)
        fields = {**blame[0], "text": _text(finding, blame[0]), "reproduce": reproduce}
        if evidence is not None and finding.tensor in evidence.wrong:
            fields["errors"] = errors_by_step(evidence, finding.tensor, blame[1], live)
        found.append((finding, fields))
    return found


_OTHER_STEPS = "the same rule on local derivatives by the complex step gives another gradient"
Blame = tuple[dict[str, object], list[Cause]]


def _blame(finding: Finding, evidence: Evidence | None, live: Callable[[], bool]) -> Blame:
    index = list(finding.worst.index) if finding.worst is not None and finding.worst.index is not None else None
    blank: dict[str, object] = {"index": index, "step": None, "sample": None, "node": None, "factor": None}
    if spoken := _spoken(finding.cause):
        return {**blank, "cause": spoken}, []
    if finding.tensor == "loss":
        return {**blank, "cause": "the loss that comes with the gradient is not that of the spec"}, []
    if evidence is None or finding.tensor not in evidence.wrong:
        return {
            **blank,
            "cause": finding.cause or "the error did not show again in a case small enough to look into",
        }, []
    fitting = causes(evidence, finding.tensor, live)
    step, sample = None, None
    if live():
        step, sample = place.step_and_sample(evidence, finding.tensor, tuple(index) if index is not None else None)
    node = fitting[0].node or place.node(evidence)
    where = {"step": step, "sample": sample, "node": place.called(node) if node else None}
    return {**blank, **where, "factor": fitting[0].factor or None, "cause": _words(fitting)}, fitting


def _spoken(cause: str) -> str:
    """What makes an answer wrong whatever its numbers, in a sentence; what foreign code did is told with details."""
    known = next((c for c in _SPOKEN if cause.startswith(c)), "")
    return cause if cause[len(known) :].startswith(": ") and known else _SPOKEN.get(known, "")


def _settled(blame: Blame, finding: Finding, again: Again, call: MethodCall | Foreign, evidence: Evidence) -> Blame:
    """Where several causes fit, those that fit in a case of other sizes too."""
    fields, fitting = blame
    if len(fitting) < 2 or not anywhere(call):
        return blame
    setup = evidence.problem.setup
    sizes = {"T": setup.T + 1} if setup.graph.recurrent else {}
    try:
        other = gather(again.open({**sizes, "batch": setup.batch + 2, "seed": setup.spec.data.seed + 1}), call)
    except Exception:  # refused, or the program under test cannot run it
        return blame
    if finding.tensor not in other.wrong:
        return blame
    left = [cause for cause in fitting if fits(other, cause, finding.tensor)] or fitting
    return {**fields, "factor": left[0].factor or None, "cause": _words(left)}, left


def _words(fitting: Sequence[Cause]) -> str:
    """The likeliest cause, and the next that fits as well."""
    return " (or: ".join(cause.what for cause in fitting[:2]) + (")" if len(fitting) > 1 else "")


def _text(finding: Finding, blame: dict[str, object]) -> str:
    """One line: the entry with both values, where, and the likely cause."""
    parts = [worst_entry(finding)] if finding.worst is not None else []
    places = [f"{key} {blame[key]}" for key in ("node", "step", "sample", "factor") if blame[key] is not None]
    if places:
        parts.append(", ".join(places))
    return "; ".join([*parts, str(blame["cause"])])


def _affordable(setup: Setup, again: Again, small: dict[str, object]) -> Setup | None:
    """A case that still fails and that the interpreter can take on, or None."""
    try:
        case = again.open(small)
    except BpError:
        return None
    return case if work(case) <= _WORK else None


def _deadline() -> Callable[[], bool]:
    end, latest = time.thread_time() + _SECONDS, time.monotonic() + _LATEST
    return lambda: time.thread_time() < end and time.monotonic() < latest
