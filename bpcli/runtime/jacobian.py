"""The Jacobian J = ∂a(t)/∂a(t-1) of a step: as an array, or as the products that it is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from bpcli.problem.definition import Array
from bpcli.runtime.local_plan import Captured
from bpcli.tape.probing import Paths


class Jacobian(Protocol):
    """J of a step, and its parts by the paths that they go along."""

    def dense(self) -> Array:
        """J, (batch, N, N)."""

    def times(self, a: Array) -> Array:
        """J a of vectors (batch, N)."""

    def along(self, paths: Paths) -> Array:
        """∂a(t)/∂a(t-1) along paths of a kind, (batch, N, N)."""


@dataclass(frozen=True, eq=False)
class DenseJacobian:
    """J as an array, and its parts."""

    J: Array
    parts: Mapping[Paths, Array]

    def dense(self) -> Array:
        """See `Jacobian`."""
        return self.J

    def times(self, a: Array) -> Array:
        """See `Jacobian`."""
        return np.asarray((self.J @ a[:, :, None])[:, :, 0])

    def along(self, paths: Paths) -> Array:
        """See `Jacobian`."""
        return self.parts[paths]


@dataclass(frozen=True, eq=False)
class FactoredJacobian:
    """J = E + Σ Δ W V (see `bpcli.runtime.local_plan`) of captured cotangents; `matrices` are those of the products.

    New states were seeded with `unit`, other roots with 1.
    """

    captured: Captured
    N: int
    matrices: Mapping[int, Array]
    unit: float

    @cached_property
    def _paths(self) -> Array:
        """Elementwise paths from the states before to the new states, and to the vectors of products."""
        return self.captured.states("elementwise")

    def along(self, paths: Paths) -> Array:
        """See `Jacobian`."""
        found = self._paths if paths == "elementwise" else self.captured.states(paths)
        return found[:, : self.N]

    @cached_property
    def _terms(self) -> list[tuple[Array, Array, Array]]:
        """Δ, W and V of each product."""
        plan, found = self.captured.plan, list[tuple[Array, Array, Array]]()
        for first in plan.firsts or ():
            start = plan.probes["elementwise"].start(first.vector)
            V = self._paths[:, start : start + plan.graph.nodes[first.vector].size]
            V = V / self.unit if first.vector in plan.graph.new.values() else V
            W = self.matrices[first.matrix]
            found.append((self.captured.dense("deltas", first.delta), W.T if first.turned else W, V))
        return found

    def dense(self) -> Array:
        """See `Jacobian`."""
        J = self.along("elementwise").copy()
        for delta, W, V in self._terms:
            J += delta @ W @ V
        return J

    def times(self, a: Array) -> Array:
        """See `Jacobian`."""
        a = a[:, :, None]
        found = self.along("elementwise") @ a
        for delta, W, V in self._terms:
            found += delta @ (W @ (V @ a))
        return np.asarray(found[:, :, 0])
