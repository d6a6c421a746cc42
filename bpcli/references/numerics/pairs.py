"""Central differences at two steps, one twice the other: four evaluations, and a truncation that is seen.

R(h) = (4 D(h) - D(2h)) / 3 has error O(h⁴) (Richardson), and |D(h) - D(2h)| is three times its distance from D(h).
"""

from __future__ import annotations

import numpy as np

from bpcli.references.numerics.derivatives import NOISE_FACTOR, UNIT_ROUNDOFF, Derivatives
from bpcli.references.numerics.ladder import FIRST_STEP, PILOT, scales
from bpcli.references.numerics.probe import FloatArray, Probe

SIGNED = np.array([1.0, -1.0, 2.0, -2.0])
"""The steps of a pair, over the smaller one."""
COMPARED = 4
"""Entries of each tensor whose derivatives from elsewhere are compared."""


def pairs(changes: FloatArray, step: float | FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """From changes (4, …) of the loss: R(h), what is taken for its error, and the largest change per step."""
    near, far = (changes[0] - changes[1]) / (2 * step), (changes[2] - changes[3]) / (4 * step)
    return (4 * near - far) / 3, np.abs(near - far), np.abs(changes).max(axis=0) / step


class Comparison:
    """Whether derivatives that come from elsewhere are those of the loss as its numbers are shifted themselves.

    By a pair each, and by one difference with a tiny step, which leaps over nothing: `entries` are shifted by `deltas`.
    """

    def __init__(self, probe: Probe, known: Derivatives, noise: float) -> None:
        """`known` has the probe's rows; `noise` is that of the loss, two standard deviations."""
        self.probe, self.known, self.noise = probe, known, noise
        self.steps = np.exp2(np.round(np.log2(FIRST_STEP / 4 * scales(probe))))
        self.signed = np.outer([*SIGNED, PILOT, -PILOT], self.steps)
        self.rows = np.tile(np.arange(len(self.steps)), len(self.signed))
        self.entries, self.deltas = probe.entries[self.rows], self.signed.reshape(-1)

    def agrees(self, losses: FloatArray, base: FloatArray) -> bool:
        """What the losses `(6 K, batch)` of the shifts say, and those with nothing shifted, `(batch,)`."""
        known, signed, step = self.known, self.signed, self.steps[:, None]
        with np.errstate(all="ignore"):
            found = self.probe.seen(losses - base, self.rows, self.deltas)
            change, shift = (a.reshape(*signed.shape, -1) for a in found)
            value, truncation, size = pairs(change[:4] * (signed[:4, :, None] / shift[:4]), step)
            tiny = (change[4] - change[5]) / (shift[4] - shift[5])
            room = known.bound + truncation + UNIT_ROUNDOFF * NOISE_FACTOR * size
            near = np.abs(value - known.value) <= room + NOISE_FACTOR * self.noise / step
            nearer = np.abs(tiny - known.value) <= room + NOISE_FACTOR * self.noise / (PILOT * step)
            return bool((near & nearer).all())
