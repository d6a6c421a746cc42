"""Which numbers are shifted to differentiate a tensor, and where the derivatives then go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.problem.definition import Problem, Tensor

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
