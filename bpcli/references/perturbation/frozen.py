"""A network whose values of `stop_gradient` and `step` are inputs, held as they are without any change.

`stop_gradient(v)` is v, and a constant in every derivative. An imaginary step honours that by itself: the forward rule
drops the imaginary part. A real step would move the value, so that real perturbations are of this network: its true
derivative is the one that `stop_gradient` defines. Nodes keep their indices.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.operations import STOPPING
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.runtime.evaluation import node_values

_DOUBLE = np.dtype(np.float64)


@lru_cache(maxsize=4)
def frozen(problem: Problem) -> Problem:
    """The problem in float64, with inputs and parameters in place of operations without a derivative."""
    double = cast(problem, _DOUBLE)
    stops = stopping(double.setup.graph)
    if not stops:
        return double
    setup, graph = double.setup, double.setup.graph
    lead = (setup.T, setup.batch) if graph.recurrent else (setup.batch,)
    params, inputs = dict(double.params), dict(double.inputs)
    with np.errstate(all="ignore"):
        found = node_values(double, stops)
    for n in stops:
        node = graph.nodes[n]
        static = node.phase is Phase.STATIC
        group, shape = (params, node.shape) if static else (inputs, (*lead, *node.shape))
        group[name_of_held(n)] = np.array(found[n]).reshape(shape)
    return Problem(held_setup(setup, stops), params, inputs, double.state)


def stopping(graph: Graph) -> tuple[int, ...]:
    """The nodes that stop derivatives."""
    return tuple(node.index for node in graph.nodes if node.op in STOPPING)


def frozen_entries(setup: Setup) -> int:
    """Numbers that are held constant, of all steps and samples."""
    nodes = (setup.graph.nodes[n] for n in stopping(setup.graph))
    return sum(n.size * (1 if n.phase is Phase.STATIC else setup.T * setup.batch) for n in nodes)


def name_of_held(node: int) -> str:
    """The name of the leaf that stands for a node."""
    return f"stopped {node}"


@lru_cache(maxsize=4)
def held_setup(setup: Setup, held_nodes: tuple[int, ...]) -> Setup:
    """The setup with leaves in place of some nodes; cached, since plans are cached by setup."""
    graph = setup.graph
    nodes, leaf, roots = list(graph.nodes), dict(graph.leaf), {graph.loss, *graph.new.values()}
    for n in held_nodes:
        op, phase = ("param", Phase.STATIC) if nodes[n].phase is Phase.STATIC else ("input", Phase.INPUT)
        held = replace(nodes[n], op=op, args=(), phase=phase, name=name_of_held(n))
        if n in roots:  # which are computed
            held = replace(held, index=len(nodes))
            nodes[n] = replace(nodes[n], op="copy", args=(held.index,))
            nodes.append(held)
        else:
            nodes[n] = held
        leaf[name_of_held(n)] = held.index
    return replace(setup, graph=replace(graph, nodes=tuple(nodes), leaf=leaf))
