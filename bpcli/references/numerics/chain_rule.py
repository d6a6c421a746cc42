"""Derivatives with respect to preactivations, by the chain rule over steps, put together to those of parameters.

A step is a function of the states before it; what differentiates a step, and says nothing of others, is a difference of
its states and losses. With J(t) = da(t)/da(t-1) and D(t) = da(t)/dz(t) from such differences

    λ(t-1) = dl(t)/da(t-1) + J(t)ᵀ λ(t),      dL/dz(t) = dl(t)/dz(t) + D(t)ᵀ λ(t)

and products are linear in their factors (see `perturbation.preactivations`): no more is known of the network. Where
products P a(t-1) alone read a state, λ(t-1) = Σ Pᵀ dL/dz(t) over these, and the state itself is not changed.
All steps are evaluated side by side, each number of each step once, where shifts of parameters take a pass through all
steps each. No rule of a derivative is asked. Whoever takes derivatives from here compares some of them with what shifts
of the parameters themselves say.

What is made of central differences with step h is an even function of h, just as they are: two steps give an
extrapolation, and what it is off by. Noise is not: samples of it go along, as sums of absolute values would grow as
products of |J|, without end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bpcli.problem.definition import Problem, Tensor, cast
from bpcli.references.numerics.derivatives import SIGNED, Derivatives, where_finite
from bpcli.references.numerics.noise import SAMPLES, Noise
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation.one_step import Shifts, Steps
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.preactivations import (
    assemble,
    lasting,
    linked,
    pulled,
    step_by_step,
    terms,
    worthwhile,
)
from bpcli.references.perturbation.tangent import STEP, tangents
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import Window, merged

AT_ONCE = 1 << 18
"""Numbers of gradients that are put together at a time."""
# Steps of differences, relative to values: fourth differences of the first one are nothing but noise; the others are
# for what bends within it, and for what is noisy.
_FIRST, _FINE, _COARSE = 2.0**-14, 2.0**-20, 2.0**-9
# Root mean squares of the samples that the noise is within; beyond that of the entry itself, the share of its tensor's.
_SPREAD, _SHARE = 16.0, 1 / 8
# A pair that differs from one of half the step by this share of it may be wider than what it is to show, by so much.
_BENT, _UNKNOWN = 0.1, 1e3
# The standard deviation of the extrapolation times the step, over that of the losses: of 4/3 D(h) - 1/3 D(2h).
_OF_PAIR = ((16 + 1 / 4) / 9 / 2) ** 0.5


@dataclass(frozen=True, eq=False)
class Ready:
    """The derivatives of a tensor, in its shape, and what the noise of the loss that they were made from is at most."""

    found: Derivatives
    noise: float


Combine = Callable[[int, FloatArray, FloatArray, FloatArray], FloatArray]
"""From the weights of a step's losses, (batch, W), its changes, (batch, shifts, U, W, columns), and what λ is there,
(batch, N, W, columns), derivatives (batch, U, W, columns)."""


class Chain:
    """Derivatives of those of `tensors` for which it is less work this way.

    A number of a step is changed `each` times, where an entry of a tensor would be `entry` times.
    """

    def __init__(
        self, problem: Problem, perturbed: Perturbed, tensors: Sequence[Tensor], each: float, entry: float
    ) -> None:
        self.problem, self.perturbed, self.setup = problem, perturbed, problem.setup
        self.tensors = worthwhile(self.setup, tensors, each, entry)
        every = terms(self.setup.graph)
        self.terms = {t.name: every[t.name] for t in self.tensors}
        self.zs = sorted({term.z for some in self.terms.values() for term in some})
        self.steps = Steps(perturbed, step_by_step(self.setup.graph, self.zs))
        self.links = linked(self.setup.graph, self.zs)
        self.lasts = any(lasting(self.setup.graph, z) for z in self.zs)
        self.windows = merged(perturbed.windows)
        self.weights = perturbed.weights

    @np.errstate(all="ignore")  # what is not finite is no derivative, and found to be none by who asked
    def imaginary(self) -> dict[str, FloatArray]:
        """By tensor, from imaginary steps; NaN where a kink is met."""
        if not self.tensors:
            return {}
        other = None if self.perturbed.kinks.any else tangents(self.problem, self.perturbed.windows)
        if other is None:
            steps, shift, size = self.steps, np.array([STEP * 1j]), STEP
        else:
            nodes = [other.nodes[n] for n in self.steps.nodes]
            steps, shift, size = Steps(other.perturbed, nodes), np.ones(1), 1.0

        def combine(t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
            return change[:, 0] / size

        slopes = self._walk(steps, dict.fromkeys(steps.nodes, shift), 1, combine)
        return {t.name: self._assembled(t, slopes, slice(1))[0] for t in self.tensors}

    @np.errstate(all="ignore")
    def real(self, offset: float, target: float) -> dict[str, Ready]:
        """By tensor, from pairs of central differences, with steps of a power of two times `offset`.

        Where the bound is not within `target`, as of `Derivatives.lacks`, smaller or larger steps are taken too.
        """
        if not self.tensors:
            return {}
        found, noise = self._differences(offset * _FIRST)
        lacking = {name: known.lacks(target) for name, known in found.items()}
        if any(rows.any() for rows in lacking.values()):
            rough = sum(float(np.sum(found[n].truncation[rows] > found[n].noise[rows])) for n, rows in lacking.items())
            bent = 2 * rough > sum(float(np.sum(rows)) for rows in lacking.values())
            other, _ = self._differences(offset * (_FINE if bent else _COARSE))
            for name, known in found.items():
                known.put(..., other[name], other[name].bound < known.bound)
        return {name: Ready(known, noise) for name, known in found.items()}

    def _differences(self, step: float) -> tuple[dict[str, Derivatives], float]:
        """By tensor, from one pair each; and the noise of the whole loss."""
        noise = Noise(self.steps)
        sizes = {n: step * _scale(self.steps.value(n)) for n in self.steps.nodes}
        at = np.concatenate([self.steps.value(n) for n in self.steps.nodes], axis=2)[:, :, None]
        each = np.concatenate([np.full(self.setup.graph.nodes[n].size, sizes[n]) for n in self.steps.nodes])
        sides = (at + SIGNED[:, None] * each) - at  # the shifts that there really are, (T, batch, 4, U)
        nears, fars = ((sides[:, :, k] - sides[:, :, k + 1])[..., None, None] for k in (0, 2))

        def combine(t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
            near, far = nears[t], fars[t]
            found = (change[:, 0] - change[:, 1]) / near
            level = noise.of(t, weights, change[..., 0], credit[..., 0])
            # One sample for all windows, as a state that several go through is rounded once.
            found[..., 2:] += noise.sample((*found.shape[:2], 1)) * (2 * _OF_PAIR * level[..., None] / near)
            # The difference of the two pairs, and what λ differs by: exaggerated where a pair is wider than its bend.
            here, there = found[..., 0], (change[:, 2, ..., 1] - change[:, 3, ..., 1]) / far[..., 0]
            own = (change[:, 2, ..., 0] - change[:, 3, ..., 0]) / far[..., 0] - here
            bent = ~(np.abs(own) <= _BENT * np.abs(here) + _SPREAD * level / np.abs(near[..., 0]))
            found[..., 1] = there + np.where(bent, _UNKNOWN * own, 0.0)
            return np.asarray(found)

        shifts = {n: SIGNED * h for n, h in sizes.items()}
        slopes = self._walk(self.steps, shifts, 2 + SAMPLES, combine)
        return {t.name: self._extrapolated(t, slopes) for t in self.tensors}, noise.whole

    def _walk(self, steps: Steps, shifts: Shifts, columns: int, combine: Combine) -> dict[int, FloatArray]:
        """Backwards through all steps: derivatives (columns, T, batch, size) by preactivation, windows summed.

        The first two columns of λ are differentiated, the others go along.
        """
        setup, graph = self.setup, self.setup.graph
        slopes = {z: np.zeros((columns, setup.T, setup.batch, graph.nodes[z].size)) for z in self.zs}
        at, end = {}, 0  # of each node's numbers among those of a step
        for n in self.steps.nodes:
            at[n] = slice(end, end := end + graph.nodes[n].size)
        carried: dict[Window, FloatArray] = {}
        nothing = np.zeros((setup.batch, steps.N, columns))
        for t, parts in steps.backwards(shifts):
            windows = [w for w in self.windows if w.start <= t < w.stop]
            if not windows:
                carried = {}
                continue
            credit = np.stack([carried.get(w, nothing) for w in windows], axis=2)
            weights = self._counted(t, windows)
            changes = [part.worth(t, credit, weights) for part in parts]
            found = combine(t, weights, np.concatenate(changes, axis=2), credit)
            if self.lasts:
                before = [self._before(state, found, at) for state in graph.previous.values()]
                together = np.concatenate(before, axis=1)
                carried = {w: together[:, :, k] for k, w in enumerate(windows)}
            for z in self.zs:
                slopes[z][:, t] = found[:, at[z]].sum(axis=2).transpose(2, 0, 1)
        return slopes

    def _before(self, state: int, found: FloatArray, at: Mapping[int, slice]) -> FloatArray:
        """λ of a state before a step, (batch, size, W, columns), from derivatives of the step's numbers."""
        if state in at:
            return found[:, at[state]]
        total = np.zeros((len(found), self.setup.graph.nodes[state].size, *found.shape[2:]))
        for link in self.links[state]:
            shape = self.setup.graph.nodes[link.matrix].shape
            total += pulled(link, self._values[link.matrix].reshape(shape), found[:, at[link.z]])
        return total

    def _counted(self, t: int, windows: Sequence[Window]) -> FloatArray:
        """Weights (batch, W) of a step's losses."""
        return np.asarray(self.weights[t][:, None] * [w.loss_from <= t for w in windows])

    @cached_property
    def _values(self) -> Mapping[int, FloatArray]:
        """What matrices are multiplied with, at every step, and the matrices that states are multiplied with."""
        nodes = {term.vector for some in self.terms.values() for term in some if term.vector >= 0}
        nodes |= {link.matrix for some in self.links.values() for link in some}
        return node_values(cast(self.problem, np.dtype(np.float64)), sorted(nodes))

    def _assembled(self, tensor: Tensor, slopes: Mapping[int, FloatArray], columns: slice) -> FloatArray:
        """(columns, *shape)"""
        some = {z: part[columns] for z, part in slopes.items()}
        return assemble(self.terms[tensor.name], tensor.shape, some, self._values)

    def _extrapolated(self, tensor: Tensor, slopes: Mapping[int, FloatArray]) -> Derivatives:
        """From derivatives by steps of h and 2 h, and samples of the noise of what they are extrapolated to."""
        near, far = self._assembled(tensor, slopes, slice(2))
        spread, some = np.zeros(tensor.shape), max(1, AT_ONCE // max(1, near.size))
        for k in range(2, 2 + SAMPLES, some):
            samples = self._assembled(tensor, slopes, slice(k, k + some)) / SAMPLES**0.5
            spread = np.hypot(spread, np.hypot.reduce(samples, axis=0))
        largest = float(spread.max()) or 1.0
        usual = largest * float(np.sqrt(np.mean((spread / largest) ** 2)))
        # What no sample moves is a product with zeros alone.
        noise = _SPREAD * np.hypot(spread, np.where(spread > 0, _SHARE * usual, 0.0))
        return where_finite(Derivatives((4 * near - far) / 3, np.abs(near - far), noise, np.zeros_like(near)))


def _scale(values: FloatArray) -> float:
    """The size that steps are relative to, a power of two: functions bend within 1, however large their arguments."""
    sizes = np.abs(values[values != 0])
    return float(np.exp2(np.round(np.log2(min(np.median(sizes), 1.0))))) if sizes.size else 1.0
