"""Peers as references: the gradient of another program, in float64, with a bound on its rounding.

An oracle shares no code with the methods that it judges but the reader of the spec. Its bound is the rounding that any
correct reverse pass may show. As it is a derivative rule too, what it rejects is wrong only where differences reject it
as well: at a kink either may choose.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast as typed

import numpy as np

from bpcli import backends
from bpcli.methods import exact_method
from bpcli.methods.base import Definition, Exact
from bpcli.problem.definition import Problem, Setup, Tensor, cast
from bpcli.references.base import Estimate, FloatArray, Reference
from bpcli.references.numerics.probe import Directions, dot, norms
from bpcli.references.numerics.rounding import rounding, rounding_flops
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime.reverse_mode import Window, unrolled

_DOUBLE = np.dtype(np.float64)
_HELD = 4
"""Numbers that an autograd holds for each of ours: every node's value and cotangent, and copies of some."""


@dataclass(frozen=True)
class Outside:
    """A peer as a reference. It differentiates the whole loss and knows no truncation."""

    name: str
    summary: str

    def estimate(
        self,
        problem: Problem,
        windows: Sequence[Window],
        tensors: Sequence[Tensor],
        executor: Executor | None = None,
    ) -> Mapping[str, Estimate]:
        """See `Reference`."""
        values, bounds = _gradient(self.name, problem), rounding(problem, tuple(windows), _DOUBLE).gradient
        return {t.name: _known(values[t.name], bounds[t.name]) for t in tensors}

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`. Rounding errors of entries are independent of each other and of the directions."""
        values, bounds = _gradient(self.name, problem), rounding(problem, tuple(windows), _DOUBLE).gradient
        ends = ((t.name, rows) for t, rows in directions.items())
        return {n: _known(dot(rows, values[n]), norms(rows, bounds[n])) for n, rows in ends}

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        return unrolled(setup, tuple(windows)).flops + rounding_flops(setup, tuple(windows))

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`: directions cost nothing beside the gradient."""
        return self.cost(setup, windows)

    def bytes(self, setup: Setup) -> int:
        """A guess at the memory that the other program holds."""
        entries = unrolled(setup, Exact().over(setup)).bytes // setup.dtype.itemsize
        return _HELD * _DOUBLE.itemsize * entries


@functools.lru_cache(maxsize=2)
def _gradient(name: str, problem: Problem) -> Mapping[str, FloatArray]:
    """The gradient in float64, by tensor; computed once for all questions about a problem."""
    method = exact_method(problem.setup.graph)
    found = backends.get(name).gradient_function(cast(problem, _DOUBLE), method)()
    return {tensor: np.asarray(a, dtype=np.float64) for tensor, a in found.arrays.items()}


def known() -> tuple[str, ...]:
    """The names of the peers, whether they are installed or not."""
    return backends.known_names()


def describe(name: str) -> str:
    """One line about an oracle, which need not be installed."""
    return f"the gradient by {name}, in float64, with its rounding as the bound (extra `peers`)"


def refusal(name: str, setup: Setup, definition: Definition) -> str | None:
    """Why the oracle called `name` can't judge by a definition; None when it can."""
    if definition == Exact():
        return backends.get(name).refusal(setup, exact_method(setup.graph))
    return f"the reference {name} differentiates the whole loss, not parts of it"


def get(name: str) -> Reference:
    """The oracle called `name`; BpError where its program is not installed."""
    backends.get(name)
    # The protocol has class variables where this has fields.
    return typed("Reference", Outside(name, describe(name)))


def _known(value: FloatArray, bound: FloatArray) -> Estimate:
    """An estimate; where its value or bound is not finite, the bound is infinite."""
    finite = np.isfinite(value) & np.isfinite(bound)
    none = np.zeros(value.shape)
    return Estimate(np.where(finite, value, 0.0), np.where(finite, bound, np.inf), none, none)
