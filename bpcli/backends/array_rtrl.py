"""Real-time recurrent learning in a library of arrays (Williams & Zipser 1989): a scan carries the influence M.

For each step and sample, one vmapped vjp of the step gives J = ∂a(t)/∂a(t-1) and M̄ = ∂a(t)/∂θ; then M ← J M + M̄.
The loss of the step goes back to a(t-1) and to θ directly: g += ∂l(t)/∂a(t-1) · M(t-1) + ∂l(t)/∂θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bpcli.backends.array_graph import leaves
from bpcli.backends.array_graph import program as compiled
from bpcli.backends.base import Arrays, Library
from bpcli.graph.nodes import Graph
from bpcli.problem.definition import Setup

_WEIGHT = ""  # beside the names of inputs


def rtrl(library: Library, setup: Setup) -> Callable[[Arrays, Arrays], tuple[Any, Arrays]]:
    """The loss and the gradient with respect to parameters and initial states."""
    graph, batch, xp = setup.graph, setup.batch, library.xp
    params = [t.name for t in setup.wrt if t.kind == "param"]
    states = [t.name for t in setup.wrt if t.kind == "state"]
    reaching = [name for name in params if name in _reaching(graph)]
    weights = library.constant(_step_weights(setup))

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        arrays = {**wrt, **rest}
        theta = {name: wrt[name] for name in params}
        first = _pack(xp, {name: _rows(xp, graph, name, arrays[name], batch) for name in graph.previous}, 1)
        influence = {
            name: xp.zeros((batch, first.shape[1], _count(theta[name])), dtype=first.dtype) for name in reaching
        }
        influence |= {name: _identity(xp, graph, name, batch, first) for name in states}
        inputs = {name: arrays[name] for name in setup.spec.inputs if name in graph.leaf}
        step = library.vmap(_sample_step(library, setup, arrays), (0, None, 0, None))

        def advance(carry: Any, now: Arrays) -> tuple[Any, Arrays]:
            state, influence, total, gradient = carry
            x = {name: now[name] for name in inputs}
            new, loss, jacobian, immediate, q, direct = step(state, theta, x, now[_WEIGHT])
            for name in gradient:
                gradient = gradient | {name: gradient[name] + _credit(xp, name, q, influence, direct, states)}
            influence = {
                name: jacobian @ m + (immediate[name].reshape(m.shape) if name in reaching else 0.0)
                for name, m in influence.items()
            }
            return (new, influence, total + loss.sum(), gradient), {}

        gradient = {name: xp.zeros(_count(wrt[name]), dtype=first.dtype) for name in params}
        gradient |= {name: xp.zeros(influence[name].shape[::2], dtype=first.dtype) for name in states}
        start = (first, influence, xp.zeros((), dtype=first.dtype), gradient)
        (_, _, total, gradient), _ = library.scan(advance, start, {**inputs, _WEIGHT: weights}, setup.T)
        summed = {n: g.sum(0) if n in setup.shared else g for n, g in gradient.items()}
        return total, {t.name: summed[t.name].reshape(t.shape) for t in setup.wrt}

    return program


def _credit(xp: Any, name: str, q: Any, influence: Arrays, direct: Arrays, states: list[str]) -> Any:
    """What one step adds to a gradient: summed over samples for a parameter, one row a sample for an initial state."""
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
    lines = compiled(library, graph, [n.index for n in graph.nodes if n.args], {graph.loss, *graph.new.values()})
    xp = library.xp

    def step(state: Any, theta: Arrays, inputs: Arrays, weight: Any) -> Any:
        def forward(state: Any, theta: Arrays) -> tuple[Any, Any]:
            values = leaves(library, setup, {**arrays, **theta, **inputs})
            values |= {graph.previous[name]: v for name, v in _unpack(graph, state).items()}
            values = lines.run(values)
            new = {name: _shaped(xp, graph, name, values[i]) for name, i in graph.new.items()}
            return _pack(xp, new, 0), values[graph.loss] * weight

        (new, loss), pullback = library.vjp(forward, state, theta)
        basis = xp.eye(state.shape[0], dtype=state.dtype)
        jacobian, immediate = library.vmap(lambda row: pullback((row, xp.zeros_like(loss))), 0)(basis)
        q, direct = pullback((xp.zeros_like(new), xp.ones_like(loss)))
        return new, loss, jacobian, immediate, q, direct

    return step


def _step_weights(setup: Setup) -> Any:
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


def _count(array: Any) -> int:
    return math.prod(array.shape)


def _size(graph: Graph, name: str) -> int:
    return graph.nodes[graph.previous[name]].size


def _shaped(xp: Any, graph: Graph, name: str, value: Any) -> Any:
    return xp.broadcast_to(value, graph.nodes[graph.previous[name]].shape)


def _rows(xp: Any, graph: Graph, name: str, value: Any, batch: int) -> Any:
    return xp.broadcast_to(value, (batch, *graph.nodes[graph.previous[name]].shape))


def _pack(xp: Any, states: Arrays, lead: int) -> Any:
    """All states side by side in one vector, behind `lead` leading axes."""
    return xp.concatenate([v.reshape((*v.shape[:lead], -1)) for v in states.values()], lead)


def _unpack(graph: Graph, vector: Any) -> dict[str, Any]:
    states, start = {}, 0
    for name in graph.previous:
        stop = start + _size(graph, name)
        states[name] = vector[start:stop].reshape(graph.nodes[graph.previous[name]].shape)
        start = stop
    return states


def _identity(xp: Any, graph: Graph, name: str, batch: int, packed: Any) -> Any:
    """∂a(0)/∂a_name(0) (batch, N, size): the columns of the identity that belong to the state called `name`."""
    start = 0
    for other in graph.previous:
        if other == name:
            break
        start += _size(graph, other)
    block = xp.eye(packed.shape[1], dtype=packed.dtype)[:, start : start + _size(graph, name)]
    return xp.broadcast_to(block, (batch, *block.shape))
