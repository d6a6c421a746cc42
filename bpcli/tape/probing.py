"""Derivatives of one step on their structural patterns, by few reverse passes, and paths through a step by kind.

A reverse pass is linear in its seeds: those of several entries share one pass if what they reach among the wanted nodes
does not overlap (Curtis, Powell & Reid 1974). The entries of the roots are coloured so, greedily and from structure
alone, and there is a pass for each colour. Of an elementwise cell that is one pass, where unit seeds take N.

`held` operations are constants of a graph, whose derivatives then go along the other paths alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.operations import STOPPING
from bpcli.tape.dependency import DENSE, reached_states
from bpcli.tape.instructions import Integers, Reverse
from bpcli.tape.layout import Allocator, Places, owner, shared_arguments
from bpcli.tape.lowering import active_nodes, fuse, lower_reverse

Paths = Literal["affine", "elementwise"]
"""Kinds of paths through a step: those through sums and products with numbers held fixed, and those through any
elementwise operations. Neither goes through an operation that mixes units, such as a product with a matrix."""
PATHS: tuple[Paths, ...] = ("affine", "elementwise")
_LINEAR = frozenset({"copy", "negate", "add", "subtract", "concat", "slice"})
MOST_SHARED = 4
"""Passes are shared where they may become fewer by this factor: else each entry has its own, and no search is made."""


def held_nodes(graph: Graph, kind: Paths) -> frozenset[int]:
    """The nodes that are held fixed so that only paths of a `kind` lead from the states before a step to later nodes.

    Of the paths that remain, every one is "elementwise", or the nodes on them are affine in the states before.
    """
    dependent, found = set(graph.previous.values()), set[int]()
    for node in graph.nodes:
        slots = [slot for slot, n in enumerate(node.args) if n in dependent]
        if not slots:
            continue
        passes = node.op not in DENSE | STOPPING
        if kind == "affine":
            scales = (node.op == "multiply" and len(slots) == 1) or (node.op == "divide" and slots == [0])
            passes = node.op in _LINEAR or scales
        (dependent if passes else found).add(node.index)
    return frozenset(found)


def first_products(graph: Graph) -> tuple[int, ...] | None:
    """The products with a matrix in which paths from the states before first mix units.

    None where other operations mix them.
    """
    held = held_nodes(graph, "elementwise")
    mixing = [graph.nodes[n] for n in sorted(held) if graph.nodes[n].op in DENSE]
    return tuple(n.index for n in mixing) if all(n.op == "matmul" for n in mixing) else None


def with_roots(graph: Graph, roots: Collection[int], held: Collection[int] = ()) -> Graph:
    """The graph of which `roots` are the results, with leaves in place of the nodes `held`."""
    nodes = tuple(replace(n, op="param", args=(), numbers=()) if n.index in held else n for n in graph.nodes)
    return replace(graph, nodes=nodes, new={str(n): n for n in roots})


@dataclass(frozen=True, eq=False)
class Probe:
    """Reverse passes from the roots, the new states of `graph`, to the `active` nodes; cotangents of `wanted` are read.

    `patterns` has the entries that exist of matrices with a density.
    """

    graph: Graph
    active: frozenset[int]
    wanted: tuple[int, ...]
    patterns: Mapping[int, NDArray[np.int64]]

    @cached_property
    def program(self) -> Reverse:
        """The reverse program."""
        graph = self.graph
        active = active_nodes(graph, self.active | set(graph.new.values()))
        return lower_reverse(graph, fuse(graph), active, list(graph.new.values()), own=True)

    @cached_property
    def reach(self) -> Mapping[int, NDArray[np.bool_]]:
        """Of each wanted node that is reached, which entries of the roots (S) may reach which of its, (S, size)."""
        found = reached_states(self.graph, self.patterns)
        there = self.program.touched | set(self.graph.new.values())
        return {n: found[n] for n in self.wanted if n in found and n in there and found[n].any()}

    @cached_property
    def colors(self) -> Integers:
        """The pass of each entry of the roots, (S,)."""
        size = sum(self.graph.nodes[n].size for n in self.graph.new.values())
        joined = np.concatenate([np.zeros((size, 0), bool), *self.reach.values()], axis=1)
        if size == 0 or int(joined.sum(axis=0).max(initial=0)) * MOST_SHARED > max(size, MOST_SHARED):
            return np.arange(size)
        colors, taken = np.zeros(size, np.int64), list[NDArray[np.bool_]]()
        for entry, row in enumerate(joined):
            met = np.flatnonzero(row)
            color = next((c for c, busy in enumerate(taken) if not busy[met].any()), len(taken))
            if color == len(taken):
                taken.append(np.zeros(joined.shape[1], bool))
            taken[color][met] = True
            colors[entry] = color
        return colors

    @property
    def passes(self) -> int:
        """Reverse passes of a step."""
        return int(self.colors.max(initial=-1)) + 1

    @cached_property
    def _owners(self) -> tuple[int, ...]:
        """Nodes with cotangents of their own: roots first."""
        nodes, shared = self.graph.nodes, shared_arguments(self.graph, self.program)
        roots = {owner(self.program.alias, n) for n in self.graph.new.values()}
        touched = self.program.touched - set(self.program.alias) - roots
        own = (n for n in sorted(touched) if n in shared or nodes[n].phase is not Phase.STATIC)
        return (*sorted(roots), *own)

    @property
    def entries(self) -> int:
        """Cotangents of a row, a step and sample."""
        return self.passes * sum(self.graph.nodes[n].size for n in self._owners)

    def place(self, rows: int) -> tuple[Places, int]:
        """Places of cotangents (row, pass, entry), and how many of them, from the first, are those of the roots."""
        allocator, cleared = Allocator(len(self.graph.nodes)), 0
        roots = {owner(self.program.alias, n) for n in self.graph.new.values()}
        for n in self._owners:
            size = self.graph.nodes[n].size
            base = allocator.take(rows * self.passes * size)
            allocator.place(n, base, (0, self.passes * size, size, 0))
            cleared = allocator.size if n in roots else cleared
        return allocator.finish(self.program.alias), cleared

    def at(self, node: int, seeds: NDArray[np.int64], entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets among a wanted node's cotangents of a row; those outside the pattern are another seed's."""
        return np.asarray(self.colors[seeds] * self.graph.nodes[node].size + entries)

    def listed(self, node: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The pattern of a node that is reached: seeds, entries, and offsets among its cotangents of a row."""
        return self._lists[node]

    @cached_property
    def _lists(self) -> Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        pairs = {n: np.nonzero(reach) for n, reach in self.reach.items()}
        return {n: (seeds, entries, self.at(n, seeds, entries)) for n, (seeds, entries) in pairs.items()}

    def start(self, root: int) -> int:
        """The first entry of a root among those of all."""
        roots = list(self.graph.new.values())
        return sum(self.graph.nodes[n].size for n in roots[: roots.index(root)])
