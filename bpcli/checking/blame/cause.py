"""The likely cause of a wrong gradient: planted faults that give the same numbers, else the pattern of the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bpcli.checking.blame import truncation
from bpcli.checking.blame.candidates import Cause
from bpcli.checking.blame.evidence import Evidence, node_label
from bpcli.checking.blame.patterns import of_one
from bpcli.checking.blame.search import Explanation, Search
from bpcli.checking.blame.signatures import extent, not_finite, single_precision
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.interpreter import Hooks

_BY_NAME = {fault.name: fault for fault in CATALOGUE}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The searches for the cause of an answer: one on the case itself, and others on smaller cases.

    The smaller cases are one of `fewer` steps, where truncations are compared if they are too many here, some of `few`,
    where a search takes less time, one of a single step, and the smallest one that reproduces the error, which is also
    `redrawn` with other seeds. They are opened where they are needed; each may be None. What they show is confirmed on
    the case itself.
    """

    search: Search
    fewer: Callable[[], Search | None]
    few: Sequence[Callable[[], Search | None]]
    one_step: Callable[[], Search | None]
    smallest: Callable[[], Search | None]
    redrawn: Sequence[Callable[[], Search | None]] = ()

    def causes(self, name: str) -> list[Cause]:
        """The causes that fit the answer for tensor `name`, the likeliest first; at least one.

        Those that account for all tensors precede what is known of this one alone.
        """
        evidence = self.search.evidence
        if name in evidence.unsteady:
            return _unsteady(evidence, name, self.search.in_time)
        if (lost := not_finite(evidence.right[name])) and evidence.explained(name, evidence.right[name]):
            return [Cause(f"{lost} with the correct rules either: an intermediate value leaves the range of floats")]
        return [_joined(e.of[name]) for e in self._overall] or self._of_tensor(name) or self._last(name)

    @cached_property
    def _quick(self) -> Search:
        """The first case of few steps in which the same tensors are wrong, else the case itself."""
        for few in (opened() for opened in self.few):
            if few is not None and few.evidence.wrong == self.search.evidence.wrong:
                return few
        return self.search

    @cached_property
    def _overall(self) -> list[Explanation]:
        """The explanations of all tensors."""
        if (fewer := self.fewer()) is not None and (found := self._confirmed(fewer.methods)):
            return found
        quick, search = self._quick, self.search
        if found := search.with_faults(self._confirmed(quick.faults)) or search.truncated:
            return found
        one = self.one_step()
        hints = [] if one is None else one.single or one.several(())
        return self._confirmed(hints) or self._confirmed(quick.several(hints))

    def _confirmed(self, found: Sequence[Explanation]) -> list[Explanation]:
        return [e for e in map(self.search.confirmed, found) if e is not None]

    def _of_tensor(self, name: str) -> list[Cause]:
        """The causes that fit one tensor where none accounts for all."""
        evidence = self.search.evidence
        given, right, slack = evidence.answers[0][name], evidence.right[name], evidence.tolerance(name)
        if lost := not_finite(given):
            return [Cause(lost)]
        if pattern := of_one(evidence.numbers, evidence.numbers.right, name):
            return [Cause(pattern)]
        if found := [c for c in self._quick.partial(name) if c.hooks is not None and self.search.allows(c.hooks, name)]:
            return found
        if single_precision(given, right, slack, evidence.float32_rounding(name)):
            return [Cause("the gradient has the accuracy of float32", _BY_NAME["float32-accumulator"])]
        return []

    @cached_property
    def _in_smallest(self) -> list[Explanation]:
        """The explanations of the smallest case, where some faults may not show, that leave here what passes.

        They must explain it with other numbers too.
        """
        smallest = self.smallest()
        found = [] if smallest is None else smallest.single or smallest.several(())
        spared = [e for e in found if e.hooks and not e.patterns and self.search.spares(e.hooks)]
        others = [search for again in self.redrawn if spared and (search := again()) is not None]
        return [e for e in spared if all(e.hooks and other.agrees(e.hooks) for other in others)]

    def _last(self, name: str) -> list[Cause]:
        """The causes of the smallest case, else the extent of the error."""
        likely = (e for e in self._in_smallest if name in e.of and e.hooks and self.search.nearer(e.hooks, name))
        joined = [_joined(e.of[name]) for e in likely]
        found = [replace(cause, what=f"in the smallest case: {cause.what}") for cause in joined]
        return found or [Cause(extent_of(self.search.evidence, name))]


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
    return whole or alone or [Cause("a second call with the same arrays gives different numbers")]
