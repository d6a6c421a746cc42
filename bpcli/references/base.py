"""What an estimator of the truth promises: values with error bounds of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.methods.base import Window
from bpcli.problem.model import Problem, Setup, Tensor
from bpcli.problem.preactivations import impulse_steps, terms, worthwhile
from bpcli.references.numerics.directions import Directions

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A gradient as a reference sees it; all arrays have the gradient's shape.

    The true derivative is within `bound` of `value`, and `noise` is the share of the bound that rounding of the loss
    causes (the rest is truncation). Where the loss has a kink at the very point, `value` is the mean of the one-sided
    derivatives, which are `value ± kink`; elsewhere `kink` is 0. Where nothing could be learnt, `value` is 0 and
    `bound` infinite; entries that a density leaves out hold zeros.
    """

    value: FloatArray
    bound: FloatArray
    noise: FloatArray
    kink: FloatArray


def nothing(shape: tuple[int, ...]) -> Estimate:
    """The estimate of a tensor without entries: zeros all over, as a density of next to nothing leaves them."""
    return Estimate(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))


class Reference(Protocol):
    """One file of `bpcli.references` holds one of these, as `REFERENCE`."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def estimate(
        self, problem: Problem, windows: Sequence[Window], tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        """The derivatives of what `windows` define, by tensor name, in float64 at the problem's own values."""

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """The same along directions `(K, size)` of whole tensors: `(K,)` derivatives by tensor name."""

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """Predicted floating-point operations for all of `setup.wrt`."""

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """Predicted floating-point operations of `count` directions for each of `setup.wrt`."""


def forward_flops(setup: Setup, windows: Sequence[Window]) -> float:
    """Floating-point operations of evaluating the losses of `windows` once, for the whole batch."""
    once = each_row = 0.0
    for node in setup.graph.nodes:
        if node.op not in OPERATIONS:
            continue
        flops = OPERATIONS[node.op].flops(tuple(setup.graph.nodes[a].shape for a in node.args), node.shape)
        if node.phase is Phase.STATIC:
            once += flops
        else:
            each_row += flops
    steps = sum(w.stop - w.start for w in windows)
    return once + each_row * steps * setup.batch


def copies(setup: Setup, at_most: int | None = None) -> int:
    """How many perturbed copies one sweep over the entries takes, `at_most` so many a tensor; samples go together."""
    total = 0
    for tensor in setup.wrt:
        shared = tensor.kind == "param" or tensor.name in setup.shared
        count = tensor.entries if shared else tensor.entries // setup.batch
        total += count if at_most is None else min(count, at_most)
    return total


@dataclass(frozen=True)
class Through:
    """What is differentiated with respect to preactivations `zs`: `tensors`, and the setup with the `rest`.

    To change every entry of the preactivations once takes as much as `evaluations` of the losses.
    """

    zs: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    evaluations: float
    rest: Setup


def through_preactivations(setup: Setup, windows: Sequence[Window], dearer: float) -> Through:
    """Where that is less work, one of them being evaluated `dearer` times as often as an entry."""
    chosen = tuple(worthwhile(setup, windows, setup.wrt, dearer))
    every = terms(setup.graph)
    zs = tuple(sorted({term.z for tensor in chosen for term in every[tensor.name]}))
    steps = sum(w.stop - w.start for w in windows)
    rest = replace(setup, wrt=tuple(t for t in setup.wrt if t not in chosen))
    return Through(zs, chosen, sum(impulse_steps(setup, windows, z) for z in zs) / steps, rest)
