"""Derivatives with respect to preactivations, from changes of their values, put together to those of parameters.

Products are linear in their matrix (see `bpcli.problem.preactivations`): that is all that is known of the network.
Where preactivations are fewer than parameters, and what they change is over sooner, there is so much less to evaluate.
Whoever takes derivatives from here compares some of them with what changes of the parameters themselves say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bpcli.problem.cast import cast
from bpcli.problem.model import Problem, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.problem.pieces import BLOCK_ENTRIES, Shift, Spot
from bpcli.problem.preactivations import assemble, lasting, terms, worthwhile
from bpcli.problem.tangent import tangents
from bpcli.problem.values import node_values
from bpcli.references.numerics.derivatives import NOISE_FACTOR, Derivatives
from bpcli.references.numerics.noise import loss_noise
from bpcli.references.numerics.pairs import SIGNED, pairs
from bpcli.references.numerics.probe import FloatArray, Indices, Probe, Sampler

COMPARED = 4
"""Entries of each tensor that are compared with changes of their own."""
DEARER = 2 / 10
"""Evaluations of the loss for a preactivation over those for an entry, by real differences."""
_STEP = 1e-40
# The step, relative to the size of preactivations, with which some at a time are looked at, and the steps that may
# follow; how much larger than all third derivatives that were seen the others may be, and the first and second ones.
_FIRST, _LOOKED_AT = 2.0**-12, 8
_LEAST, _LARGEST = 2.0**-20, 2.0**-8
_SAFE, _UNLIKE = 32.0, 16.0
# Preactivations at which the noise is measured; each feels all that follows.
_NOISE_ROWS = 2
_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, eq=False)
class Ready:
    """The derivatives of a tensor, in its shape, and what the noise of the loss that they were made from is at most."""

    found: Derivatives
    noise: float


@dataclass(frozen=True)
class Seen:
    """The step to take, the noise of the loss, and the largest of first, second and third derivatives that were seen.

    The third one counts as more than it was: most preactivations are not looked at.
    """

    step: float
    noise: float
    slope: float
    even: float
    odd: float

    def third(self, slope: FloatArray, even: FloatArray) -> FloatArray:
        """What the third derivatives over 3! are less than where the others are `slope` and `even`.

        Infinite where these are unlike all that was seen.
        """
        likeness = np.fmax(np.fmax(np.abs(slope) / self.slope, even / self.even), 1.0)
        return np.where(likeness <= _UNLIKE, self.odd * likeness, np.inf)


class Impulses:
    """Derivatives of those of `tensors` for which it is less work this way.

    A change of a preactivation is evaluated `dearer` times as often as one of an entry.
    """

    def __init__(self, problem: Problem, perturbed: Perturbed, tensors: Sequence[Tensor], dearer: float) -> None:
        self.problem, self.perturbed = problem, perturbed
        self.tensors = worthwhile(problem.setup, perturbed.windows, tensors, dearer)
        every = terms(problem.setup.graph)
        self.terms = {t.name: every[t.name] for t in self.tensors}
        self.zs = sorted({term.z for some in self.terms.values() for term in some})

    @cached_property
    def _values(self) -> dict[int, FloatArray]:
        """What preactivations and what their matrices are multiplied with are at every step."""
        vectors = {term.vector for some in self.terms.values() for term in some if term.vector >= 0}
        return node_values(cast(self.problem, np.dtype(np.float64)), sorted({*self.zs, *vectors}))

    @np.errstate(all="ignore")  # what is not finite is no derivative, and found to be none by who asked
    def imaginary(self) -> dict[str, FloatArray]:
        """By tensor, from imaginary steps; NaN where a kink is met."""
        kinked = self.perturbed.kinks.any
        other = tangents(self.problem, self.perturbed.windows) if self.zs and not kinked else None
        step, asked = (_STEP * 1j, self.perturbed) if other is None else (1.0, other.perturbed)
        slopes = {}
        for z in self.zs:
            units, slopes[z] = self._units(z), self._zeros(z)
            deltas = np.full(len(units), step)
            node = z if other is None else other.nodes[z]
            for spots, changes, _ in self._changes(asked, node, self._spots(z), units, deltas):
                self._add(slopes[z], spots, changes.imag / _STEP if other is None else changes)
        return self._assembled(slopes, np.asarray)

    @np.errstate(all="ignore")
    def real(self, offset: float) -> dict[str, Ready]:
        """By tensor, from a central difference each, with steps of a power of two times `offset`."""
        value, truncation, noise, levels = {}, {}, {}, []
        for z in self.zs:
            value[z], truncation[z], noise[z], level = self._differences(z, offset)
            levels.append(level)
        values, truncations = self._assembled(value, np.asarray), self._assembled(truncation, np.abs)
        # Roundings of different losses are independent of each other.
        squares = self._assembled({z: part**2 for z, part in noise.items()}, np.square)
        return {
            n: Ready(Derivatives(v, truncations[n], np.sqrt(squares[n]), np.zeros_like(v)), max(levels))
            for n, v in values.items()
        }

    def _differences(self, z: int, offset: float) -> tuple[FloatArray, FloatArray, FloatArray, float]:
        """Derivative, truncation and noise (T, batch, size), and the noise of the whole loss."""
        units = self._units(z)
        seen = self._look(z)
        step = offset * seen.step
        parts = self._zeros(z), self._zeros(z), self._zeros(z)
        deltas = step * np.repeat([1.0, -1.0], len(units))
        for spots, changes, base in self._changes(self.perturbed, z, self._spots(z), np.tile(units, 2), deltas):
            up, down = changes[:, : len(units)], changes[:, len(units) :]
            value, level = (up - down) / (2 * step), np.maximum(seen.noise, 4 * _UNIT_ROUNDOFF * np.abs(base))
            # The points themselves are rounded, and so is each loss.
            at, size = np.abs(self._at(z, spots)) / step, np.maximum(np.abs(up), np.abs(down)) / step
            rounding = _UNIT_ROUNDOFF * (2 * (at + 1) * np.abs(value) + NOISE_FACTOR * size)
            even = np.maximum(np.abs(up + down) - 4 * NOISE_FACTOR * level[:, None], 0.0) / step**2
            noise = NOISE_FACTOR * level[:, None] / step + rounding
            for total, part in zip(parts, (value, step**2 * seen.third(value, even), noise), strict=True):
                self._add(total, spots, part)
        return *parts, seen.noise * len(self.perturbed.windows) * self.problem.setup.batch

    def _look(self, z: int) -> Seen:
        """What pairs at some preactivations show, and the step at which noise and truncation then balance."""
        spots = self._spots(z)
        longest = max(spots, key=lambda s: s.length - s.step)
        at = np.abs(self._at(z, [longest])[0])
        # Functions of preactivations bend within one, however large these are.
        sizes = at[at > 0]
        scale = float(np.exp2(np.round(np.log2(min(np.median(sizes), 1.0))))) if sizes.size else 1.0
        first = _FIRST * scale
        # All units where most follows, as one may be unlike all others; some, small and large ones, saturated and not,
        # elsewhere.
        few = np.argsort(at.min(axis=1))[np.linspace(0, len(at) - 1, min(len(at), _LOOKED_AT)).astype(np.int64)]
        looks = [(longest, self._units(z))]
        looks += [(spots[k], few) for k in sorted({len(spots) // 2, len(spots) - 1} - {0})]
        signed = [first * np.repeat(SIGNED, len(units)) for _, units in looks]
        shifts = [Shift(s, np.tile(u, len(SIGNED)), d) for (s, u), d in zip(looks, signed, strict=True)]
        largest, found = [0.0, 0.0, 0.0], list(self.perturbed.impulses(z, shifts))
        for (_, units), (changes, _, _) in zip(looks, found, strict=True):
            changes = changes.reshape(len(SIGNED), len(units), -1)
            slope, apart, _ = pairs(changes, first)
            third, even = _SAFE * apart / (3 * first**2), np.abs(changes[0] + changes[1]) / first**2
            parts = (float(np.where(np.isfinite(part), part, 0.0).max()) for part in (np.abs(slope), even, third))
            largest = [max(pair) for pair in zip(largest, parts, strict=True)]
        changes, base, _ = found[0]
        slope = pairs(changes.reshape(len(SIGNED), len(at), -1), first)[0]
        liveliest = np.argsort(-np.abs(slope).max(axis=1))[:_NOISE_ROWS]
        noise = loss_noise(self._sampler(z, longest, liveliest, base), np.full(len(liveliest), first))
        best = (NOISE_FACTOR * float(noise.mean()) / (2 * largest[2])) ** (1 / 3) if largest[2] > 0 else np.inf
        best = min(max(best, _LEAST * scale), _LARGEST * scale)
        return Seen(float(np.exp2(np.round(np.log2(best)))), float(noise.max()), *largest)

    def _sampler(self, z: int, spot: Spot, units: Indices, base: FloatArray) -> Sampler:
        """The losses around some of the preactivations of one spot."""

        def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
            ((changes, around, _),) = self.perturbed.impulses(z, [Shift(spot, entries, deltas)])
            return np.asarray(changes + around)

        around = Probe(units, self._at(z, [spot])[0, units], units[:, None], summed=False)
        return Sampler(losses, around, base, noise_rows=len(units))

    def _spots(self, z: int) -> list[Spot]:
        return self.perturbed.spots(lasting(self.problem.setup.graph, z))

    def _changes(
        self, asked: Perturbed, node: int, every: Sequence[Spot], entries: Indices, deltas: FloatArray
    ) -> Iterator[tuple[list[Spot], FloatArray, FloatArray]]:
        """The same shifts at every spot: changes (spots, shifts, windows · batch) of losses, and these losses without
        them, for some spots at a time whose windows are of one length."""
        found = asked.impulses(node, [Shift(spot, entries, deltas) for spot in every])
        for _, alike in itertools.groupby(every, lambda spot: spot.length):
            spots = list(alike)
            some = max(1, BLOCK_ENTRIES // (len(entries) * len(spots[0].times) * self.problem.setup.batch))
            for start in range(0, len(spots), some):
                part = spots[start : start + some]
                changes, base, _ = zip(*itertools.islice(found, len(part)), strict=True)
                yield part, np.stack(changes), np.stack(base)

    def _at(self, z: int, spots: Sequence[Spot]) -> FloatArray:
        """The preactivations at spots of windows of one length, (spots, units, windows · batch)."""
        values = self._values[z][np.array([spot.times for spot in spots])]
        return np.asarray(values.reshape(len(spots), -1, values.shape[-1]).swapaxes(1, 2))

    def _units(self, z: int) -> Indices:
        return np.arange(self.problem.setup.graph.nodes[z].size)

    def _zeros(self, z: int) -> FloatArray:
        setup = self.problem.setup
        return np.zeros((setup.T, setup.batch, setup.graph.nodes[z].size))

    def _add(self, total: FloatArray, spots: Sequence[Spot], found: FloatArray) -> None:
        """Add what was found at spots, (spots, units, windows · batch), to what there is of their steps."""
        times = np.array([spot.times for spot in spots])
        shape = (len(spots), total.shape[2], times.shape[1] * total.shape[1])
        part = np.broadcast_to(found, shape).swapaxes(1, 2).reshape(*times.shape, *total.shape[1:])
        if len(np.unique(times)) == times.size:
            total[times] += part
        else:
            np.add.at(total, times, part)

    def _assembled(
        self, slopes: dict[int, FloatArray], sized: Callable[[FloatArray], FloatArray]
    ) -> dict[str, FloatArray]:
        """By tensor, derivatives, or with absolute values of the vectors their errors."""
        return {
            t.name: assemble(self.terms[t.name], t.shape, slopes, lambda v: sized(self._values[v]))
            for t in self.tensors
        }
