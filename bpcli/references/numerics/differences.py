"""Differences of whole tensors: entry by entry, or along directions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Tensor
from bpcli.references.base import Estimate, nothing
from bpcli.references.numerics.chain_rule import Chain, Ready
from bpcli.references.numerics.derivatives import COMPARED, SIGNED, Comparison, Derivatives
from bpcli.references.numerics.kink_ranges import Choices, put_ranges
from bpcli.references.numerics.probe import (
    NOISE_ROWS,
    Along,
    Directions,
    FloatArray,
    Indices,
    Probe,
    Sampler,
    points_along,
    probe,
)
from bpcli.references.perturbation.executor import Executor
from bpcli.references.perturbation.kink_slopes import slopes_of
from bpcli.references.perturbation.kinks import FREE, find_kinks
from bpcli.references.perturbation.perturbed import UNCHANGED, Change, Perturbed
from bpcli.references.perturbation.tangent import STEP
from bpcli.runtime.reverse_mode import Window

Differentiate = Callable[[Sampler], Derivatives]
Followed = Callable[[Indices, NDArray[Any]], tuple[NDArray[Any], FloatArray]]


@dataclass(frozen=True)
class Quick:
    """How quick differences are taken: entries whose bound is not within `target`, relative to the entry or to 1e-6 of
    the largest one, are shifted themselves, which takes `entry` evaluations; steps are a power of two times
    `offset`."""

    target: float
    offset: float
    entry: float


class Around:
    """The loss around the values of a problem, which side of its kinks they are on, and where that can't be told."""

    def __init__(self, problem: Problem, windows: Sequence[Window], executor: Executor | None = None) -> None:
        kinks = find_kinks(problem)
        self.problem, self.windows = problem, windows
        self.real = Perturbed(problem, windows, np.dtype(np.float64), kinks, executor)
        complex_ = np.dtype(np.complex128)
        self.imaginary = Perturbed(problem, windows, complex_, kinks, executor) if kinks.any else None
        slopes = slopes_of(problem)
        self.choices = Choices(slopes, windows) if slopes is not None else None

    @cached_property
    def base(self) -> FloatArray:
        """The losses (batch,) with nothing shifted."""
        return np.asarray(self.real.here()[0], dtype=np.float64)

    def several(self, changes: Sequence[Change]) -> list[FloatArray]:
        """The losses (shifts, batch) of each of `changes`, and `base` beside them."""
        *found, unchanged = self.real.several([*changes, UNCHANGED])
        self.base = np.asarray(unchanged[0][0])
        return [losses for losses, _ in found]

    def entries(self, tensor: Tensor, around: Probe) -> Sampler:
        """A tensor's values shifted one at a time."""
        followed = partial(self.imaginary.followed, tensor) if self.imaginary else None
        kinks = _distances(around, followed)
        return Sampler(partial(self.real.losses, tensor), around, self.base, kinks=kinks)

    def along(self, tensor: Tensor, rows: FloatArray) -> Sampler:
        """All of a tensor's values moved along directions."""
        around = points_along(np.asarray(self.problem.array(tensor), dtype=np.float64), rows)
        followed = Along(self.imaginary, tensor, rows).followed if self.imaginary else None
        losses, kinks = Along(self.real, tensor, rows).losses, _distances(around, followed)
        return Sampler(losses, around, self.base, noise_rows=NOISE_ROWS, kinks=kinks)


def slopes(losses: NDArray[Any], around: Probe) -> FloatArray:
    """`(K, S)` from losses (K, batch) after imaginary steps."""
    derivatives = losses.imag / STEP
    return np.asarray(derivatives.sum(axis=1, keepdims=True) if around.summed else derivatives)


def _distances(around: Probe, followed: Followed | None) -> FloatArray:
    """`(K, S)`: how far the kinks are that rounding does not tell from the point, by the speed of their arguments."""
    if followed is None:
        return np.full(around.places.shape, FREE)
    met = followed(around.entries, np.full(len(around.entries), STEP * 1j))[1]
    met = np.where(met > FREE, met * STEP, FREE)
    return met.max(axis=1, keepdims=True) if around.summed else met


