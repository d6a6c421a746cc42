"""Estimates of a recursion: its rule, run in float64 on local derivatives J, M̄ and q measured by the complex step.

To measure them a step is cut out of the time loop, so that all steps and samples are rows of one batch. With the states
before it as inputs it gives J = ∂a(t)/∂a(t-1), with the static values that rows read as parameters M̄ = ∂a(t)/∂w, and
with a product as an input the factor of M̄ that is its own; with the states after it as inputs of the loss it gives q,
q_before and the direct derivatives. Each number is perturbed by itself in a complex forward pass; no reverse-mode
kernel is involved.

The rule's approximation is part of the definition, so that the bound is rounding alone. It is sampled as for other
gradients (see `rounding`): the rule on the kernels' local derivatives in float32 and in float64, at slightly shifted
arrays, and in float64 with arrays and local derivatives off by a few units of roundoff of the dtype.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase, ancestors
from bpcli.methods._online import Steps, run
from bpcli.methods.base import Exact, Gradient, Recursion
from bpcli.problem.definition import Array, FloatArray, Problem, Setup, Tensor, Values, cast
from bpcli.references.base import Estimate, finite_estimate
from bpcli.references.numerics.rounding import (
    FACTOR,
    UNITS,
    Gradients,
    Rounding,
    bound,
    mean_and_rounding,
    mean_effect,
    rounding,
    shifted,
    unit_roundoff,
)
from bpcli.references.perturbation.jumps import jumps
from bpcli.references.perturbation.kinks import find_kinks
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.forward_mode import rtrl_plan
from bpcli.runtime.jacobian import DenseJacobian
from bpcli.runtime.local_derivatives import (
    Factor,
    LocalDerivatives,
    LocalSteps,
    by_tensor,
    influence_layout,
)
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.tape.dependency import ColumnSpan
from bpcli.tape.instructions import Product
from bpcli.tape.plan import node_flops
from bpcli.tape.probing import PATHS, Paths, held_nodes

_DOUBLE, _SINGLE, _COMPLEX = np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.complex128)
# Relative shifts of the arrays, and number of disturbed samples.
_SHIFTS = (2.0**-20, 2.0**-14, 2.0**-8) * 3
_DISTURBED = 6


@dataclass(frozen=True, eq=False)
class _Disturbed:
    """Steps whose local derivatives have random relative errors up to `shift`."""

    steps: Steps
    shift: float
    generator: np.random.Generator

    @property
    def setup(self) -> Setup:
        return self.steps.setup

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        for local in self.steps.since(start):
            factors = tuple(replace(f, delta=self._off(f.delta)) for f in local.factors)
            direct = {name: self._off(values) for name, values in local.direct.items()}
            J, q, q_before, a = (self._off(values) for values in (local.J, local.q, local.q_before, local.a))
            jacobian = DenseJacobian(J, {kind: self._off(local.jacobian.along(kind)) for kind in PATHS})
            yield replace(local, jacobian=jacobian, q=q, q_before=q_before, factors=factors, direct=direct, a=a)

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        return self.steps.gradient(influence, direct)

    def _off(self, values: Array) -> Array:
        return np.asarray(values * (1 + self.shift * (2 * self.generator.random(values.shape) - 1)))


def recursion_estimates(problem: Problem, recursion: Recursion) -> dict[str, Estimate]:
    """The rule's gradient by tensor, with its rounding in float64 as the bound.

    At a kink nothing is known, as the complex step follows one branch only.
    """
    double = _double(problem, recursion)
    found = {name: np.asarray(a, np.float64) for name, a in _followed(recursion, MeasuredSteps(double)).arrays.items()}
    bounds = recursion_rounding(double, recursion, _DOUBLE, found).gradient
    blind = find_kinks(problem).any or jumps(problem)
    return {
        n: finite_estimate(np.full_like(value, np.nan) if blind else value, bounds[n]) for n, value in found.items()
    }


def recursion_rounding(
    problem: Problem, recursion: Recursion, dtype: np.dtype[np.floating], measured: Mapping[str, FloatArray]
) -> Rounding:
    """Rounding bounds of the rule's gradient computed in `dtype`; `measured` is the gradient by tensor."""
    double = _double(problem, recursion)
    sizes, spreads = _samples(double, recursion)
    disturbed, exact = _disturbed(double, recursion, unit_roundoff(dtype))
    sizes = {name: np.where(np.isfinite(size), size, np.abs(exact[name])) for name, size in sizes.items()}
    scale = max(float(np.max(size, initial=0.0, where=np.isfinite(size))) for size in sizes.values())
    each = {}
    for name, value in exact.items():
        # Entries that are zero under all shifts have no contributions; those of others may be of any size.
        nothing = (sizes[name] == 0) & (value == 0) & (measured[name] == 0)
        found = bound(sizes[name], spreads[name], np.where(nothing, 0.0, np.inf), dtype, scale)
        each[name] = np.where(np.isfinite(value), found + FACTOR * disturbed[name], np.inf)
    whole = rounding(problem, Exact().over(problem.setup), dtype)
    none = {name: np.zeros(value.shape) for name, value in exact.items()}
    return Rounding(each, whole.loss, scale, none, none)


