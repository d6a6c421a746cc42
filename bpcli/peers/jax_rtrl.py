"""Real-time recurrent learning by JAX (Williams & Zipser 1989): the influence M is carried through a scan.

For each step and sample, one vmapped vjp of the step gives J = ∂a(t)/∂a(t-1) and M̄ = ∂a(t)/∂θ; then M ← J M + M̄.
The loss of the step goes back to a(t-1) and to θ directly: g += ∂l(t)/∂a(t-1) · M(t-1) + ∂l(t)/∂θ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpcli.graph.model import Graph
from bpcli.peers.jax_graph import Values, evaluate
from bpcli.problem.model import Setup

Arrays = Mapping[str, Any]


def rtrl(setup: Setup) -> Callable[[Arrays, Arrays], tuple[Any, Arrays]]:
    """The loss and the gradient with respect to parameters and initial states."""
    graph, batch = setup.graph, setup.batch
    params = [t.name for t in setup.wrt if t.kind == "param"]
    states = [t.name for t in setup.wrt if t.kind == "state"]
    reaching = [name for name in params if name in _reaching(graph)]
    weights = _step_weights(setup)

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        arrays = {**wrt, **rest}
        theta = {name: wrt[name] for name in params}
        first = _pack({name: _rows(graph, name, arrays[name], batch) for name in graph.previous}, 1)
        influence = {name: jnp.zeros((batch, first.shape[1], theta[name].size), first.dtype) for name in reaching}
        influence |= {name: _identity(graph, name, batch, first) for name in states}
        inputs = {name: arrays[name] for name in setup.spec.inputs if name in graph.leaf}
        step = _sample_step(setup, arrays)

        def advance(carry: Any, now: Any) -> tuple[Any, None]:
            state, influence, total, gradient = carry
            x, weight = now
            new, loss, jacobian, immediate, q, direct = jax.vmap(step, in_axes=(0, None, 0, None))(
                state, theta, x, weight
            )
            for name in gradient:
                gradient = gradient | {name: gradient[name] + _credit(name, q, influence, direct, states)}
            influence = {
                name: jacobian @ m + (immediate[name].reshape(m.shape) if name in reaching else 0.0)
                for name, m in influence.items()
            }
            return (new, influence, total + jnp.sum(loss), gradient), None

        gradient = {name: jnp.zeros(wrt[name].size, first.dtype) for name in params}
        gradient |= {name: jnp.zeros(influence[name].shape[::2], first.dtype) for name in states}
        start = (first, influence, jnp.zeros((), first.dtype), gradient)
        (_, _, total, gradient), _ = lax.scan(advance, start, (inputs, weights), length=setup.T)
        summed = {n: jnp.sum(g, axis=0) if n in setup.shared else g for n, g in gradient.items()}
        return total, {t.name: summed[t.name].reshape(t.shape) for t in setup.wrt}

    return program


def _credit(name: str, q: Any, influence: Arrays, direct: Arrays, states: list[str]) -> Any:
    """What one step adds to a gradient: summed over samples for a parameter, one row a sample for an initial state."""
    if name in states:
        return jnp.einsum("bi,bip->bp", q, influence[name])
    own = jnp.sum(direct[name], axis=0).reshape(-1)
    if name not in influence:
        return own
    m = influence[name]
    return own + q.reshape(-1) @ m.reshape(-1, m.shape[-1])


def _sample_step(setup: Setup, arrays: Arrays) -> Callable[..., Any]:
    """One step of one sample: new state, weighted loss, J (N, N), M̄ (N, *shape), ∂l/∂a(t-1) (N,), ∂l/∂θ (*shape)."""
    graph = setup.graph
    computed = [n.index for n in graph.nodes if n.args]
    constants = {n.index: setup.dtype.type(n.numbers[0]) for n in graph.nodes if n.op == "constant"}

    def step(state: Any, theta: Arrays, inputs: Arrays, weight: Any) -> Any:
        def forward(state: Any, theta: Arrays) -> tuple[Any, Any]:
            known = {**arrays, **theta, **inputs}
            values: Values = constants | {i: known[name] for name, i in graph.leaf.items()}
            values |= {graph.previous[name]: v for name, v in _unpack(graph, state).items()}
            values = evaluate(graph, computed, values)
            new = {name: _shaped(graph, name, values[i]) for name, i in graph.new.items()}
            return _pack(new, 0), values[graph.loss] * weight

        (new, loss), pullback = jax.vjp(forward, state, theta)
        basis = jnp.eye(state.shape[0], dtype=state.dtype)
        jacobian, immediate = jax.vmap(lambda row: pullback((row, jnp.zeros_like(loss))))(basis)
        q, direct = pullback((jnp.zeros_like(new), jnp.ones_like(loss)))
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


def _size(graph: Graph, name: str) -> int:
    return graph.nodes[graph.previous[name]].size


def _shaped(graph: Graph, name: str, value: Any) -> Any:
    return jnp.broadcast_to(value, graph.nodes[graph.previous[name]].shape)


def _rows(graph: Graph, name: str, value: Any, batch: int) -> Any:
    return jnp.broadcast_to(value, (batch, *graph.nodes[graph.previous[name]].shape))


def _pack(states: Arrays, lead: int) -> Any:
    """All states side by side in one vector, behind `lead` leading axes."""
    return jnp.concatenate([v.reshape(*v.shape[:lead], -1) for v in states.values()], axis=lead)


def _unpack(graph: Graph, vector: Any) -> dict[str, Any]:
    states, start = {}, 0
    for name in graph.previous:
        stop = start + _size(graph, name)
        states[name] = vector[start:stop].reshape(graph.nodes[graph.previous[name]].shape)
        start = stop
    return states


def _identity(graph: Graph, name: str, batch: int, packed: Any) -> Any:
    """∂a(0)/∂a_name(0) (batch, N, size): the columns of the identity that belong to the state called `name`."""
    start = 0
    for other in graph.previous:
        if other == name:
            break
        start += _size(graph, other)
    block = jnp.eye(packed.shape[1], dtype=packed.dtype)[:, start : start + _size(graph, name)]
    return jnp.broadcast_to(block, (batch, *block.shape))
