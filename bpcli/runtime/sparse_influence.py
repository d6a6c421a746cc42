"""RTRL on the entries of a pattern: M ← A M + M̄, with J or a part of it for A, in compiled code.

Columns of M with the same rows are groups, which the kernels of `bpcli.kernels.column_groups` take through a block of
steps at a time. Of A the entries that groups need are computed alone, from the parts of J at their entries (see
`bpcli.runtime.local_plan`); if that is no cheaper than N reverse passes, as where a step mixes all units, J is taken by
these. No dense M is formed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import column_groups as kernel
from bpcli.problem.definition import Array, Problem
from bpcli.runtime import sparse_plan as sizes
from bpcli.runtime.jobs import Call, cut
from bpcli.runtime.local_derivatives import by_tensor, scattered
from bpcli.runtime.local_plan import First, Probing, probe_schedule
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.runtime.schedule import MOST_KEPT
from bpcli.runtime.sparse_plan import SparsePlan, Sparsity, sparse_plan, vector_reach
from bpcli.runtime.trace import Trace
from bpcli.tape.instructions import BASE, INNER_ROW, OUTER, Integers
from bpcli.tape.row_sets import Entering

Index = slice | Integers


@dataclass(frozen=True, eq=False)
class Terms:
    """Terms of entries of A: of each where its entry stands in a slot row, and the offsets of its factors among
    cotangents, in the matrix, and among those of "elementwise" paths. A factor without a node is 1."""

    probe: str
    place: Integers
    delta: int
    at_delta: Integers
    matrix: int | None = None
    at_matrix: Integers | None = None
    vector: int | None = None
    at_vector: Integers | None = None

    @cached_property
    def starts(self) -> Integers:
        """Where the terms of each entry begin."""
        return np.flatnonzero(np.diff(self.place, prepend=-1))

    @cached_property
    def ranges(self) -> tuple[Index, Index, Index]:
        """Where each entry stands, and the offsets among cotangents of Δ and of paths."""
        nothing = np.zeros(0, np.int64) if self.at_vector is None else self.at_vector
        return _range(self.place[self.starts]), _range(self.at_delta), _range(nothing)


@lru_cache(maxsize=8)
def sparse_schedule(plan: SparsePlan, dtype: np.dtype) -> SparseSchedule:
    """The `SparseSchedule` of a plan; those of the plans last used are kept."""
    return SparseSchedule(plan, dtype)


class SparseSchedule:
    """The terms of A and the calls of the kernels of a plan, on the array of its trace."""

    def __init__(self, plan: SparsePlan, dtype: np.dtype) -> None:
        self.plan, self.probes = plan, probe_schedule(plan.local, dtype)
        self.end = self.probes.trace.entries + plan.local.bases["extra"]
        self.terms, self.credits = self._terms(), self._credits()
        self.bundles, self.runs, self.deltas = self._bundles()
        self.calls = lru_cache(MOST_KEPT)(self._calls)

    def _terms(self) -> list[Terms]:
        """The terms of each part of A."""
        plan, local, found = self.plan, self.plan.local, list[Terms]()
        rows, columns, places = plan.pairs
        name = "deltas" if local.firsts is None and plan.sparsity.paths is None else local.kinds[0]
        probe, starts = local.probes[name], plan.layout.states
        for n, own in zip(local.graph.previous.values(), starts.values(), strict=True):
            there = (columns >= own.start) & (columns < own.stop)
            if n in probe.reach:
                entry = np.flatnonzero(there)
                entry = entry[probe.reach[n][rows[entry], columns[entry] - own.start]]
                at = probe.at(n, rows[entry], columns[entry] - own.start)
                found += [Terms(name, places[entry], n, at)] if len(entry) else []
        if plan.sparsity.paths is None:
            for first in local.firsts or ():
                found += self._through(first)
        return found

    def _through(self, first: First) -> list[Terms]:
        """The terms of a product, by the state before whose entry they end at."""
        plan, local = self.plan, self.plan.local
        deltas, paths = local.probes["deltas"], local.probes["elementwise"]
        if first.delta not in deltas.reach:
            return []
        rows, columns, places = plan.pairs
        by_row, by_column = _listed(deltas.reach[first.delta]), _listed(vector_reach(local, first.vector).T)
        many = by_row[1][rows] * by_column[1][columns]
        entry = np.repeat(np.arange(len(rows)), many)
        k = np.arange(len(entry)) - np.repeat(np.cumsum(many) - many, many)
        i, j = rows[entry], columns[entry]
        one, other = np.divmod(k, by_column[1][j])
        r, c = by_row[0][by_row[2][i] + one], by_column[0][by_column[2][j] + other]
        m, n = (c, r) if first.turned else (r, c)
        at_matrix = m * local.graph.nodes[first.matrix].shape[1] + n
        if first.matrix in plan.base.patterns:
            kept = np.isin(at_matrix, plan.base.patterns[first.matrix])
            entry, i, j, r, c, at_matrix = (x[kept] for x in (entry, i, j, r, c, at_matrix))
        root = paths.start(first.vector)
        found = list[Terms]()
        for state, own in zip(local.graph.previous.values(), plan.layout.states.values(), strict=True):
            here = (j >= own.start) & (j < own.stop)
            if here.any():
                at_vector = paths.at(state, root + c[here], j[here] - own.start)
                at_delta = deltas.at(first.delta, i[here], r[here])
                vector = () if first.vector == state else (state, at_vector)
                place = places[entry[here]]
                found.append(Terms("deltas", place, first.delta, at_delta, first.matrix, at_matrix[here], *vector))
        return found

    def _credits(self) -> Integers:
        """The table of credits."""
        plan, graph = self.plan, self.plan.base.graph
        table, start = plan.local.trace.cotangents.table, self.probes.trace.cotangents
        lines = list[Integers]()
        for name, previous in graph.previous.items():
            entries = np.arange(graph.nodes[previous].size)
            parts = []
            for n in (graph.new[name], previous):
                there = n != previous or n in plan.local.trace.reverse.touched
                at = start + int(table[n, BASE]) + entries if there else np.full(entries.size, -1)
                parts += [at, np.full(entries.size, int(table[n, INNER_ROW]))]
            lines.append(np.stack(parts, axis=1))
        return np.concatenate(lines).astype(np.int64)

    def _bundles(self) -> tuple[Integers, Integers, Integers]:
        """The tables of bundles and of runs, and the places of cotangents."""
        plan, groups, sets = self.plan, self.plan.groups, self.plan.sets
        segments, deltas = self._segments()
        bounds = np.searchsorted(segments[:, -2], np.arange(len(groups) + 1))
        shapes = [segments[one:other, : kernel.RUN].tobytes() for one, other in itertools.pairwise(bounds)]
        table, runs, places, first = list[list[int]](), [segments[:0, : kernel.RUN]], [deltas[:0]], 0
        while first < len(groups):
            own, width, _ = groups[first].tolist()
            r, last = int(sets[own, kernel.COUNT]), first + 1
            while last < len(groups) and (last - first + 1) * (r + 1) <= sizes.BUNDLE_ROWS:
                follows = groups[last, 0] == own + last - first and groups[last, 1] == width
                if not follows or sets[groups[last, 0], kernel.COUNT] != r or shapes[last] != shapes[first]:
                    break
                last += 1
            count, start = int(bounds[first + 1] - bounds[first]), sum(map(len, runs))
            line = [own, last - first, width, int(plan.places[first]), int(last - first > 1)]
            table.append([*line, start, start + count, sum(map(len, places))])
            own_runs = segments[bounds[first] : bounds[first + 1], : kernel.RUN].copy()
            ends = segments[bounds[first] : bounds[last], -1].reshape(last - first, count).T
            own_places = deltas[ends[:, :, None] + np.arange(r)].reshape(count, (last - first) * r)
            own_runs[1:, kernel.AGAIN] = (own_places[1:] == own_places[:-1]).all(axis=1)
            own_runs[1:, kernel.AGAIN] &= own_runs[1:, kernel.STEP] == own_runs[:-1, kernel.STEP]
            runs.append(own_runs)
            places.append(own_places.ravel())
            first = last
        bundles = np.array(table, np.int64).reshape(len(table), kernel.BUNDLE)
        return bundles, np.ascontiguousarray(np.concatenate(runs)), np.concatenate(places)

    def _segments(self) -> tuple[Integers, Integers]:
        """The runs of every group by itself, each with its group and where its cotangents' places begin; and these."""
        plan = self.plan
        place = np.full(plan.layout.P, -1)
        place[plan.order] = np.arange(len(plan.order))
        owner = np.repeat(np.arange(len(plan.groups)), plan.groups[:, 1])
        lines, lists, start = [np.zeros((0, kernel.RUN + 2), np.int64)], [np.zeros(0, np.int64)], 0
        for way in plan.ways:
            found, deltas = self._of_way(way, place, owner)
            found[:, -1] += start
            lines.append(found)
            lists.append(deltas)
            start += len(deltas)
        table = np.concatenate(lines)
        return table[np.argsort(table[:, -2], kind="stable")], np.concatenate(lists)

    def _of_way(self, way: Entering, place: Integers, owner: Integers) -> tuple[Integers, Integers]:
        """The same of a way in which columns enter."""
        plan, local, probe = self.plan, self.plan.local, self.plan.local.probes["deltas"]
        at = np.argsort(place[way.columns], kind="stable")
        at = at[place[way.columns[at]] >= 0]
        if way.delta not in probe.reach or not len(at):
            return np.zeros((0, kernel.RUN + 2), np.int64), np.zeros(0, np.int64)
        position, m, n = place[way.columns[at]], way.m[at], way.n[at]
        group = owner[position]
        same = (np.diff(position) == 1) & (np.diff(group) == 0) & (np.diff(m) == 0) & (np.diff(n) == 1)
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        group, m, n = group[first], m[first], n[first]
        own = plan.sets[plan.groups[group, 0]]
        counts = own[:, kernel.COUNT]
        starts = np.cumsum(counts) - counts
        table, values = local.places["deltas"][0].table[way.delta], local.trace.values.table
        found = np.zeros((len(first), kernel.RUN + 2), np.int64)
        found[:, kernel.START] = position[first] - plan.groups[group, 2]
        found[:, kernel.COLUMNS] = np.diff(first, append=len(at))
        found[:, kernel.VECTOR], found[:, kernel.DELTA_ROW], found[:, kernel.STEP] = -1, int(table[OUTER]), way.step
        if way.vector is not None:
            found[:, kernel.VECTOR] = int(values[way.vector, BASE]) + n
            found[:, kernel.VECTOR_ROW] = int(values[way.vector, INNER_ROW])
        found[:, -2], found[:, -1] = group, starts
        a = np.arange(int(counts.sum())) - np.repeat(starts, counts)
        state, m = plan.row_lists[np.repeat(own[:, kernel.FIRST_ROW], counts) + a], np.repeat(m, counts)
        base = self.probes.trace.entries + local.bases["deltas"] + int(table[BASE])
        there = base + probe.colors[state] * int(table[INNER_ROW]) + m
        return found, np.where(probe.reach[way.delta][state, m], there, -1)

    def _calls(self, first: int, last: int) -> tuple[Call, Call]:
        """The sets, then the bundles, through the steps `first` to `last`."""
        plan, room, steps = self.plan, self.plan.room, last - first
        tables = plan.sets, self.bundles, self.runs, self.deltas, plan.row_lists, self.credits
        fields = kernel.SETS, kernel.BUNDLES, kernel.RUNS, kernel.DELTAS, kernel.ROWS, kernel.CREDITS
        job = np.zeros(kernel.JOB, np.int64)
        job[kernel.LENGTH] = self.probes.trace.entries + plan.local.bases["end"]
        for field, table in zip(fields, tables, strict=True):
            job[field], job[field + 1] = table.ctypes.data, len(table)
        job[kernel.BATCH], job[kernel.STEP0], job[kernel.STEPS] = plan.base.batch, first, steps
        job[kernel.SLOTS], job[kernel.SLOT_ROW] = self.end + room["slots"], plan.slot_row
        job[kernel.INFLUENCE], job[kernel.INFLUENCE_ROW] = self.end + room["influence"], int(plan.places[-1])
        calls = list[Call]()
        for name, count, flops in zip(("sets", "groups"), map(len, tables[:2]), plan.advance_flops, strict=True):
            items = plan.base.batch * count
            jobs = cut(job.copy(), kernel.FIRST_ITEM, 0, items, min(items or 1, plan.jobs(flops, steps)))
            jobs[:, kernel.SPARE] = self.end + room["spare"] + np.arange(len(jobs)) * room["each"]
            calls.append(Call(name, jobs, keeps=tables))
        return calls[0], calls[1]


