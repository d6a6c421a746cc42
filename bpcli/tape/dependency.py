"""Where the immediate influence of a graph's step can differ from zero, read off its operations, never off values.

What a change of one node reaches, and the instructions that follow: what copies share and what they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.tape.instructions import (
    ADDEND,
    COPY,
    FIELDS,
    NUMBER,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    A,
    Alias,
    B,
    Forward,
    Integers,
    Product,
)
from bpcli.tape.layout import packed_copies
from bpcli.tape.plan import node_flops
from bpcli.tape.reverse_lowering import active_nodes

DENSE = frozenset({"matmul", "matmat", "transpose", "sum", "dot", "logsumexp", "softmax", "log_softmax"})
"""Operations of which an entry of the result may depend on any entry of an argument."""
Shifts = frozenset[int] | None
"""Entry j of a node reaches the entries j + shift of the state alone; None: any."""
MOST_SHIFTS = 64
BLOCK = 1 << 16
"""Columns that are looked at at a time."""
MOST_LOOKED_AT = 1 << 22
"""Entries of a node whose rows are counted; those of a larger one are taken to reach every row. That makes one product
of all steps too dear, and no second is lost on what may be beyond all memory."""


@dataclass(frozen=True)
class ColumnSpan:
    """Columns of the influence matrix: those of a static node, of an initial state or of an input at every step."""

    node: int
    start: int
    columns: int


@dataclass(frozen=True, eq=False)
class Columns:
    """Of each column of M: the step before which it is zero, and the rows low..high that are not zero after it.

    Where an entry reaches no row, `high` is less than `low`.
    """

    birth: Integers
    low: Integers
    high: Integers

    def panels(self, width: int) -> Integers:
        """(panels, 3): the same of panels of so many columns."""

        def folded(values: Integers, nothing: int) -> Integers:
            filler = np.full(-len(values) % width, nothing, np.int64)
            return np.concatenate([values, filler]).reshape(-1, width)

        never = int(np.iinfo(np.int64).max)
        birth, low = folded(self.birth, never).min(axis=1), folded(self.low, never).min(axis=1)
        return np.stack([birth, low, np.maximum(low, folded(self.high, 0).max(axis=1))], axis=1)


@dataclass(frozen=True, eq=False)
class Structure:
    """The columns of M, from the ways in which each span's node enters a step.

    There are as many columns as parameters, and M may be beyond all memory: they are worked out `BLOCK` at a time.
    """

    graph: Graph
    steps: int
    column_spans: tuple[ColumnSpan, ...]
    products: tuple[Product, ...]
    patterns: Mapping[int, NDArray[np.int64]]

    @cached_property
    def _reach(self) -> Mapping[int, Shifts]:
        return shifts(self.graph)

    @cached_property
    def _states(self) -> int:
        return sum(self.graph.nodes[n].size for n in self.graph.new.values())

    @property
    def _count(self) -> int:
        return sum(span.columns for span in self.column_spans)

    def columns(self, start: int, stop: int) -> Columns:
        """The columns start..stop."""
        births, lows, highs = ([np.zeros(0, np.int64)] for _ in range(3))
        for span in self.column_spans:
            node, own = (
                self.graph.nodes[span.node],
                np.arange(
                    max(start, span.start) - span.start,
                    min(stop, span.start + span.columns) - span.start,
                ),
            )
            pattern = self.patterns.get(span.node)
            low, high = self._rows(span, own % node.size if pattern is None else pattern[own])
            births.append(own // node.size if node.op == "input" else np.full(len(own), self._births(span)[0]))
            lows.append(low)
            highs.append(high)
        return Columns(*(np.concatenate(each) for each in (births, lows, highs)))

    def panels(self, width: int) -> Integers:
        """(panels, 3): what is known of panels of so many columns."""
        most = BLOCK // width * width
        ends = range(0, max(1, self._count), most)
        return np.concatenate([self.columns(start, min(start + most, self._count)).panels(width) for start in ends])

    def flops(self, closing: bool) -> float:
        """Floating-point operations of all q M and J M of one sample: M is not advanced after the last step, and where
        `closing` q J and q M̄ are taken for that step."""
        total, steps = 0.0, self.steps
        for span in self.column_spans:
            birth = self._births(span)
            credits = np.maximum(0, steps - 1 - birth) + closing * np.minimum(1, np.maximum(0, steps - 2 - birth))
            first = np.minimum(1, np.maximum(0, steps - 2 - closing - birth))
            later = np.maximum(0, steps - 3 - closing - birth)
            entries, rows = self._bands(span)
            total += entries * float(credits.sum() + self._states * float(later.sum())) + rows * float(first.sum())
        return 2.0 * self._states * total

    def _births(self, span: ColumnSpan) -> Integers:
        """The step before which a span's columns are zero; of an input one for each of its steps."""
        op = self.graph.nodes[span.node].op
        return np.arange(self.steps) if op == "input" else np.array([-1 if op == "previous" else 0])

    def _bands(self, span: ColumnSpan) -> tuple[float, float]:
        """Entries of a span's node, and the rows that these reach in all.

        Entries of a matrix that reach the same rows are counted together.
        """
        node, pattern = self.graph.nodes[span.node], self.patterns.get(span.node)
        turned = {p.turned for p in self.products if p.matrix == span.node}
        size, apart, times = node.size, 1, 1
        if pattern is not None:
            size = len(pattern)
        elif turned == {False}:
            size, apart, times = node.shape[0], node.shape[1], node.shape[1]
        elif turned == {True}:
            size, times = node.shape[1], node.shape[0]
        if size > MOST_LOOKED_AT:
            return float(size * times), float(size * times) * self._states
        rows = 0.0
        for start in range(0, size, BLOCK):
            own = np.arange(start, min(start + BLOCK, size)) * apart
            low, high = self._rows(span, own if pattern is None else pattern[own])
            rows += float(np.maximum(0, high - low).sum())
        return float(size * times), rows * times

    def _rows(self, span: ColumnSpan, entries: Integers) -> tuple[Integers, Integers]:
        """The rows that some entries of a span's node reach: from, to."""
        node = self.graph.nodes[span.node]
        if node.op == "previous":
            before = sum(s.columns for s in self.column_spans if self._is_state(s) and s.start < span.start)
            return before + entries, before + entries + 1
        own = [p for p in self.products if p.matrix == span.node]
        ways = [(p.delta, entries // node.shape[1] if not p.turned else entries % node.shape[1]) for p in own]
        return _rows(self._reach, ways or [(span.node, entries)], self._states)

    def _is_state(self, span: ColumnSpan) -> bool:
        return self.graph.nodes[span.node].op == "previous"


def shifts(graph: Graph) -> Mapping[int, Shifts]:
    """How the nodes that reach the state within a step reach it; the states stand one after another.

    Joins and slices may give a node any number of shifts: those that lead beyond the state count for nothing, and
    more than `MOST_SHIFTS` for any.
    """
    found: dict[int, Shifts] = {}
    offset, states = 0, sum(graph.nodes[n].size for n in graph.new.values())

    def note(n: int, more: Shifts) -> None:
        there = found.get(n, frozenset[int]())
        within = None if more is None else {by for by in more if -graph.nodes[n].size < by < states}
        joined = None if there is None or within is None else there | within
        found[n] = None if joined is None or len(joined) > MOST_SHIFTS else joined

    for n in graph.new.values():
        note(n, frozenset({offset}))
        offset += graph.nodes[n].size
    for node in reversed(graph.nodes):
        if node.index not in found:
            continue
        here, before = found[node.index], 0
        for n in node.args:
            size = graph.nodes[n].size
            if node.op in ("concat", "slice"):
                by = before if node.op == "concat" else -int(node.numbers[0])
                note(n, None if here is None else frozenset(shift + by for shift in here))
            else:
                note(n, here if node.op not in DENSE and size == node.size else None)
            before += size
    return found


def _rows(reach: Mapping[int, Shifts], ways: Iterable[tuple[int, Integers]], states: int) -> tuple[Integers, Integers]:
    """The stretch of rows that entries of cotangents, of a node each, reach: from, to."""
    low, high = np.int64(states), np.int64(0)
    for node, entries in ways:
        by = reach[node]
        rows = (
            np.array([[0], [states - 1]]) + 0 * entries if by is None else np.array(sorted(by), int)[:, None] + entries
        )
        there = (rows >= 0) & (rows < states)
        low = np.minimum(low, np.where(there, rows, states).min(axis=0, initial=states))
        high = np.maximum(high, np.where(there, rows + 1, 0).max(axis=0, initial=0))
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True, eq=False)
class Reach:
    """A graph of which some nodes differ from copy to copy: leaves, or any whose values are given.

    `single`: every step is taken by itself, from states that are known, so that a copy is one from where it is changed
    on alone.
    """

    graph: Graph
    forward: Forward
    changed: frozenset[int]
    single: bool = False

    @cached_property
    def reached(self) -> frozenset[int]:
        """Nodes that differ between copies: what is changed and what follows, and all of a time loop."""
        late = (Phase.RECURRENT, Phase.OUTPUT) if not self.single else ()
        return active_nodes(self.graph, self.changed) | {n.index for n in self.graph.nodes if n.phase in late}

    @cached_property
    def before(self) -> Integers:
        """The instructions that all copies share."""
        return self._select(lambda out: out not in self.reached and self.graph.nodes[out].phase is not Phase.STATIC)

    @cached_property
    def each(self) -> Integers:
        """The instructions of one step that every copy runs for itself; at its end the state moves on."""
        given = self.changed if self.single else frozenset()
        own = self._select(lambda out: out in self.reached - given and self.graph.nodes[out].phase is not Phase.STATIC)
        if self.single:
            return own
        moves = np.zeros((len(self.graph.previous), FIELDS), np.int64)
        moves[:, [B, ADDEND]] = -1
        for row, (name, previous) in zip(moves, self.graph.previous.items(), strict=True):
            row[[OP, OUT, A, NUMBER]] = COPY, previous, self.graph.new[name], previous
            row[[SIZE, SIZE_A]] = self.graph.nodes[previous].size
        return np.concatenate([own, moves])

    def _select(self, wanted) -> Integers:  # type: ignore[no-untyped-def]
        code = self.forward.code
        chosen = np.array([bool(wanted(int(out))) for out in code[:, OUT]], dtype=bool)
        return np.ascontiguousarray(code[chosen])

    @cached_property
    def crossing(self) -> tuple[int, ...]:
        """Static nodes that differ between copies and are read in the time loop or are the loss."""
        read = {int(n) for field in (A, B, ADDEND) for n in self.each[:, field] if n >= 0} | {self.graph.loss}
        owners = {self.slices[n].owner if n in self.slices else n for n in read}
        return tuple(sorted(n for n in owners & self.reached if self.graph.nodes[n].phase is Phase.STATIC))

    @cached_property
    def slices(self) -> Mapping[int, Alias]:
        """Nodes without storage of their own, and where their values are."""
        return {n: a for n, a in self.forward.alias.items() if self.graph.nodes[n].op == "slice"}

    @cached_property
    def packed(self) -> tuple[tuple[int, int], ...]:
        """The matrices that every copy's rows are multiplied with, each with the field of the packed copy it takes."""
        return tuple(sorted((n, field) for n, field in packed_copies(self.each) if n not in self.slices))

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of a row's step."""
        own = self.reached - self.changed if self.single else range(len(self.graph.nodes))
        nodes = (self.graph.nodes[n] for n in own)
        return sum(node_flops(self.graph, node) for node in nodes if node.phase is not Phase.STATIC)

    def entries(self, rows: int, steps: int) -> int:
        """Numbers that a copy takes; of a matrix that is computed as many as may change, else one."""
        late = [n for n in self.graph.nodes if n.index in self.reached and n.phase is not Phase.STATIC]
        crossing = (self.graph.nodes[n] for n in self.crossing)
        static = [n for n in crossing if n.index not in self.changed or len(n.shape) < 2]
        return rows * (steps + sum(n.size for n in late)) + sum(n.size for n in static)