def recursion_flops(recursion: Recursion) -> float:
    """Predicted floating-point operations of an estimate and its rounding bounds, without the rule's own."""
    setup = recursion.setup
    plan = rtrl_plan(setup)
    once = 2.0 * plan.size * plan.size * plan.parameters * setup.T * setup.batch
    return measured_flops(setup) + (1 + 2 * (2 * len(_SHIFTS) + _DISTURBED + 1)) * once


def _double(problem: Problem, recursion: Recursion) -> Problem:
    """The problem in float64 with all tensors and constants of the recursion; of tensors it may have a part."""
    setup, params = replace(recursion.setup, dtype=problem.setup.dtype), {**problem.params, **recursion.constants}
    return cast(replace(problem, setup=setup, params=params), _DOUBLE)


@np.errstate(all="ignore")
def _followed(recursion: Recursion, steps: Steps) -> Gradient:
    return run(recursion, steps)


def _by_kernels(recursion: Recursion, problem: Problem) -> dict[str, FloatArray]:
    found = _followed(recursion, LocalSteps(problem)).arrays
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


@np.errstate(all="ignore")
def _samples(double: Problem, recursion: Recursion) -> tuple[Gradients, Gradients]:
    """By tensor, the mean absolute value of the gradient and the root mean square of its rounding in float32."""
    generator = np.random.default_rng(0)

    def pair(shift: float) -> tuple[Gradients, Gradients]:
        single = cast(shifted(double, shift, generator), _SINGLE)
        return _by_kernels(recursion, single), _by_kernels(recursion, cast(single, _DOUBLE))

    return mean_and_rounding(map(pair, _SHIFTS), len(_SHIFTS))


@np.errstate(all="ignore")
def _disturbed(double: Problem, recursion: Recursion, roundoff: float) -> tuple[Gradients, Gradients]:
    """By tensor, the root mean square effect of disturbing all numbers by one unit of `roundoff`; and the gradient."""
    generator, base, shift = np.random.default_rng(1), _by_kernels(recursion, double), UNITS * roundoff

    def sample() -> Gradients:
        steps = _Disturbed(LocalSteps(shifted(double, shift, generator)), shift, generator)
        return {name: np.asarray(a, np.float64) for name, a in _followed(recursion, steps).arrays.items()}

    return mean_effect(base, (sample() for _ in range(_DISTURBED)), _DISTURBED), base


_COMPLEX_FLOPS = 4
_SMALL = 1e-30
"""Imaginary step: products of two are negligible beside the values, and none underflows."""
_NEGLIGIBLE = 1e-9
"""Part of M̄ up to which a difference from its products is rounding."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A single step as a graph without time; some nodes are leaves with values `rows (R, size)` or `shared (size,)`.

    Leaves are keyed by their nodes in the original graph. `copies` maps nodes to copies that keep their values, since a
    sum may be accumulated in the place of the node itself.
    """

    setup: Setup
    rows: Mapping[int, Values]
    shared: Mapping[int, Values]
    copies: Mapping[int, int]

    def values(self, nodes: tuple[int, ...]) -> dict[int, Values]:
        """Values (R, size) of each node."""
        graph = self.setup.graph
        shape = {n: graph.nodes[n].shape for n in (*self.rows, *self.shared)}
        inputs = {_leaf(n): np.ascontiguousarray(v.reshape(len(v), *shape[n])) for n, v in self.rows.items()}
        params = {_leaf(n): np.ascontiguousarray(v.reshape(shape[n])) for n, v in self.shared.items()}
        kept = {self.copies.get(n, n): n for n in nodes}
        found = {kept[n]: v for n, v in node_values(Problem(self.setup, params, inputs, {}), kept).items()}
        return {
            n: np.broadcast_to(v.reshape(-1, v.shape[-1]), (self.setup.batch, v.shape[-1])) for n, v in found.items()
        }

    def slopes(self, leaf: int, entry: int, outputs: tuple[int, ...]) -> dict[int, FloatArray]:
        """Derivatives (R, size) of each output with respect to an entry of a leaf."""
        group = self.rows if leaf in self.rows else self.shared
        moved = group[leaf].copy()
        moved[..., entry] += _SMALL * 1j
        changed = {**group, leaf: moved}
        cut = replace(self, rows=changed) if group is self.rows else replace(self, shared=changed)
        return {n: np.asarray(v.imag / _SMALL) for n, v in cut.values(outputs).items()}


