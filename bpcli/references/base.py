"""The protocol of a reference: estimates of derivatives with error bounds, and their predicted cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.numerics.probe import Directions
from bpcli.references.perturbation.perturbed import Executor
from bpcli.references.perturbation.preactivations import chain_parameters, differentiated_nodes, state_links, terms
from bpcli.runtime.copies import reach
from bpcli.runtime.reverse_mode import Window
from bpcli.tape.plan import node_flops

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of a gradient; all arrays have the gradient's shape.

    The true derivative is within `bound` of `value`; `noise` is the part of the bound due to rounding of the loss, the
    rest is truncation error. At a kink of the loss `value` is the mean of the one-sided derivatives `value ± kink`;
    elsewhere `kink` is 0. Where several kinks meet, programs that do not treat them alike may leave that interval by up
    to `beyond`. Where nothing is known, `value` is 0 and `bound` infinite; entries outside a sparsity pattern are 0.
    """

    value: FloatArray
    bound: FloatArray
    noise: FloatArray
    kink: FloatArray
    beyond: FloatArray = field(default_factory=lambda: np.zeros(()))


def empty_estimate(shape: tuple[int, ...]) -> Estimate:
    """The estimate of a tensor whose sparsity pattern is empty: all zeros."""
    return Estimate(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))


def finite_estimate(value: FloatArray, bound: FloatArray) -> Estimate:
    """An estimate without noise or kinks; unknown where value or bound are not finite."""
    finite, none = np.isfinite(value) & np.isfinite(bound), np.zeros(value.shape)
    return Estimate(np.where(finite, value, 0.0), np.where(finite, bound, np.inf), none, none)


class Reference(Protocol):
    """One file of `bpcli.references` holds one of these, as `REFERENCE`."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def estimate(
        self,
        problem: Problem,
        windows: Sequence[Window],
        tensors: Sequence[Tensor],
        executor: Executor | None = None,
    ) -> Mapping[str, Estimate]:
        """The gradient defined by `windows`, by tensor name, in float64 at the values of the problem.

        An `executor` that holds the same problem may compute the losses.
        """

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """Directional derivatives `(K,)` by tensor name, along `(K, size)` directions of whole tensors."""

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """Predicted floating-point operations for all of `setup.wrt`."""

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """Predicted floating-point operations of `count` directions for each of `setup.wrt`."""


def forward_flops(setup: Setup, windows: Sequence[Window]) -> float:
    """Floating-point operations of evaluating the losses of `windows` once, for the whole batch."""
    once, each_row = _flops(setup.graph)
    steps = sum(w.stop - w.start for w in windows)
    return once + each_row * steps * setup.batch


@lru_cache(maxsize=16)
def _flops(graph: Graph) -> tuple[float, float]:
    """Operations of the static nodes, and of the other nodes per row."""
    once = each_row = 0.0
    for node in graph.nodes:
        flops = node_flops(graph, node)
        if node.phase is Phase.STATIC:
            once += flops
        else:
            each_row += flops
    return once, each_row


def copy_count(setup: Setup, at_most: int | None = None) -> int:
    """Perturbed copies in a sweep over all entries, `at_most` so many per tensor; all samples share a copy."""
    total = 0
    for tensor in setup.wrt:
        shared = tensor.kind == "param" or tensor.name in setup.shared
        count = tensor.entries if shared else tensor.entries // setup.batch
        total += count if at_most is None else min(count, at_most)
    return total


@dataclass(frozen=True)
class ChainPlan:
    """Plan of the chain rule over steps: `tensors` to differentiate through the preactivations `zs`, the operations
    that takes, and the setup `rest` with the other tensors."""

    tensors: tuple[Tensor, ...]
    zs: tuple[int, ...]
    flops: float
    rest: Setup


def chain_plan(setup: Setup, windows: Sequence[Window], each: int, entry: int, columns: int = 1) -> ChainPlan:
    """Plan the chain rule for the tensors where it takes less work than perturbing their entries.

    `each` evaluations are needed per number of a step, `entry` per entry of a tensor; `columns` adjoints are carried
    from step to step.
    """
    chosen, zs, rest = _by_chain(setup, each, entry)
    nodes = differentiated_nodes(setup.graph, zs)
    sizes = [setup.graph.nodes[n].size for n in nodes]
    once = sum(size * reach(setup, frozenset({n}), True).flops for n, size in zip(nodes, sizes, strict=True))
    states = sum(setup.graph.nodes[n].size for n in setup.graph.previous.values())
    products = sum(
        setup.graph.nodes[link.matrix].size for some in state_links(setup.graph, zs).values() for link in some
    )
    worth = 2 * (each * sum(sizes) * states + products) * columns * sum(w.stop - w.start for w in windows)
    return ChainPlan(chosen, zs, setup.batch * (each * once * setup.T + worth), rest)


@lru_cache(maxsize=32)
def _by_chain(setup: Setup, each: int, entry: int) -> tuple[tuple[Tensor, ...], tuple[int, ...], Setup]:
    """Tensors, preactivations, and the setup without these tensors; cached, since plans are cached by setup."""
    chosen, every = tuple(chain_parameters(setup, setup.wrt, each, entry)), terms(setup.graph)
    zs = tuple(sorted({term.z for tensor in chosen for term in every[tensor.name]}))
    return chosen, zs, replace(setup, wrt=tuple(t for t in setup.wrt if t not in chosen))
