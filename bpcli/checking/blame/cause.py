"""The likely cause of a wrong gradient: planted faults that give the same numbers, else the pattern of the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bpcli.checking.blame import truncation
from bpcli.checking.blame.candidates import Cause
from bpcli.checking.blame.evidence import Evidence, node_label
from bpcli.checking.blame.patterns import of_one
from bpcli.checking.blame.search import Search
from bpcli.checking.blame.signatures import extent, not_finite, single_precision
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.interpreter import Hooks

_BY_NAME = {fault.name: fault for fault in CATALOGUE}


def causes(search: Search, name: str, smaller: Sequence[Search]) -> list[Cause]:
    """The causes of tensor `name` that account for all tensors, the likeliest first; none where none does.

    Several at once, with their words joined, are looked for on `smaller` cases, if there are any, and confirmed here.
    """
    evidence = search.evidence
    if name in evidence.unsteady:
        return _unsteady(evidence, name, search.in_time)
    if (lost := not_finite(evidence.right[name])) and evidence.explained(name, evidence.right[name]):
        return [Cause(f"{lost} by the right rules either: a value on the way leaves the range of floats")]
    found = search.single
    for other in () if found else smaller:
        confirmed = (search.confirmed(e) for e in (*other.single, *other.several))
        found = found or [e for e in confirmed if e is not None]
    if not found and not smaller:
        found = search.several
    return [_joined(e.of[name]) for e in found]


def of_tensor(search: Search, name: str) -> list[Cause]:
    """The causes that fit tensor `name` where none accounts for all tensors."""
    evidence = search.evidence
    given, right, slack = evidence.answers[0][name], evidence.right[name], evidence.tolerance(name)
    if lost := not_finite(given):
        return [Cause(lost)]
    if pattern := of_one(evidence.numbers, evidence.right, name):
        return [Cause(pattern), *search.partial(name)[:1]]
    if found := search.partial(name):
        return found
    if single_precision(given, right, slack, evidence.float32_rounding(name)):
        return [Cause("the gradient has the accuracy of float32", _BY_NAME["float32-accumulator"])]
    return []


def in_smallest(search: Search, smallest: Search, name: str) -> list[Cause]:
    """The causes in the smallest case, where other faults may not show, that change nothing that passes here."""
    if name not in smallest.evidence.wrong:
        return []
    found = [e.of[name] for e in (*smallest.single, *smallest.several) if e.hooks and search.spares(e.hooks)]
    joined = [_joined(parts) for parts in found]
    return [replace(cause, what=f"in the smallest case: {cause.what}") for cause in joined]


def extent_of(evidence: Evidence, name: str) -> str:
    """The extent of an error that nothing explains."""
    return extent(np.abs(evidence.error(name)) > evidence.tolerance(name))


def _joined(parts: Sequence[Cause]) -> Cause:
    """Several causes as one; those of one kind at several nodes say it once."""
    if len(parts) == 1:
        return parts[0]
    places: dict[str, list[str]] = {}
    for cause in parts:
        places.setdefault(cause.what, []).extend([node_label(cause.node)] if cause.node else [])
    words = [what + (f" (at {', '.join(nodes)})" if len(nodes) > 1 else "") for what, nodes in places.items()]
    return Cause("; and ".join(words), node=parts[0].node)


def fits(evidence: Evidence, cause: Cause, name: str) -> bool:
    """Whether a cause gives the answer for `name` here too; true of one that cannot be planted."""
    if cause.method:
        return truncation.agrees(evidence, cause.method)
    return cause.hooks is None or _fits(evidence, cause.key, cause.hooks, (name,))


def _fits(evidence: Evidence, key: tuple[object, ...], hooks: Hooks, names: tuple[str, ...]) -> bool:
    first = evidence.planted(key, hooks)
    if not all(evidence.explained(n, first[n]) for n in names):
        return False
    if not evidence.unsteady and (hooks.gather is None and hooks.answer is None):
        return True
    third = evidence.planted(key, hooks, calls=3)
    return all(evidence.explained(n, third[n], 1) for n in names)


def _unsteady(evidence: Evidence, name: str, in_time: Callable[[], bool]) -> list[Cause]:
    """The causes of an answer that changes from call to call: its numbers alone say nothing."""
    if evidence.accumulates(name):
        fault = _BY_NAME["buffer-not-cleared"]
        return [Cause(fault.what, fault)]
    whole: list[Cause] = []
    alone: list[Cause] = []
    for fault in CATALOGUE:
        if in_time() and _fits(evidence, (fault.name,), fault.wrong, (name,)):
            every = _fits(evidence, (fault.name,), fault.wrong, tuple(evidence.answers[0]))
            (whole if every else alone).append(Cause(fault.what, fault, key=(fault.name,), hooks=fault.wrong))
    return whole or alone or [Cause("called again with the same arrays it gives other numbers")]