@np.errstate(all="ignore")  # what is not finite is for the check to tell
def sweep(
    losses: Around,
    tensors: Sequence[Tensor],
    differentiate: Differentiate,
    sample: int | None = None,
    quick: Quick | None = None,
) -> Mapping[str, Estimate]:
    """Every entry of `tensors`, or at most `sample` of each: the bound of the others is infinite.

    With `quick` derivatives are taken by the chain rule over steps where that is cheaper, for a graph without kinks.
    """
    problem = losses.problem
    ready: Mapping[str, Ready] = {}
    if quick is not None:
        ready = Chain(problem, losses.real, tensors, len(SIGNED), quick.entry).real(quick.offset, quick.target)
    probes = {tensor.name: probe(problem, tensor) for tensor in tensors}
    found = _known(losses, tensors, probes, ready, quick) if quick is not None else {}
    estimates = {}
    for tensor in tensors:
        around = probes[tensor.name]
        if not len(around.entries):
            estimates[tensor.name] = nothing(tensor.shape)
            continue
        if sample is not None:
            around = around.sample(sample, zlib.crc32(tensor.name.encode()))
        known, rows = found.get(tensor.name, (None, np.zeros(0, np.int64)))
        beyond = np.zeros(around.places.shape)
        if known is None:
            sampler = losses.entries(tensor, around)
            known = differentiate(sampler)
            if losses.choices is not None:
                beyond = put_ranges(known, sampler.kinks, partial(losses.choices.entries, tensor, around))
        elif len(rows):
            known.put(rows, differentiate(losses.entries(tensor, around.rows(rows))))
        unknown = 0.0 if sample is None else np.inf
        estimates[tensor.name] = Estimate(
            around.scatter(known.value, tensor.shape),
            around.scatter(known.bound, tensor.shape, unknown),
            around.scatter(known.noise, tensor.shape),
            around.scatter(known.kink, tensor.shape),
            around.scatter(beyond, tensor.shape),
        )
    return estimates


def _known(
    losses: Around, tensors: Sequence[Tensor], probes: Mapping[str, Probe], ready: Mapping[str, Ready], quick: Quick
) -> dict[str, tuple[Derivatives, Indices]]:
    """By tensor, what is `ready`, and the rows that it lacks: all of them where a few do not agree with shifts of their
    own, which are taken of all tensors side by side."""
    found, compared = dict[str, tuple[Derivatives, Indices]](), dict[str, tuple[Comparison, Change]]()
    for tensor in tensors:
        around = probes[tensor.name]
        if tensor.name not in ready or not len(around.entries):
            continue
        known = Derivatives(*(part.reshape(-1)[around.places] for part in ready[tensor.name].found.parts))
        found[tensor.name] = known, np.flatnonzero(known.lacks(quick.target)[:, 0])
        few = around.some(COMPARED, zlib.crc32(tensor.name.encode()))
        comparison = Comparison(around.rows(few), known.rows(few), ready[tensor.name].noise)
        compared[tensor.name] = comparison, Change(tensor, comparison.entries, comparison.deltas)
    shifted = losses.several([change for _, change in compared.values()]) if compared else []
    for (name, (comparison, _)), values in zip(compared.items(), shifted, strict=True):
        if not comparison.agrees(values, losses.base):
            found[name] = found[name][0], np.arange(len(probes[name].entries))
    return found


@np.errstate(all="ignore")  # what is not finite is for the check to tell
def sweep_along(
    problem: Problem, windows: Sequence[Window], directions: Directions, differentiate: Differentiate
) -> Mapping[str, Estimate]:
    """By tensor, `(K,)` derivatives along its directions."""
    losses = Around(problem, windows)
    estimates = {}
    for tensor, rows in directions.items():
        sampler = losses.along(tensor, rows)
        found = differentiate(sampler)
        beyond = np.zeros(found.value.shape)
        if losses.choices is not None:
            beyond = put_ranges(found, sampler.kinks, partial(losses.choices.along, tensor, rows))
        parts = (found.value, found.bound, found.noise, found.kink, beyond)
        estimates[tensor.name] = Estimate(*(part[:, 0] for part in parts))
    return estimates