def _range(indices: Integers) -> Index:
    """Indices as a slice, which takes no copy, where they are evenly spaced."""
    if len(indices) > 1:
        step = int(indices[1] - indices[0])
        if step > 0 and (np.diff(indices) == step).all():
            return slice(int(indices[0]), int(indices[-1]) + 1, step)
    return indices


def _listed(reach: NDArray[np.bool_]) -> tuple[Integers, Integers, Integers]:
    """The columns of each row's entries in one list, how many they are, and where each row's begin."""
    counts = reach.sum(axis=1)
    return np.nonzero(reach)[1], counts, np.cumsum(counts) - counts


_weights = lru_cache(maxsize=8)(loss_weights)
"""Cached for repeated gradients; read-only."""


class SparseRun:
    """A trace, M and g of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: SparsePlan, problem: Problem) -> None:
        setup = problem.setup
        self.plan, self.setup, self.schedule = plan, setup, sparse_schedule(plan, setup.dtype)
        local = plan.local
        self.trace = Trace(local.trace, setup.dtype, problem.arrays, room=local.bases["end"])
        self.probing = Probing(local, self.trace)
        room, at, rows = self.trace.room[local.bases["extra"] :], plan.room, (local.chunk + 1) * setup.batch
        self.A = room[at["slots"] :][: rows * plan.slot_row].reshape(rows, plan.slot_row)
        self.M = room[at["influence"] :][: setup.batch * int(plan.places[-1])].reshape(setup.batch, -1)
        self.M[:] = 0
        self._matrices = dict[int, Array]()
        if plan.layout.initial_rows:
            self._begin(plan.layout.initial_rows)

    def _begin(self, rows: Mapping[int, int]) -> None:
        """M(0): the identity where initial states are differentiated."""
        plan = self.plan
        for (own, c, first), place in zip(plan.groups.tolist(), plan.places.tolist(), strict=False):
            start, r, _ = plan.sets[own].tolist()
            lists = plan.row_lists[start : start + r]
            for k, p in enumerate(plan.order[first : first + c].tolist()):
                if p in rows:
                    self.M[:, place + int(np.searchsorted(lists, rows[p])) * c + k] = 1

    @np.errstate(all="ignore")
    def advance(self, first: int, last: int) -> None:
        """g += q M and M ← A M + M̄ through steps `first` to `last`, which the trace has just run both ways."""
        self.probing.run(last - first)
        rows = (last - first) * self.setup.batch
        A = self.A[:rows]
        A[:] = 0
        for terms in self.schedule.terms:
            self._add(A, terms, rows)
        self.trace.run(self.schedule.calls(first, last))

    def _add(self, A: Array, terms: Terms, rows: int) -> None:
        """Add terms to the entries of A."""
        place, at_delta, at_vector = terms.ranges
        found = self.probing.rows(terms.probe, terms.delta, 0, rows)[:, at_delta]
        if terms.matrix is not None:
            if terms.matrix not in self._matrices:
                self._matrices[terms.matrix] = self.probing.matrix(terms.matrix).ravel()
            found = found * self._matrices[terms.matrix][terms.at_matrix]
        if terms.vector is not None:
            found = found * self.probing.rows("elementwise", terms.vector, 0, rows)[:, at_vector]
        if len(terms.starts) < len(terms.place):
            found = np.add.reduceat(found, terms.starts, axis=1)
        A[:, place] += found

    def influence(self) -> Array:
        """g, (batch, P)."""
        found = np.zeros((self.setup.batch, self.plan.layout.P), self.setup.dtype)
        found[:, self.plan.order] = self.M[:, self.plan.gradient_places]
        return found

    def close(self) -> None:
        """Release the memory to the next trace; nothing can be read any more."""
        del self.A, self.M, self.probing
        self.trace.close()


@np.errstate(all="ignore")  # the check reports values that are not finite
def sparse_gradient(problem: Problem, sparsity: Sparsity) -> tuple[float, dict[str, Array]]:
    """The total loss, and the gradient by tensor."""
    setup, plan = problem.setup, sparse_plan(problem.setup, sparsity)
    run, weights = SparseRun(plan, problem), _weights(setup)
    trace, graph, loss = run.trace, setup.graph, 0.0
    inputs = {x.name: graph.leaf[x.name] for x in setup.wrt if x.kind == "input" and x.name in graph.leaf}
    direct = {name: np.zeros((setup.T, setup.batch, graph.nodes[n].size), setup.dtype) for name, n in inputs.items()}
    trace.start()
    for first in range(0, setup.T, plan.local.chunk):
        last = min(setup.T, first + plan.local.chunk)
        trace.forward(first, last)
        loss += float((trace.losses(first, last) * weights[first:last]).sum())
        trace.reverse(first, last, weights[first:last], later={})
        for name, n in inputs.items():
            direct[name][first:last] = trace.take_window(n, last - first)
        run.advance(first, last)
        if last < setup.T:
            trace.slide(last - first)
    influence = run.influence()
    total = influence.sum(axis=0)
    extra = [
        (span.node, scattered(plan.base, span, total[span.start : span.start + span.columns]))
        for span in plan.base.column_spans
        if graph.nodes[span.node].phase is Phase.STATIC
    ]
    leaves = trace.finish(extra)
    shapes = {x.name: x.shape for x in setup.wrt}
    own = {name: values.reshape(shapes[name]) for name, values in direct.items()}
    params = {x.name: leaves[graph.leaf[x.name]] for x in setup.wrt if x.kind == "param" and x.name in graph.leaf}
    found = by_tensor(setup, influence, own, params)
    run.close()
    return loss, found
