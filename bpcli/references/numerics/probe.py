"""Perturbation patterns of a tensor: one entry at a time, or the whole tensor along directions.

The cost of a directional derivative does not depend on the size of the tensor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Tensor
from bpcli.references.perturbation import ALONG
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Perturbed

FIRST_STEP = 2.0**-10
"""First step of differences, relative to `scales`."""
PILOT = 2.0**-20
"""Step of the pilot difference, relative to the first step."""
# Least scale: the smallest steps relative to it are still normal numbers.
_LEAST = 2.0**-960


def scales(probe: Probe) -> FloatArray:
    """Scale `(K,)` of the steps: the size of the entry, but at least the median of its tensor or 1 if that is less.

    The limit is 1 because elementary functions curve on that scale, however large other entries are; 1 where all are 0.
    """
    sizes = np.abs(probe.points)
    typical = min(float(np.median(sizes[sizes > 0])), 1.0) if sizes.any() else 1.0
    return np.asarray(np.maximum(np.maximum(sizes.max(axis=1), typical), _LEAST), dtype=np.float64)


FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]
Losses = Callable[[Indices, FloatArray], FloatArray]
DType = np.dtype[np.floating]

_DOUBLE: DType = np.dtype(np.float64)
ROWS = 8
"""Entries at which the noise of a loss is measured."""
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Probe:
    """The K numbers to shift and the S derivatives that each shift yields.

    `entries (K,)` are flat indices as of `Perturbed.losses`. Samples do not interact, so numbers that each sample owns
    are shifted in all samples at once and S is the batch; losses are `summed` over samples for shared numbers, and S is
    1. `points (K, S)` are the values at which derivatives are taken, `places (K, S)` flat indices into the gradient.
    """

    entries: Indices
    points: FloatArray
    places: Indices
    summed: bool

    def choose(self, count: int, seed: int) -> Indices:
        """Indices of at most `count` of the K numbers, drawn at random with a seed."""
        if count >= len(self.entries):
            return np.arange(len(self.entries))
        return np.sort(np.random.default_rng(seed).choice(len(self.entries), count, replace=False))

    def rows(self, rows: Indices) -> Probe:
        """A subset of the K numbers."""
        return Probe(self.entries[rows], self.points[rows], self.places[rows], self.summed)

    def sample(self, count: int, seed: int) -> Probe:
        """A random subset of the K numbers, see `choose`."""
        return self.rows(self.choose(count, seed))

    def changes(
        self, change: FloatArray, rows: Indices, steps: FloatArray, dtype: DType = _DOUBLE
    ) -> tuple[FloatArray, FloatArray]:
        """Changes of the loss `(R, S)` from changes `(R, batch)` of the samples' losses, and the actual shifts `(R, S)`
        when the numbers `rows (R,)` are shifted by `steps (R,)` and rounded to `dtype`."""
        if self.summed:
            change = change.sum(axis=1, keepdims=True)
        points = self.points[rows]
        return change, (points + steps[:, None]).astype(dtype) - points

    def scatter(self, values: FloatArray, shape: tuple[int, ...], elsewhere: float = 0.0) -> FloatArray:
        """Scatter `values (K, S)` into a gradient of the given shape, filled with `elsewhere`."""
        out = np.full(shape, elsewhere)
        out.reshape(-1)[self.places] = values
        return out


def probe(problem: Problem, tensor: Tensor) -> Probe:
    """The probe of all entries of a tensor."""
    setup = problem.setup
    array = np.asarray(problem.array(tensor), dtype=np.float64)
    shared = tensor.kind == "param" or tensor.name in setup.shared
    steps = setup.T if tensor.kind == "input" else 1
    if shared:
        entries = np.arange(array.size) if tensor.pattern is None else tensor.pattern
        places = entries[:, None]
    else:
        places = np.arange(array.size).reshape(steps, setup.batch, -1).transpose(0, 2, 1).reshape(-1, setup.batch)
        entries = np.arange(len(places))
        if tensor.pattern is not None:
            entries = np.flatnonzero(np.isin(places, tensor.pattern).any(axis=1))
            places = places[entries]
    return Probe(entries.astype(np.int64), array.reshape(-1)[places], places, shared)


@dataclass(frozen=True, eq=False)
class Sampler:
    """A loss near the values of one tensor: `losses(entries (C,), deltas (C,)) -> (C, batch)` under a `Probe`.

    Shifted numbers are rounded to `dtype` before they enter the loss. The noise is measured at `noise_rows` of them.
    `kinks (K, S)` are distances of the kinks whose side rounding hides, negative where there are none; losses beyond
    other kinks are then NaN. None: kinks are unknown. Noise is measured on one side of the point if `sided`, so that a
    kink at the point itself is not taken for noise. A `coarse` loss has the digits of float32, whatever its type.
    """

    losses: Losses
    probe: Probe
    base: FloatArray
    dtype: DType = _DOUBLE
    noise_rows: int = ROWS
    kinks: FloatArray | None = None
    sided: bool = False
    coarse: bool = False

    @staticmethod
    def of(losses: Losses, probe: Probe) -> Sampler:
        """A sampler that evaluates the unshifted losses `base (batch,)`."""
        return Sampler(losses, probe, losses(probe.entries[:1], np.zeros(1))[0])

    @property
    def level(self) -> FloatArray:
        """`(S,)`: the size of the loss that determines its rounding."""
        size = np.abs(self.base)
        return size.sum(keepdims=True) if self.probe.summed else size

    def shift(self, rows: Indices, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shift the numbers `rows (R,)` by `steps (R,)`, one at a time.

        Returns the change of the loss `(R, S)`, subtracted per sample before the sum, and the actual shift in floating
        point `(R, S)`.
        """
        entries = self.probe.entries[rows]
        size = max(1, _ROWS_AT_ONCE // len(self.base))
        blocks = [slice(i, i + size) for i in range(0, len(rows), size)]
        change = np.concatenate([self.losses(entries[b], steps[b]) - self.base for b in blocks])
        return self.probe.changes(change, rows, steps, self.dtype)


COUNT = 8
"""Directions per tensor. They are Gaussian: with random signs, errors of several entries may cancel."""

NOISE_ROWS = 2
"""Directions along which the noise of the loss is measured; each perturbs the whole tensor."""

Directions = Mapping[Tensor, FloatArray]
"""By tensor, directions `(K, size)` over its flat entries."""


def directions(tensor: Tensor, count: int = COUNT) -> FloatArray:
    """Directions `(count, size)`, random with the tensor's name for a seed; zero outside the sparsity pattern."""
    generator = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    drawn = generator.standard_normal((count, int(np.prod(tensor.shape))))
    if tensor.pattern is not None:
        kept = np.zeros_like(drawn)
        kept[:, tensor.pattern] = drawn[:, tensor.pattern]
        return kept
    return drawn


def dot(rows: FloatArray, values: FloatArray) -> FloatArray:
    """`rows (K, size)` times `values` of any shape, `(K,)`, by pairwise summation: rounding hardly grows with size.

    Values that are not finite are ignored where the direction is zero.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(rows != 0, rows * values.reshape(-1), 0.0).sum(axis=1), dtype=np.float64)


def norms(rows: FloatArray, bounds: FloatArray) -> FloatArray:
    """Root sum of squares `(K,)` of independent errors within `bounds`, along each direction."""
    with np.errstate(all="ignore"):
        scaled = np.abs(rows) * bounds.reshape(-1)
        largest = scaled.max(axis=1)
        safe = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        return np.asarray(
            np.where(np.isnan(largest), np.inf, safe * np.sqrt(((scaled / safe[:, None]) ** 2).sum(axis=1)))
        )


@dataclass(frozen=True, eq=False)
class Along:
    """Losses of copies whose whole `tensor` is shifted along one of the directions `rows (K, size)`."""

    perturbed: Perturbed
    tensor: Tensor
    rows: FloatArray

    def losses(self, which: Indices, deltas: np.ndarray) -> np.ndarray:
        """Losses `(C, batch)` of C copies, copy c shifted by `deltas[c] * rows[which[c]]`."""
        return self.losses_and_kinks(which, deltas)[0]

    def losses_and_kinks(self, which: Indices, deltas: np.ndarray) -> tuple[np.ndarray, FloatArray]:
        """Losses, and the distances of the kinks they meet, as of `Perturbed.losses_and_kinks`."""
        size = ALONG if np.iscomplexobj(deltas) else 1.0
        moved = (
            self.perturbed.with_shift(self.tensor, d * size * self.rows[k]) for k, d in zip(which, deltas, strict=True)
        )
        losses, met = (np.stack(part) for part in zip(*(there.unperturbed() for there in moved), strict=True))
        if np.iscomplexobj(losses):
            losses.imag /= size
        return losses, np.where(met > FREE, met * size, FREE)


def points_along(array: FloatArray, rows: FloatArray) -> Probe:
    """The probe of positions along directions `rows (K, size)`, scaled by the norm of the array."""
    size = float(np.linalg.norm(array))
    length = np.sqrt((rows**2).sum(axis=1))
    unit = np.where((length > 0) & (size > 0), size / np.where(length > 0, length, 1.0), 1.0)
    # A power of two, so that adding and subtracting a step is exact.
    points = np.exp2(np.round(np.log2(np.maximum(unit, 1e-30))))[:, None]
    which = np.arange(len(rows))
    return Probe(which, points, which[:, None], summed=True)
