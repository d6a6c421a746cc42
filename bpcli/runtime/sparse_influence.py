"""RTRL on the entries of a pattern: M ← A M + M̄, with J or a part of it for A, in compiled code.

Columns of M with the same rows are groups, which the kernel `groups` takes through the steps of a chunk. Of A the
entries that a group needs are computed alone, from the parts of J at their entries (see `bpcli.runtime.local_plan`); if
that is no cheaper than N reverse passes, as where a step mixes all units, J is taken by these. No dense M is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from bpcli.graph.nodes import Phase
from bpcli.kernels import column_groups as kernel
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.forward_mode import JOB_FLOPS, JOBS, RtrlPlan, SourceSpan, rtrl_plan
from bpcli.runtime.jobs import Call, cut
from bpcli.runtime.local_derivatives import InfluenceLayout, by_tensor, influence_layout, scattered
from bpcli.runtime.local_plan import LocalPlan, Probing, probe_schedule
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.runtime.schedule import MOST_KEPT
from bpcli.runtime.trace import Trace
from bpcli.tape.dependency import reached_states
from bpcli.tape.instructions import BASE, INNER_ROW, OUTER, Integers
from bpcli.tape.layout import Allocator
from bpcli.tape.plan import node_flops
from bpcli.tape.probing import Paths
from bpcli.tape.row_sets import Entering, RowSets, entering, row_sets

MOST_STEPS = 128
"""Steps in a chunk."""
BLOCK_ENTRIES = 1 << 11
"""Numbers in a group's part of M: with g they stay in the first cache."""
JACOBIAN_ENTRIES = 1 << 19
"""Numbers that the blocks of J of a chunk may take."""
TERM = 8
"""Operations of a reverse pass that take as long as gathering a term of an entry of J."""


@dataclass(frozen=True)
class Sparsity:
    """The pattern of M of `steps` (None: any number), and the paths of A (None: all, A = J)."""

    steps: int | None
    paths: Paths | None


class Terms(NamedTuple):
    """Terms of entries of J: of each the `entry` and the offsets of its factors among cotangents, and in the matrix.

    A factor of which there is no node, or no matrix, is 1.
    """

    entry: Integers
    delta: int | None
    at_delta: Integers
    matrix: tuple[int, bool] | None
    at_matrix: Integers
    vector: int | None
    at_vector: Integers


