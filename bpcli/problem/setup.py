"""From a spec and its graph to a Setup: sizes, limits, and what is differentiated. Reads headers of files alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bpcli.errors import Collector
from bpcli.graph.nodes import Graph
from bpcli.problem.data import check_task
from bpcli.problem.limits import Limits, check_arrays
from bpcli.problem.model import Setup
from bpcli.problem.sizes import Sizes, find_sizes
from bpcli.problem.weights import check_weights
from bpcli.problem.wrt import choose, tensors
from bpcli.spec.specification import ArrayDecl, Spec


@dataclass(frozen=True)
class Plan:
    """What a Setup takes beside the graph."""

    spec: Spec
    sizes: Sizes
    chosen: tuple[ArrayDecl, ...]


def plan(spec: Spec, wrt: Sequence[str], collector: Collector) -> Plan:
    """Look at `[data]`, `[weights]` and `wrt`, also of a spec that is refused already, and note all that is wrong.

    The `file` names of the spec are resolved; `wrt` are kinds or names, `[check] wrt` when empty.
    """
    check_task(spec, collector)
    check_weights(spec, collector)
    # An equation of a refused name is that of a state whose declaration fell.
    recurrent = bool(spec.states or spec.refused & spec.equations.keys())
    sizes = find_sizes(spec, recurrent, collector)
    return Plan(spec, sizes, choose(spec, wrt, collector))


def assemble(parts: Plan, graph: Graph, limits: Limits) -> Setup:
    """The Setup of a plan without errors; `BpError` for arrays beyond the limit, before any of their size is made."""
    spec, sizes = parts.spec, parts.sizes
    dtype: np.dtype[np.floating] = np.dtype(spec.dtype)
    setup = Setup(spec, graph, sizes.T, sizes.batch, dtype, (), sizes.shared)
    check_arrays(setup, limits)
    return dataclasses.replace(setup, wrt=tensors(setup, parts.chosen))
