"""Blame of a wrong gradient: its likely cause, where it comes from, and the smallest case that reproduces it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bpcli.checking.blame import truncation
from bpcli.checking.blame.candidates import Cause
from bpcli.checking.blame.cause import Diagnosis, fits
from bpcli.checking.blame.evidence import Evidence, errors_by_step, faulty_node, gather, node_label, step_and_sample
from bpcli.checking.blame.search import Search
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding, worst_entry, worst_index
from bpcli.checking.interpreter import interpreter_cost
from bpcli.checking.sources.gradient_source import GradientSource
from bpcli.checking.sources.validate_gradient import LOSS
from bpcli.errors import BpError
from bpcli.methods import MethodCall
from bpcli.methods.base import Recursion, of_one_draw
from bpcli.problem.definition import Setup

# Seconds of the processor, and of the clock at most, for the causes and for the shrinking of one method's case: a busy
# machine gives the same blame. The last one limits the interpreter.
_SECONDS = 5.0
_LATEST = 30.0
_WORK = 5e7
# The cases on which causes are looked for first.
_FEW_STEPS, _FEW_SAMPLES = (4, 8), (3, 5)
# Other draws of the smallest case: a unit that happens to be on or off makes many faults equal there.
_REDRAWN = 3
# The case on which truncations are compared with an answer of many steps.
_FEWER_STEPS = 24
_MESSAGES = {
    "changes its arguments": "the method modifies its input arrays",
    "missing": "no gradient of that name was returned",
    "wrong shape": "the gradient has a different shape from its array",
    "wrong type": "the gradient does not have the spec's dtype",
}
_OTHER_STEPS = "{} on local derivatives measured by the complex step gives a different gradient"
Blame = tuple[dict[str, object], list[Cause]]


@dataclass(frozen=True)
class Reproducer:
    """How to run a spec again with other settings.

    `open(settings)` gives its Setup, or raises BpError; `command(method, settings)` is the command line that judges a
    method with them.
    """

    open: Callable[[Mapping[str, object]], Setup]
    command: Callable[[str, Mapping[str, object]], str]


@np.errstate(all="ignore")  # of huge numbers norms and products overflow
def explain(
    findings: Sequence[Finding],
    setup: Setup,
    calls: Sequence[MethodCall | GradientSource],
    reproducer: Reproducer,
) -> list[Finding]:
    """The findings, with a `blame` where they are wrong and have none.

    The search for a cause is bounded in time, and left out if the method fails when it is called again.
    """
    explained: dict[int, Finding] = {}
    for call in {call.text: call for call in calls}.values():
        wrong = [f for f in findings if f.method == call.text and f.verdict == "wrong" and f.blame is None]
        if not wrong:
            continue
        try:
            explained |= {id(f): replace(f, blame=blame) for f, blame in _blames(wrong, setup, call, reproducer)}
        except Exception:  # of the program under test: its first failure is a finding already
            continue
    return [explained.get(id(f), f) for f in findings]


def _blames(
    wrong: Sequence[Finding], setup: Setup, call: MethodCall | GradientSource, reproducer: Reproducer
) -> list[tuple[Finding, dict[str, object]]]:
    crashed = isinstance(call, GradientSource) and call.crashed
    small = {} if crashed else shrink(wrong, setup, call, reproducer, _deadline())
    command = reproducer.command(call.text, small)
    recursion = isinstance(of_one_draw(call.definition(setup)), Recursion)
    case = None if crashed or recursion else _affordable(setup, reproducer, small)
    evidence = gather(case, call) if case is not None else None
    in_time = _deadline()
    diagnosis = None if evidence is None else _diagnosis(evidence, call, reproducer, small, in_time)
    found = []
    for finding in wrong:
        fields, fitting = _blame(finding, diagnosis, in_time)
        if recursion and not finding.cause:
            meant = call.meant.text if isinstance(call, GradientSource) and call.meant else "the same rule"
            fields = {**fields, "cause": _OTHER_STEPS.format(meant)}
        if evidence is not None:
            fields, fitting = _discriminated((fields, fitting), finding, reproducer, call, evidence)
        fields = {**fields, "text": _text(finding, fields), "reproduce": command}
        if evidence is not None and finding.tensor in evidence.wrong:
            fault = fitting[0].fault if fitting and fitting[0].node is None else None
            fields["errors"] = errors_by_step(evidence, finding.tensor, fault, in_time)
        found.append((finding, fields))
    return found


def _diagnosis(
    evidence: Evidence,
    call: MethodCall | GradientSource,
    reproducer: Reproducer,
    small: Mapping[str, object],
    in_time: Callable[[], bool],
) -> Diagnosis:
    """The search on the case itself, and on smaller ones if the answer can be had for them."""
    setup = evidence.problem.setup
    # Of another size, so that a factor of batch is no factor of 2 or 3.
    batch = 1 if setup.batch == 1 else next(size for size in _FEW_SAMPLES if size != setup.batch)

    def case(settings: Mapping[str, object] | None) -> Callable[[], Search | None]:
        def opened() -> Search | None:
            if settings is None or not _any_size(call):
                return None
            try:
                return Search(gather(reproducer.open(settings), call), _deadline())
            except Exception:  # refused sizes, or an exception of the program under test
                return None

        return opened

    few = [{"batch": batch, "T": T} for T in _FEW_STEPS if setup.T > T]
    if not setup.graph.recurrent:
        few = [{"batch": batch}] if setup.batch > 1 else []
    one = {"batch": batch, "T": 1} if setup.graph.recurrent and setup.T > 1 else None
    many = setup.graph.recurrent and setup.T > _FEWER_STEPS and not truncation.affordable(setup)
    fewer = {"batch": 1, "T": _FEWER_STEPS} if many else None
    seed = setup.spec.data.seed
    redrawn = [case({**small, "seed": seed + k}) for k in range(1, _REDRAWN + 1)]
    few_cases = [case(f) for f in few]
    return Diagnosis(Search(evidence, in_time), case(fewer), few_cases, case(one), case(small or None), redrawn)


def _blame(finding: Finding, diagnosis: Diagnosis | None, in_time: Callable[[], bool]) -> Blame:
    """The fields of a blame but for its text, and the causes that fit."""
    index = worst_index(finding)
    fields: dict[str, object] = {"index": index, "step": None, "sample": None, "node": None, "factor": None}
    if message := _message(finding.cause):
        return {**fields, "cause": message}, []
    if finding.tensor == LOSS:
        return {**fields, "cause": "the loss returned with the gradient is not the spec's loss"}, []
    if diagnosis is None or finding.tensor not in diagnosis.search.evidence.wrong:
        cause = finding.cause or "the error did not recur in a case small enough to analyse"
        return {**fields, "cause": cause}, []
    evidence, fitting = diagnosis.search.evidence, diagnosis.causes(finding.tensor)
    step, sample = None, None
    if in_time() and not fitting[0].method:
        at = tuple(index) if index is not None else None
        step, sample = step_and_sample(evidence, finding.tensor, at, in_time)
    node = fitting[0].node or faulty_node(evidence)
    fields |= {"step": step, "sample": sample, "node": node_label(node) if node else None}
    return {**fields, "factor": fitting[0].factor, "cause": _words(fitting)}, fitting


def _message(cause: str) -> str:
    """The message for a cause other than the numbers; "" for others. Details of user code are kept as they are."""
    known = next((c for c in _MESSAGES if cause.startswith(c)), "")
    return cause if cause[len(known) :].startswith(": ") and known else _MESSAGES.get(known, "")


def _discriminated(
    blame: Blame, finding: Finding, reproducer: Reproducer, call: MethodCall | GradientSource, evidence: Evidence
) -> Blame:
    """Where several causes fit, those that fit in a case of other sizes too."""
    fields, fitting = blame
    if len(fitting) < 2 or not _any_size(call):
        return blame
    setup = evidence.problem.setup
    sizes = {"T": setup.T + 1} if setup.graph.recurrent else {}
    try:
        other = gather(reproducer.open({**sizes, "batch": setup.batch + 2, "seed": setup.spec.data.seed + 1}), call)
    except Exception:  # refused sizes, or an exception of the program under test
        return blame
    if finding.tensor not in other.wrong:
        return blame
    left = [cause for cause in fitting if fits(other, cause, finding.tensor)] or fitting
    return {**fields, "factor": left[0].factor, "cause": _words(left)}, left


def _words(fitting: Sequence[Cause]) -> str:
    """The likeliest cause, and the second one as an alternative."""
    if fitting[0].method and fitting[1:] and fitting[1].method:
        return f"{fitting[0].what} ({fitting[1].method} is the same here)"
    return " (or: ".join(cause.what for cause in fitting[:2]) + (")" if len(fitting) > 1 else "")


def _text(finding: Finding, blame: dict[str, object]) -> str:
    """One line: the entry with both values, where, and the likely cause."""
    parts = [worst_entry(finding)] if finding.worst is not None else []
    places = [f"{key} {blame[key]}" for key in ("node", "step", "sample", "factor") if blame[key] is not None]
    if places:
        parts.append(", ".join(places))
    return "; ".join([*parts, str(blame["cause"])])


def _affordable(setup: Setup, reproducer: Reproducer, small: dict[str, object]) -> Setup | None:
    """The case itself, or else the small one, if the interpreter can run it within its limit; else None."""
    if interpreter_cost(setup) <= _WORK:
        return setup
    try:
        case = reproducer.open(small)
    except BpError:
        return None
    return case if interpreter_cost(case) <= _WORK else None


def _deadline() -> Callable[[], bool]:
    end, latest = time.thread_time() + _SECONDS, time.monotonic() + _LATEST
    return lambda: time.thread_time() < end and time.monotonic() < latest


def shrink(
    wrong: Sequence[Finding],
    setup: Setup,
    call: MethodCall | GradientSource,
    reproducer: Reproducer,
    in_time: Callable[[], bool],
) -> dict[str, object]:
    """Settings for fewer steps, samples and units with which `call` still fails in one of the ways of `wrong`.

    Any tensor counts, the loss only if no gradient is wrong. Empty for a source of a single gradient; the search stops
    when `in_time()` is false.
    """
    if not _any_size(call):
        return {}
    gradients = [f for f in wrong if f.tensor != LOSS]
    kinds = {_kind(f) for f in gradients or wrong}
    kept: dict[str, object] = {}
    sizes = {"T": setup.T} if setup.graph.recurrent else {}
    sizes |= {"batch": setup.batch, **setup.spec.dims}
    for key, size in sizes.items():
        for value in _smaller(size):
            if not in_time():
                return kept
            if kinds & _failures(call, reproducer, {**kept, key: value}):
                kept[key] = value
                break
    return kept


def _any_size(call: MethodCall | GradientSource) -> bool:
    """Whether there is a gradient for other sizes and seeds."""
    return isinstance(call, MethodCall) or call.any_size


def _smaller(size: int) -> Iterator[int]:
    """1, 2, 3, and half of `size`."""
    yield from (v for v in (1, 2, 3) if v < size)
    if size > 7:
        yield size // 2


def _failures(
    call: MethodCall | GradientSource, reproducer: Reproducer, settings: Mapping[str, object]
) -> set[tuple[str, bool]]:
    """The kinds of failure with these settings; none if they are refused or the method cannot run."""
    try:
        setup = reproducer.open(settings)
        if isinstance(call, MethodCall) and call.refusal(setup.graph) is not None:
            return set()
        return {_kind(f) for f in check(setup, [call], CheckOptions()) if f.verdict == "wrong"}
    except Exception:  # refused sizes, or an exception of the program under test
        return set()


def _kind(finding: Finding) -> tuple[str, bool]:
    """The kind of a failure without its details, e.g. without the exception that a hard-coded size raises."""
    kind = finding.cause.partition(": ")[0].partition(" (")[0]
    return kind, finding.tensor == LOSS
