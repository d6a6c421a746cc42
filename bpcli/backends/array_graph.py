"""A Graph over a library of arrays: its loss, as reverse mode goes through it, and real-time recurrent learning.

A value is an array `(…, *shape)`: static ones have no leading axes, those of a step `(batch,)`, those of all steps
`(T, batch)`. Products are written for rows, `v @ M.T`, so that a batch is one GEMM. The phases of the graph are kept:
static values and those of inputs alone are computed before the scan, for all steps at once; those that no state depends
on after it.

Real-time recurrent learning (Williams & Zipser 1989) is a scan that carries the influence M. For each step and sample,
one vmapped vjp of the step gives J = ∂a(t)/∂a(t-1) and M̄ = ∂a(t)/∂θ; then M ← J M + M̄. The loss of the step goes
back to a(t-1) and to θ directly: g += ∂l(t)/∂a(t-1) · M(t-1) + ∂l(t)/∂θ.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.backends import Arrays, Function, Library, Program
from bpcli.graph.nodes import Graph, Node, Phase, ancestors
from bpcli.problem.definition import Setup

Values = dict[int, Any]
Rule = Callable[[Library, Node, tuple[Node, ...]], Function]
_WEIGHT = ""
"""Key of the weights of steps, beside the names of inputs."""


@dataclass(frozen=True)
class Evaluation:
    """Nodes to compute, in order: the index of each, its function, and the indices of its arguments."""

    lines: tuple[tuple[int, Function, tuple[int, ...]], ...]

    def run(self, values: Values) -> Values:
        """`values`, which holds the leaves, and all that is computed from them."""
        known = dict(values)
        for index, function, args in self.lines:
            known[index] = function(*[known[a] for a in args])
        return known


def evaluation(library: Library, graph: Graph, indices: Iterable[int], read: Iterable[int]) -> Evaluation:
    """How to compute the nodes `indices`, of which those in `read` are read later.

    A product that is only added to something is one call with the sum.
    """
    own = tuple(indices)
    readers = Counter(a for i in own for a in graph.nodes[i].args)
    inner = {i for i in own if graph.nodes[i].op == "matmul" and readers[i] == 1} - set(read)
    lines: dict[int, tuple[int, Function, tuple[int, ...]]] = {}
    for index in own:
        node = graph.nodes[index]
        one = next((a for a in node.args if a in inner), None) if node.op == "add" else None
        if one is not None and all(graph.nodes[a].shape == node.shape for a in node.args):
            (other,) = (a for a in node.args if a != one)
            del lines[one]
            lines[index] = (index, library.product_sum, (*graph.nodes[one].args, other))
        else:
            lines[index] = (index, _RULES[node.op](library, node, tuple(graph.nodes[a] for a in node.args)), node.args)
    return Evaluation(tuple(lines.values()))


def _elementwise(function: Function) -> Rule:
    """A rule that broadcasts scalars to vectors and matrices: the axes of a shape come last, behind leading ones."""

    def rule(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
        axes = [len(node.shape) - len(a.shape) for a in args]

        def widened(*values: Any) -> Any:
            wide = (v.reshape((*v.shape, *(1,) * n)) if n else v for v, n in zip(values, axes, strict=True))
            return function(*wide)

        return widened if any(axes) else function

    return rule


def _of_one(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    """An elementwise function that the library has, or has under another name."""
    found: Function = library.special.get(node.op) or getattr(library.xp, node.op)
    return found


def _flat(node: Node, value: Any) -> Any:
    """A scalar as a vector of one entry, a vector as it is, a static matrix as its rows end to end."""
    return value.reshape((*value.shape[: value.ndim - len(node.shape)], -1))


def _along_entries(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    """A reduction of all entries to one, or a normalisation, which keeps the shape."""
    function = library.special[node.op]
    if node.op == "logsumexp":
        return lambda v: function(_flat(args[0], v))
    return lambda v: function(_flat(args[0], v)).reshape(v.shape)


def _power(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    (exponent,) = node.numbers
    power = int(exponent) if exponent.is_integer() else exponent
    return lambda v: v**power


def _leaky_relu(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    (slope,) = node.numbers
    return lambda v: library.xp.where(v > 0, v, slope * v)


def _step(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    xp = library.xp
    return lambda v: xp.where(v > 0, xp.ones_like(v), xp.zeros_like(v))


def _extreme(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    """max or min; the difference of the arguments is not needed."""
    function = _elementwise({"max": library.xp.maximum, "min": library.xp.minimum}[node.op])(library, node, args[:2])
    return lambda u, v, difference: function(u, v)


def _concat(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    xp = library.xp

    def joined(*values: Any) -> Any:
        parts = [_flat(a, v) for a, v in zip(args, values, strict=True)]
        lead = xp.broadcast_shapes(*(p.shape[:-1] for p in parts))
        return xp.concatenate([xp.broadcast_to(p, (*lead, p.shape[-1])) for p in parts], -1)

    return joined


def _slice(library: Library, node: Node, args: tuple[Node, ...]) -> Function:
    start, stop = (int(number) for number in node.numbers)
    return (lambda v: v[..., start:stop]) if node.shape else (lambda v: v[..., start])


_RULES: Mapping[str, Rule] = {
    "copy": _elementwise(lambda v: v),
    "negate": _elementwise(lambda v: -v),
    "add": _elementwise(lambda u, v: u + v),
    "subtract": _elementwise(lambda u, v: u - v),
    "multiply": _elementwise(lambda u, v: u * v),
    "divide": _elementwise(lambda u, v: u / v),
    "power": _power,
    "leaky_relu": _leaky_relu,
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("tanh", "sigmoid", "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs", "erf"), _of_one),
    "stop_gradient": _of_one,
    "step": _step,
    "matmul": lambda library, node, args: library.product,
    "matmat": lambda library, node, args: lambda A, B: A @ B,
    "transpose": lambda library, node, args: lambda M: M.T,
    "sum": lambda library, node, args: lambda v: _flat(args[0], v).sum(-1),
    "dot": lambda library, node, args: lambda u, v: (_flat(args[0], u) * _flat(args[1], v)).sum(-1),
    **dict.fromkeys(("logsumexp", "softmax", "log_softmax"), _along_entries),
    "concat": _concat,
    "slice": _slice,
}


def loss(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The objective as a function of all arrays: the loss of every step and sample, reduced over time and batch."""
    losses = _losses(library, setup)
    return lambda arrays: _reduced(setup, losses(arrays))


