"""Whether values on the way to a gradient leave the range of its dtype."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bpcli.problem.definition import Array, Problem, cast
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.numerics.rounding import from_little, of_leaves
from bpcli.references.perturbation import ALONG
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.local_derivatives import influence_layout, local_derivatives
from bpcli.runtime.reverse_mode import Window, unrolled

# Operations up to which influences are computed, step by step.
_DENSE = 1e8
# Allowance for cancellation in the sum of all influences.
_MANY = 1e6


def overflows(problem: Problem, windows: tuple[Window, ...]) -> bool:
    """Whether a forward value, a cotangent of a leaf or state, or an influence on a state leaves the dtype's range.

    Correct rules may then give NaN or infinity, depending on the order in which they multiply by zero.
    """
    every = of_leaves(problem, problem.inputs)
    with np.errstate(all="ignore"):
        low = from_little(every, windows, every.setup.dtype)
        here = unrolled(every.setup, windows).gradient(every)[1]
        found = (*low.values(), *here.values(), *_influences(problem), *_by_steps(problem))
        return not all(bool(np.isfinite(a).all()) for a in found)


def _by_steps(problem: Problem) -> Iterable[Array]:
    """q and J of every step: the slope of sqrt at 0 is infinite, also where nothing that is differentiated moves it.

    And the influences, where they are few: those of a chaotic network depend on the dtype.
    """
    setup = problem.setup
    if not setup.graph.recurrent:
        return
    layout = influence_layout(setup)
    few = setup.T * setup.batch * layout.N * layout.N * layout.P <= _DENSE
    M = layout.initial(setup.batch, setup.dtype) if few else np.zeros(0)
    for local in local_derivatives(problem):
        yield from (local.q, local.q_before, local.J)
        if few:
            yield (M := local.J @ M + local.Mbar)


def _influences(problem: Problem) -> list[FloatArray]:
    """Joint influence of all leaves on the states at every step: infinite where it exceeds the dtype, else 0."""
    generator, setup = np.random.default_rng(0), problem.setup
    wide = cast(problem, np.dtype(np.complex128))
    moved = (
        {n: a + ALONG * 1j * generator.uniform(0.5, 1.5, a.shape) for n, a in group.items()} for group in wide.arrays
    )
    states = sorted(setup.graph.new.values())
    found = node_values(Problem(wide.setup, *moved), states) if states else {}
    most = float(np.finfo(setup.dtype).max) / _MANY
    return [np.where(np.abs(a.imag) / ALONG <= most, 0.0, np.inf) for a in found.values()]
