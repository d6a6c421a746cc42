"""A Setup, which says what to compute before any array exists, and a Problem, a Setup with its arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph
from bpcli.spec.specification import ArrayDecl, Kind, Spec

Array = NDArray[np.floating]
FloatArray = NDArray[np.float64]
Values = NDArray[Any]
"""float64, or complex128 in copies of a network for the complex step."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array that the loss is differentiated with respect to.

    `shape` is the gradient's: the array's own for a parameter, the data's for an input, `(batch, *shape)` or `(*shape)`
    for an initial state. `pattern` holds the flat indices of the entries that exist where a `density` leaves some out.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    pattern: NDArray[np.int64] | None = None

    @property
    def entries(self) -> int:
        """Number of entries of the gradient."""
        return math.prod(self.shape) if self.pattern is None else len(self.pattern)


@dataclass(frozen=True, eq=False)
class Setup:
    """Spec, graph and sizes: enough to predict a method's cost. T is 1 when feed-forward.

    `wrt` lists the arrays to differentiate with respect to, in the spec's order; `shared` names the states with one
    initial value for all samples; `dtype` is the spec's.
    """

    spec: Spec
    graph: Graph
    T: int
    batch: int
    dtype: np.dtype[np.floating]
    wrt: tuple[Tensor, ...]
    shared: frozenset[str]

    def array_shape(self, decl: ArrayDecl) -> tuple[int, ...]:
        """The shape of an array in a `Problem`, with the axes of steps and samples that it has there."""
        lead: tuple[int, ...] = ()
        if decl.kind == "input":
            lead = (self.T, self.batch) if self.graph.recurrent else (self.batch,)
        elif decl.kind == "state" and decl.name not in self.shared:
            lead = (self.batch,)
        return (*lead, *decl.shape)


@dataclass(frozen=True, eq=False)
class Problem:
    """A Setup with its arrays, C-contiguous and of the setup's dtype.

    `params[name] (*shape)`, every declared parameter; `inputs[name] (T, batch, *shape)`, or `(batch, *shape)` when
    feed-forward; `state[name] (batch, *shape)`, or `(*shape)` where one initial state serves all samples.
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
        return self._groups()[tensor.kind][tensor.name]

    def with_array(self, tensor: Tensor, array: Array) -> Problem:
        """The same problem with another array in place of the one that `tensor` names."""
        groups = self._groups()
        groups[tensor.kind] = {**groups[tensor.kind], tensor.name: array}
        return Problem(self.setup, *groups.values())

    def _groups(self) -> dict[Kind, Mapping[str, Array]]:
        return {"param": self.params, "input": self.inputs, "state": self.state}


def cast(problem: Problem, dtype: np.dtype) -> Problem:
    """The same problem with every array converted to `dtype`; widening is exact."""
    if problem.setup.dtype == dtype:
        return problem
    groups = ({name: x.astype(dtype) for name, x in g.items()} for g in problem.arrays)
    return Problem(_cast_setup(problem.setup, dtype), *groups)


@lru_cache(maxsize=8)
def _cast_setup(setup: Setup, dtype: np.dtype) -> Setup:
    """Cached by identity, as plans for a setup are."""
    return dataclasses.replace(setup, dtype=dtype)
