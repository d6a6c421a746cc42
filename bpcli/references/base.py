"""What an estimator of the truth promises: values with error bounds of their own."""

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
from bpcli.references.perturbation.executor import Executor
from bpcli.references.perturbation.preactivations import linked, step_by_step, terms, worthwhile
from bpcli.runtime.copies import reach
from bpcli.runtime.reverse_mode import Window
from bpcli.tape.plan import node_flops

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A gradient as a reference sees it; all arrays have the gradient's shape.

    The true derivative is within `bound` of `value`, and `noise` is the share of the bound that rounding of the loss
    causes (the rest is truncation). Where the loss has a kink at the very point, `value` is the mean of the one-sided
    derivatives, which are `value ± kink`; elsewhere `kink` is 0. Where many kinks meet, a program that treats them
    unlike each other may be `beyond` that interval by so much. Where nothing could be learnt, `value` is 0 and `bound`
    infinite; entries that a density leaves out hold zeros.
    """

    value: FloatArray
    bound: FloatArray
    noise: FloatArray
    kink: FloatArray
    beyond: FloatArray = field(default_factory=lambda: np.zeros(()))


def nothing(shape: tuple[int, ...]) -> Estimate:
    """The estimate of a tensor without entries: zeros all over, as a density of next to nothing leaves them."""
    return Estimate(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))


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
        """The derivatives of what `windows` define, by tensor name, in float64 at the problem's own values.

        Losses may be computed by an `executor` that holds the same problem.
        """

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """The same along directions `(K, size)` of whole tensors: `(K,)` derivatives by tensor name."""

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
    """Of the static nodes, and of the others for one row."""
    once = each_row = 0.0
    for node in graph.nodes:
        flops = node_flops(graph, node)
        if node.phase is Phase.STATIC:
            once += flops
        else:
            each_row += flops
    return once, each_row


def copies(setup: Setup, at_most: int | None = None) -> int:
    """How many perturbed copies one sweep over the entries takes, `at_most` so many a tensor; samples go together."""
    total = 0
    for tensor in setup.wrt:
        shared = tensor.kind == "param" or tensor.name in setup.shared
        count = tensor.entries if shared else tensor.entries // setup.batch
        total += count if at_most is None else min(count, at_most)
    return total


@dataclass(frozen=True)
class ByChain:
    """What is differentiated by the chain rule over steps: `tensors`, through `zs`, in `flops`; and the rest."""

    tensors: tuple[Tensor, ...]
    zs: tuple[int, ...]
    flops: float
    rest: Setup


def by_chain(setup: Setup, windows: Sequence[Window], each: int, entry: int, columns: int = 1) -> ByChain:
    """Where that is less work: a number of a step is changed `each` times, an entry of an array `entry` times.

    `columns` are carried from step to step.
    """
    chosen, zs, rest = _by_chain(setup, each, entry)
    nodes = step_by_step(setup.graph, zs)
    sizes = [setup.graph.nodes[n].size for n in nodes]
    once = sum(size * reach(setup, frozenset({n}), True).flops for n, size in zip(nodes, sizes, strict=True))
    states = sum(setup.graph.nodes[n].size for n in setup.graph.previous.values())
    products = sum(setup.graph.nodes[link.matrix].size for some in linked(setup.graph, zs).values() for link in some)
    worth = 2 * (each * sum(sizes) * states + products) * columns * sum(w.stop - w.start for w in windows)
    return ByChain(chosen, zs, setup.batch * (each * once * setup.T + worth), rest)


@lru_cache(maxsize=32)
def _by_chain(setup: Setup, each: int, entry: int) -> tuple[tuple[Tensor, ...], tuple[int, ...], Setup]:
    """Tensors, preactivations, and the setup without these tensors: kept, as what is planned for it is."""
    chosen, every = tuple(worthwhile(setup, setup.wrt, each, entry)), terms(setup.graph)
    zs = tuple(sorted({term.z for tensor in chosen for term in every[tensor.name]}))
    return chosen, zs, replace(setup, wrt=tuple(t for t in setup.wrt if t not in chosen))
