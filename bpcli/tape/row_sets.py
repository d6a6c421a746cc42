"""Structural patterns of the influence M: the rows that each column may reach, and columns grouped by them.

Patterns are read off the equations, with densities, never off values. Most columns share their rows with others, as the
weights of a unit do, so a pattern is a few sets of rows and, of each column, the set that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph
from bpcli.tape.dependency import ColumnSpan, reached_states
from bpcli.tape.instructions import Integers, Product
from bpcli.tape.probing import Paths, held_nodes, with_roots


@dataclass(frozen=True, eq=False)
class RowSets:
    """`sets` (N, sets), no two of them equal, and the set of each column, `of` (P,)."""

    sets: NDArray[np.bool_]
    of: Integers

    def pattern(self) -> NDArray[np.bool_]:
        """The entries of M that may differ from zero, (N, P)."""
        return self.sets[:, self.of]

    @property
    def entries(self) -> int:
        """How many they are."""
        return int(self.sets.sum(axis=0) @ np.bincount(self.of, minlength=self.sets.shape[1]))


@dataclass(frozen=True, eq=False)
class Entering:
    """The way in which columns of M enter a step: by entry `m` of the node `delta`, times entry `n` of `vector`.

    Of a vector or scalar, an input or a sum, n is 0 and `vector` None. `step`: the only step at which they do, or -1.
    """

    columns: Integers
    delta: int
    vector: int | None
    m: Integers
    n: Integers
    step: int


def entering(
    graph: Graph, spans: Sequence[ColumnSpan], products: Sequence[Product], patterns: Mapping[int, Integers], steps: int
) -> list[Entering]:
    """All ways in which columns enter: a matrix by each of its products, an input at each of its steps."""
    found = list[Entering]()
    for span in spans:
        node, own = graph.nodes[span.node], [p for p in products if p.matrix == span.node]
        entries = patterns.get(span.node, np.arange(node.size))
        columns = span.start + np.arange(len(entries))
        for p in own:
            major, minor = np.divmod(entries, node.shape[1])
            m, n = (minor, major) if p.turned else (major, minor)
            found.append(Entering(columns, p.delta, p.vector, m, n, -1))
        if node.op != "previous" and not own:
            for t in range(steps) if node.op == "input" else (-1,):
                at = columns + max(t, 0) * node.size
                found.append(Entering(at, span.node, None, entries, 0 * entries, t))
    return found


def row_sets(
    graph: Graph,
    ways: Sequence[Entering],
    initial: Integers,
    patterns: Mapping[int, Integers],
    steps: int | None,
    paths: Paths | None,
) -> RowSets:
    """The rows that columns reach within so many steps (None: any number), from step to step along `paths` (None: all).

    `initial` (P,) has the row at which a column of an initial state is 1, -1 of other columns.
    """
    reach, N = reached_states(graph, patterns), sum(graph.nodes[n].size for n in graph.new.values())
    of, lists = np.zeros(len(initial), np.int64), [np.zeros((N, 1), bool)]
    for way in ways:
        if way.delta not in reach:
            continue
        size = graph.nodes[way.delta].size
        if way.step > 0:  # an input has at all steps the sets of the first
            of[way.columns] = of[way.columns - way.step * size]
            continue
        # The columns that have had one set so far, and enter by one entry of this node, share one.
        keys, which = np.unique(of[way.columns] * size + way.m, return_inverse=True)
        joined = np.concatenate(lists, axis=1)
        lists.append(joined[:, keys // size] | reach[way.delta][:, keys % size])
        of[way.columns] = joined.shape[1] + which
    own = np.flatnonzero(initial >= 0)
    lists.append(np.eye(N, dtype=bool)[:, initial[own]])
    of[own] = sum(part.shape[1] for part in lists[:-1]) + np.arange(len(own))
    sets, of = _distinct(np.concatenate(lists, axis=1), of)
    step = _step(graph, patterns, paths).astype(np.float32)
    first = sets
    for _ in range(N if steps is None else steps - 1):
        more = first | (step @ sets.astype(np.float32) > 0)
        if np.array_equal(more, sets):
            break
        sets = more
    return RowSets(*_distinct(sets, of))


def _step(graph: Graph, patterns: Mapping[int, Integers], paths: Paths | None) -> NDArray[np.bool_]:
    """The states (N) that the states before (N) may reach within a step."""
    new = tuple(graph.new.values())
    within = graph if paths is None else with_roots(graph, new, held_nodes(graph, paths))
    reach, N = reached_states(within, patterns), sum(graph.nodes[n].size for n in new)
    parts = [reach.get(n, np.zeros((N, graph.nodes[n].size), bool)) for n in graph.previous.values()]
    return np.concatenate(parts, axis=1)


def _distinct(sets: NDArray[np.bool_], of: Integers) -> tuple[NDArray[np.bool_], Integers]:
    """The same pattern without sets that occur twice, or of which no column is."""
    used, of = np.unique(of, return_inverse=True)
    kept, which = np.unique(sets[:, used], axis=1, return_inverse=True)
    return kept, which.ravel()[of.ravel()]
