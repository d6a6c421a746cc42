"""The search for the faults, one or two, that together give all tensors of an answer.

A cause is a claim about all tensors: it must give those that are wrong, and leave those that pass as they are. A single
fault is looked for first, then one with a pattern in what it leaves, such as a common factor, then two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.blame import truncation
from bpcli.checking.blame.candidates import Candidate, Cause, at_node, both, candidates, compatible
from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.blame.patterns import Pattern, patterns
from bpcli.checking.interpreter import RIGHT, Hooks
from bpcli.references.base import FloatArray

Arrays = Mapping[str, FloatArray]
Mask = NDArray[np.bool_]
# The first faults of a pair that give some tensors alone, and the nodes among which one fault is tried at several.
_FIRST, _NODES = 8, 6
# Entries that must agree for a fault that does not account for all tensors.
_ENTRIES = 4
_LARGER_PART = 0.5


@dataclass(frozen=True)
class Explanation:
    """Causes that together give all tensors, and by wrong tensor those that change it.

    `hooks` plant them, None for a method; `patterns` of them were read off the numbers and are not planted.
    """

    causes: tuple[Cause, ...]
    of: Mapping[str, tuple[Cause, ...]]
    hooks: Hooks | None = None
    patterns: int = 0


@dataclass(frozen=True, eq=False)
class _Tried:
    """A candidate, its gradient, the tensors and entries that it changes, and the wrong entries that it gives."""

    candidate: Candidate
    values: Arrays
    tensors: frozenset[str]
    moved: Mask
    given: Mask


@dataclass(frozen=True, eq=False)
class Search:
    """The causes of what is wrong with an answer, looked for while `in_time()`."""

    evidence: Evidence
    in_time: Callable[[], bool]

    @cached_property
    def comparable(self) -> bool:
        """Whether every tensor can be compared."""
        answer, right = self.evidence.answers[0], self.evidence.right
        return bool(self.evidence.wrong) and all(n in answer and answer[n].shape == a.shape for n, a in right.items())

    @cached_property
    def single(self) -> list[Explanation]:
        """The explanations by one cause, the likeliest first."""
        return self.with_faults(self.faults)

    @cached_property
    def methods(self) -> list[Explanation]:
        """The methods that give the answer."""
        if not self.comparable:
            return []
        names = truncation.names(self.evidence, self._matches) or truncation.approximations(self.evidence)
        return [self._of_method(name) for name in names]

    def with_faults(self, faults: Sequence[Explanation]) -> list[Explanation]:
        """The methods that give the answer, those of `faults` that are not local, a pattern, and local faults."""
        if not self.comparable:
            return []
        pattern = patterns(self.evidence.numbers, self.evidence.right)
        read = [self._explanation([], pattern)] if pattern is not None and len(pattern) == 1 else []
        local = [f for f in faults if f.causes[0].local]
        whole = [f for f in faults if not f.causes[0].local]
        if len(self._wrong) > 1 and not any(self.evidence.answers[0][n].any() for n in self._wrong):
            return [*self.methods, *whole, *local, *read]  # of several tensors that are zero one path may be the cause
        return [*self.methods, *whole, *read, *local]

    @cached_property
    def faults(self) -> list[Explanation]:
        """The explanations by one planted fault."""
        return [self._explanation([t]) for t in self._usable if self._gives_all(t.values)] if self.comparable else []

    @cached_property
    def _matches(self) -> truncation.Matches:
        return truncation.compare(self.evidence, self.in_time)

    @cached_property
    def truncated(self) -> list[Explanation]:
        """The explanations by a truncated method and a pattern in what it leaves."""
        found = []
        for name in truncation.near(self.evidence, self._matches) if self.comparable else ():
            cause = Cause(f"this is {name} apart from a further error", method=name)
            pattern = patterns(self.evidence.numbers, self.evidence.of_method(name))
            if pattern is not None and len(pattern) == 1:
                own, left = (Cause(pattern[0].words),), pattern[0].tensors
                of = {n: (cause, *own) if n in left else (cause,) for n in self._wrong}
                found.append(Explanation((cause, *own), of))
        return found

    def several(self, hints: Sequence[Explanation]) -> list[Explanation]:
        """The first explanation found by several causes; `hints` are those of cases in which fewer faults show."""
        if not self.comparable:
            return []
        found = next(itertools.chain(self._simple_pairs(), self._with_hints(hints), self._pairs()), None)
        return [] if found is None else [found]

    def partial(self, name: str) -> list[Cause]:
        """The faults that give one tensor and change none that passes; none for a tensor of few wrong entries."""
        off = np.abs(self.evidence.error(name)) > self.evidence.tolerance(name)
        if not self.comparable or off.sum() < _ENTRIES:
            return []
        fitting = [t for t in self._usable if name in t.tensors and self.evidence.explained(name, t.values[name])]
        return [t.candidate.cause for t in sorted(fitting, key=lambda t: (t.candidate.rank, -t.given.sum()))]

    def spares(self, hooks: Hooks) -> bool:
        """Whether a fault changes no tensor that passes."""
        return not (self._moved(self.evidence.planted_once(hooks)) & ~self._off).any()

    def allows(self, hooks: Hooks, name: str) -> bool:
        """Whether a fault gives one tensor, and changes no tensor that passes."""
        return self.spares(hooks) and self.evidence.explained(name, self.evidence.planted_once(hooks)[name])

    def agrees(self, hooks: Hooks) -> bool:
        """Whether a fault gives all tensors."""
        return self._gives_all(self.evidence.planted_once(hooks))

    def nearer(self, hooks: Hooks, name: str) -> bool:
        """Whether a fault accounts for the larger part of a tensor's error."""
        rest = self.evidence.answers[0][name] - self.evidence.planted_once(hooks)[name]
        return bool(np.linalg.norm(rest) <= _LARGER_PART * np.linalg.norm(self.evidence.error(name)))

    @cached_property
    def _wrong(self) -> frozenset[str]:
        return frozenset(self.evidence.wrong)

    def _of_method(self, name: str) -> Explanation:
        advice = f"; if that is meant, add --as {name}" if self.evidence.outside else ""
        cause = Cause(f"this is {name}{advice}", method=name)
        return Explanation((cause,), dict.fromkeys(self._wrong, (cause,)))

    @cached_property
    def _tried(self) -> list[_Tried]:
        """All candidates that change something."""
        found = [self._try(candidate) for candidate in candidates(self.evidence, self.in_time)]
        return [t for t in found if t.moved.any()]

    def _try(self, candidate: Candidate) -> _Tried:
        values = candidate.gradient(self.evidence)
        moved = self._moved(values)
        given = moved & self._off & self._given(values)
        return _Tried(candidate, values, self._tensors(values), moved, given)

    @cached_property
    def _usable(self) -> list[_Tried]:
        """The candidates that change no passing entry, the likeliest first."""
        return sorted((t for t in self._tried if not (t.moved & ~self._off).any()), key=lambda t: t.candidate.rank)

    def _flat(self, arrays: Arrays) -> FloatArray:
        return np.concatenate([np.asarray(arrays[n], float).reshape(-1) for n in self.evidence.right])

    @cached_property
    def _slack(self) -> FloatArray:
        return self._flat({n: self.evidence.tolerance(n) for n in self.evidence.right})

    @cached_property
    def _room(self) -> FloatArray:
        """The error of each entry that a cause may leave unexplained."""
        left = {n: self.evidence.tolerance(n) + self.evidence.left(n) for n in self.evidence.right}
        return self._flat(left)

    @cached_property
    def _off(self) -> Mask:
        """The wrong entries."""
        return self._moved(self.evidence.answers[0])

    def _moved(self, values: Arrays) -> Mask:
        with np.errstate(invalid="ignore"):
            return ~(np.abs(self._flat(values) - self._flat(self.evidence.right)) <= self._slack)

    def _given(self, values: Arrays) -> Mask:
        """The entries that are those of the answer."""
        value, answer = self._flat(values), self._flat(self.evidence.answers[0])
        with np.errstate(invalid="ignore"):
            return (np.abs(value - answer) <= self._room) | ~(np.isfinite(value) | np.isfinite(answer))

    def _tensors(self, values: Arrays) -> frozenset[str]:
        """The tensors that are changed."""
        right = self.evidence.right
        same = (n for n in right if (np.abs(values[n] - right[n]) <= self.evidence.tolerance(n)).all())
        return frozenset(right) - frozenset(same)

    def _explanation(
        self, faults: Sequence[_Tried], found: Sequence[Pattern] = (), hooks: Hooks | None = None
    ) -> Explanation:
        """The explanation by planted faults and by patterns; `hooks` plant several at once."""
        parts = [(t.candidate.cause, t.tensors) for t in faults] + [(Cause(p.words), p.tensors) for p in found]
        causes = tuple(cause for cause, _ in parts)
        own = {n: tuple(c for c, tensors in parts if n in tensors) for n in self._wrong}
        planted = hooks or (faults[0].candidate.hooks if faults else RIGHT)
        return Explanation(causes, {n: some or causes for n, some in own.items()}, planted, len(found))

    def confirmed(self, other: Explanation) -> Explanation | None:
        """An explanation that was found on another case, if it gives all tensors here too."""
        if other.hooks is None:
            return other if truncation.agrees(self.evidence, other.causes[0].method) else None
        faults = [self._try(Candidate(c, c.hooks, 0)) for c in other.causes if c.hooks is not None]
        values = self.evidence.planted_once(other.hooks)
        if not other.patterns:
            return self._explanation(faults, (), other.hooks) if self._gives_all(values) else None
        found = patterns(self.evidence.numbers, values)
        same = found is not None and len(found) == other.patterns
        return self._explanation(faults, found or (), other.hooks) if same else None

    def _simple_pairs(self) -> Iterator[Explanation]:
        """Patterns of several tensors, one fault or method and a pattern, one fault at several nodes."""
        numbers, right = self.evidence.numbers, self.evidence.right
        for one in self._usable:
            if (found := patterns(numbers, one.values)) is not None and len(found) == 1:
                yield self._explanation([one], found)
        if (found := patterns(numbers, right)) is not None:
            yield self._explanation([], found)
        yield from self._at_several_nodes()

    def _with_hints(self, hints: Sequence[Explanation]) -> Iterator[Explanation]:
        """The faults of another case together with one that does not show there."""
        for hint in (h for h in hints if not h.patterns):
            known = [self._try(Candidate(c, c.hooks, 0)) for c in hint.causes if c.hooks is not None]
            for other in self._usable:
                if not self.in_time():
                    return
                if hint.hooks is not None and compatible(hint.hooks, other.candidate.hooks):
                    hooks = both(hint.hooks, other.candidate.hooks)
                    if self._gives_all(self.evidence.planted_once(hooks)):
                        yield self._explanation([*known, other], (), hooks)

    def _pairs(self) -> Iterator[Explanation]:
        """Two faults."""
        for one, other in self._couples():
            if not self.in_time():
                return
            if not compatible(one.candidate.hooks, other.candidate.hooks):
                continue
            hooks = both(one.candidate.hooks, other.candidate.hooks)
            values = self.evidence.planted_once(hooks)
            if self._gives_all(values):
                yield self._explanation([one, other], (), hooks)
            elif not (one.given | other.given).any():
                found = patterns(self.evidence.numbers, values)
                if found is not None and len(found) == 1:
                    yield self._explanation([one, other], found, hooks)

    def _gives_all(self, values: Arrays) -> bool:
        return all(self.evidence.explained(n, values[n]) for n in self.evidence.right)

    def _couples(self) -> Iterator[tuple[_Tried, _Tried]]:
        """Pairs that change all wrong entries, first those of which one gives some entries by itself."""
        firsts: dict[bytes, _Tried] = {}
        for t in sorted(self._usable, key=lambda t: -t.given.sum()):
            if t.given.sum() >= _ENTRIES and len(firsts) < _FIRST:
                firsts.setdefault(t.given.tobytes(), t)
        for one in firsts.values():
            others = [t for t in self._usable if t is not one and self._cover(one, t)]
            yield from ((one, t) for t in others if not (t.moved & one.given).any())
        general = [t for t in self._usable if not t.candidate.cause.local]
        special = [t for t in self._usable if t.candidate.cause.local]
        yield from (pair for pair in combinations(general, 2) if self._cover(*pair))
        yield from ((one, other) for one in general for other in special if self._cover(one, other))
        yield from (pair for pair in combinations(special, 2) if self._cover(*pair))

    def _cover(self, one: _Tried, other: _Tried) -> bool:
        return bool((one.moved | other.moved)[self._off].all())

    def _at_several_nodes(self) -> Iterator[Explanation]:
        """One fault at several nodes, but not at all."""
        nodes: dict[object, list[_Tried]] = {}
        for t in self._usable:
            if len(t.candidate.key) == 2:
                nodes.setdefault(t.candidate.key[0], []).append(t)
        every = {t.candidate.key[0]: t for t in self._tried if len(t.candidate.key) == 1}
        for name, some in nodes.items():
            for count in range(2, len(some) if len(some) <= _NODES else 0):
                for chosen in combinations(some, count):
                    if not self.in_time():
                        return
                    indices = [t.candidate.cause.node.index for t in chosen if t.candidate.cause.node]
                    hooks = at_node(every[name].candidate.hooks, *indices)
                    if self._gives_all(self.evidence.planted_once(hooks)):
                        yield self._explanation(chosen, (), hooks)
