"""Gradients by JAX: reverse mode through a scan, and real-time recurrent learning.

The phases of the graph are kept: what is static or depends on inputs alone is computed before the scan over all steps
at once, what no state depends on after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpcli.graph.model import Graph, Phase
from bpcli.methods.base import Gradient
from bpcli.peers.jax_graph import Values, evaluate
from bpcli.peers.jax_rtrl import rtrl
from bpcli.problem.model import Problem, Setup, Tensor

Arrays = Mapping[str, Any]
Program = Callable[[Arrays, Arrays], tuple[Any, Arrays]]


def gradient_function(problem: Problem, method: str) -> Callable[[], Gradient]:
    """A function that computes the gradient and waits for it; compiled at its first call."""
    jax.config.update("jax_enable_x64", True)
    setup = problem.setup
    arrays = {name: jnp.asarray(a) for group in problem.arrays for name, a in group.items()}
    wrt = {t.name: arrays.pop(t.name) for t in setup.wrt}
    program = jax.jit(_dense(setup, rtrl(setup) if method == "rtrl" else reverse(setup)))

    def gradient() -> Gradient:
        loss, gradients = jax.block_until_ready(program(wrt, arrays))
        return Gradient(float(loss), {name: np.asarray(g) for name, g in gradients.items()})

    return gradient


def _dense(setup: Setup, program: Program) -> Program:
    """`program` with zeros where a density leaves entries out."""
    masks = {t.name: _mask(t) for t in setup.wrt if t.pattern is not None}

    def masked(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        loss, gradients = program(wrt, rest)
        return loss, {n: jnp.where(masks[n], g, 0.0) if n in masks else g for n, g in gradients.items()}

    return masked


def _mask(tensor: Tensor) -> Any:
    mask = np.zeros(tensor.shape, dtype=bool)
    mask.reshape(-1)[tensor.pattern] = True
    return mask


def reverse(setup: Setup) -> Program:
    """Reverse mode through the whole loss: BPTT, or backprop when feed-forward."""

    def loss(wrt: Arrays, rest: Arrays) -> Any:
        return _total(setup, _losses(setup, {**wrt, **rest}))

    program: Program = jax.value_and_grad(loss)
    return program


def _losses(setup: Setup, arrays: Arrays) -> Any:
    """The loss of every step and sample, `(T, batch)`, or `(batch,)` when feed-forward."""
    graph = setup.graph
    values: Values = {i: arrays[name] for name, i in graph.leaf.items()}
    values |= {node.index: setup.dtype.type(node.numbers[0]) for node in graph.nodes if node.op == "constant"}
    values = evaluate(graph, _phase(graph, Phase.STATIC), values)
    values = evaluate(graph, _phase(graph, Phase.INPUT), values)
    if graph.recurrent:
        values = evaluate(graph, _phase(graph, Phase.OUTPUT), _scan(setup, arrays, values))
    lead = (setup.T, setup.batch) if graph.recurrent else (setup.batch,)
    return jnp.broadcast_to(values[graph.loss], lead)


def _scan(setup: Setup, arrays: Arrays, values: Values) -> Values:
    """The recurrent phase: `values` and, for all steps, states, earlier states and what the output phase reads."""
    graph = setup.graph
    inside, after = _phase(graph, Phase.RECURRENT), _phase(graph, Phase.OUTPUT)
    fixed = {i: v for i, v in values.items() if graph.nodes[i].phase is Phase.STATIC}
    fed = {i: _every_step(setup, values[i], graph.nodes[i].shape) for i in _read(graph, inside, Phase.INPUT)}
    kept = sorted(_read(graph, after, Phase.RECURRENT) - set(graph.previous.values()))

    def rows(name: str, value: Any) -> Any:
        return jnp.broadcast_to(value, (setup.batch, *graph.nodes[graph.previous[name]].shape))

    def step(state: Arrays, inputs: Values) -> tuple[Arrays, tuple[Arrays, Values]]:
        before = {i: state[name] for name, i in graph.previous.items()}
        now = evaluate(graph, inside, fixed | inputs | before)
        new = {name: rows(name, now[i]) for name, i in graph.new.items()}
        return new, (new, {i: now[i] for i in kept})

    first = {name: rows(name, arrays[name]) for name in graph.previous}
    _, (states, others) = lax.scan(step, first, fed, length=setup.T)
    earlier = {i: jnp.concatenate([first[name][None], states[name][:-1]]) for name, i in graph.previous.items()}
    found: Values = values | others | {i: states[name] for name, i in graph.new.items()} | earlier
    return found


def _every_step(setup: Setup, value: Any, shape: tuple[int, ...]) -> Any:
    return jnp.broadcast_to(value, (setup.T, setup.batch, *shape))


def _phase(graph: Graph, phase: Phase) -> list[int]:
    """The nodes of a phase that are computed, not given."""
    return [n.index for n in graph.nodes if n.phase is phase and n.args]


def _read(graph: Graph, readers: list[int], phase: Phase) -> set[int]:
    """The nodes of `phase` that `readers` take as arguments."""
    return {a for i in readers for a in graph.nodes[i].args if graph.nodes[a].phase is phase}


def _total(setup: Setup, losses: Any) -> Any:
    """The objective: losses reduced over time and over the batch."""
    objective = setup.spec.objective
    if setup.graph.recurrent:
        over_time = {
            "sum": lambda x: jnp.sum(x, axis=0),
            "mean": lambda x: jnp.mean(x, axis=0),
            "last": lambda x: x[-1],
        }
        losses = over_time[objective.over_time](losses)
    return jnp.mean(losses) if objective.over_batch == "mean" else jnp.sum(losses)
