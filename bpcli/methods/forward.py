"""Forward gradients (Baydin et al., 2022): derivatives along k random directions, without any reverse pass.

Of random signs v, one for each entry of all tensors, the tangent of the loss is taken forwards,

    g̃ = (1 / k) Σ_j (∇L · v_j) v_j,                                                              (1)

whose mean is ∇L, as E v vᵀ = 1. With k = 1 and P entries E ‖g̃ − ∇L‖² = (P − 1) ‖∇L‖², for other k a k-th of it. ∇L · v
is the imaginary part of one forward pass in complex arithmetic: no more is held than for a loss, and k directions take
the time of some 4 k forward passes. The definition of a draw is (1) of the gradient by the dense recursion of RTRL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.methods._online import drawing
from bpcli.methods._random import signs
from bpcli.methods.base import Cost, Exact, Expectation, Gradient, Recursion
from bpcli.methods.rtrl_dense import DenseRTRL
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.evaluation import loss_along, loss_along_bytes
from bpcli.tape.plan import phase_flops

_RULE = DenseRTRL()
_COMPLEX = 4
"""Operations of complex arithmetic for each of real arithmetic."""


@dataclass(frozen=True)
class Directions:
    """The mean over `k` >= 1 directions."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")


def directions(setup: Setup, options: Directions, rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """k directions by the names of tensors, zero where a density leaves entries out."""
    for _ in range(options.k):
        found = dict[str, Array]()
        for x in setup.wrt:
            v = np.zeros(int(np.prod(x.shape)))
            v[slice(None) if x.pattern is None else x.pattern] = signs(rng, (x.entries,))
            found[x.name] = v.reshape(x.shape)
        yield found


def along_directions(
    setup: Setup, options: Directions, arrays: Mapping[str, Array], rng: np.random.Generator
) -> dict[str, Array]:
    """Equation (1) of a gradient that is known."""
    slopes = (
        (v, sum(float(np.vdot(arrays[name].astype(np.float64), own)) for name, own in v.items()))
        for v in directions(setup, options, rng)
    )
    return _mean(setup, options, slopes)


def _mean(setup: Setup, options: Directions, slopes: Iterator[tuple[dict[str, Array], float]]) -> dict[str, Array]:
    """Equation (1), given the slope along each direction."""
    total = {x.name: np.zeros(x.shape) for x in setup.wrt}
    for v, slope in slopes:
        for name, own in v.items():
            total[name] += slope / options.k * own
    return {name: values.astype(setup.dtype) for name, values in total.items()}


class Forward:
    """Directional derivatives by forward passes in complex arithmetic."""

    name: ClassVar[str] = "forward"
    summary: ClassVar[str] = "derivatives along k random directions by forward passes alone: unbiased"
    tags: ClassVar[frozenset[str]] = frozenset({"random", "recurrent", "unbiased"})
    Options: ClassVar[type[Directions]] = Directions

    def refusal(self, graph: Graph) -> str | None:
        """A draw is defined by the steps of a recurrence."""
        return None if graph.recurrent else "there are no steps to take a tangent through; `backprop` applies"

    def definition(self, setup: Setup, options: Directions) -> Expectation:
        """The total derivative in the mean; given the directions, (1)."""
        return Expectation(Exact(), Recursion(setup, _RULE, options, self.name, along_directions))

    def cost(self, setup: Setup, options: Directions) -> Cost:
        """k forward passes in complex arithmetic."""
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        results = 3 * sum(int(np.prod(x.shape)) for x in setup.wrt)
        flops = options.k * (_COMPLEX * setup.T * setup.batch * once + 2 * results)
        return Cost(flops, loss_along_bytes(setup) + 8 * results, options.k * setup.T)

    def gradient(self, problem: Problem, options: Directions) -> Gradient:
        """A forward pass along each direction."""
        setup, losses = problem.setup, list[float]()

        def taken() -> Iterator[tuple[dict[str, Array], float]]:
            for v in directions(setup, options, drawing(setup, self.name)):
                loss, slope = loss_along(problem, v)
                losses.append(loss)
                yield v, slope

        arrays = _mean(setup, options, taken())
        return Gradient(losses[0], arrays)


PER_STEP = ("4 k F", "2 V")
METHOD = Forward()
