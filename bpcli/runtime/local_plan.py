"""The local derivatives of a step by compiled kernels: which passes are made, and how J is put together.

    J = E + Σ_p Δ_p W_p V_p        M̄ = Σ_p Δ_p ⊗ v_p + …

over the products p = W v in which the paths from a(t-1) first meet a matrix: Δ_p = ∂a(t)/∂p, V_p = ∂v_p/∂a(t-1) and E
along paths without a product. Δ_p is part of M̄ too. All of them are sparse where gates and nonlinearities are
elementwise, and take a pass for each of their colours (see `bpcli.tape.probing`), so that J is known at any of its
entries without N reverse passes, and times a vector without J. Where other operations mix units, such as a sum over
them, unit seeds of all N entries give J.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.kernels import reverse as reverse_kernel
from bpcli.runtime import forward_mode
from bpcli.runtime.forward_mode import JOBS, SEED_ENTRIES, RtrlPlan
from bpcli.runtime.jobs import Call, cut, reverse_job
from bpcli.runtime.schedule import MOST_KEPT, schedule_of
from bpcli.runtime.trace import Array, Trace
from bpcli.tape.instructions import BASE, INNER_ROW, OUTER, Integers
from bpcli.tape.layout import Allocator, Places
from bpcli.tape.lowering import fuse, matrix_of
from bpcli.tape.plan import LANE_FLOPS, Plan, chunk_steps, make_plan, node_flops
from bpcli.tape.probing import Paths, Probe, first_products, held_nodes, with_roots


class First(NamedTuple):
    """A product in which paths from the states before first meet a matrix: the node whose cotangent is that of the
    product, the matrix, whether it is `turned`, and the vector."""

    delta: int
    matrix: int
    turned: bool
    vector: int


@dataclass(frozen=True, eq=False)
class LocalPlan:
    """Programs and sizes of the local derivatives of a chunk of at most `most` steps (`fixed`: no fewer), for RTRL's
    `base`.

    `kinds` are the paths whose derivatives are taken. Without `jacobian`, nothing but M̄ and these is known; `seeded`, J
    is taken by unit seeds in any case. Behind the numbers of the trace stand the cotangents of each probe, then `extra`
    numbers for others.
    """

    base: RtrlPlan
    kinds: tuple[Paths, ...]
    jacobian: bool
    most: int
    extra: int = 0
    seeded: bool = False
    fixed: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the step."""
        return self.base.graph

    @cached_property
    def firsts(self) -> tuple[First, ...] | None:
        """The products that J is put together from; None where it takes unit seeds."""
        products, graph = first_products(self.graph), self.graph
        if products is None or self.seeded:
            return None
        fusion, found = fuse(graph), list[First]()
        sums = {product: total for total, product in fusion.product.items()}
        for p in products:
            matrix, turned = matrix_of(graph, fusion, p)
            found.append(First(sums.get(p, p), matrix, turned, graph.nodes[p].args[1]))
        return tuple(found)

    @cached_property
    def probes(self) -> Mapping[str, Probe]:
        """By name: "deltas" has the cotangents of M̄ and of the first products, or J itself, and each kind its paths."""
        base, graph, previous = self.base, self.graph, tuple(self.graph.previous.values())
        new = tuple(graph.new.values())
        own = {p.delta for p in base.step.products} | {s.node for s in base.column_spans}
        starts, wanted = set(base.leaves), [n for n in sorted(own) if n not in previous]
        if self.jacobian and self.firsts is not None:
            starts |= {first.delta for first in self.firsts}
            wanted = sorted({*wanted, *(first.delta for first in self.firsts)})
        elif self.jacobian:
            starts, wanted = {*starts, *previous}, [*wanted, *previous]
        found = {"deltas": Probe(with_roots(graph, new), frozenset(starts), tuple(wanted), base.patterns)}
        for kind in self.kinds:
            vectors = [f.vector for f in self.firsts or ()] if self.jacobian and kind == "elementwise" else []
            roots = tuple(dict.fromkeys((*new, *vectors)))
            within = with_roots(graph, roots, held_nodes(graph, kind))
            found[kind] = Probe(within, frozenset(previous), previous, base.patterns)
        return found

    @cached_property
    def chunk(self) -> int:
        """Steps taken at a time."""
        per_step = self.base.batch * sum(probe.entries for probe in self.probes.values())
        steps = self.base.steps
        if self.fixed:
            return min(steps, self.most)
        return max(1, min(chunk_steps(steps, self.base.batch), self.most, SEED_ENTRIES // max(1, per_step)))

    @cached_property
    def trace(self) -> Plan:
        """The plan of the forward pass and of the reverse program from the loss, which ends at the new states."""
        base, graph = self.base, self.graph
        static = [s.node for s in base.column_spans if graph.nodes[s.node].phase is Phase.STATIC]
        seeds, reads = [graph.loss, *static], set(base.step.reads)
        reads |= {first.matrix for first in self.firsts or ()}
        reads |= {n for probe in self.probes.values() for n in probe.program.reads}
        stops = graph.new.values()
        return make_plan(graph, base.leaves, base.batch, self.chunk, seeds, reads=reads, apart=True, stops=stops)

    @cached_property
    def places(self) -> Mapping[str, tuple[Places, int]]:
        """By probe the places of its cotangents, and how many from the first are those of its roots."""
        return {name: probe.place(self.chunk * self.base.batch) for name, probe in self.probes.items()}

    @cached_property
    def bases(self) -> Mapping[str, int]:
        """Where each probe's cotangents begin behind the trace's own numbers, and "extra"."""
        allocator = Allocator(0)
        found = {name: allocator.take(places.size) for name, (places, _) in self.places.items()}
        return {**found, "extra": allocator.take(self.extra), "end": allocator.size}

    @property
    def entries(self) -> int:
        """Numbers held."""
        return self.trace.entries + self.bases["end"]

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of the reverse passes of a step and sample."""
        graph, total = self.graph, 0.0
        for probe in self.probes.values():
            touched = probe.program.touched | set(graph.new.values())
            nodes = (graph.nodes[n] for n in touched if graph.nodes[n].phase is not Phase.STATIC)
            total += probe.passes * sum(node_flops(graph, node) for node in nodes)
        return total


@lru_cache(maxsize=8)
def local_plan(base: RtrlPlan) -> LocalPlan:
    """The plan of all local derivatives, in chunks as those of RTRL."""
    return LocalPlan(base, ("affine", "elementwise"), True, forward_mode.MOST_STEPS)


@lru_cache(maxsize=8)
def probe_schedule(plan: LocalPlan, dtype: np.dtype) -> ProbeSchedule:
    """The `ProbeSchedule` of a plan; those of the plans last used are kept."""
    return ProbeSchedule(plan, dtype)


class ProbeSchedule:
    """The calls of the probes of a plan on the array of its trace."""

    def __init__(self, plan: LocalPlan, dtype: np.dtype) -> None:
        self.plan, self.trace = plan, schedule_of(plan.trace, dtype, False)
        self.units = {name: self._units(name) for name in plan.probes}
        self.calls = lru_cache(MOST_KEPT)(self._calls)

    def _units(self, name: str) -> tuple[Integers, Integers]:
        """Where the ones of the seeds stand among a probe's cotangents: of new states, and of other roots alone."""
        plan, probe, table = self.plan, self.plan.probes[name], self.plan.places[name][0].table
        new, found, start = set(plan.graph.new.values()), ([], []), 0  # type: ignore[var-annotated]
        rows = np.arange(plan.chunk * plan.base.batch)[:, None]
        for n in probe.graph.new.values():
            base, outer, inner = table[n, [BASE, OUTER, INNER_ROW]]
            entries = np.arange(plan.graph.nodes[n].size)
            passes = probe.colors[start + entries]
            found[n not in new].append((base + rows * outer + passes * inner + entries).ravel())
            start += entries.size
        states, others = (np.unique(np.concatenate([np.zeros(0, np.int64), *part])) for part in found)
        return states, others

    def _calls(self, steps: int) -> Sequence[Call]:
        """All probes, on all rows of a chunk of so many steps at once."""
        plan, found = self.plan, list[Call]()
        values = self.trace.places.copy()
        varying = [n.index for n in plan.graph.nodes if n.phase is not Phase.STATIC]
        values[varying, OUTER], values[varying, INNER_ROW] = values[varying, INNER_ROW], 0
        for name, probe in plan.probes.items():
            code, bounds, places = probe.program.code, probe.program.bounds, plan.places[name][0]
            job = reverse_job(code, self.trace.numbers, values, places.table, False)
            job[reverse_kernel.LENGTH_V] = plan.trace.values.size
            job[reverse_kernel.COTANGENTS] = self.trace.entries + plan.bases[name]
            job[reverse_kernel.LENGTH_C] = places.size
            job[reverse_kernel.FIRST], job[reverse_kernel.LAST] = bounds[3 - Phase.RECURRENT], bounds[4 - Phase.INPUT]
            job[reverse_kernel.STEP1], job[reverse_kernel.I1] = 1, probe.passes
            if job[reverse_kernel.FIRST] < job[reverse_kernel.LAST] and probe.passes:
                rows = steps * plan.base.batch
                parts = max(1, min(rows, JOBS, int(rows * plan.flops / LANE_FLOPS)))
                found.append(Call("reverse", cut(job, reverse_kernel.O0, 0, rows, parts), keeps=(values,)))
        return found


class Probing:
    """The probes of one trace, which has just run a chunk forwards."""

    def __init__(self, plan: LocalPlan, trace: Trace, unit: float = 1.0) -> None:
        self.plan, self._trace, self._unit = plan, trace, unit
        self.schedule = probe_schedule(plan, trace.dtype)
        ends = {name: (plan.bases[name], plan.places[name][0].size) for name in plan.probes}
        self._cotangents = {name: trace.room[base : base + size] for name, (base, size) in ends.items()}

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def run(self, steps: int) -> None:
        """Run all probes on a chunk of so many steps."""
        for name, C in self._cotangents.items():
            states, others = self.schedule.units[name]
            C[: self.plan.places[name][1]] = 0
            C[states], C[others] = self._unit, 1
        self._trace.run(self.schedule.calls(steps))

    def rows(self, name: str, node: int, first: int, last: int) -> Array:
        """A wanted node's cotangents of some rows, (rows, pass · size)."""
        probe, table = self.plan.probes[name], self.plan.places[name][0].table
        base, row = int(table[node, BASE]), probe.passes * self.plan.graph.nodes[node].size
        if int(table[node, OUTER]) == row:
            return self._cotangents[name][base + first * row : base + last * row].reshape(last - first, row)
        return self._sliced(name, node, first, last)

    def _sliced(self, name: str, node: int, first: int, last: int) -> Array:
        """The same of a node whose cotangents are part of another's."""
        table, passes = self.plan.places[name][0].table, self.plan.probes[name].passes
        base, row, inner = (int(k) for k in table[node, [BASE, OUTER, INNER_ROW]])
        size, C = self.plan.graph.nodes[node].size, self._cotangents[name]
        strides = [by * C.itemsize for by in (row, inner, 1)]
        view = np.lib.stride_tricks.as_strided(C[base + first * row :], (last - first, passes, size), strides)
        return view.reshape(last - first, passes * size)

    def captured(self, first: int, last: int) -> Captured:
        """A copy of all wanted cotangents of some rows."""
        found = {
            (name, n): self.rows(name, n, first, last).copy() for name, p in self.plan.probes.items() for n in p.reach
        }
        return Captured(self.plan, last - first, self._trace.dtype, found)

    def matrix(self, node: int) -> Array:
        """A copy of a static matrix."""
        there = self.plan.graph.nodes[node]
        return np.array(self._trace.value(node, there.size)).reshape(there.shape)


@dataclass(frozen=True, eq=False)
class Captured:
    """The cotangents of some `rows`, by probe and wanted node."""

    plan: LocalPlan
    rows: int
    dtype: np.dtype
    cotangents: Mapping[tuple[str, int], Array]

    def dense(self, name: str, node: int) -> Array:
        """The cotangents of a node as a matrix for each row, (rows, entries of the roots, size)."""
        probe = self.plan.probes[name]
        found = np.zeros((self.rows, len(probe.colors), self.plan.graph.nodes[node].size), self.dtype)
        if (name, node) in self.cotangents:
            seeds, entries, at = probe.listed(node)
            found[:, seeds, entries] = self.cotangents[name, node][:, at]
        return found

    def states(self, name: str) -> Array:
        """The cotangents of all states at t-1, one state after the other: (rows, entries of the roots, N)."""
        return np.concatenate([self.dense(name, n) for n in self.plan.graph.previous.values()], axis=2)
