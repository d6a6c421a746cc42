"""The tangent of a network: its derivative along a change of preactivations, as a network of its own.

Under an imaginary step the real parts of all perturbed copies are those of the network as it is, to the last bit, so
that imaginary parts alone need to be carried: products act on them as they are, and every other operation
multiplies them by what the complex forward rule makes of a step of one argument, taken once for each value of the
network instead of once for each copy. No reverse rule is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bpcli.problem.definition import Problem, Setup, cast
from bpcli.problem.factors import factors
from bpcli.problem.perturbed import Perturbed
from bpcli.problem.preactivations import terms
from bpcli.problem.tangent_graph import Draft
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import Window


@dataclass(frozen=True, eq=False)
class Tangents:
    """Copies of the tangent network; `nodes` takes nodes, preactivations among them, to their tangents."""

    perturbed: Perturbed
    nodes: Mapping[int, int]


def tangents(problem: Problem, windows: Sequence[Window]) -> Tangents | None:
    """The tangent network of a problem; None where an operation mixes entries other than by products and sums."""
    setup, graph = problem.setup, problem.setup.graph
    drafted = _drafted(setup)
    if drafted is None:
        return None
    draft, own = drafted
    double = cast(problem, np.dtype(np.float64))
    values = node_values(double, sorted(draft.read))
    matrices = {name: values[n].reshape(graph.nodes[n].shape) for name, n in draft.matrices.items()}
    inputs = {name: np.zeros((setup.T, setup.batch, *shape)) for name, shape in draft.zeros.items()}
    inputs |= factors(double, draft.factors, values)
    if not setup.graph.recurrent:
        inputs = {name: rows[0] for name, rows in inputs.items()}
    state = {name: np.zeros((setup.batch, *graph.nodes[n].shape)) for name, n in graph.previous.items()}
    made = Problem(own, matrices, inputs, state)
    return Tangents(Perturbed(made, windows, np.dtype(np.float64)), draft.tangent)


@lru_cache(maxsize=4)
def _drafted(setup: Setup) -> tuple[Draft, Setup] | None:
    """The tangent network of a setup, and its own setup."""
    zs = sorted({term.z for some in terms(setup.graph).values() for term in some})
    draft = Draft.of(setup.graph, zs)
    if draft is None:
        return None
    return draft, replace(setup, graph=draft.graph, dtype=np.dtype(np.float64), wrt=(), shared=frozenset())