def readout(library: Library, setup: Setup, given: int) -> Callable[[Arrays, Any], Any]:
    """The objective as a function of all arrays and of the values of the node `given` at all steps, `(T, batch, n)`.

    The loss must depend on no other recurrent node.
    """
    graph = setup.graph
    args = [() if node.index == given else node.args for node in graph.nodes]
    needed = sorted(i for i in ancestors({graph.loss}, args) if args[i])
    lines = evaluation(library, graph, needed, {graph.loss})

    def total(arrays: Arrays, values: Any) -> Any:
        found = lines.run({**leaves(library, setup, arrays), given: values})[graph.loss]
        return _reduced(setup, library.xp.broadcast_to(found, (setup.T, setup.batch)))

    return total


def _reduced(setup: Setup, losses: Any) -> Any:
    """The loss of every step and sample, reduced over time and batch."""
    objective = setup.spec.objective
    if setup.graph.recurrent:
        reductions = {"sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0), "last": lambda x: x[-1]}
        losses = reductions[objective.over_time](losses)
    return losses.mean() if objective.over_batch == "mean" else losses.sum()


def masks(setup: Setup) -> dict[str, NDArray[np.bool_]]:
    """For each tensor with a density, which of its entries exist."""
    found = {}
    for tensor in setup.wrt:
        if tensor.pattern is not None:
            found[tensor.name] = mask = np.zeros(tensor.shape, dtype=np.bool_)
            mask.reshape(-1)[tensor.pattern] = True
    return found


def leaves(library: Library, setup: Setup, arrays: Arrays) -> Values:
    """The values that are given: arrays and constants."""
    graph = setup.graph
    constants = {n.index: library.constant(setup.dtype.type(n.numbers[0])) for n in graph.nodes if n.op == "constant"}
    return constants | {i: arrays[name] for name, i in graph.leaf.items()}


def _losses(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The loss of every step and sample, `(T, batch)`, or `(batch,)` when feed-forward."""
    graph = setup.graph
    lines = {phase: evaluation(library, graph, _phase(graph, phase), _wanted(graph, phase)) for phase in Phase}
    scan = _scan(library, setup, lines[Phase.RECURRENT])
    lead = (setup.T, setup.batch) if graph.recurrent else (setup.batch,)

    def losses(arrays: Arrays) -> Any:
        values = lines[Phase.STATIC].run(leaves(library, setup, arrays))
        values = lines[Phase.INPUT].run(values)
        if graph.recurrent:
            values = lines[Phase.OUTPUT].run(scan(arrays, values))
        return library.xp.broadcast_to(values[graph.loss], lead)

    return losses


def _scan(library: Library, setup: Setup, lines: Evaluation) -> Callable[[Arrays, Values], Values]:
    """The recurrent phase: `values`, and for all steps what the output phase reads of states and recurrent values."""
    graph, xp = setup.graph, library.xp
    inside, after = _phase(graph, Phase.RECURRENT), _phase(graph, Phase.OUTPUT)
    feeding = _read(graph, inside, Phase.INPUT) | {i for i in graph.new.values() if graph.nodes[i].phase is Phase.INPUT}
    wanted = _read(graph, after, Phase.RECURRENT) | ({graph.loss} & set(inside))
    # States whose earlier values are read after the scan: a state that none is computed from is read there alone.
    earlier = {name: i for name, i in graph.previous.items() if any(i in graph.nodes[n].args for n in after)}
    kept = sorted(wanted - set(earlier.values()))

    def rows(i: int, value: Any) -> Any:
        shape = (setup.batch, *graph.nodes[i].shape)
        return value if value.shape == shape else xp.broadcast_to(value, shape)

    def scan(arrays: Arrays, values: Values) -> Values:
        fixed = {i: v for i, v in values.items() if graph.nodes[i].phase is Phase.STATIC}
        fed = {i: xp.broadcast_to(values[i], (setup.T, setup.batch, *graph.nodes[i].shape)) for i in sorted(feeding)}

        def step(state: Arrays, inputs: Values) -> tuple[Arrays, Values]:
            before = {i: state[name] for name, i in graph.previous.items()}
            now = lines.run(fixed | inputs | before)
            new = {name: rows(i, now[i]) for name, i in graph.new.items()}
            return new, {i: rows(i, now[i]) for i in kept} | {i: new[name] for name, i in earlier.items()}

        first = {name: rows(i, arrays[name]) for name, i in graph.previous.items()}
        found: Values = library.scan(step, first, fed, setup.T)[1]
        before = {i: xp.concatenate([first[name][None], found[i][:-1]]) for name, i in earlier.items()}
        return values | found | before

    return scan


def _phase(graph: Graph, phase: Phase) -> list[int]:
    """The nodes of a phase that are computed, not given."""
    return [n.index for n in graph.nodes if n.phase is phase and n.args]


def _wanted(graph: Graph, phase: Phase) -> set[int]:
    """The nodes of `phase` that are the loss, a state's new value, or read in another phase."""
    others = [n.index for n in graph.nodes if n.phase is not phase]
    return _read(graph, others, phase) | {graph.loss, *graph.new.values()}


def _read(graph: Graph, readers: list[int], phase: Phase) -> set[int]:
    """The nodes of `phase` that `readers` take as arguments."""
    return {a for i in readers for a in graph.nodes[i].args if graph.nodes[a].phase is phase}


def rtrl(library: Library, setup: Setup) -> Program:
    """Real-time recurrent learning with respect to parameters and initial states."""
    graph, batch, xp = setup.graph, setup.batch, library.xp
    params = [t.name for t in setup.wrt if t.kind == "param"]
    states = [t.name for t in setup.wrt if t.kind == "state"]
    reaching = [name for name in params if name in _reaching(graph)]
    weights = library.constant(step_weights(setup))

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        arrays = {**wrt, **rest}
        theta = {name: wrt[name] for name in params}
        first = pack(xp, {name: rows_of(xp, graph, name, arrays[name], batch) for name in graph.previous}, 1)
        influence = {
            name: xp.zeros((batch, first.shape[1], math.prod(theta[name].shape)), dtype=first.dtype)
            for name in reaching
        }
        influence |= {name: _identity(xp, graph, name, batch, first) for name in states}
        inputs = {name: arrays[name] for name in setup.spec.inputs if name in graph.leaf}
        step = library.vmap(_sample_step(library, setup, arrays), (0, None, 0, None))

        def advance(carry: Any, now: Arrays) -> tuple[Any, Arrays]:
            state, influence, total, gradient = carry
            x = {name: now[name] for name in inputs}
            new, cost, jacobian, immediate, q, direct = step(state, theta, x, now[_WEIGHT])
            for name in gradient:
                gradient = gradient | {name: gradient[name] + _credit(xp, name, q, influence, direct, states)}
            influence = {
                name: jacobian @ m + (immediate[name].reshape(m.shape) if name in reaching else 0.0)
                for name, m in influence.items()
            }
            return (new, influence, total + cost.sum(), gradient), {}

        gradient = {name: xp.zeros(math.prod(wrt[name].shape), dtype=first.dtype) for name in params}
        gradient |= {name: xp.zeros(influence[name].shape[::2], dtype=first.dtype) for name in states}
        start = (first, influence, xp.zeros((), dtype=first.dtype), gradient)
        (_, _, total, gradient), _ = library.scan(advance, start, {**inputs, _WEIGHT: weights}, setup.T)
        summed = {n: g.sum(0) if n in setup.shared else g for n, g in gradient.items()}
        return total, {t.name: summed[t.name].reshape(t.shape) for t in setup.wrt}

    return program


def _credit(xp: Any, name: str, q: Any, influence: Arrays, direct: Arrays, states: list[str]) -> Any:
    """The gradient of one step: summed over samples for a parameter, one row a sample for an initial state."""
    if name in states:
        return xp.einsum("bi,bip->bp", q, influence[name])
    own = direct[name].sum(0).reshape(-1)
    if name not in influence:
        return own
    m = influence[name]
    return own + q.reshape(-1) @ m.reshape(-1, m.shape[-1])


def _sample_step(library: Library, setup: Setup, arrays: Arrays) -> Callable[..., Any]:
    """One step of one sample: new state, weighted loss, J (N, N), M̄ (N, *shape), ∂l/∂a(t-1) (N,), ∂l/∂θ (*shape)."""
    graph = setup.graph
    lines = evaluation(library, graph, [n.index for n in graph.nodes if n.args], {graph.loss, *graph.new.values()})
    xp = library.xp

    def step(state: Any, theta: Arrays, inputs: Arrays, weight: Any) -> Any:
        def forward(state: Any, theta: Arrays) -> tuple[Any, Any]:
            values = leaves(library, setup, {**arrays, **theta, **inputs})
            values |= {graph.previous[name]: v for name, v in unpack(graph, state).items()}
            values = lines.run(values)
            new = {name: rows_of(xp, graph, name, values[i]) for name, i in graph.new.items()}
            return pack(xp, new, 0), values[graph.loss] * weight

        (new, cost), pullback = library.vjp(forward, state, theta)
        basis = xp.eye(state.shape[0], dtype=state.dtype)
        jacobian, immediate = library.vmap(lambda row: pullback((row, xp.zeros_like(cost))), 0)(basis)
        q, direct = pullback((xp.zeros_like(new), xp.ones_like(cost)))
        return new, cost, jacobian, immediate, q, direct

    return step


def step_weights(setup: Setup) -> Any:
    """The weight of the loss of each step, `(T,)`, so that the objective is their sum over steps and samples."""
    objective = setup.spec.objective
    weights = np.ones(setup.T, dtype=setup.dtype)
    if objective.over_time == "last":
        weights[:-1] = 0.0
    if objective.over_time == "mean":
        weights /= setup.T
    return weights / setup.dtype.type(setup.batch) if objective.over_batch == "mean" else weights


def _reaching(graph: Graph) -> set[str]:
    """The parameters that some state's new value is computed from within a step."""
    found = set(graph.new.values())
    for node in reversed(graph.nodes):
        if node.index in found:
            found |= set(node.args)
    return {name for name, index in graph.leaf.items() if index in found}


def rows_of(xp: Any, graph: Graph, name: str, value: Any, *lead: int) -> Any:
    """A state's value with its full shape, behind the leading axes `lead`."""
    return xp.broadcast_to(value, (*lead, *graph.nodes[graph.previous[name]].shape))


def pack(xp: Any, states: Arrays, lead: int) -> Any:
    """All states side by side in one vector, behind `lead` leading axes."""
    return xp.concatenate([v.reshape((*v.shape[:lead], -1)) for v in states.values()], lead)


def _spans(graph: Graph) -> dict[str, slice]:
    """Where each state stands in the vector of all."""
    sizes = [graph.nodes[n].size for n in graph.previous.values()]
    stops = itertools.accumulate(sizes)
    return {name: slice(stop - size, stop) for name, size, stop in zip(graph.previous, sizes, stops, strict=True)}


def unpack(graph: Graph, vector: Any) -> dict[str, Any]:
    """The states by name, of the vector of all, (N,)."""
    return {n: vector[span].reshape(graph.nodes[graph.previous[n]].shape) for n, span in _spans(graph).items()}


def _identity(xp: Any, graph: Graph, name: str, batch: int, packed: Any) -> Any:
    """∂a(0)/∂a_name(0) (batch, N, size): the columns of the identity that belong to the state called `name`."""
    block = xp.eye(packed.shape[1], dtype=packed.dtype)[:, _spans(graph)[name]]
    return xp.broadcast_to(block, (batch, *block.shape))
