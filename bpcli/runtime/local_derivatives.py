"""Local derivatives of a step: J, M̄ and q as arrays, for online rules in plain NumPy on any recurrent graph.

    J = ∂a(t)/∂a(t-1)        M̄ = ∂a(t)/∂w at fixed a(t-1)        q = ∂L/∂a(t)

a (N) are all states: in the order of the spec, the entries of each in C order. w (P) are the parameters that reach a
state, as the step meets them: a matrix that it multiplies with, a vector that it adds, of `exp(-exp(nu))` the value;
and where they are differentiated the initial states, of which M(0) is the identity, and the inputs that reach a state,
of every step columns of its own. `InfluenceLayout` names the rows and the columns.

Losses l(t) count with their weights ∂L/∂l(t), as `over_time` and `over_batch` have it. The gradient of a
step's losses splits at a(t): g(t) = q M(t) + q_before M(t-1) + direct, with q_before = ∂L/∂a(t-1) and
direct = ∂L/∂w, both at fixed a(t). q_before is zero unless the loss looks past a(t), at a[t-1] or inside the step.

M̄ takes as many reverse passes as its pattern has colours, of an elementwise cell one. J is put together when it is read
(see `bpcli.runtime.local_plan`); `times` multiplies by it without.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Node, Phase
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.runtime.forward_mode import RtrlPlan, rtrl_plan
from bpcli.runtime.jacobian import DenseJacobian, FactoredJacobian, Jacobian
from bpcli.runtime.local_plan import Captured, Probing, local_plan
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.runtime.trace import Trace
from bpcli.tape.dependency import ColumnSpan
from bpcli.tape.instructions import BASE, INNER_ROW


@dataclass(frozen=True, eq=False)
class InfluenceLayout:
    """The meaning of the rows (N) and columns (P) of the influence M = da(t)/dw.

    `states` names the rows. `columns` names the columns: a parameter, or an equation of parameters alone; a state for
    its initial value; an input, (T, size) of it. Of a matrix with a density those entries are columns that exist.
    """

    N: int
    P: int
    states: Mapping[str, slice]
    columns: Mapping[str, slice]
    plan: RtrlPlan

    @property
    def local_entries(self) -> int:
        """The numbers of a sample in J, in what it is put together from, and in the cotangents of M̄ of a step."""
        graph, step = self.plan.graph, self.plan.step
        matrices = {p.matrix for p in step.products}
        vectors = [s.node for s in self.plan.column_spans if s.node not in matrices]
        sizes = [graph.nodes[n].size for n in (*(p.delta for p in step.products), *vectors)]
        firsts = local_plan(self.plan).firsts or ()
        sizes += [graph.nodes[n].size for first in firsts for n in (first.delta, first.vector, first.vector)]
        return self.N * (4 * self.N + sum(sizes))

    @cached_property
    def initial_rows(self) -> Mapping[int, int]:
        """The row at which M(0) is 1, by column of a differentiated initial state."""
        found = dict[int, int]()
        for name, rows in self.states.items():
            if name in self.columns:
                columns = range(self.columns[name].start, self.columns[name].stop)
                found |= dict(zip(columns, range(rows.start, rows.stop), strict=True))
        return found

    def initial(self, batch: int, dtype: np.dtype) -> Array:
        """M(0), (batch, N, P): the identity where initial states are differentiated, else zero."""
        M = np.zeros((batch, self.N, self.P), dtype)
        for name, rows in self.states.items():
            if name in self.columns:
                M[:, rows, self.columns[name]] = np.eye(rows.stop - rows.start)
        return M


@lru_cache(maxsize=8)
def influence_layout(setup: Setup) -> InfluenceLayout:
    """The layout of a setup with a state; known before anything is computed."""
    plan = rtrl_plan(setup)
    sizes = [plan.graph.nodes[n].size for n in plan.graph.previous.values()]
    ends = list(itertools.accumulate(sizes, initial=0))
    states = {name: slice(*ends[i : i + 2]) for i, name in enumerate(plan.graph.previous)}
    columns = {_called(plan.graph.nodes[s.node]): _slice(s) for s in plan.column_spans}
    return InfluenceLayout(plan.size, plan.parameters, states, columns, plan)


def _called(node: Node) -> str:
    """Its name, or where it stands in the spec."""
    return node.name or f"{node.op} at {node.place.line}:{node.place.column}, node {node.index}"


def _slice(span: ColumnSpan) -> slice:
    return slice(span.start, span.start + span.columns)


@dataclass(frozen=True, eq=False)
class Factor:
    """One term of M̄: cotangents `delta (batch, N, m)` of m numbers of the step that `columns` of w enter by.

    Where w is a matrix in a product, `vector (batch, n)` is what it multiplies, and the term is delta ⊗ vector, or
    vector ⊗ delta where the matrix is used transposed (`turned`). Where w is a vector or a scalar itself, the term is
    delta. Of the term those `entries` (flat) count that exist and are differentiated (None: all).
    """

    columns: slice
    delta: Array
    vector: Array | None
    turned: bool
    entries: NDArray[np.int64] | None

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
        """Entries of the term, (batch, entries)."""
        entries = columns if self.entries is None else self.entries[columns]
        if self.vector is None:
            return self.delta[:, rows, entries]
        width = self.delta.shape[2] if self.turned else self.vector.shape[1]
        major, minor = np.divmod(entries, width)
        m, n = (minor, major) if self.turned else (major, minor)
        return self.delta[:, rows, m] * self.vector[:, n]

    def times(self, rows: Array) -> Array:
        """Row vectors (batch, N) times the term, (batch, columns)."""
        delta = np.einsum("bi,bim->bm", rows, self.delta)
        if self.vector is not None:
            outer = "bn,bm->bnm" if self.turned else "bm,bn->bmn"
            left = (self.vector, delta) if self.turned else (delta, self.vector)
            delta = np.einsum(outer, *left).reshape(len(rows), -1)
        return np.asarray(delta if self.entries is None else delta[:, self.entries])

    def dense(self) -> Array:
        """The term, (batch, N, columns)."""
        if self.vector is None:
            return self.delta if self.entries is None else self.delta[:, :, self.entries]
        outer = "bin,bm->bimn" if self.turned else "bim,bn->bimn"
        whole: Array = np.einsum(outer, self.delta, self.vector).reshape(*self.delta.shape[:2], -1)
        return whole if self.entries is None else whole[:, :, self.entries]


@dataclass(frozen=True, eq=False)
class LocalDerivatives:
    """The derivatives of step t (from 0) in the problem's dtype.

    `J (batch, N, N)` of a `jacobian`, `q` and `q_before (batch, N)` as above, `factors` of M̄, `direct` by the name of a
    tensor: in its shape and summed over samples for a parameter, `(batch, *shape)` of this step for an input. `losses
    (batch,)` are not weighted, `weights (batch,)` are the ∂L/∂l(t) that are in q, q_before and direct. `a (batch, N)`
    are the states after the step.
    """

    t: int
    layout: InfluenceLayout
    jacobian: Jacobian
    q: Array
    q_before: Array
    factors: tuple[Factor, ...]
    direct: Mapping[str, Array]
    losses: Array
    weights: Array
    a: Array

    @cached_property
    def J(self) -> Array:
        """J (batch, N, N), dense."""
        return self.jacobian.dense()

    @cached_property
    def Mbar(self) -> Array:
        """M̄ (batch, N, P), dense."""
        found = np.zeros((*self.q.shape, self.layout.P), self.q.dtype)
        for factor in self.factors:
            found[:, :, factor.columns] += factor.dense()
        return found


def local_derivatives(problem: Problem) -> Iterator[LocalDerivatives]:
    """The local derivatives of all steps, from the first to the last; ValueError where there is no state."""
    return LocalSteps(problem).since(0)


def local_derivatives_at(problem: Problem, t: int) -> LocalDerivatives:
    """The local derivatives of step t, from 0. Raises IndexError for other steps, ValueError without a state."""
    if not 0 <= t < problem.setup.T:
        raise IndexError(f"step {t} of {problem.setup.T}")
    return next(LocalSteps(problem).since(t))


class LocalSteps:
    """The steps of a problem, taken forwards once, and the way from columns of M to tensors.

    J and M̄ are multiplied by `unit`, which shows what underflows on the way to them.
    """

    def __init__(self, problem: Problem, unit: float = 1.0) -> None:
        if not problem.setup.graph.recurrent:
            raise ValueError("there is no state: no J, M̄ and q")
        self.setup, self.plan = problem.setup, rtrl_plan(problem.setup)
        self.layout, self._unit = influence_layout(problem.setup), unit
        self._local = local_plan(self.plan)
        self._trace = Trace(self._local.trace, self.setup.dtype, problem.arrays, room=self._local.bases["end"])
        self._probing = Probing(self._local, self._trace, unit)
        self._weights = loss_weights(self.setup)

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """The steps from `start` on; those before it are taken forwards alone.

        Compiled kernels take the cotangents of M̄ and the parts of J for a chunk of steps at once.
        """
        trace, T = self._trace, self.setup.T
        trace.start()
        for first in range(0, T, self._local.chunk):
            last = min(T, first + self._local.chunk)
            with np.errstate(all="ignore"):  # the check reports non-finite values
                trace.forward(first, last)
            losses = trace.losses(first, last).copy()
            if last > start:
                self._probing.run(last - first)
            for t in range(max(first, start), last):
                yield self._at(t, first, losses[t - first])
            if last < T:
                trace.slide(last - first)

    def start(self) -> None:
        """Put the initial states in place, for `moved`."""
        self._trace.start()

    def moved(self, t: int, params: Mapping[str, Array], inputs: Mapping[str, Array]) -> LocalDerivatives:
        """Step t by itself, at parameters of its own, from the states that the call before it came to.

        `inputs` are those of all steps.
        """
        trace = self._trace
        trace.set_params(params)
        trace.set_inputs({name: x[t : t + 1] for name, x in inputs.items()})
        with np.errstate(all="ignore"):
            trace.forward(0, 1)
        losses = trace.losses(0, 1)[0].copy()
        self._probing.run(1)
        self.__dict__.pop("_matrices", None)  # the copies are of the parameters before
        found = self._at(t, t, losses)
        trace.restore(trace.moved_on())
        return found

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient by tensor: its part through the influence, (batch, P), and the direct part.

        `direct` is as that of `LocalDerivatives`, summed over steps; of an input (T, batch, *shape).
        """
        plan, graph = self.plan, self.plan.graph
        static = [s for s in plan.column_spans if graph.nodes[s.node].phase is Phase.STATIC]
        self._trace.clear()
        total = influence.sum(axis=0)
        leaves = self._trace.finish([(s.node, scattered(plan, s, total[_slice(s)])) for s in static])
        params = {
            x.name: leaves[graph.leaf[x.name]] for x in self.setup.wrt if x.kind == "param" and x.name in graph.leaf
        }
        return by_tensor(self.setup, influence, direct, params)

    def close(self) -> None:
        """Let the next trace have the memory; no step can be taken any more."""
        del self._probing
        self._trace.close()

    def _at(self, t: int, first: int, losses: Array) -> LocalDerivatives:
        """The derivatives of a step of the chunk that begins at `first`."""
        plan, trace, batch = self.plan, self._trace, self.setup.batch
        row, weights = t - first, self._weights[t : t + 1]
        rows, step = row * batch, trace.origin + row
        with np.errstate(all="ignore"):
            trace.clear()
            trace.reverse(step, step + 1, weights, later={})
            leaves = trace.finish()
        previous, new = plan.graph.previous.values(), plan.graph.new.values()
        captured = self._probing.captured(rows, rows + batch)
        return LocalDerivatives(
            t,
            self.layout,
            self._jacobian(captured),
            np.concatenate([self._brought(n) for n in new], axis=1),
            np.concatenate([self._brought(n) for n in previous], axis=1),
            tuple(self._factors(t, rows, captured)),
            {x.name: self._direct(x, leaves, t - first) for x in self.setup.wrt if x.kind != "state"},
            losses,
            weights[0],
            np.concatenate(list(trace.snapshot(step + 1).states.values()), axis=1),
        )

    @cached_property
    def _matrices(self) -> Mapping[int, Array]:
        """Copies of the matrices that J is put together with."""
        return {first.matrix: self._probing.matrix(first.matrix) for first in self._local.firsts or ()}

    def _jacobian(self, captured: Captured) -> Jacobian:
        """J and its parts."""
        if self._local.firsts is not None:
            return FactoredJacobian(captured, self.layout.N, self._matrices, self._unit)
        return DenseJacobian(captured.states("deltas"), {kind: captured.states(kind) for kind in self._local.kinds})

    def _brought(self, n: int) -> Array:
        """The cotangent of a state, (batch, size)."""
        size, base = self.plan.graph.nodes[n].size, int(self._local.trace.cotangents.table[n, BASE])
        return self._trace.C[base : base + self.setup.batch * size].reshape(-1, size)

    def _direct(self, x: Tensor, leaves: Mapping[int, Array], row: int) -> Array:
        """∂L/∂x by the step's own losses, of a parameter or of this step's input."""
        if x.name not in self.plan.graph.leaf:
            return np.zeros(x.shape if x.kind == "param" else x.shape[1:], self.setup.dtype)
        values = leaves[self.plan.graph.leaf[x.name]]
        if x.kind == "param":
            return _on_pattern(values.reshape(x.shape), x)
        return np.array(values.reshape(-1, *x.shape[1:])[row])

    def _factors(self, t: int, rows: int, captured: Captured) -> Iterator[Factor]:
        """The terms of M̄ at step t, whose rows in the chunk begin at `rows`."""
        plan = self.plan
        for span in plan.column_spans:
            node, entries = plan.graph.nodes[span.node], plan.patterns.get(span.node)
            products = [p for p in plan.step.products if p.matrix == span.node]
            for p in products:
                vector = self._vectors(p.vector, rows)
                yield Factor(_slice(span), captured.dense("deltas", p.delta), vector, p.turned, entries)
            if node.op == "input":
                own = slice(span.start + t * node.size, span.start + (t + 1) * node.size)
                yield Factor(own, captured.dense("deltas", span.node), None, False, None)
            elif node.op != "previous" and not products:
                yield Factor(_slice(span), captured.dense("deltas", span.node), None, False, entries)

    def _vectors(self, n: int, rows: int) -> Array:
        """A node's values (batch, size)."""
        base, row = (int(k) for k in self._local.trace.values.table[n, [BASE, INNER_ROW]])
        return _strided(self._trace.V[base + rows * row :], (self.setup.batch, self.plan.graph.nodes[n].size), (row, 1))


