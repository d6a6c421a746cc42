"""Derivatives of parameters from measured one-step sensitivities, by the chain rule over steps.

Each step is a function of the states before it, and is differentiated by itself, by differences or imaginary steps.
With J(t) = da(t)/da(t-1) and D(t) = da(t)/dz(t) from these, z the preactivations,

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
from bpcli.references.numerics.noise import UNIT_ROUNDOFF
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation import STEP
from bpcli.references.perturbation.one_step import Shifts, Steps
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.preactivations import (
    assemble,
    chain_parameters,
    differentiated_nodes,
    pull_back,
    reaches_state,
    state_links,
    terms,
)
from bpcli.references.perturbation.tangent import tangents
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import Window, merged

AT_ONCE = 1 << 18
"""Numbers of gradients that are assembled at a time."""
# Steps of differences, relative to values: fourth differences of the first are pure noise; the others are for functions
# that curve within it, and for noisy ones.
_FIRST, _FINE, _COARSE = 2.0**-14, 2.0**-20, 2.0**-9
# Noise bound in root mean squares of the samples; and the part of the tensor's root mean square added to an entry's.
_SPREAD, _SHARE = 16.0, 1 / 8
# If two pairs differ by this part of the derivative, the step may be too wide; the truncation counts so many times.
_BENT, _UNKNOWN = 0.1, 1e3
# Standard deviation of the extrapolation 4/3 D(h) - 1/3 D(2h) times the step, over that of the losses.
_OF_PAIR = ((16 + 1 / 4) / 9 / 2) ** 0.5


SAMPLES = 8
"""Samples of the noise."""
# Fourth difference from shifts by `SIGNED` steps, normalised to the noise of one loss by the root of 1+1+16+16+36.
_FOURTH = np.array([-4.0, -4.0, 1.0, 1.0]) / 70.0**0.5
# Weight of the average noise of all steps against the noise seen at one step, in samples.
_USUAL = 4.0


class StepNoise:
    """Noise of one-step results, estimated from fourth differences, and samples of it.

    `whole` is the noise of the total loss, two standard deviations.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps, self.random = steps, np.random.default_rng(0)
        self.starts, self.counts = np.cumsum([0, *steps.sizes[:-1]]), np.array(steps.sizes)
        self.whole, self.usual, self.count = 0.0, 0.0, 0

    def of(self, t: int, weights: FloatArray, change: FloatArray, credit: FloatArray) -> FloatArray:
        """Standard deviations (batch, U, W) of a step's losses with `weights (batch, W)` plus its states with adjoints
        `credit (batch, N, W)`, from their changes (batch, 4, U, W).

        The noise is at least one rounding of each term, and is smoothed over steps relative to that; a number that is
        noisier than others of its node keeps its own noise.
        """
        counted, valued = weights * self.steps.losses[t][:, None], credit * self.steps.after[t][..., None]
        fourth = (_FOURTH @ change.reshape(len(change), 4, -1)).reshape(len(change), *change.shape[2:])
        # Squares of very small or large losses are out of range.
        unit = max(np.abs(part).max(initial=0.0) for part in (counted, valued, fourth))
        unit = unit if 0 < unit < np.inf else 1.0
        least = UNIT_ROUNDOFF**2 * ((counted / unit) ** 2 + np.sum((valued / unit) ** 2, axis=1))
        squares = (fourth / unit) ** 2
        seen = (np.add.reduceat(squares, self.starts, axis=1) / self.counts[:, None]).max(axis=1)
        seen = np.fmax(seen, least)
        self.usual += float(np.log(np.where((least > 0) & np.isfinite(seen), seen / least, 1.0)).sum())
        self.count += least.size
        many, usual = self.counts.max(), np.exp(self.usual / self.count)
        variance = (many * seen + _USUAL * usual * least) / (many + _USUAL)
        self.whole = float(np.hypot(self.whole, 2 * unit * np.sqrt(variance.sum())))
        return np.asarray(unit * np.sqrt(np.fmax(squares, variance[:, None])))

    def sample(self, shape: tuple[int, ...]) -> FloatArray:
        """Samples (*shape, SAMPLES) of noise of standard deviation 1."""
        return np.asarray((self.random.random((*shape, SAMPLES)) - 0.5) * 12**0.5)


@dataclass(frozen=True, eq=False)
class ChainDerivatives:
    """The derivatives of a tensor, in its shape, and the noise of the total loss, two standard deviations."""

    found: Derivatives
    noise: float


Combine = Callable[[int, FloatArray, FloatArray, FloatArray], FloatArray]
"""Derivatives (batch, U, W, columns) at step t from its loss weights (batch, W), its changes (batch, shifts, U, W,
columns) and the adjoints λ (batch, N, W, columns)."""