def _leaf(node: int) -> str:
    return f"leaf {node}"


def _cut(setup: Setup, rows: Mapping[int, Values], shared: Mapping[int, Values], kept: Collection[int] = ()) -> Cut:
    """Cut the graph of a setup: the nodes of `rows` and `shared` become leaves, in complex arithmetic.

    The values of the nodes of `kept` remain available, as do those of static nodes and of the loss.
    """
    nodes = list[Node]()
    for node in setup.graph.nodes:
        phase = Phase.STATIC if node.phase is Phase.STATIC else Phase.INPUT
        if node.index in rows or node.index in shared:
            op = "input" if node.index in rows else "param"
            node = replace(node, op=op, args=(), numbers=(), name=_leaf(node.index))
        nodes.append(replace(node, phase=phase))
    copies = {n: len(nodes) + i for i, n in enumerate(kept)}
    for n, index in copies.items():
        nodes.append(replace(nodes[n], index=index, op="copy", args=(n,), numbers=(), name="", phase=Phase.INPUT))
    leaves = {_leaf(n): n for n in (*rows, *shared)}
    graph = Graph(tuple(nodes), leaves, {}, {}, {}, setup.graph.loss, ())
    count = len(next(iter(rows.values())))
    # Kernels take complex arrays too, which no spec has.
    own = replace(setup, graph=graph, T=1, batch=count, dtype=_COMPLEX, wrt=(), shared=frozenset())  # type: ignore[arg-type]
    one, other = ({n: values.astype(_COMPLEX) for n, values in group.items()} for group in (rows, shared))
    return Cut(own, one, other, copies)


