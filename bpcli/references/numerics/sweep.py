"""Differences of whole tensors: entry by entry, or along directions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bpcli.methods.base import Window
from bpcli.problem.model import Problem, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.references.base import Estimate, nothing
from bpcli.references.numerics.directions import Directions, sampler_along
from bpcli.references.numerics.ladder import Derivatives
from bpcli.references.numerics.probe import Probe, Sampler, probe

Differentiate = Callable[[Sampler], Derivatives]
_DOUBLE = np.dtype(np.float64)


def sweep(
    problem: Problem,
    windows: Sequence[Window],
    tensors: Sequence[Tensor],
    differentiate: Differentiate,
    sample: int | None = None,
) -> Mapping[str, Estimate]:
    """Every entry of `tensors`, or at most `sample` of each: the bound of the others is infinite."""
    perturbed = Perturbed(problem, windows, _DOUBLE)
    estimates = {}
    for tensor in tensors:
        around = probe(problem, tensor)
        if not len(around.entries):
            estimates[tensor.name] = nothing(tensor.shape)
            continue
        if sample is not None:
            around = around.sample(sample, zlib.crc32(tensor.name.encode()))
        found = differentiate(sampler_of(perturbed, tensor, around))
        unknown = 0.0 if sample is None else np.inf
        estimates[tensor.name] = Estimate(
            around.scatter(found.value, tensor.shape),
            around.scatter(found.bound, tensor.shape, unknown),
            around.scatter(found.noise, tensor.shape),
            around.scatter(found.kink, tensor.shape),
        )
    return estimates


def sampler_of(perturbed: Perturbed, tensor: Tensor, around: Probe) -> Sampler:
    """The loss around a tensor's values, shifted one at a time."""
    return Sampler.of(partial(perturbed.losses, tensor), around)


def sweep_along(
    problem: Problem, windows: Sequence[Window], directions: Directions, differentiate: Differentiate
) -> Mapping[str, Estimate]:
    """By tensor, `(K,)` derivatives along its directions."""
    perturbed = Perturbed(problem, windows, _DOUBLE)
    estimates = {}
    for tensor, rows in directions.items():
        found = differentiate(sampler_along(problem, perturbed, tensor, rows))
        parts = (found.value, found.bound, found.noise, found.kink)
        estimates[tensor.name] = Estimate(*(part[:, 0] for part in parts))
    return estimates