class Chain:
    """Derivatives of those of `tensors` for which the chain rule is less work than perturbed entries.

    It takes `each` evaluations per number of a step, perturbed entries take `entry` each.
    """

    def __init__(
        self, problem: Problem, perturbed: Perturbed, tensors: Sequence[Tensor], each: float, entry: float
    ) -> None:
        self.problem, self.perturbed, self.setup = problem, perturbed, perturbed.setup  # where it is fused otherwise
        self.tensors = chain_parameters(self.setup, tensors, each, entry)
        every = terms(self.setup.graph)
        self.terms = {t.name: every[t.name] for t in self.tensors}
        self.zs = sorted({term.z for some in self.terms.values() for term in some})
        self.steps = Steps(perturbed, differentiated_nodes(self.setup.graph, self.zs))
        self.links = state_links(self.setup.graph, self.zs)
        self.lasts = any(reaches_state(self.setup.graph, z) for z in self.zs)
        self.windows = merged(perturbed.windows)
        self.weights = perturbed.weights

    @np.errstate(all="ignore")  # what is not finite is no derivative, and found to be none by who asked
    def imaginary(self) -> dict[str, FloatArray]:
        """Derivatives by tensor from imaginary steps; NaN where a kink is met."""
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

        slopes = self._backward_pass(steps, dict.fromkeys(steps.nodes, shift), 1, combine)
        return {t.name: self._assembled(t, slopes, slice(1))[0] for t in self.tensors}

    @np.errstate(all="ignore")
    def real(self, offset: float, target: float) -> dict[str, ChainDerivatives]:
        """Derivatives by tensor from pairs of central differences, with steps `offset` times a power of two.

        Where the bound exceeds `target` (see `Derivatives.exceeds`), smaller or larger steps are tried too.
        """
        if not self.tensors:
            return {}
        found, noise = self._differences(offset * _FIRST)
        lacking = {name: known.exceeds(target) for name, known in found.items()}
        if any(rows.any() for rows in lacking.values()):
            rough = sum(float(np.sum(found[n].truncation[rows] > found[n].noise[rows])) for n, rows in lacking.items())
            bent = 2 * rough > sum(float(np.sum(rows)) for rows in lacking.values())
            other, _ = self._differences(offset * (_FINE if bent else _COARSE))
            for name, known in found.items():
                known.put(..., other[name], other[name].bound < known.bound)
        return {name: ChainDerivatives(known, noise) for name, known in found.items()}

    def _differences(self, step: float) -> tuple[dict[str, Derivatives], float]:
        """Derivatives by tensor from one pair of differences each, and the noise of the total loss."""
        noise = StepNoise(self.steps)
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
        slopes = self._backward_pass(self.steps, shifts, 2 + SAMPLES, combine)
        return {t.name: self._extrapolated(t, slopes) for t in self.tensors}, noise.whole

    def _backward_pass(self, steps: Steps, shifts: Shifts, columns: int, combine: Combine) -> dict[int, FloatArray]:
        """Backward pass through all steps: derivatives (columns, T, batch, size) by preactivation, windows summed.

        The first two columns of λ include the derivatives of losses, the others carry noise samples.
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
            weights = self._loss_weights(t, windows)
            changes = [part.weighted(t, credit, weights) for part in parts]
            found = combine(t, weights, np.concatenate(changes, axis=2), credit)
            if self.lasts:
                before = [self._credit_before(state, found, at) for state in graph.previous.values()]
                together = np.concatenate(before, axis=1)
                carried = {w: together[:, :, k] for k, w in enumerate(windows)}
            for z in self.zs:
                slopes[z][:, t] = found[:, at[z]].sum(axis=2).transpose(2, 0, 1)
        return slopes

    def _credit_before(self, state: int, found: FloatArray, at: Mapping[int, slice]) -> FloatArray:
        """Adjoint λ (batch, size, W, columns) of a state before a step, from derivatives of the step's numbers."""
        if state in at:
            return found[:, at[state]]
        total = np.zeros((len(found), self.setup.graph.nodes[state].size, *found.shape[2:]))
        for link in self.links[state]:
            shape = self.setup.graph.nodes[link.matrix].shape
            total += pull_back(link, self._values[link.matrix].reshape(shape), found[:, at[link.z]])
        return total

    def _loss_weights(self, t: int, windows: Sequence[Window]) -> FloatArray:
        """Weights (batch, W) of the losses of step t in each window."""
        return np.asarray(self.weights[t][:, None] * [w.loss_from <= t for w in windows])

    @cached_property
    def _values(self) -> Mapping[int, FloatArray]:
        """Values of the vectors that parameters multiply, at every step, and of the matrices that multiply states."""
        nodes = {term.vector for some in self.terms.values() for term in some if term.vector >= 0}
        nodes |= {link.matrix for some in self.links.values() for link in some}
        return node_values(cast(self.problem, np.dtype(np.float64)), sorted(nodes))

    def _assembled(self, tensor: Tensor, slopes: Mapping[int, FloatArray], columns: slice) -> FloatArray:
        """The gradient (columns, *shape) of a tensor from derivatives by preactivation."""
        some = {z: part[columns] for z, part in slopes.items()}
        return assemble(self.terms[tensor.name], tensor.shape, some, self._values)

    def _extrapolated(self, tensor: Tensor, slopes: Mapping[int, FloatArray]) -> Derivatives:
        """Richardson extrapolation of derivatives from steps h and 2 h, with noise from the carried samples."""
        near, far = self._assembled(tensor, slopes, slice(2))
        spread, some = np.zeros(tensor.shape), max(1, AT_ONCE // max(1, near.size))
        for k in range(2, 2 + SAMPLES, some):
            samples = self._assembled(tensor, slopes, slice(k, k + some)) / SAMPLES**0.5
            spread = np.hypot(spread, np.hypot.reduce(samples, axis=0))
        largest = float(spread.max()) or 1.0
        usual = largest * float(np.sqrt(np.mean((spread / largest) ** 2)))
        # An entry that no sample changes is a product with zeros alone.
        noise = _SPREAD * np.hypot(spread, np.where(spread > 0, _SHARE * usual, 0.0))
        return where_finite(Derivatives((4 * near - far) / 3, np.abs(near - far), noise, np.zeros_like(near)))


def _scale(values: FloatArray) -> float:
    """Scale of the steps, a power of two; at most 1, the scale on which elementary functions curve."""
    sizes = np.abs(values[values != 0])
    return float(np.exp2(np.round(np.log2(min(np.median(sizes), 1.0))))) if sizes.size else 1.0