class MeasuredSteps:
    """The local derivatives of all steps of a problem, in float64.

    `J (T, batch, N, N)`, `q`, `q_before` and `a (T, batch, N)`; `products` with the factors D (T, batch, N, m) and x
    (T, batch, n) of their terms of M̄; `parts[start] (T, batch, N, columns)` are columns of M̄ from `start` on, for an
    input those of step t alone, of a matrix what its products leave over, if anything; `direct` by tensor (T, *shape),
    for an input (T, batch, *shape).
    """

    def __init__(self, problem: Problem) -> None:
        self._double = cast(problem, _DOUBLE)
        self.setup, self.plan = self._double.setup, rtrl_plan(self._double.setup)
        graph = self.setup.graph
        self._previous, self._new = tuple(graph.previous.values()), tuple(graph.new.values())
        self._static = [s for s in self.plan.column_spans if graph.nodes[s.node].phase is Phase.STATIC]
        values = node_values(self._double, {*self._previous, *self._new, graph.loss, *(s.node for s in self._static)})
        every = self.setup.T * self.setup.batch
        rows = {n: self._rows(values[n]) for n in self._previous}
        rows |= {n.index: self._double.inputs[n.name].reshape(every, -1) for n in graph.nodes if n.op == "input"}
        self._params = {n.index: self._double.params[n.name].ravel() for n in graph.nodes if n.op == "param"}
        roots = {s.node: values[s.node] for s in self._static}
        self.losses = self._rows(values[graph.loss]).reshape(self.setup.T, -1)
        self._one = {n: v[:1] for n, v in rows.items()}
        self._weights = loss_weights(self.setup)
        self._measure_step(_cut(self.setup, rows, self._params | roots, self._new))
        self._measure_products(rows, self._params | roots)
        self._measure_paths(rows)
        states = {n: self._rows(values[n]) for n in self._new}
        self.a = np.concatenate(list(states.values()), axis=1).reshape(*self.losses.shape, -1)
        self._measure_loss(_cut(self.setup, rows | states, self._params))

    def _rows(self, values: Values) -> Values:
        """A node's values at every step and sample, (T · batch, size)."""
        shape = self.setup.T, self.setup.batch, values.shape[-1]
        return np.broadcast_to(values, shape).reshape(-1, shape[-1])

    def _measure_step(self, cut: Cut) -> None:
        """J and M̄: derivatives of the new states with respect to the states before and to the parameters."""
        graph = self.setup.graph
        self.J = np.concatenate([self._states(cut, n, np.arange(graph.nodes[n].size)) for n in self._previous], axis=3)
        self.parts: dict[int, FloatArray] = {}
        for span in self.plan.column_spans:
            if graph.nodes[span.node].op != "previous":
                entries = self.plan.patterns.get(span.node, np.arange(graph.nodes[span.node].size))
                self.parts[span.start] = self._states(cut, span.node, entries)

    def _measure_products(self, rows: Mapping[int, Values], shared: Mapping[int, Values]) -> None:
        """D = ∂a(t)/∂p of every product p = W x, with the values of x."""
        self.products = list[tuple[ColumnSpan, Product, FloatArray, FloatArray]]()
        spans = {s.node: s for s in self.plan.column_spans if s.start in self.parts}
        products = [p for p in self.plan.step.products if p.matrix in spans]
        values = self._kept({n for p in products for n in (p.delta, p.vector)})
        for p in products:
            cut = _cut(self.setup, {**rows, p.delta: self._rows(values[p.delta])}, shared, self._new)
            D = self._states(cut, p.delta, np.arange(self.setup.graph.nodes[p.delta].size))
            self.products.append((spans[p.matrix], p, D, values[p.vector]))
        for start in {span.start for span, *_ in self.products}:
            part = self.parts.pop(start)
            found = [sum(f.dense() for f in self._terms(t) if f.columns.start == start) for t in range(self.setup.T)]
            over = part - np.asarray(found)
            if not np.abs(over).max(initial=0.0) <= _NEGLIGIBLE * np.abs(part).max(initial=0.0):
                self.parts[start] = over

    def _measure_paths(self, rows: Mapping[int, Values]) -> None:
        """Parts of J: derivatives of the new states in a step in which everything off the paths is held fixed."""
        graph, self.paths = self.setup.graph, dict[Paths, FloatArray]()
        for kind in PATHS:
            held = {n: self._rows(values) for n, values in self._kept(held_nodes(graph, kind)).items()}
            cut = _cut(self.setup, {**rows, **held}, self._params, self._new)
            parts = [self._states(cut, n, np.arange(graph.nodes[n].size)) for n in self._previous]
            self.paths[kind] = np.concatenate(parts, axis=3)

    def _kept(self, nodes: Collection[int]) -> dict[int, FloatArray]:
        """Values (T, batch, size) of any nodes, of copies: a product may have no storage of its own, or share it."""
        graph = self.setup.graph
        copies = {n: len(graph.nodes) + i for i, n in enumerate(sorted(nodes))}
        added = [replace(graph.nodes[n], index=c, op="copy", args=(n,), numbers=(), name="") for n, c in copies.items()]
        setup = replace(self.setup, graph=replace(graph, nodes=(*graph.nodes, *added)))
        found = node_values(replace(self._double, setup=setup), set(copies.values()))
        rows = self.setup.T, self.setup.batch
        return {n: np.broadcast_to(found[c], (*rows, found[c].shape[-1])) for n, c in copies.items()}

    def _terms(self, t: int) -> Iterator[Factor]:
        """The products' terms of M̄ at step t."""
        for span, p, D, x in self.products:
            columns = slice(span.start, span.start + span.columns)
            yield Factor(columns, D[t], np.asarray(x[t]), p.turned, self.plan.patterns.get(span.node))

    def _states(self, cut: Cut, leaf: int, entries: NDArray[np.int64]) -> FloatArray:
        """Derivatives (T, batch, N, entries) of the new states with respect to entries of a leaf."""
        found = np.zeros((self.setup.T, self.setup.batch, self.plan.size, len(entries)))
        for k, entry in enumerate(entries):
            slopes = cut.slopes(leaf, int(entry), self._new)
            found[..., k] = np.concatenate([slopes[n] for n in self._new], axis=1).reshape(found.shape[:3])
        return found

    def _measure_loss(self, cut: Cut) -> None:
        """Weighted derivatives of the losses: q by the states after the step, q_before by those before it, direct."""
        graph = self.setup.graph
        met = ancestors([graph.loss], [n.args for n in cut.setup.graph.nodes])

        def by(leaf: int, entries: NDArray[np.int64]) -> FloatArray:
            found = np.zeros((self.setup.T, self.setup.batch, len(entries)))
            for k, entry in enumerate(entries if leaf in met else ()):
                slopes = cut.slopes(leaf, int(entry), (graph.loss,))[graph.loss]
                found[..., k] = self._weights * slopes.reshape(self._weights.shape)
            return found

        def states(nodes: tuple[int, ...]) -> FloatArray:
            return np.concatenate([by(n, np.arange(graph.nodes[n].size)) for n in nodes], axis=2)

        self.q, self.q_before = states(self._new), states(self._previous)
        self.direct: dict[str, FloatArray] = {}
        for x in self.setup.wrt:
            if x.kind == "input" and x.name in graph.leaf:
                n = graph.leaf[x.name]
                self.direct[x.name] = by(n, np.arange(graph.nodes[n].size)).reshape(x.shape)
            elif x.kind == "param" and x.name in graph.leaf:
                found = np.zeros((self.setup.T, int(np.prod(x.shape))))
                found[:, _entries(x)] = by(graph.leaf[x.name], _entries(x)).sum(axis=1)
                self.direct[x.name] = found.reshape(self.setup.T, *x.shape)

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """Local derivatives of the steps from `start` on."""
        layout = influence_layout(self.setup)
        for t in range(start, self.setup.T):
            direct = {name: values[t] for name, values in self.direct.items()}
            yield LocalDerivatives(
                t,
                layout,
                DenseJacobian(self.J[t], {kind: part[t] for kind, part in self.paths.items()}),
                self.q[t],
                self.q_before[t],
                tuple(self._factors(t)),
                direct,
                self.losses[t],
                self._weights[t],
                self.a[t],
            )

    def _factors(self, t: int) -> Iterator[Factor]:
        yield from self._terms(t)
        for span in self.plan.column_spans:
            if span.start in self.parts and span.columns:
                part = self.parts[span.start][t]
                is_input = self.setup.graph.nodes[span.node].op == "input"
                start = span.start + (t * part.shape[-1] if is_input else 0)
                yield Factor(slice(start, start + part.shape[-1]), part, None, False, None)

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        """See `LocalSteps`; derivatives of static values with respect to parameters are complex steps, too."""
        graph, total = self.setup.graph, influence.sum(axis=0)
        static = {s.node: total[s.start : s.start + s.columns] for s in self._static}
        derived = {n: values for n, values in static.items() if graph.nodes[n].op != "param"}
        met = ancestors(derived, [n.args for n in graph.nodes])
        once = _cut(self.setup, self._one, self._params)
        params = {}
        for x in (x for x in self.setup.wrt if x.kind == "param" and x.name in graph.leaf):
            n, found = graph.leaf[x.name], np.zeros(int(np.prod(x.shape)))
            if n in static:
                found[_entries(x)] += static[n]
            for entry in _entries(x) if n in met else ():
                slopes = once.slopes(n, int(entry), tuple(derived))
                found[entry] += sum(float(slopes[root][0] @ values) for root, values in derived.items())
            params[x.name] = found
        return by_tensor(self.setup, influence, direct, params)


