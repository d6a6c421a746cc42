"""Where the immediate influence of a graph's step can differ from zero, read off its operations, never off values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Graph
from bpcli.graph.tape import Integers, Product

DENSE = frozenset({"matmul", "matmat", "transpose", "sum", "dot", "logsumexp", "softmax", "log_softmax"})
"""Operations of which an entry of the result may depend on any entry of an argument."""
Shifts = frozenset[int] | None
"""Entry j of a node reaches the entries j + shift of the state alone; None: any."""


@dataclass(frozen=True)
class Stretch:
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

    def products(self, states: int, steps: int, closing: bool) -> float:
        """Floating-point operations of all q M and J M of one sample: M is not advanced after the last step, and where
        `closing` q J and q M̄ are taken for that step."""
        credits = np.maximum(0, steps - 1 - self.birth)
        credits += closing * np.minimum(1, np.maximum(0, steps - 2 - self.birth))
        first = np.minimum(1, np.maximum(0, steps - 2 - closing - self.birth))
        later = np.maximum(0, steps - 3 - closing - self.birth)
        rows = np.maximum(0, self.high - self.low)
        return float((2.0 * states * (credits + first * rows + later * states)).sum())


def shifts(graph: Graph) -> Mapping[int, Shifts]:
    """How the nodes that reach the state within a step reach it; the states stand one after another."""
    found: dict[int, Shifts] = {}
    offset = 0
    for n in graph.new.values():
        _add(found, n, frozenset({offset}))
        offset += graph.nodes[n].size
    for node in reversed(graph.nodes):
        if node.index not in found:
            continue
        here, before = found[node.index], 0
        for n in node.args:
            size = graph.nodes[n].size
            if node.op in ("concat", "slice"):
                by = before if node.op == "concat" else -int(node.numbers[0])
                _add(found, n, None if here is None else frozenset(shift + by for shift in here))
            else:
                _add(found, n, here if node.op not in DENSE and size == node.size else None)
            before += size
    return found


def _add(found: dict[int, Shifts], node: int, more: Shifts) -> None:
    there = found.get(node, frozenset[int]())
    found[node] = None if there is None or more is None else there | more


def columns(
    graph: Graph,
    steps: int,
    stretches: Iterable[Stretch],
    products: Iterable[Product],
    patterns: Mapping[int, NDArray[np.int64]],
) -> Columns:
    """The columns of M, from the ways in which each stretch's node enters a step."""
    reach, states = shifts(graph), sum(graph.nodes[n].size for n in graph.new.values())
    births, lows, highs, offset = list[Integers](), list[Integers](), list[Integers](), 0
    for stretch in stretches:
        node = graph.nodes[stretch.node]
        entries = patterns.get(stretch.node, np.arange(node.size))
        birth = np.zeros(stretch.columns, np.int64)
        if node.op == "previous":
            birth -= 1
            low, high = offset + entries, offset + entries + 1
            offset += node.size
        else:
            own = [p for p in products if p.matrix == stretch.node]
            ways = [(p.delta, entries // node.shape[1] if not p.turned else entries % node.shape[1]) for p in own]
            low, high = _rows(reach, ways or [(stretch.node, entries)], states)
        if node.op == "input":
            birth += np.arange(steps).repeat(node.size)
            low, high = np.tile(low, steps), np.tile(high, steps)
        births.append(birth)
        lows.append(low)
        highs.append(high)
    return Columns(*(np.concatenate([np.zeros(0, np.int64), *each]) for each in (births, lows, highs)))


def _rows(reach: Mapping[int, Shifts], ways: Iterable[tuple[int, Integers]], states: int) -> tuple[Integers, Integers]:
    """The stretch of rows that entries of cotangents, of a node each, reach: from, to."""
    low, high = np.int64(states), np.int64(0)
    for node, entries in ways:
        by = reach[node]
        rows = np.array([[0], [states - 1]]) + 0 * entries if by is None else np.array(sorted(by))[:, None] + entries
        there = (rows >= 0) & (rows < states)
        low = np.minimum(low, np.where(there, rows, states).min(axis=0))
        high = np.maximum(high, np.where(there, rows + 1, 0).max(axis=0))
    return np.asarray(low), np.asarray(high)
