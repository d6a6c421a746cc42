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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Tensor, cast
from bpcli.references.numerics.adjoints import SlotMasks, WindowSlots, carry, running_sum
from bpcli.references.numerics.derivatives import SIGNED, Derivatives, Mask, where_finite
from bpcli.references.numerics.noise import UNIT_ROUNDOFF
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation import STEP
from bpcli.references.perturbation.one_step import MOST_ENTRIES, Shifts, StepChanges, Steps
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.preactivations import (
    assemble,
    chain_parameters,
    differentiated_nodes,
    pulling,
    reaches_state,
    state_links,
    terms,
)
from bpcli.references.perturbation.tangent import tangents
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import merged

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
# Norm of a fourth difference, the root of 1+1+16+16+36.
_FOURTH = 70.0**0.5
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

    def of(self, stretch: Stretch, fourth: FloatArray, credit: FloatArray) -> FloatArray:
        """Standard deviations (steps, batch, U, W) of the losses of steps plus their states with adjoints `credit
        (steps, batch, N, W)`, from fourth differences (steps, batch, U, W); stretches come from the last one back.

        The noise is at least one rounding of each term, and is smoothed over steps relative to that; a number that is
        noisier than others of its node keeps its own noise.
        """
        span, weights = stretch.span, stretch.weights
        counted, valued = weights * self.steps.losses[span][:, :, None], credit * self.steps.after[span][..., None]
        # Squares of very small or large losses are out of range.
        parts = (part.reshape(len(part), -1) for part in (counted, valued, fourth))
        unit = np.max([np.abs(part).max(axis=1, initial=0.0) for part in parts], axis=0)
        unit = np.where((unit > 0) & (unit < np.inf), unit, 1.0)
        of_pair, of_number = unit[:, None, None], unit[:, None, None, None]
        least = UNIT_ROUNDOFF**2 * ((counted / of_pair) ** 2 + np.sum((valued / of_number) ** 2, axis=2))
        squares = (fourth / of_number) ** 2
        seen = (np.add.reduceat(squares, self.starts, axis=2) / self.counts[:, None]).max(axis=2)
        seen = np.fmax(seen, least)
        logs = np.log(np.where((least > 0) & np.isfinite(seen), seen / least, 1.0)).sum(axis=(1, 2))
        sums, counts = (running_sum(a, b) for a, b in ((logs, self.usual), (stretch.terms, self.count)))
        self.usual, self.count = float(sums[0]), int(counts[0])
        usual = np.exp(sums / np.maximum(counts, 1))[:, None, None]
        many = self.counts.max()
        variance = (many * seen + _USUAL * usual * least) / (many + _USUAL)
        each = 2 * unit * np.sqrt(variance.sum(axis=(1, 2)))
        self.whole = float(np.hypot(self.whole, np.hypot.reduce(each)))
        return np.asarray(of_number * np.sqrt(np.fmax(squares, variance[:, :, None])))

    def sample(self, steps: int, *shape: int) -> FloatArray:
        """Samples (steps, *shape, SAMPLES) of noise of standard deviation 1, those of the last step first drawn."""
        return np.asarray((self.random.random((steps, *shape, SAMPLES))[::-1] - 0.5) * 12**0.5)


