"""Complex-step derivatives Im f(x + ih) / h, without cancellation error (Squire & Trapp, SIAM Review 40, 1998).

The kernels treat imaginary parts as tangents and drop their products, which is the limit h → 0: there is no truncation
error, not even where derivatives vanish, and h need not be small beside the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import (
    ChainPlan,
    Estimate,
    chain_plan,
    copy_count,
    empty_estimate,
    finite_estimate,
    forward_flops,
)
from bpcli.references.numerics.chain_rule import Chain
from bpcli.references.numerics.derivatives import COMPARED
from bpcli.references.numerics.differences import slopes
from bpcli.references.numerics.probe import Along, Directions, FloatArray, Indices, Probe, norms, probe
from bpcli.references.numerics.rounding import rounding, rounding_flops
from bpcli.references.perturbation import ALONG, STEP
from bpcli.references.perturbation.kinks import find_kinks
from bpcli.references.perturbation.perturbed import Executor, Perturbation, Perturbed
from bpcli.references.perturbation.tangent import has_tangent
from bpcli.runtime.reverse_mode import Window

# Absolute error from underflow of imaginary parts.
_UNDERFLOW = 1e3 * float(np.finfo(np.float64).smallest_subnormal)
# If all gradients are below this size, underflow leaves nothing of imaginary parts.
_LOST = 10 * _UNDERFLOW
# Below this size of a derivative, intermediate tangents may have underflowed; the step is then raised.
_FAINT, _RAISED = 1e-100, 2.0**600
_COPIES_AT_ONCE = 4096
# A complex product is four real products and two sums.
_COMPLEX_FLOPS = 4


@dataclass(frozen=True)
class ComplexStep:
    """Exact to rounding; shares the forward rules with the methods that it judges.

    Operations with a kink follow the branch of the real part. Entries that move an argument which is at its kink,
    within rounding, have no derivative: their bound is infinite.
    """

    name: ClassVar[str] = "complex-step"
    summary: ClassVar[str] = "imaginary perturbations: exact to rounding, except at a kink"

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def estimate(
        self,
        problem: Problem,
        windows: Sequence[Window],
        tensors: Sequence[Tensor],
        executor: Executor | None = None,
    ) -> Mapping[str, Estimate]:
        """See `Reference`. The bound is the rounding error of this gradient in float64."""
        perturbed = Perturbed(problem, windows, np.dtype(np.complex128), find_kinks(problem), executor)
        bounds = _bounds(problem, windows)
        ready = Chain(problem, perturbed, tensors, 1, 1).imaginary()
        probes = {tensor.name: probe(problem, tensor) for tensor in tensors}
        lacking = _lacking(perturbed, [t for t in tensors if t.name in ready], probes, ready, bounds)
        estimates = {}
        for tensor in tensors:
            around = probes[tensor.name]
            if not len(around.entries):
                estimates[tensor.name] = empty_estimate(tensor.shape)
                continue
            if tensor.name in ready:
                found, rows = ready[tensor.name].reshape(-1)[around.places], lacking[tensor.name]
                if len(rows):
                    found[rows] = _derivatives(perturbed, tensor, around.rows(rows))
            else:
                found = _derivatives(perturbed, tensor, around)
            _raise(perturbed, tensor, around, found, bounds[tensor.name])
            estimates[tensor.name] = _known(around.scatter(found, tensor.shape), bounds[tensor.name])
        return estimates

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def along(self, problem: Problem, windows: Sequence[Window], directions: Directions) -> Mapping[str, Estimate]:
        """See `Reference`. Assumes that rounding errors of entries are independent of each other and of directions."""
        perturbed = Perturbed(problem, windows, np.dtype(np.complex128), find_kinks(problem))
        bounds = _bounds(problem, windows)
        estimates = {}
        for tensor, rows in directions.items():
            losses = Along(perturbed, tensor, rows).losses(np.arange(len(rows)), np.full(len(rows), STEP * 1j))
            bound = norms(rows, bounds[tensor.name])
            estimates[tensor.name] = _known(losses.imag.sum(axis=1) / STEP, bound, _UNDERFLOW / ALONG)
        return estimates

    def cost(self, setup: Setup, windows: Sequence[Window]) -> float:
        """See `Reference`."""
        chain = self.chain_plan(setup, windows)
        own = copy_count(chain.rest) + COMPARED * len(chain.tensors)
        each = 1 if has_tangent(setup.graph, chain.zs) else _COMPLEX_FLOPS
        evaluations = _COMPLEX_FLOPS * own * forward_flops(setup, windows)
        return evaluations + each * chain.flops + rounding_flops(setup, tuple(windows))

    def chain_plan(self, setup: Setup, windows: Sequence[Window]) -> ChainPlan:
        """Plan of the chain rule over steps."""
        return chain_plan(setup, windows, 1, 1)

    def cost_along(self, setup: Setup, windows: Sequence[Window], count: int) -> float:
        """See `Reference`."""
        evaluations = _COMPLEX_FLOPS * count * len(setup.wrt) * forward_flops(setup, windows)
        return evaluations + rounding_flops(setup, tuple(windows))


def _bounds(problem: Problem, windows: Sequence[Window]) -> Mapping[str, FloatArray]:
    """Rounding bounds in float64 by tensor; infinite if all gradients are too small for imaginary parts."""
    known = rounding(problem, tuple(windows), np.dtype(np.float64))
    if not known.scale < _LOST:
        return known.gradient
    return {name: np.where(bound > 0, np.inf, bound) for name, bound in known.gradient.items()}


def _known(value: FloatArray, bound: FloatArray, underflow: float = _UNDERFLOW) -> Estimate:
    """The estimate; unknown where value or bound are not finite. Nonzero bounds include underflow."""
    return finite_estimate(value, np.where(bound > 0, bound + underflow, bound))


def _lacking(
    perturbed: Perturbed,
    tensors: Sequence[Tensor],
    probes: Mapping[str, Probe],
    ready: Mapping[str, FloatArray],
    bounds: Mapping[str, FloatArray],
) -> dict[str, Indices]:
    """By tensor, the entries that need a step of their own: those whose `ready` derivative is not finite, and all if a
    spot check of a few entries, batched over tensors, disagrees."""
    few = {t.name: probes[t.name].choose(COMPARED, zlib.crc32(t.name.encode())) for t in tensors}
    changes = [_change(tensor, probes[tensor.name].rows(few[tensor.name])) for tensor in tensors]
    lacking = {}
    for tensor, (losses, _) in zip(tensors, perturbed.evaluate(changes) if changes else [], strict=True):
        around, rows = probes[tensor.name], few[tensor.name]
        own, found = slopes(losses, around), ready[tensor.name].reshape(-1)[around.places]
        room = 2 * (bounds[tensor.name].reshape(-1)[around.places[rows]] + _UNDERFLOW)
        with np.errstate(all="ignore"):
            apart = np.isfinite(found[rows]) & np.isfinite(room) & ~(np.abs(found[rows] - own) <= room)
        lacking[tensor.name] = np.flatnonzero(apart.any() | ~np.isfinite(found[:, 0]))
    return lacking


def _raise(perturbed: Perturbed, tensor: Tensor, around: Probe, found: FloatArray, bound: FloatArray) -> None:
    """Repeat derivatives `found (K, S)` that may have underflowed with a huge step, in place."""
    faint = (np.abs(found) < _FAINT) & (bound.reshape(-1)[around.places] > 0)
    rows = np.flatnonzero(faint.any(axis=1))
    if len(rows):
        raised = _derivatives(perturbed, tensor, around.rows(rows), _RAISED) / _RAISED
        found[rows] = np.where(faint[rows] & np.isfinite(raised), raised, found[rows])


def _derivatives(perturbed: Perturbed, tensor: Tensor, around: Probe, step: float = STEP) -> FloatArray:
    """`(K, S)`: the imaginary part of the loss after an imaginary `step` of each entry."""
    found = []
    for start in range(0, len(around.entries), _COPIES_AT_ONCE):
        rows = np.arange(start, min(start + _COPIES_AT_ONCE, len(around.entries)))
        change = _change(tensor, around.rows(rows), step)
        found.append(slopes(perturbed.evaluate([change])[0][0], around))
    return np.concatenate(found)


def _change(tensor: Tensor, around: Probe, step: float = STEP) -> Perturbation:
    return Perturbation(tensor, around.entries, np.full(len(around.entries), step * 1j))


REFERENCE = ComplexStep()
