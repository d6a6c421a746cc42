"""A Setup says what is to be computed before any array exists; a Problem is a Setup with its arrays.

A problem in another dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph
from bpcli.spec.specification import Kind, Spec

Array = NDArray[np.floating]
FloatArray = NDArray[np.float64]
Values = NDArray[Any]
"""float64 or complex128, as the copies of a network are."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """Something to differentiate with respect to.

    `shape` is the gradient's: the array's own for a parameter, the data's for an input, `(batch, *shape)` or `(*shape)`
    for an initial state. `pattern` holds the flat indices of the entries that exist where a `density` leaves some out.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    pattern: NDArray[np.int64] | None = None

    @property
    def entries(self) -> int:
        """How many numbers are differentiated."""
        if self.pattern is not None:
            return len(self.pattern)
        count = 1
        for d in self.shape:
            count *= d
        return count


@dataclass(frozen=True, eq=False)
class Setup:
    """Spec, graph and sizes: enough to predict a method's cost. T is 1 when feed-forward.

    `wrt` lists what is differentiated, in the spec's order; `shared` names the states whose initial value is one for
    all samples; `dtype` is the spec's.
    """

    spec: Spec
    graph: Graph
    T: int
    batch: int
    dtype: np.dtype[np.floating]
    wrt: tuple[Tensor, ...]
    shared: frozenset[str]


@dataclass(frozen=True, eq=False)
class Problem:
    """A Setup with its arrays, C-contiguous and of the setup's dtype.

    `params[name] (*shape)`, every declared parameter; `inputs[name] (T, batch, *shape)`, or `(batch, *shape)` when
    feed-forward; `state[name] (batch, *shape)`, or `(*shape)` where one state serves all samples.
    """

    setup: Setup
    params: Mapping[str, Array]
    inputs: Mapping[str, Array]
    state: Mapping[str, Array]

    @property
    def arrays(self) -> tuple[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]]:
        """Parameters, inputs and initial states."""
        return self.params, self.inputs, self.state

    def array(self, tensor: Tensor) -> Array:
        """The array that `tensor` names."""
        group = {"param": self.params, "input": self.inputs, "state": self.state}[tensor.kind]
        return group[tensor.name]

    def with_array(self, tensor: Tensor, array: Array) -> Problem:
        """The same problem with another array in place of the one that `tensor` names."""
        groups = {"param": self.params, "input": self.inputs, "state": self.state}
        groups[tensor.kind] = {**groups[tensor.kind], tensor.name: array}
        return Problem(self.setup, groups["param"], groups["input"], groups["state"])


def cast(problem: Problem, dtype: np.dtype) -> Problem:
    """The same problem with every array converted; widening is exact."""
    if problem.setup.dtype == dtype:
        return problem
    groups = ({name: x.astype(dtype) for name, x in g.items()} for g in problem.arrays)
    return Problem(_setup(problem.setup, dtype), *groups)


@lru_cache(maxsize=8)
def _setup(setup: Setup, dtype: np.dtype) -> Setup:
    """Kept, as what is planned for a setup is."""
    return dataclasses.replace(setup, dtype=dtype)