def _entries(x: Tensor) -> NDArray[np.int64]:
    """The entries in a parameter's sparsity pattern."""
    return np.arange(int(np.prod(x.shape)), dtype=np.int64) if x.pattern is None else x.pattern


def measured_flops(setup: Setup) -> float:
    """Predicted floating-point operations of `MeasuredSteps`: a pass over all rows per number."""
    once = sum(node_flops(setup.graph, node) for node in setup.graph.nodes if node.phase is not Phase.STATIC)
    return float(_COMPLEX_FLOPS * _numbers(setup) * once * setup.T * setup.batch)


def measured_bytes(setup: Setup) -> int:
    """Bytes held by `MeasuredSteps`: J and M̄ of all steps, and a trace of all rows in complex arithmetic."""
    layout, graph = influence_layout(setup), setup.graph
    rows, moving = setup.T * setup.batch, sum(n.size for n in graph.nodes if n.phase is not Phase.STATIC)
    inputs = sum(n.size for n in graph.nodes if n.op == "input")
    static = layout.P - (setup.T - 1) * sum(
        graph.nodes[s.node].size for s in rtrl_plan(setup).column_spans if graph.nodes[s.node].op == "input"
    )
    factors = sum(layout.N * graph.nodes[p.delta].size + graph.nodes[p.vector].size for p in layout.plan.step.products)
    real = rows * (layout.N * (3 * layout.N + 2 * static + 2) + factors) + 2 * setup.batch * layout.N * layout.P
    direct = setup.T * sum(int(np.prod(x.shape)) for x in setup.wrt if x.kind == "param")
    return _DOUBLE.itemsize * (real + direct) + _COMPLEX.itemsize * rows * (moving + 2 * (inputs + layout.N))


def _numbers(setup: Setup) -> int:
    """The count of numbers that are perturbed, one after the other."""
    graph, plan = setup.graph, rtrl_plan(setup)
    met = sum(graph.nodes[s.node].size for s in plan.column_spans)
    met += sum(graph.nodes[p.delta].size for p in plan.step.products)
    return 5 * plan.size + met + sum(x.entries if x.kind == "param" else 1 for x in setup.wrt if x.kind != "state")
