"""Dependency within a step, read off a graph's operations and never off values.

`Structure` says which entries of the immediate influence can differ from zero, and from which step on: RTRL leaves the
rest out. `Reach` says which nodes differ between perturbed copies, and which instructions all copies share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.operations import STOPPING
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
from bpcli.tape.lowering import active_nodes
from bpcli.tape.plan import node_flops

DENSE = frozenset({"matmul", "matmat", "transpose", "sum", "dot", "logsumexp", "softmax", "log_softmax"})
"""Operations whose results may depend, in each entry, on every entry of an argument."""
Shifts = frozenset[int] | None
"""Entry j of a node reaches only the entries j + shift of the state; None: any entry."""
MOST_SHIFTS = 64
"""Shifts that a node may have; a node with more may reach any entry."""
BLOCK = 1 << 16
"""Columns worked on at a time."""
MOST_LOOKED_AT = 1 << 22
"""Entries of a node up to which the rows they reach are counted; those of a larger node are taken to reach every row.
That bounds the time of an estimate for an influence matrix that may not fit in any memory."""


@dataclass(frozen=True)
class ColumnSpan:
    """Columns of the influence matrix M that belong to a node: static, an initial state, or an input at every step."""

    node: int
    start: int
    columns: int


@dataclass(frozen=True, eq=False)
class Columns:
    """For each column of M: the step before which it is zero (`birth`), and its band `low`..`high` of rows after it.

    A column that reaches no row has `high` below `low`.
    """

    birth: Integers
    low: Integers
    high: Integers

    def panels(self, width: int) -> Integers:
        """Birth, low and high of panels of `width` columns, (panels, 3)."""

        def folded(values: Integers, nothing: int) -> Integers:
            filler = np.full(-len(values) % width, nothing, np.int64)
            return np.concatenate([values, filler]).reshape(-1, width)

        never = int(np.iinfo(np.int64).max)
        birth, low = folded(self.birth, never).min(axis=1), folded(self.low, never).min(axis=1)
        return np.stack([birth, low, np.maximum(low, folded(self.high, 0).max(axis=1))], axis=1)


@dataclass(frozen=True, eq=False)
class Structure:
    """The structure of M over some steps, from the ways in which the node of each span enters a step.

    `patterns` has the entries that exist of nodes with a density. M has a column for each parameter and may exceed all
    memory, so columns are computed `BLOCK` at a time.
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

    def columns(self, start: int, stop: int) -> Columns:
        """The columns start..stop."""
        births, lows, highs = ([np.zeros(0, np.int64)] for _ in range(3))
        for span in self.column_spans:
            node, pattern = self.graph.nodes[span.node], self.patterns.get(span.node)
            own = np.arange(max(start - span.start, 0), min(stop - span.start, span.columns))
            low, high = self._rows(span, own % node.size if pattern is None else pattern[own])
            births.append(own // node.size if node.op == "input" else np.full(len(own), self._births(span)[0]))
            lows.append(low)
            highs.append(high)
        return Columns(*(np.concatenate(each) for each in (births, lows, highs)))

    def panels(self, width: int) -> Integers:
        """Birth, low and high of panels of `width` columns, (panels, 3)."""
        most, count = BLOCK // width * width, sum(span.columns for span in self.column_spans)
        starts = range(0, max(1, count), most)
        return np.concatenate([self.columns(start, min(start + most, count)).panels(width) for start in starts])

    def flops(self, closing: bool) -> float:
        """Floating-point operations of all q M and J M of one sample.

        M is not advanced after the last step; with `closing`, that step takes (q J) M + q M̄ instead.
        """
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
        """The step before which a span's columns are zero; for an input, of the columns of each step."""
        op = self.graph.nodes[span.node].op
        return np.arange(self.steps) if op == "input" else np.array([-1 if op == "previous" else 0])

    def _bands(self, span: ColumnSpan) -> tuple[float, float]:
        """Entries of a span's node, and the rows that they reach, summed over entries.

        Entries of a matrix that reach the same rows are looked at once.
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
        """The rows low..high that some entries of a span's node reach."""
        node = self.graph.nodes[span.node]
        if node.op == "previous":
            states = (s for s in self.column_spans if self.graph.nodes[s.node].op == "previous")
            before = sum(s.columns for s in states if s.start < span.start)
            return before + entries, before + entries + 1
        own = [p for p in self.products if p.matrix == span.node]
        ways = [(p.delta, entries // node.shape[1] if not p.turned else entries % node.shape[1]) for p in own]
        return _rows(self._reach, ways or [(span.node, entries)], self._states)


def shifts(graph: Graph) -> Mapping[int, Shifts]:
    """The shifts of every node that reaches the state within a step; the states stand one after another.

    Concatenations and slices may give a node many shifts. Those that lead beyond the state are left out.
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
        if node.index not in found or node.op in STOPPING:
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


def reached_states(graph: Graph, patterns: Mapping[int, NDArray[np.int64]]) -> dict[int, NDArray[np.bool_]]:
    """By node that reaches the state within a step, which of all new states (N) its entries may reach, (N, size).

    `patterns` has the entries that exist of matrices with a density.
    """
    states = sum(graph.nodes[n].size for n in graph.new.values())
    found: dict[int, NDArray[np.bool_]] = {}
    offset = 0

    def note(n: int, reached: NDArray[np.bool_]) -> None:
        found[n] = found[n] | reached if n in found else reached

    for n in graph.new.values():
        note(n, np.eye(states, graph.nodes[n].size, -offset, dtype=bool))
        offset += graph.nodes[n].size
    for node in reversed(graph.nodes):
        here, start = found.get(node.index), 0
        if here is None or node.op in ("matmat", "transpose"):
            continue
        for slot, n in enumerate(node.args):
            size = graph.nodes[n].size
            if node.op == "matmul":
                if slot == 1:
                    note(n, here @ _existing(graph, node.args[0], patterns))
            elif node.op == "concat":
                note(n, here[:, start : start + size])
            elif node.op == "slice":
                whole = np.zeros((states, size), bool)
                whole[:, int(node.numbers[0]) : int(node.numbers[1])] = here
                note(n, whole)
            elif node.op not in DENSE and size == node.size:
                note(n, here)
            else:
                note(n, np.repeat(here.any(axis=1, keepdims=True), size, axis=1))
            start += size
    return found


def _existing(graph: Graph, matrix: int, patterns: Mapping[int, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """The entries of a matrix that may differ from zero."""
    node = graph.nodes[matrix]
    if node.op == "transpose":
        return _existing(graph, node.args[0], patterns).T
    exists = np.ones(node.shape, bool)
    if matrix in patterns:
        exists[:] = False
        exists.flat[patterns[matrix]] = True
    return exists


def _rows(reach: Mapping[int, Shifts], ways: Iterable[tuple[int, Integers]], states: int) -> tuple[Integers, Integers]:
    """The rows low..high that entries reach by any of several `ways`: by a node, with its entry for each of them."""
    low, high = np.int64(states), np.int64(0)
    for node, entries in ways:
        by = reach[node]
        ends = np.array([[0], [states - 1]]) + 0 * entries
        rows = ends if by is None else np.array(sorted(by), int)[:, None] + entries
        there = (rows >= 0) & (rows < states)
        low = np.minimum(low, np.where(there, rows, states).min(axis=0, initial=states))
        high = np.maximum(high, np.where(there, rows + 1, 0).max(axis=0, initial=0))
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True, eq=False)
class Reach:
    """A graph of which the nodes `changed` differ from copy to copy: leaves, or any nodes whose values are given.

    `single`: every step starts from known states, so that copies differ only in what follows from the change in it.
    """

    graph: Graph
    forward: Forward
    changed: frozenset[int]
    single: bool = False

    @cached_property
    def reached(self) -> frozenset[int]:
        """Nodes that differ between copies: the changed ones, what follows from them, and all of a time loop."""
        late = (Phase.RECURRENT, Phase.OUTPUT) if not self.single else ()
        return active_nodes(self.graph, self.changed, True) | {n.index for n in self.graph.nodes if n.phase in late}

    @cached_property
    def before(self) -> Integers:
        """The instructions that all copies share."""
        return self._select(frozenset(range(len(self.graph.nodes))) - self.reached)

    @cached_property
    def each(self) -> Integers:
        """The instructions of one step that every copy runs for itself; copies that advance the state come last."""
        if self.single:
            return self._select(self.reached - self.changed)
        moves = np.zeros((len(self.graph.previous), FIELDS), np.int64)
        moves[:, [B, ADDEND]] = -1
        for row, (name, previous) in zip(moves, self.graph.previous.items(), strict=True):
            row[[OP, OUT, A, NUMBER]] = COPY, previous, self.graph.new[name], previous
            row[[SIZE, SIZE_A]] = self.graph.nodes[previous].size
        return np.concatenate([self._select(self.reached), moves])

    def _select(self, nodes: Collection[int]) -> Integers:
        """The instructions that compute some nodes of the phases that take steps."""
        chosen = [n in nodes and self.graph.nodes[n].phase is not Phase.STATIC for n in self.forward.code[:, OUT]]
        return np.ascontiguousarray(self.forward.code[np.array(chosen, dtype=bool)])

    @cached_property
    def crossing(self) -> tuple[int, ...]:
        """Static nodes that differ between copies and are read in the time loop or are the loss."""
        read = {int(n) for field in (A, B, ADDEND) for n in self.each[:, field] if n >= 0} | {self.graph.loss}
        owners = {self.slices[n].owner if n in self.slices else n for n in read}
        return tuple(sorted(n for n in owners & self.reached if self.graph.nodes[n].phase is Phase.STATIC))

    @cached_property
    def slices(self) -> Mapping[int, Alias]:
        """Slices, and where their values are."""
        return {n: a for n, a in self.forward.alias.items() if self.graph.nodes[n].op == "slice"}

    @cached_property
    def packed(self) -> tuple[tuple[int, int], ...]:
        """The matrices that every copy's rows are multiplied with, each with the field of the packed copy it reads."""
        return tuple(sorted((n, field) for n, field in packed_copies(self.each) if n not in self.slices))

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one step of one row."""
        own = self.reached - self.changed if self.single else range(len(self.graph.nodes))
        nodes = (self.graph.nodes[n] for n in own)
        return sum(node_flops(self.graph, node) for node in nodes if node.phase is not Phase.STATIC)

    def entries(self, rows: int, steps: int) -> int:
        """Entries of a copy of so many rows and steps; a changed matrix is shared and counts for nothing."""
        late = [n for n in self.graph.nodes if n.index in self.reached and n.phase is not Phase.STATIC]
        crossing = (self.graph.nodes[n] for n in self.crossing)
        static = [n for n in crossing if n.index not in self.changed or len(n.shape) < 2]
        return rows * (steps + sum(n.size for n in late)) + sum(n.size for n in static)
