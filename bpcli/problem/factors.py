"""What operations make of an imaginary step of one argument, at every step and sample: by the complex forward rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.evaluation import node_values

STEP = 1.0
"""The imaginary step. Kernels drop products of imaginary parts, so that any size will do: this one leaves derivatives
the range of floats."""
ALONG = 2.0**-540
"""What it is multiplied by where whole arrays take it, matrices of products among them. The library that computes these
drops nothing: such imaginary parts have products below the smallest number."""


def factors(
    problem: Problem, wanted: Mapping[str, tuple[int, int]], values: Mapping[int, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """`(T, batch, *shape)` by name, of `wanted` nodes and the numbers of the arguments that are shifted.

    `values` are those of the nodes' arguments. All operations are run on all steps at once, first with their first
    arguments shifted, then with the second ones. A dot product counts as one that is not summed.
    """
    setup, graph = problem.setup, problem.setup.graph
    if not wanted:
        return {}
    own, at = _operations(setup, tuple(sorted({n for n, _ in wanted.values()})))
    rows = own.batch
    args = sorted({(n, k) for n in at for k in range(len(graph.nodes[n].args))})
    found = {}
    for k in sorted({k for _, k in wanted.values()}):
        arrays: dict[str, Any] = {}
        for n, j in args:
            arg = graph.nodes[graph.nodes[n].args[j]]
            every = np.broadcast_to(values[arg.index], (setup.T, setup.batch, arg.size)).reshape(rows, *arg.shape)
            arrays[f"{n} {j}"] = every + (STEP * 1j if j == k else 0.0)
        shifted = node_values(Problem(own, {}, arrays, {}), [at[n] for n, j in wanted.values() if j == k])
        for name, (n, j) in wanted.items():
            if j == k:
                shape = own.graph.nodes[at[n]].shape
                found[name] = (shifted[at[n]][0].imag / STEP).reshape(setup.T, setup.batch, *shape)
    return found


@lru_cache(maxsize=4)
def _operations(setup: Setup, ops: tuple[int, ...]) -> tuple[Setup, dict[int, int]]:
    """A setup with all steps as rows whose graph has the operations `ops` on inputs named after them and the number of
    the argument, in complex128; and where in it they are."""
    graph = setup.graph
    args = [(n, k) for n in ops for k in range(len(graph.nodes[n].args))]
    nodes, place = list[Node](), graph.nodes[graph.loss].place
    for n, k in args:
        shape = graph.nodes[graph.nodes[n].args[k]].shape
        nodes.append(Node(len(nodes), "input", (), shape, Phase.INPUT, (), f"{n} {k}", place))
    leaf, at = {node.name: node.index for node in nodes}, {}
    for n in ops:
        op = graph.nodes[n]
        product = op.op == "dot"
        shape = graph.nodes[op.args[0]].shape if product else op.shape
        inputs = tuple(leaf[f"{n} {k}"] for k in range(len(op.args)))
        at[n] = len(nodes)
        name = "multiply" if product else op.op
        nodes.append(Node(len(nodes), name, inputs, shape, Phase.INPUT, op.numbers, "", place))
    nodes.append(Node(len(nodes), "sum", (len(nodes) - 1,), (), Phase.INPUT, (), "", place))
    small = Graph(tuple(nodes), leaf, {}, {}, {}, len(nodes) - 1, ())
    dtype: Any = np.dtype(np.complex128)
    rows = setup.T * setup.batch
    return replace(setup, graph=small, T=1, batch=rows, dtype=dtype, wrt=(), shared=frozenset()), at