@dataclass(frozen=True, eq=False)
class ChainDerivatives:
    """The derivatives of a tensor, in its shape, and the noise of the total loss, two standard deviations."""

    found: Derivatives
    noise: float


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some steps and what numbers in them change, by differences of K kinds.

    `states (K, steps, batch, U, N)` are slopes of the states after each step, `losses (K, steps, batch, U)` those of
    its loss, which counts with `weights (steps, batch, W)` in the windows. `lost (steps, batch, U)` marks numbers that
    meet a kink.
    """

    span: slice
    masks: SlotMasks
    weights: FloatArray
    states: FloatArray
    losses: FloatArray
    lost: Mask

    @property
    def terms(self) -> NDArray[np.int64]:
        """By step, the number of pairs of a sample and a window."""
        return np.asarray(self.masks.on.sum(axis=1) * self.weights.shape[1])

    def of_loss(self, kind: int) -> FloatArray:
        """Slopes (steps, batch, U, W) of the losses of the windows; NaN where a kink is met."""
        found = self.losses[kind][..., None] * self.weights[:, :, None]
        on = self.masks.on[:, None, None]
        return np.where(on, np.where(self.lost[..., None], np.nan, found), 0.0)


Quotients = Callable[[FloatArray, slice, slice], Sequence[FloatArray]]
"""The differences of K kinds, from changes (steps, batch, shifts, numbers, size) of a stretch of steps, for some of the
U numbers of a step."""


def chain_steps(batch: int, units: int, states: int, windows: int) -> int:
    """Steps that are taken at a time, given the numbers of a step, of its states and of windows at a time."""
    return max(1, MOST_ENTRIES // (batch * units * max(states, (2 + SAMPLES) * windows)))


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
        self.slots = WindowSlots(merged(perturbed.windows))
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
        slopes, credit = self._nothing(1), self._no_credit(1)
        shifts = dict.fromkeys(steps.nodes, shift)
        for stretch in self._stretches(steps, shifts, 1, lambda change, span, some: (change[:, :, 0] / size,)):
            source, fresh = stretch.of_loss(0)[..., None], stretch.masks.fresh
            carried = carry(stretch.states[0], source, credit, fresh, self._pulling)
            credit = carried.before
            self._keep(slopes, stretch.span, carried.found)
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
        nears, fars = ((sides[:, :, k] - sides[:, :, k + 1])[..., None] for k in (0, 2))

        def quotients(change: FloatArray, span: slice, some: slice) -> Sequence[FloatArray]:
            up, down, higher, lower = np.moveaxis(change, 2, 0)
            near, far = ((a - b) / wide[span, :, some] for a, b, wide in ((up, down, nears), (higher, lower, fars)))
            return near, far, (higher + lower - 4 * (up + down)) / _FOURTH

        shifts = {n: SIGNED * h for n, h in sizes.items()}
        slopes, credits = self._nothing(2 + SAMPLES), [self._no_credit(k) for k in (1, 1, SAMPLES)]
        for stretch in self._stretches(self.steps, shifts, 3, quotients):
            found, credits = self._of_stretch(stretch, noise, nears[stretch.span], credits)
            self._keep(slopes, stretch.span, found)
        return {t.name: self._extrapolated(t, slopes) for t in self.tensors}, noise.whole

    def _of_stretch(
        self, stretch: Stretch, noise: StepNoise, near: FloatArray, credits: Sequence[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Derivatives (steps, batch, U, W, 2 + SAMPLES) of the numbers of a stretch, and the adjoints before it, of
        three kinds: derivatives, their differences from those of larger steps, and samples of their noise."""
        (inner, outer, fourth), fresh = stretch.states, stretch.masks.fresh
        first = carry(inner, stretch.of_loss(0)[..., None], credits[0], fresh, self._pulling)
        here, credit = first.found[..., 0], first.credit[..., 0]
        level = noise.of(stretch, fourth @ credit + stretch.of_loss(2), credit)
        # One sample for all windows, as a state that several go through is rounded once.
        samples = noise.sample(*here.shape[:3], 1) * (2 * _OF_PAIR * level / near)[..., None]
        third = carry(inner, samples, credits[2], fresh, self._pulling)
        # The difference of the two pairs, and what λ differs by: exaggerated where a pair is wider than its bend.
        own = outer @ credit + stretch.of_loss(1) - here
        bent = ~(np.abs(own) <= _BENT * np.abs(here) + _SPREAD * level / np.abs(near))
        source = stretch.of_loss(1) + np.where(bent, _UNKNOWN * own, 0.0)
        second = carry(outer, source[..., None], credits[1], fresh, self._pulling)
        found = np.concatenate([first.found, second.found, third.found], axis=-1)
        return found, [first.before, second.before, third.before]

    def _stretches(self, steps: Steps, shifts: Shifts, kinds: int, quotients: Quotients) -> Iterator[Stretch]:
        """Stretches of steps from the last one back, without those that are in no window."""
        most = chain_steps(self.setup.batch, sum(steps.sizes), steps.N, self.slots.count)
        for first, last, parts in steps.backwards(shifts):
            for stop in range(last, first, -most):
                start = max(first, stop - most)
                masks = self.slots.masks(start, stop)
                if not masks.on.any():
                    continue
                span = slice(start, stop)
                weights = np.asarray(self.weights[span, :, None] * masks.counted[:, None])
                yield Stretch(span, masks, weights, *self._slopes(steps, parts, span, kinds, quotients))

    def _slopes(
        self, steps: Steps, parts: Iterable[StepChanges], span: slice, kinds: int, quotients: Quotients
    ) -> tuple[FloatArray, FloatArray, Mask]:
        """The slopes of states and losses of a `Stretch`, and the numbers that meet a kink."""
        shape = (span.stop - span.start, self.setup.batch, sum(steps.sizes))
        states, losses = np.zeros((kinds, *shape, steps.N)), np.zeros((kinds, *shape))
        lost, end = np.zeros(shape, np.bool_), 0
        for part in parts:
            some = slice(end, end := end + part.shape[1])
            inside = slice(span.start - part.first, span.stop - part.first)
            for own, change in part.of_states(span.start, span.stop):
                for k, found in enumerate(quotients(change, span, some)):
                    states[k][:, :, some, own] = found
            if part.losses is not None:
                for k, found in enumerate(quotients(part.losses[inside][..., None], span, some)):
                    losses[k][:, :, some] = found[..., 0]
            if part.met is not None:
                lost[:, :, some] = part.met[:, inside].transpose(1, 2, 0)
        return states, losses, lost

    def _nothing(self, columns: int) -> dict[int, FloatArray]:
        """Zeros (columns, T, batch, size) by preactivation."""
        setup, nodes = self.setup, self.setup.graph.nodes
        return {z: np.zeros((columns, setup.T, setup.batch, nodes[z].size)) for z in self.zs}

    def _no_credit(self, columns: int) -> FloatArray:
        """Adjoints (batch, N, W, columns) of zero."""
        return np.zeros((self.setup.batch, self.steps.N, self.slots.count, columns))

    def _keep(self, slopes: Mapping[int, FloatArray], span: slice, found: FloatArray) -> None:
        """Enter the derivatives `found (steps, batch, U, W, columns)`, windows summed, of preactivations."""
        each, end = np.moveaxis(found.sum(axis=3), 3, 0), 0
        for n in self.steps.nodes:
            some = slice(end, end := end + self.setup.graph.nodes[n].size)
            if n in slopes:
                slopes[n][:, span] = each[..., some]

    @cached_property
    def _pulling(self) -> FloatArray | None:
        """The matrix (N, U) from a step's numbers to the states before it; None if no number lasts."""
        return pulling(self.setup.graph, self.links, self.steps.nodes, self._values) if self.lasts else None

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
