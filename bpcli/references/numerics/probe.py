"""Which numbers are shifted to differentiate a tensor, and where the derivatives then go.

Directions to differentiate along: a whole tensor moves at once, so that its size costs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Tensor
from bpcli.references.perturbation.kinks import FREE
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.tangent import ALONG

FIRST_STEP = 2.0**-10


PILOT = 2.0**-20


# What steps are relative to at least: the tiniest of them are still normal numbers.
_LEAST = 2.0**-960


def scales(probe: Probe) -> FloatArray:
    """`(K,)`: the size that a step is relative to: the entry's, or the median of its tensor but at most 1.

    Functions bend within one, however large other entries are; 1 where all are zero.
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
"""Numbers at which the noise of a loss is measured."""
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Probe:
    """The K numbers to shift and the S derivatives that each shift yields.

    `entries (K,)` are flat indices as `Perturbed.losses` takes them. Samples do not interact, so what each sample owns
    is shifted in all samples at once and S is the batch; what samples share is `summed` over them and S is 1.
    `points (K, S)` are the values at which the derivative is taken. `places (K, S)` are flat indices into the gradient.
    """

    entries: Indices
    points: FloatArray
    places: Indices
    summed: bool

    def some(self, count: int, seed: int) -> Indices:
        """At most `count` of the K numbers, chosen at random with a seed: which ones."""
        if count >= len(self.entries):
            return np.arange(len(self.entries))
        return np.sort(np.random.default_rng(seed).choice(len(self.entries), count, replace=False))

    def rows(self, rows: Indices) -> Probe:
        """Those of the K numbers alone."""
        return Probe(self.entries[rows], self.points[rows], self.places[rows], self.summed)

    def sample(self, count: int, seed: int) -> Probe:
        """`some` of the K numbers alone."""
        return self.rows(self.some(count, seed))

    def seen(
        self, change: FloatArray, rows: Indices, steps: FloatArray, dtype: DType = _DOUBLE
    ) -> tuple[FloatArray, FloatArray]:
        """What changes `(R, batch)` of the losses are as changes of the loss `(R, S)`, where the numbers `rows (R,)`
        are shifted by `steps (R,)`; and the shifts that take place in a dtype `(R, S)`."""
        if self.summed:
            change = change.sum(axis=1, keepdims=True)
        points = self.points[rows]
        return change, (points + steps[:, None]).astype(dtype) - points

    def scatter(self, values: FloatArray, shape: tuple[int, ...], elsewhere: float = 0.0) -> FloatArray:
        """`values (K, S)` in a gradient of the given shape, `elsewhere` in the rest."""
        out = np.full(shape, elsewhere)
        out.reshape(-1)[self.places] = values
        return out


def probe(problem: Problem, tensor: Tensor) -> Probe:
    """How `tensor` is differentiated in `problem`."""
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
    """A loss around the values of one tensor: `losses(entries (C,), deltas (C,)) -> (C, batch)` under a `Probe`.

    Shifted numbers are rounded to `dtype` before the loss sees them. The noise is measured at `noise_rows` of them.
    `kinks (K, S)` says how far the kinks are that are too near to tell which side a number is on, negative where there
    are none; losses beyond other kinks are NaN then. None where nobody knows.
    """

    losses: Losses
    probe: Probe
    base: FloatArray
    dtype: DType = _DOUBLE
    noise_rows: int = ROWS
    kinks: FloatArray | None = None

    @staticmethod
    def of(losses: Losses, probe: Probe) -> Sampler:
        """The sampler, with the unshifted losses `base (batch,)` evaluated."""
        return Sampler(losses, probe, losses(probe.entries[:1], np.zeros(1))[0])

    @property
    def level(self) -> FloatArray:
        """`(S,)`: the size of the loss, as far as its rounding is concerned."""
        size = np.abs(self.base)
        return size.sum(keepdims=True) if self.probe.summed else size

    def shift(self, rows: Indices, steps: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shift the numbers `rows (R,)` by `steps (R,)`, one at a time.

        Returns the change of the loss `(R, S)`, differences taken sample by sample before anything is summed, and the
        shift that took place in floating point `(R, S)`.
        """
        entries = self.probe.entries[rows]
        size = max(1, _ROWS_AT_ONCE // len(self.base))
        blocks = [slice(i, i + size) for i in range(0, len(rows), size)]
        change = np.concatenate([self.losses(entries[b], steps[b]) - self.base for b in blocks])
        return self.probe.seen(change, rows, steps, self.dtype)


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
