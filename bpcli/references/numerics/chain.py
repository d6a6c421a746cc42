"""Derivatives with respect to preactivations, by the chain rule over steps, put together to those of parameters.

A step is a function of the states before it; what differentiates a step, and says nothing of others, is a difference of
its states and losses. With J(t) = da(t)/da(t-1) and D(t) = da(t)/dz(t) from such differences

    λ(t-1) = dl(t)/da(t-1) + J(t)ᵀ λ(t),      dL/dz(t) = dl(t)/dz(t) + D(t)ᵀ λ(t)

and products are linear in their matrices (see `bpcli.problem.preactivations`): no more is known of the network.
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

from bpcli.problem.cast import cast
from bpcli.problem.model import Problem, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.problem.preactivations import assemble, step_by_step, terms, worthwhile
from bpcli.problem.steps import Changed, Shifts, Steps
from bpcli.problem.tangent import tangents
from bpcli.problem.unrolled import Window, merged
from bpcli.problem.values import node_values
from bpcli.references.numerics.derivatives import UNIT_ROUNDOFF, Derivatives, where_finite
from bpcli.references.numerics.probe import FloatArray

SIGNED = np.array([1.0, -1.0, 2.0, -2.0])
"""The shifts of a pair of central differences, over the smaller step."""
SAMPLES = 16
"""Of the noise."""
_STEP = 1e-40
# Steps of differences, relative to values: fourth differences of the first one are nothing but noise; the others are
# for what bends within it, and for what is noisy.
_FIRST, _FINE, _COARSE = 2.0**-14, 2.0**-20, 2.0**-9
# Root mean squares of the samples that the noise is within; beyond that of the entry itself, the share of its tensor's.
_SPREAD, _SHARE = 8.0, 1 / 8
# The variance of a fourth difference, and of the extrapolation times the step, over that of what they are made of.
_OF_FOURTH, _OF_PAIR = 70.0, (16 + 1 / 4) / 9 / 2
# What the noise of all steps weighs beside that of one, in samples.
_USUAL = 4.0


@dataclass(frozen=True, eq=False)
class Ready:
    """The derivatives of a tensor, in its shape, and what the noise of the loss that they were made from is at most."""

    found: Derivatives
    noise: float


Combine = Callable[[int, Sequence[Window], FloatArray, FloatArray], FloatArray]
"""From a step's changes, (batch, shifts, U, W, columns), and what λ is there, (batch, N, W, columns), derivatives
(batch, U, W, columns)."""


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
        self.windows = merged(perturbed.windows)
        self.weights = perturbed.weights

    @np.errstate(all="ignore")  # what is not finite is no derivative, and found to be none by who asked
    def imaginary(self) -> dict[str, FloatArray]:
        """By tensor, from imaginary steps; NaN where a kink is met."""
        if not self.tensors:
            return {}
        other = None if self.perturbed.kinks.any else tangents(self.problem, self.perturbed.windows)
        if other is None:
            steps, shift = self.steps, np.array([_STEP * 1j])
        else:
            nodes = [other.nodes[n] for n in self.steps.nodes]
            steps, shift = Steps(other.perturbed, nodes), np.ones(1)

        def combine(t: int, windows: Sequence[Window], change: FloatArray, credit: FloatArray) -> FloatArray:
            return change[:, 0]

        found = self._walk(steps, dict.fromkeys(steps.nodes, shift), 1, combine)
        return {name: parts[0] for name, parts in self._assembled(found).items()}

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
                known.put(np.arange(len(known.value)), other[name], other[name].bound < known.bound)
        return {name: Ready(known, noise) for name, known in found.items()}

    def _differences(self, step: float) -> tuple[dict[str, Derivatives], float]:
        """By tensor, from one pair each; and the noise of the whole loss."""
        noise = Noise(self.steps)
        sizes = {n: step * _scale(self.steps.value(n)) for n in self.steps.nodes}
        at = np.concatenate([self.steps.value(n) for n in self.steps.nodes], axis=2)[:, :, None]
        each = np.concatenate([np.full(self.setup.graph.nodes[n].size, sizes[n]) for n in self.steps.nodes])
        sides = (at + SIGNED[:, None] * each) - at  # the shifts that there really are, (T, batch, 4, U)

        def combine(t: int, windows: Sequence[Window], change: FloatArray, credit: FloatArray) -> FloatArray:
            side = sides[t][..., None, None]
            near, far = side[:, 0] - side[:, 1], side[:, 2] - side[:, 3]
            found = (change[:, 0] - change[:, 1]) / near
            found[..., 1:2] = (change[:, 2, ..., 1:2] - change[:, 3, ..., 1:2]) / far
            level = noise.of(t, self._counted(t, windows), change[..., 0], credit[..., 0])
            found[..., 2:] += noise.sample(found.shape[:3]) * (2 * np.sqrt(_OF_PAIR) * level[:, None, :, None] / near)
            return np.asarray(found)

        shifts = {n: SIGNED * h for n, h in sizes.items()}
        parts = self._assembled(self._walk(self.steps, shifts, 2 + SAMPLES, combine))
        return {name: _extrapolated(part) for name, part in parts.items()}, noise.whole

    def _walk(self, steps: Steps, shifts: Shifts, columns: int, combine: Combine) -> dict[int, FloatArray]:
        """Backwards through all steps: derivatives (columns, T, batch, size) by preactivation, windows summed.

        The first two columns of λ are differentiated, the others go along.
        """
        setup, graph = self.setup, self.setup.graph
        slopes = {z: np.zeros((columns, setup.T, setup.batch, graph.nodes[z].size)) for z in self.zs}
        states = steps.N if len(steps.nodes) > len(self.zs) else 0
        ends = np.cumsum([states, *(graph.nodes[z].size for z in self.zs)])
        carried: dict[Window, FloatArray] = {}
        nothing = np.zeros((setup.batch, steps.N, columns))
        for t, parts in steps.backwards(shifts):
            windows = [w for w in self.windows if w.start <= t < w.stop]
            if not windows:
                carried = {}
                continue
            credit = np.stack([carried.get(w, nothing) for w in windows], axis=2)
            weights = self._counted(t, windows)
            changes = [self._worth(steps, t, part, credit, weights) for part in parts]
            found = combine(t, windows, np.concatenate(changes, axis=2), credit)
            if states:
                carried = {w: found[:, :states, k] for k, w in enumerate(windows)}
            for z, start, end in zip(self.zs, ends[:-1], ends[1:], strict=True):
                slopes[z][:, t] = found[:, start:end].sum(axis=2).transpose(2, 0, 1)
        return slopes

    def _worth(self, steps: Steps, t: int, changed: Changed, credit: FloatArray, weights: FloatArray) -> FloatArray:
        """What changes come to at a step, (batch, shifts, numbers, W, columns), where the states after it are worth
        `credit (batch, N, W, columns)` and its losses `weights (batch, W)`; NaN where a kink is met."""
        batch, N, windows, columns = credit.shape
        j, kinks = t - changed.first, changed.met is not None
        # What met a kink concerns those alone that it moves.
        lost = np.isnan(credit[..., 0]) if kinks else None
        flat = (np.where(lost[..., None], 0.0, credit) if lost is not None else credit).reshape(
            batch, N, -1 if N else 0
        )
        worth = np.zeros((batch, changed.shape[0] * changed.shape[1], windows * columns))
        moved = np.zeros((batch, worth.shape[1], windows), bool)
        for start, values in changed.states:
            own = slice(start, start + values.shape[-1])
            part, after = values[:, j].transpose(1, 0, 2), steps.after[t, :, None, own]
            if part.dtype.kind == "c":
                part, after = part.imag / _STEP, after.imag
            worth += (part - after) @ flat[:, own] if kinks else part @ flat[:, own] - after @ flat[:, own]
            if lost is not None:
                moved |= (part != 0).astype(float) @ lost[:, own].astype(float) > 0
        worth = worth.reshape(batch, *changed.shape, windows, columns)
        if changed.losses is not None:
            losses = changed.losses[:, :, j].transpose(2, 0, 1) - steps.losses[t, :, None, None]
            losses = losses.imag / _STEP if losses.dtype.kind == "c" else losses
            worth[..., :2] += (losses[..., None] * weights[:, None, None])[..., None]
        if changed.met is not None:
            bad = changed.met[:, j].T[:, None, :, None] | moved.reshape(batch, *changed.shape, windows)
            worth[bad] = np.nan
        return worth

    def _counted(self, t: int, windows: Sequence[Window]) -> FloatArray:
        """Weights (batch, W) of a step's losses."""
        return self.weights[t][:, None] * np.array([w.loss_from <= t for w in windows])

    @cached_property
    def _vectors(self) -> Mapping[int, FloatArray]:
        """What matrices are multiplied with, at every step."""
        nodes = sorted({term.vector for some in self.terms.values() for term in some if term.vector >= 0})
        return node_values(cast(self.problem, np.dtype(np.float64)), nodes)

    def _assembled(self, slopes: Mapping[int, FloatArray]) -> dict[str, FloatArray]:
        """By tensor, (columns, *shape)."""

        def vector(node: int) -> FloatArray:
            return self._vectors[node]

        return {t.name: assemble(self.terms[t.name], t.shape, slopes, vector) for t in self.tensors}


