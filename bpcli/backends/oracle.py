"""An oracle from outside: the gradient that another program computes, in float64, as a reference like any other.

It shares no code with the methods that it judges beyond the reading of the spec. Its bound is the rounding that any
correct reverse pass may show in float64. As it is a derivative rule too, what it rejects is wrong only where
differences reject it as well: at a kink both have their choice.
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
from bpcli.references.perturbation.executor import Executor
from bpcli.runtime.reverse_mode import Window, unrolled

_DOUBLE = np.dtype(np.float64)
# An autograd holds every node's value and cotangent, and copies of some.
_HELD = 4


@dataclass(frozen=True)
class Outside:
    """A peer as a reference. It differentiates the whole loss: what truncation means, it does not know."""

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
        bounds = rounding(problem, tuple(windows), _DOUBLE).gradient
        values = _gradient(self.name, problem)
        return {t.name: _known(values[t.name], bounds[t.name]) for t in tensors}

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`. Rounding errors of entries are independent of each other and of the directions."""
        bounds = rounding(problem, tuple(windows), _DOUBLE).gradient
        values = _gradient(self.name, problem)
        return {
            t.name: _known(dot(rows, values[t.name]), norms(rows, bounds[t.name])) for t, rows in directions.items()
        }

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        return unrolled(setup, tuple(windows)).flops + rounding_flops(setup, tuple(windows))

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`: directions cost nothing beside the gradient."""
        return self.cost(setup, windows)

    def bytes(self, setup: Setup) -> int:
        """What the other program may hold, at a guess."""
        entries = unrolled(setup, Exact().over(setup)).bytes // setup.dtype.itemsize
        return _HELD * _DOUBLE.itemsize * entries


@functools.lru_cache(maxsize=2)
def _gradient(name: str, problem: Problem) -> Mapping[str, FloatArray]:
    """The whole gradient in float64, by tensor; computed once for all that is asked about a problem."""
    method = exact_method(problem.setup.graph)
    found = backends.get(name).gradient_function(cast(problem, _DOUBLE), method)()
    return {tensor: np.asarray(a, dtype=np.float64) for tensor, a in found.arrays.items()}


def known() -> tuple[str, ...]:
    """The names of the peers, whether they are installed or not."""
    return backends.known_names()


def describe(name: str) -> str:
    """What there is to say about an oracle that need not be installed."""
    return f"the gradient by {name}, in float64, with its rounding as the bound (extra `peers`)"


def refusal(name: str, definition: Definition) -> str | None:
    """Why the oracle called `name` can't judge by a definition; None when it can."""
    if definition == Exact():
        return None
    return f"the reference {name} differentiates the whole loss, not parts of it"


def get(name: str) -> Reference:
    """The oracle called `name`; BpError where its program is not installed."""
    backends.get(name)
    # The protocol has class variables where this has fields.
    return typed("Reference", Outside(name, describe(name)))


def _known(value: FloatArray, bound: FloatArray) -> Estimate:
    """Nothing is known where value or bound are not finite."""
    finite = np.isfinite(value) & np.isfinite(bound)
    none = np.zeros(value.shape)
    return Estimate(np.where(finite, value, 0.0), np.where(finite, bound, np.inf), none, none)