@dataclass(frozen=True, eq=False)
class SparsePlan:
    """Pattern, groups and sizes."""

    layout: InfluenceLayout
    base: RtrlPlan
    sparsity: Sparsity

    @cached_property
    def ways(self) -> list[Entering]:
        """The ways in which columns enter a step."""
        base = self.base
        return entering(base.graph, base.column_spans, base.step.products, base.patterns, base.steps)

    @cached_property
    def rows(self) -> RowSets:
        """The pattern."""
        return sets_of(self.layout, self.sparsity)

    @cached_property
    def order(self) -> Integers:
        """The columns of M that have entries, group by group, neighbours as in the vectors that a matrix multiplies."""
        m, n, span = (np.zeros(self.layout.P, np.int64) for _ in range(3))
        for k, way in enumerate(reversed(self.ways)):
            m[way.columns], n[way.columns], span[way.columns] = way.m, way.n, k
        order = np.lexsort((n, m, span, self.rows.of))
        return order[self.rows.sets.any(axis=0)[self.rows.of[order]]]

    @cached_property
    def groups(self) -> Integers:
        """The table of groups, without their runs."""
        sets = self.rows.of[self.order]
        counts = self.rows.sets.sum(axis=0)
        starts = np.flatnonzero(np.diff(sets, prepend=-1)).tolist()
        blocks = np.cumsum(np.where(np.isin(np.arange(len(counts)), sets), counts**2, 0))
        first_rows, table, place = np.cumsum(counts) - counts, list[list[int]](), 0
        for start, stop in zip(starts, [*starts[1:], len(sets)], strict=True):
            which = int(sets[start])
            r, block = int(counts[which]), int(blocks[which] - counts[which] ** 2)
            most = max(1, BLOCK_ENTRIES // r)
            for first in range(start, stop, most):
                c = min(most, stop - first)
                table.append([int(first_rows[which]), r, c, block, place, first, 0, 0])
                place += r * c
        return np.array(table, np.int64).reshape(len(table), kernel.GROUP)

    @cached_property
    def pairs(self) -> tuple[Integers, Integers]:
        """Rows and columns of the entries of A in the blocks, set by set."""
        used = np.unique(self.rows.of[self.order])
        lists = [np.flatnonzero(self.rows.sets[:, s]) for s in used]
        nothing = [np.zeros(0, np.int64)]
        rows = np.concatenate(nothing + [np.repeat(r, len(r)) for r in lists])
        return rows, np.concatenate(nothing + [np.tile(r, len(r)) for r in lists])

    @property
    def entries(self) -> int:
        """Entries of M."""
        return int((self.groups[:, kernel.COUNT] * self.groups[:, kernel.WIDTH]).sum())

    @cached_property
    def local(self) -> LocalPlan:
        """The passes through a step, with room for blocks of J, M, g, and a group for each job."""
        base, paths, pairs = self.base, self.sparsity.paths, len(self.pairs[0])
        most = max(1, min(MOST_STEPS, JACOBIAN_ENTRIES // max(1, base.batch * pairs)))
        kinds: tuple[Paths, ...] = ("elementwise",) if paths is None else (paths,)
        plan = LocalPlan(base, kinds, paths is None, most)
        if paths is None and (plan.firsts is None or self._terms_are_many(plan)):
            plan = LocalPlan(base, (), True, most, seeded=True)
        return replace(plan, extra=self._room(plan.chunk)["end"])

    def _terms_are_many(self, plan: LocalPlan) -> bool:
        """Whether putting together the entries of J takes more than N reverse passes."""
        graph = self.base.graph
        step = sum(node_flops(graph, n) for n in graph.nodes if n.phase is Phase.RECURRENT)
        return TERM * self._count(plan) > self.layout.N * step

    def _count(self, plan: LocalPlan) -> float:
        """How many terms the entries of J have through products."""
        total, (rows, columns) = 0.0, self.pairs
        for first in plan.firsts or ():
            delta = plan.probes["deltas"].reach.get(first.delta)
            if delta is not None:
                total += float(delta.sum(axis=1)[rows] @ _vector_reach(plan, first.vector).sum(axis=0)[columns])
        return total

    def _room(self, chunk: int) -> dict[str, int]:
        """Offsets in the room."""
        allocator, batch = Allocator(0), self.base.batch
        widest = int((self.groups[:, kernel.COUNT] * self.groups[:, kernel.WIDTH]).max(initial=0))
        found = {
            "jacobians": allocator.take(chunk * batch * len(self.pairs[0])),
            "influence": allocator.take(batch * self.entries),
            "gradient": allocator.take(batch * len(self.order)),
            "spare": allocator.take(self.jobs(chunk) * widest),
        }
        return {**found, "widest": widest, "end": allocator.size}

    @cached_property
    def room(self) -> dict[str, int]:
        """Offsets of blocks of J, M, g and groups of jobs, from the end of the cotangents."""
        return self._room(self.local.chunk)

    @cached_property
    def advance_flops(self) -> float:
        """Floating-point operations of A M, M̄ and q M in a step, of a sample."""
        r, c = self.groups[:, kernel.COUNT].astype(float), self.groups[:, kernel.WIDTH]
        return float((2 * r * r * c + 4 * r * c).sum())

    def jobs(self, steps: int) -> int:
        """Jobs that share out the groups of all samples."""
        items = max(1, self.base.batch * len(self.groups))
        return max(1, min(JOBS, items, int(self.advance_flops * self.base.batch * steps / JOB_FLOPS)))


def _vector_reach(plan: LocalPlan, vector: int) -> Array:
    """Which states before a step (N) reach which entries of a product's vector (n, N)."""
    graph, previous, start = plan.graph, plan.graph.previous.values(), 0
    N = plan.base.size
    probe = plan.probes["elementwise"]
    for n in probe.graph.new.values():
        size = graph.nodes[n].size
        if n == vector:
            parts = [probe.reach.get(p, np.zeros((start + size, graph.nodes[p].size), bool)) for p in previous]
            return np.concatenate([part[start : start + size] for part in parts], axis=1)
        start += size
    return np.zeros((0, N), bool)


@lru_cache(maxsize=16)
def sets_of(layout: InfluenceLayout, sparsity: Sparsity) -> RowSets:
    """The pattern of M."""
    base = layout.plan
    ways = entering(base.graph, base.column_spans, base.step.products, base.patterns, base.steps)
    return row_sets(base.graph, ways, layout.P, layout.initial_rows, base.patterns, sparsity.steps, sparsity.paths)


@lru_cache(maxsize=8)
def sparse_plan(setup: Setup, sparsity: Sparsity) -> SparsePlan:
    """The plan of a setup and pattern; those of gradients that are taken again are kept."""
    return SparsePlan(influence_layout(setup), rtrl_plan(setup), sparsity)


@lru_cache(maxsize=8)
def sparse_schedule(plan: SparsePlan, dtype: np.dtype) -> SparseSchedule:
    """The `SparseSchedule` of a plan; those of the plans last used are kept."""
    return SparseSchedule(plan, dtype)


class SparseSchedule:
    """The terms of J and the calls of the kernel of a plan, on the array of its trace."""

    def __init__(self, plan: SparsePlan, dtype: np.dtype) -> None:
        self.plan, self.probes = plan, probe_schedule(plan.local, dtype)
        self.end = self.probes.trace.entries + plan.local.bases["extra"]
        self.terms = self._terms()
        self.credits, self.runs, self.groups = self._credits(), *self._runs()
        self.rows = np.nonzero(plan.rows.sets.T)[1].astype(np.int64)
        self.call = lru_cache(MOST_KEPT)(self._call)

    def _terms(self) -> list[tuple[str, Terms]]:
        """Of each part of J its probe and terms."""
        plan, local, found = self.plan, self.plan.local, list[tuple[str, Terms]]()
        rows, columns = plan.pairs
        name = "deltas" if local.firsts is None and plan.sparsity.paths is None else local.kinds[0]
        probe, starts, none = local.probes[name], plan.layout.states, np.zeros(0, np.int64)
        for n, own in zip(local.graph.previous.values(), starts.values(), strict=True):
            there = (columns >= own.start) & (columns < own.stop)
            if n in probe.reach:
                entry = np.flatnonzero(there)
                entry = entry[probe.reach[n][rows[entry], columns[entry] - own.start]]
                at = probe.at(n, rows[entry], columns[entry] - own.start)
                found.append((name, Terms(entry, n, at, None, none, None, none)))
        if plan.sparsity.paths is None:
            for first in local.firsts or ():
                found += [("deltas", terms) for terms in self._through(first)]
        return found

    def _through(self, first) -> list[Terms]:  # type: ignore[no-untyped-def]
        """The terms of a product, by the state before whose entry they end at."""
        plan, local = self.plan, self.plan.local
        deltas, paths = local.probes["deltas"], local.probes["elementwise"]
        if first.delta not in deltas.reach:
            return []
        rows, columns = plan.pairs
        by_row, by_column = _listed(deltas.reach[first.delta]), _listed(_vector_reach(local, first.vector).T)
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
        start = next(s for n, s in _starts(paths) if n == first.vector)
        found = list[Terms]()
        for n, own in zip(local.graph.previous.values(), plan.layout.states.values(), strict=True):
            here = (j >= own.start) & (j < own.stop)
            if here.any():
                at_vector = paths.at(n, start + c[here], j[here] - own.start)
                itself = first.vector == n
                at_delta = deltas.at(first.delta, i[here], r[here])
                matrix = (first.matrix, at_matrix[here])
                vector = (None, at_vector[:0]) if itself else (n, at_vector)
                found.append(Terms(entry[here], first.delta, at_delta, (matrix[0], False), matrix[1], *vector))
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
                parts += [start + int(table[n, BASE]) + entries, np.full(entries.size, int(table[n, INNER_ROW]))]
            lines.append(np.stack(parts, axis=1))
        return np.concatenate(lines).astype(np.int64)

    def _runs(self) -> tuple[Integers, Integers]:
        """The tables of runs and of groups with them."""
        plan, groups = self.plan, self.plan.groups.copy()
        place = np.full(plan.layout.P, -1)
        place[plan.order] = np.arange(len(plan.order))
        owner = np.repeat(np.arange(len(groups)), groups[:, kernel.WIDTH])
        lines = [np.zeros((0, kernel.RUN + 1), np.int64)]
        lines += [part for way in plan.ways for part in self._of_way(way, place, owner)]
        table = np.concatenate(lines)
        table = table[np.argsort(table[:, -1], kind="stable")]
        bounds = np.searchsorted(table[:, -1], np.arange(len(groups) + 1))
        groups[:, kernel.FIRST_RUN], groups[:, kernel.LAST_RUN] = bounds[:-1], bounds[1:]
        return np.ascontiguousarray(table[:, :-1]), groups

    def _of_way(self, way: Entering, place: Integers, owner: Integers) -> list[Integers]:
        """The runs of a way in which columns enter, each with its group."""
        plan, local = self.plan, self.plan.local
        probe = local.probes["deltas"]
        if way.delta not in probe.reach:
            return []
        at = np.argsort(place[way.columns])
        at = at[place[way.columns[at]] >= 0]
        position, m, n = place[way.columns[at]], way.m[at], way.n[at]
        if not len(at):
            return []
        group = owner[position]
        same = (np.diff(position) == 1) & (np.diff(group) == 0) & (np.diff(m) == 0) & (np.diff(n) == 1)
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        length = np.diff(np.append(first, len(at)))
        group, m, n = group[first], m[first], n[first]
        start = position[first] - plan.groups[group, kernel.COLUMN]
        table = local.places["deltas"][0].table[way.delta]
        values = local.trace.values.table
        found = list[Integers]()
        counts = plan.groups[group, kernel.COUNT]
        rows = np.nonzero(plan.rows.sets.T)[1]
        for a in range(int(counts.max(initial=0))):
            here = np.flatnonzero(counts > a)
            state = rows[plan.groups[group[here], kernel.FIRST_ROW] + a]
            met = probe.reach[way.delta][state, m[here]]
            here, state = here[met], state[met]
            line = np.zeros((len(here), kernel.RUN + 1), np.int64)
            line[:, kernel.ROW_OF], line[:, kernel.START], line[:, kernel.LENGTH_OF] = a, start[here], length[here]
            base = self.probes.trace.entries + local.bases["deltas"] + int(table[BASE])
            line[:, kernel.DELTA] = base + probe.colors[state] * int(table[INNER_ROW]) + m[here]
            line[:, kernel.DELTA_ROW], line[:, kernel.VECTOR] = int(table[OUTER]), -1
            if way.vector is not None:
                line[:, kernel.VECTOR] = int(values[way.vector, BASE]) + n[here]
                line[:, kernel.VECTOR_ROW] = int(values[way.vector, INNER_ROW])
            line[:, kernel.STEP], line[:, -1] = way.step, group[here]
            found.append(line)
        return found

    def _call(self, first: int, last: int) -> Call:
        """The groups, through the steps `first` to `last`."""
        plan, room, tables = self.plan, self.plan.room, (self.groups, self.runs, self.rows, self.credits)
        job = np.zeros(kernel.JOB, np.int64)
        job[kernel.LENGTH] = self.probes.trace.entries + plan.local.bases["end"]
        for field, table in zip((kernel.GROUPS, kernel.RUNS, kernel.ROWS, kernel.CREDITS), tables, strict=True):
            job[field], job[field + 1] = table.ctypes.data, len(table)
        job[kernel.BATCH], job[kernel.STEP0], job[kernel.STEPS] = plan.base.batch, first, last - first
        touched = plan.local.trace.reverse.touched
        job[kernel.BEFORE] = int(any(n in touched for n in plan.base.graph.previous.values()))
        job[kernel.JACOBIANS], job[kernel.JACOBIAN_ROW] = self.end + room["jacobians"], len(plan.pairs[0])
        job[kernel.INFLUENCE], job[kernel.INFLUENCE_ROW] = self.end + room["influence"], plan.entries
        job[kernel.GRADIENT], job[kernel.GRADIENT_ROW] = self.end + room["gradient"], len(plan.order)
        jobs = cut(job, kernel.FIRST_ITEM, 0, plan.base.batch * len(self.groups), plan.jobs(plan.local.chunk))
        jobs[:, kernel.SPARE] = self.end + room["spare"] + np.arange(len(jobs)) * room["widest"]
        return Call("groups", jobs, keeps=tables)


def _listed(reach: Array) -> tuple[Integers, Integers, Integers]:
    """The columns of each row's entries in one list, how many they are, and where each row's begin."""
    counts = reach.sum(axis=1)
    return np.nonzero(reach)[1], counts, np.cumsum(counts) - counts


def _starts(probe) -> list[tuple[int, int]]:  # type: ignore[no-untyped-def]
    """The roots of a probe, and where the entries of each begin."""
    found, start = list[tuple[int, int]](), 0
    for n in probe.graph.new.values():
        found.append((n, start))
        start += probe.graph.nodes[n].size
    return found


class SparseRun:
    """A trace, M and g of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: SparsePlan, problem: Problem) -> None:
        setup = problem.setup
        self.plan, self.setup, self.schedule = plan, setup, sparse_schedule(plan, setup.dtype)
        local = plan.local
        self.trace = Trace(local.trace, setup.dtype, problem.arrays, room=local.bases["end"])
        self.probing = Probing(local, self.trace)
        room, batch = self.trace.room[local.bases["extra"] :], setup.batch
        at = plan.room
        pairs = len(plan.pairs[0])
        self.A = room[at["jacobians"] :][: local.chunk * batch * pairs].reshape(-1, pairs)
        self.M = room[at["influence"] :][: batch * plan.entries].reshape(batch, plan.entries)
        self.G = room[at["gradient"] :][: batch * len(plan.order)].reshape(batch, -1)
        self.M[:], self.G[:] = 0, 0
        self._begin()
        self._matrices = dict[int, Array]()

    def _begin(self) -> None:
        """M(0): the identity where initial states are differentiated."""
        plan = self.plan
        initial = plan.layout.initial_rows
        rows = np.nonzero(plan.rows.sets.T)[1]
        for group in plan.groups:
            first, r, c, _, place, column = group[: kernel.FIRST_RUN].tolist()
            if initial:
                own = rows[first : first + r]
                for k, p in enumerate(plan.order[column : column + c].tolist()):
                    if p in initial:
                        self.M[:, place + int(np.searchsorted(own, initial[p])) * c + k] = 1

    @np.errstate(all="ignore")
    def advance(self, first: int, last: int) -> None:
        """g += q M and M ← A M + M̄ through steps `first` to `last`, which the trace has just run both ways."""
        self.probing.run(last - first)
        rows = (last - first) * self.setup.batch
        A = self.A[:rows]
        A[:] = 0
        for name, terms in self.schedule.terms:
            self._add(A, name, terms, rows)
        self.trace.run((self.schedule.call(first, last),))

    def _add(self, A: Array, name: str, terms: Terms, rows: int) -> None:
        """Add terms to the entries of A."""
        assert terms.delta is not None
        found = self.probing.rows(name, terms.delta, 0, rows)[:, terms.at_delta]
        if terms.matrix is not None:
            if terms.matrix[0] not in self._matrices:
                self._matrices[terms.matrix[0]] = self.probing.matrix(terms.matrix[0], False).ravel()
            found = found * self._matrices[terms.matrix[0]][terms.at_matrix]
        if terms.vector is not None:
            found = found * self.probing.rows("elementwise", terms.vector, 0, rows)[:, terms.at_vector]
        starts = np.flatnonzero(np.diff(terms.entry, prepend=-1))
        if len(starts) < len(terms.entry):
            found = np.add.reduceat(found, starts, axis=1)
        A[:, terms.entry[starts]] += found

    def influence(self) -> Array:
        """g, (batch, P)."""
        found = np.zeros((self.setup.batch, self.plan.layout.P), self.setup.dtype)
        found[:, self.plan.order] = self.G
        return found

    def close(self) -> None:
        """Release the memory to the next trace; nothing can be read any more."""
        del self.A, self.M, self.G, self.probing
        self.trace.close()


@np.errstate(all="ignore")  # the check reports values that are not finite
def sparse_gradient(problem: Problem, sparsity: Sparsity) -> tuple[float, dict[str, Array]]:
    """The total loss, and the gradient by tensor."""
    setup, plan = problem.setup, sparse_plan(problem.setup, sparsity)
    run, weights = SparseRun(plan, problem), loss_weights(setup)
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
