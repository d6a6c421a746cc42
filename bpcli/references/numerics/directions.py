"""Directions to differentiate along: a whole tensor moves at once, so that its size costs nothing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.problem.definition import Tensor
from bpcli.problem.factors import ALONG
from bpcli.problem.kinks import FREE
from bpcli.problem.perturbed import Perturbed
from bpcli.references.numerics.probe import FloatArray, Indices, Probe

COUNT = 8
"""Directions per tensor. Gaussian ones: with signs alone errors in several entries may cancel."""

NOISE_ROWS = 2
"""Directions at which the noise of the loss is measured; each feels all of a tensor."""

Directions = Mapping[Tensor, FloatArray]
"""By tensor, directions `(K, size)` over its flat entries."""


def directions(tensor: Tensor, count: int = COUNT) -> FloatArray:
    """Directions `(count, size)`, drawn from a generator seeded by the tensor's name; zero where no entry exists."""
    generator = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    drawn = generator.standard_normal((count, int(np.prod(tensor.shape))))
    if tensor.pattern is not None:
        kept = np.zeros_like(drawn)
        kept[:, tensor.pattern] = drawn[:, tensor.pattern]
        return kept
    return drawn


def dot(rows: FloatArray, values: FloatArray) -> FloatArray:
    """`rows (K, size)` times `values`, any shape: `(K,)`, summed pairwise, whose rounding does not grow with size.

    What is not finite counts where a direction goes.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(rows != 0, rows * values.reshape(-1), 0.0).sum(axis=1), dtype=np.float64)


def norms(rows: FloatArray, bounds: FloatArray) -> FloatArray:
    """`(K,)`: what independent errors within `bounds` may add up to along each direction."""
    with np.errstate(all="ignore"):
        scaled = np.abs(rows) * bounds.reshape(-1)
        largest = scaled.max(axis=1)
        safe = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        return np.asarray(
            np.where(np.isnan(largest), np.inf, safe * np.sqrt(((scaled / safe[:, None]) ** 2).sum(axis=1)))
        )


@dataclass(frozen=True, eq=False)
class Along:
    """Losses along directions: of copies of the network that have the whole `tensor` moved by some of a row."""

    perturbed: Perturbed
    tensor: Tensor
    rows: FloatArray

    def losses(self, which: Indices, deltas: np.ndarray) -> np.ndarray:
        """`(C, batch)` of C copies, moved by `deltas[c] * rows[which[c]]`."""
        return self.followed(which, deltas)[0]

    def followed(self, which: Indices, deltas: np.ndarray) -> tuple[np.ndarray, FloatArray]:
        """The same with the kinks that were met, as of `Perturbed`."""
        size = ALONG if np.iscomplexobj(deltas) else 1.0
        moved = (self.perturbed.moved(self.tensor, d * size * self.rows[k]) for k, d in zip(which, deltas, strict=True))
        losses, met = (np.stack(part) for part in zip(*(there.here() for there in moved), strict=True))
        if np.iscomplexobj(losses):
            losses.imag /= size
        return losses, np.where(met > FREE, met * size, FREE)


def points_along(array: FloatArray, rows: FloatArray) -> Probe:
    """How far one is along each of `rows (K, size)` from an array, in units of its size."""
    size = float(np.linalg.norm(array))
    length = np.sqrt((rows**2).sum(axis=1))
    unit = np.where((length > 0) & (size > 0), size / np.where(length > 0, length, 1.0), 1.0)
    # A power of two: what is added to it and taken away again is exactly the step.
    points = np.exp2(np.round(np.log2(np.maximum(unit, 1e-30))))[:, None]
    which = np.arange(len(rows))
    return Probe(which, points, which[:, None], summed=True)