def by_tensor(
    setup: Setup, influence: Array, direct: Mapping[str, Array], params: Mapping[str, Array]
) -> dict[str, Array]:
    """A gradient by tensor: `direct` plus the part through the influence, for parameters given as `params`.

    For initial states and inputs, which differ between samples, it is read off the columns of `influence (batch, P)`.
    """
    columns, found = influence_layout(setup).columns, {}
    for x in setup.wrt:
        values = direct.get(x.name, np.zeros(x.shape, setup.dtype))
        if x.kind == "param" and x.name in params:
            values = values + params[x.name].reshape(x.shape)
        elif x.kind != "param" and x.name in columns:
            own = influence[:, columns[x.name]]
            if x.kind == "input":
                own = own.reshape(setup.batch, setup.T, -1).swapaxes(0, 1)
            elif x.name in setup.shared:
                own = own.sum(axis=0)
            values = values + own.reshape(x.shape)
        found[x.name] = np.asarray(_on_pattern(values, x), setup.dtype, order="C")
    return found


def _strided(numbers: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A copy of numbers so many entries apart."""
    views = np.lib.stride_tricks.as_strided(numbers, shape, [by * numbers.itemsize for by in strides])
    return np.array(views)


def scattered(plan: RtrlPlan, span: ColumnSpan, values: Array) -> Array:
    """A static node's columns in their places, zero where a density leaves entries out."""
    if span.node not in plan.patterns:
        return values
    whole = np.zeros(plan.graph.nodes[span.node].size, values.dtype)
    whole[plan.patterns[span.node]] = values
    return whole


def _on_pattern(values: Array, x: Tensor) -> Array:
    """Zero outside a tensor's pattern."""
    if x.pattern is None:
        return values
    kept = np.zeros_like(values)
    kept.flat[x.pattern] = values.flat[x.pattern]
    return kept
