"""Derivatives with respect to preactivations, from changes of their values, put together to those of parameters.

Products are linear in their matrix (see `bpcli.problem.preactivations`): that is all that is known of the network.
Where preactivations are fewer than parameters, and what they change is over sooner, there is so much less to evaluate.
Whoever takes derivatives from here compares some of them with what changes of the parameters themselves say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bpcli.problem.cast import cast
from bpcli.problem.model import Problem, Tensor
from bpcli.problem.perturbed import Perturbed, Spot
from bpcli.problem.preactivations import assemble, lasting, terms, worthwhile
from bpcli.problem.tangent import tangents
from bpcli.problem.values import node_values
from bpcli.references.numerics.ladder import NOISE_FACTOR, Derivatives
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
        slopes = {}
        for z in self.zs:
            units, spots = self._units(z), self._spots(z)
            slopes[z] = self._zeros(z)
            if other is None:
                found = self.perturbed.impulses(z, spots, units, np.full(len(units), _STEP * 1j))
                parts = (changes.imag / _STEP for changes, _, _ in found)
            else:
                parts = (c for c, _, _ in other.perturbed.impulses(other.nodes[z], spots, units, np.ones(len(units))))
            for spot, part in zip(spots, parts, strict=True):
                self._add(slopes[z], spot, part)
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
        spots, units = self._spots(z), self._units(z)
        seen = self._look(z, spots)
        step = offset * seen.step
        parts = self._zeros(z), self._zeros(z), self._zeros(z)
        found = self.perturbed.impulses(z, spots, np.tile(units, 2), step * np.repeat([1.0, -1.0], len(units)))
        for spot, (changes, base, _) in zip(spots, found, strict=True):
            up, down = changes.reshape(2, len(units), -1)
            value, level = (up - down) / (2 * step), np.maximum(seen.noise, 4 * _UNIT_ROUNDOFF * np.abs(base))
            # The points themselves are rounded, and so is each loss.
            at, size = np.abs(self._at(z, spot)) / step, np.maximum(np.abs(up), np.abs(down)) / step
            rounding = _UNIT_ROUNDOFF * (2 * (at + 1) * np.abs(value) + NOISE_FACTOR * size)
            even = np.maximum(np.abs(up + down) - 4 * NOISE_FACTOR * level, 0.0) / step**2
            noise = NOISE_FACTOR * level / step + rounding
            for total, part in zip(parts, (value, step**2 * seen.third(value, even), noise), strict=True):
                self._add(total, spot, part)
        return *parts, seen.noise * len(self.perturbed.windows) * self.problem.setup.batch

    def _look(self, z: int, spots: Sequence[Spot]) -> Seen:
        """What pairs at some preactivations show, and the step at which noise and truncation then balance."""
        longest = max(spots, key=lambda s: s.length - s.step)
        at = np.abs(self._at(z, longest))
        # Functions of preactivations bend within one, however large these are.
        sizes = at[at > 0]
        scale = float(np.exp2(np.round(np.log2(min(np.median(sizes), 1.0))))) if sizes.size else 1.0
        first = _FIRST * scale
        # Small and large ones, saturated and not.
        few = np.argsort(at.min(axis=1))[np.linspace(0, len(at) - 1, min(len(at), _LOOKED_AT)).astype(np.int64)]
        largest = [0.0, 0.0, 0.0]
        # All units where most follows, as one may be unlike all others; some of them elsewhere.
        for spot in (longest, *(spots[k] for k in sorted({len(spots) // 2, len(spots) - 1} - {0}))):
            units = self._units(z) if spot is longest else few
            signed = first * np.repeat(SIGNED, len(units))
            ((changes, base, _),) = self.perturbed.impulses(z, [spot], np.tile(units, len(SIGNED)), signed)
            changes = changes.reshape(len(SIGNED), len(units), -1)
            slope, apart, _ = pairs(changes, first)
            third, even = _SAFE * apart / (3 * first**2), np.abs(changes[0] + changes[1]) / first**2
            parts = (float(np.where(np.isfinite(part), part, 0.0).max()) for part in (np.abs(slope), even, third))
            largest = [max(pair) for pair in zip(largest, parts, strict=True)]
            if spot is longest:
                liveliest = np.argsort(-np.abs(slope).max(axis=1))[:_NOISE_ROWS]
                noise = loss_noise(self._sampler(z, spot, liveliest, base), np.full(len(liveliest), first))
        best = (NOISE_FACTOR * float(noise.mean()) / (2 * largest[2])) ** (1 / 3) if largest[2] > 0 else np.inf
        best = min(max(best, _LEAST * scale), _LARGEST * scale)
        return Seen(float(np.exp2(np.round(np.log2(best)))), float(noise.max()), *largest)

    def _sampler(self, z: int, spot: Spot, units: Indices, base: FloatArray) -> Sampler:
        """The losses around some of the preactivations of one spot."""

        def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
            (found,) = self.perturbed.impulses(z, [spot], entries, deltas)
            return np.asarray(found[0] + found[1])

        around = Probe(units, self._at(z, spot)[units], units[:, None], summed=False)
        return Sampler(losses, around, base, noise_rows=len(units))

    def _spots(self, z: int) -> list[Spot]:
        return self.perturbed.spots(lasting(self.problem.setup.graph, z))

    def _at(self, z: int, spot: Spot) -> FloatArray:
        """The preactivations at a spot, (units, windows · batch)."""
        return self._values[z][list(spot.times)].reshape(-1, self._values[z].shape[2]).T

    def _units(self, z: int) -> Indices:
        return np.arange(self.problem.setup.graph.nodes[z].size)

    def _zeros(self, z: int) -> FloatArray:
        setup = self.problem.setup
        return np.zeros((setup.T, setup.batch, setup.graph.nodes[z].size))

    def _add(self, total: FloatArray, spot: Spot, found: FloatArray) -> None:
        """Add what was found at a spot, (units, windows · batch), to what there is of its steps."""
        part = np.broadcast_to(found, (total.shape[2], len(spot.times) * total.shape[1]))
        np.add.at(total, list(spot.times), part.T.reshape(-1, *total.shape[1:]))

    def _assembled(
        self, slopes: dict[int, FloatArray], sized: Callable[[FloatArray], FloatArray]
    ) -> dict[str, FloatArray]:
        """By tensor, derivatives, or with absolute values of the vectors their errors."""
        return {
            t.name: assemble(self.terms[t.name], t.shape, slopes, lambda v: sized(self._values[v]))
            for t in self.tensors
        }