class Noise:
    """The noise of what steps come to, told from fourth differences, and samples of it."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.random = steps, np.random.default_rng(0)
        self.starts, self.counts = np.cumsum([0, *steps.sizes[:-1]]), np.array(steps.sizes)
        self.squares, self.usual, self.count = 0.0, 0.0, 0

    @property
    def whole(self) -> float:
        """Two standard deviations of the whole loss."""
        return 2 * float(np.sqrt(self.squares))

    def of(self, t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
        """Standard deviations (batch, W) of losses with `weights (batch, W)` and states that are worth `credit (batch,
        N, W)` together, from their changes (batch, 4, U, W).

        At least one rounding of each; never much less than at other steps, over that.
        """
        fourth = change[:, 2] + change[:, 3] - 4 * (change[:, 0] + change[:, 1])
        squares = np.add.reduceat(fourth**2, self.starts, axis=1) / self.counts[:, None]
        seen = squares.max(axis=1) / _OF_FOURTH
        valued = credit * self.steps.after[t][..., None]
        least = (UNIT_ROUNDOFF * weights * self.steps.losses[t][:, None]) ** 2
        least = least + UNIT_ROUNDOFF**2 * np.sum(valued**2, axis=1)
        over = np.fmax(np.where(least > 0, seen / least, 1.0), 1.0)
        self.usual += float(np.log(over).sum())
        self.count += over.size
        many, usual = self.counts.max(), np.exp(self.usual / self.count)
        variance = least * np.fmax((many * over + _USUAL * usual) / (many + _USUAL), 1.0)
        self.squares += float(variance.sum())
        return np.asarray(np.sqrt(variance))

    def sample(self, shape: tuple[int, ...]) -> FloatArray:
        """Of noise of standard deviation 1, (*shape, samples)."""
        return np.asarray((self.random.random((*shape, SAMPLES)) - 0.5) * 12**0.5)


def _extrapolated(parts: FloatArray) -> Derivatives:
    """From derivatives by steps of h and 2 h, and samples of the noise of what they are extrapolated to."""
    near, far, samples = parts[0], parts[1], parts[2:]
    square = np.mean(samples**2, axis=0)
    noise = _SPREAD * np.sqrt(square + _SHARE**2 * np.mean(square))
    return where_finite(Derivatives((4 * near - far) / 3, np.abs(near - far), noise, np.zeros_like(near)))


def _scale(values: FloatArray) -> float:
    """The size that steps are relative to, a power of two: functions bend within 1, however large their arguments."""
    sizes = np.abs(values[values != 0])
    return float(np.exp2(np.round(np.log2(min(np.median(sizes), 1.0))))) if sizes.size else 1.0
