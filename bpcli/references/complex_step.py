"""The complex step: Im f(x + ih) / h, without cancellation or truncation (Squire & Trapp, SIAM Review 40, 1998)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bpcli.methods.base import Window
from bpcli.problem.kinks import find_kinks
from bpcli.problem.model import Problem, Setup, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.problem.tangent_graph import possible
from bpcli.references.base import Estimate, copies, forward_flops, nothing, through_preactivations
from bpcli.references.numerics.directions import Along, Directions, norms
from bpcli.references.numerics.impulses import COMPARED, Impulses
from bpcli.references.numerics.probe import FloatArray, Probe, probe
from bpcli.references.numerics.rounding import rounding, rounding_flops

STEP = 1e-40
# Products of imaginary parts may underflow, now and then.
_UNDERFLOW = 1e3 * float(np.finfo(np.float64).smallest_subnormal) / STEP
_COPIES_AT_ONCE = 4096
# A complex product is four real products and two sums.
_COMPLEX_FLOPS = 4


@dataclass(frozen=True)
class ComplexStep:
    """Good to rounding; it shares the forward pass with the methods that it judges.

    Operations with a kink follow the branch of the real part. What moves an argument that is at the kink, as far as
    rounding can tell, has no derivative: its bound is infinite.
    """

    name: ClassVar[str] = "complex-step"
    summary: ClassVar[str] = "imaginary perturbations: exact to rounding, except at a kink"

    def estimate(
        self, problem: Problem, windows: Sequence[Window], tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        """See `Reference`. The bound is the rounding that such a gradient shows in float64."""
        perturbed = Perturbed(problem, windows, np.dtype(np.complex128), find_kinks(problem))
        bounds = rounding(problem, tuple(windows), np.dtype(np.float64)).gradient
        ready = Impulses(problem, perturbed, tensors, 1.0).imaginary()
        estimates = {}
        for tensor in tensors:
            around = probe(problem, tensor)
            if not len(around.entries):
                estimates[tensor.name] = nothing(tensor.shape)
                continue
            bound = bounds[tensor.name]
            if tensor.name in ready:
                found = _completed(perturbed, tensor, around, ready[tensor.name], bound)
            else:
                found = _derivatives(perturbed, tensor, around)
            estimates[tensor.name] = _known(around.scatter(found, tensor.shape), bound)
        return estimates

    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`. Rounding errors of entries are independent of each other and of the directions."""
        perturbed = Perturbed(problem, windows, np.dtype(np.complex128), find_kinks(problem))
        bounds = rounding(problem, tuple(windows), np.dtype(np.float64)).gradient
        estimates = {}
        for tensor, rows in directions.items():
            losses = Along(perturbed, tensor, rows).losses(np.arange(len(rows)), np.full(len(rows), STEP * 1j))
            estimates[tensor.name] = _known(losses.imag.sum(axis=1) / STEP, norms(rows, bounds[tensor.name]))
        return estimates

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        through = through_preactivations(setup, windows, 1.0)
        own = copies(through.rest) + COMPARED * len(through.tensors)
        each = 1 if possible(setup.graph, through.zs) else _COMPLEX_FLOPS
        evaluations = _COMPLEX_FLOPS * own + each * through.evaluations
        return evaluations * forward_flops(setup, windows) + rounding_flops(setup, tuple(windows))

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        evaluations = _COMPLEX_FLOPS * count * len(setup.wrt) * forward_flops(setup, windows)
        return evaluations + rounding_flops(setup, tuple(windows))


def _known(value: FloatArray, bound: FloatArray) -> Estimate:
    """Nothing is known where value or bound are not finite, nor of derivatives too small for imaginary parts."""
    finite = np.isfinite(value) & np.isfinite(bound)
    bound = np.where(bound > 0, bound + _UNDERFLOW, bound)
    none = np.zeros(value.shape)
    return Estimate(np.where(finite, value, 0.0), np.where(finite, bound, np.inf), none, none)


def _completed(perturbed: Perturbed, tensor: Tensor, around: Probe, ready: FloatArray, bound: FloatArray) -> FloatArray:
    """`(K, 1)`: what is `ready`, and what is not finite by its entries' own steps; all where a few do not agree."""
    found = ready.reshape(-1)[around.places]
    few = around.some(COMPARED, zlib.crc32(tensor.name.encode()))
    own = _derivatives(perturbed, tensor, around.rows(few))
    room = 2 * (bound.reshape(-1)[around.places[few]] + _UNDERFLOW)
    with np.errstate(all="ignore"):
        apart = np.isfinite(found[few]) & np.isfinite(room) & ~(np.abs(found[few] - own) <= room)
    lacking = np.flatnonzero(apart.any() | ~np.isfinite(found[:, 0]))
    if len(lacking):
        found[lacking] = _derivatives(perturbed, tensor, around.rows(lacking))
    return found


def _derivatives(perturbed: Perturbed, tensor: Tensor, around: Probe) -> FloatArray:
    """`(K, S)`: one evaluation an entry."""
    found = []
    for start in range(0, len(around.entries), _COPIES_AT_ONCE):
        entries = around.entries[start : start + _COPIES_AT_ONCE]
        losses = perturbed.losses(tensor, entries, np.full(len(entries), STEP * 1j))
        found.append(losses.imag / STEP)
    derivatives = np.concatenate(found)
    return derivatives.sum(axis=1, keepdims=True) if around.summed else derivatives


REFERENCE = ComplexStep()
