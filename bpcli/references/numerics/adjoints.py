"""Adjoints λ(t) = dL/da(t) of all states, carried backwards from step to step for the losses of several windows."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.references.numerics.derivatives import Mask
from bpcli.references.numerics.probe import FloatArray
from bpcli.runtime.reverse_mode import Window


@dataclass(frozen=True, eq=False)
class SlotMasks:
    """By step and slot: whether a window is `on`, whether its losses are `counted` there, and whether no λ comes from
    later steps (`fresh`)."""

    on: Mask
    counted: Mask
    fresh: Mask


class WindowSlots:
    """Windows in `count` slots, so that adjoints for all of them are one array; windows without a common step may share
    a slot."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = sorted(windows, key=lambda w: -w.stop)
        self._starts, self._stops = (np.array([getattr(w, name) for w in self._windows]) for name in ("start", "stop"))
        self._slot, taken = list[int](), list[tuple[int, int]]()
        self.count = 0
        for w in self._windows:
            if taken and -taken[0][0] >= w.stop:
                slot = heapq.heappop(taken)[1]
            else:
                slot, self.count = self.count, self.count + 1
            self._slot.append(slot)
            heapq.heappush(taken, (-w.start, slot))

    def masks(self, first: int, last: int) -> SlotMasks:
        """Masks (steps, count) of the steps from `first` to `last`."""
        on, counted, begins = (np.zeros((last - first, self.count), np.bool_) for _ in range(3))
        for i in np.flatnonzero((self._starts < last) & (self._stops > first)):
            w, slot = self._windows[i], self._slot[i]
            stop = min(w.stop, last) - first
            on[max(0, w.start - first) : stop, slot] = True
            counted[max(0, w.loss_from - first) : stop, slot] = True
            if w.stop <= last:
                begins[stop - 1, slot] = True
        return SlotMasks(on, counted, begins | ~on)


@dataclass(frozen=True, eq=False)
class Carried:
    """Derivatives `found (steps, batch, U, W, columns)` of the numbers of steps, the adjoints `credit (steps, batch, N,
    W, columns)` that they are made of, and those `before (batch, N, W, columns)` the first step."""

    found: FloatArray
    credit: FloatArray
    before: FloatArray


def carry(
    slopes: FloatArray, source: FloatArray, credit: FloatArray, fresh: Mask, pulling: FloatArray | None
) -> Carried:
    """From the last step back, derivatives slopes(t) λ(t) + source(t) of the U numbers of a step, and λ(t-1), which is
    `pulling (N, U)` times these.

    `slopes (steps, batch, U, N)` of states by numbers, `source (steps, batch, U, W, columns)`. `credit` is λ after the
    last step; it is zero where `fresh (steps, W)`, and everywhere where `pulling` is None.
    """
    steps, batch, U, W, columns = source.shape
    N = credit.shape[1]
    credits = np.zeros((steps, batch, N, W, columns))
    if pulling is None:
        return Carried(source, credits, credit)
    known = all(np.isfinite(a).all() for a in (slopes, source, credit))
    times = np.matmul if known else _times
    found, sources, held = np.empty((steps, batch, U, W * columns)), source.reshape(steps, batch, U, -1), credits
    each = held.reshape(steps, batch, N, -1)
    some = np.asarray(fresh.any(axis=1))
    here = credit.reshape(batch, N, -1)
    for t in range(steps - 1, -1, -1):
        each[t] = here
        if some[t]:
            held[t, :, :, fresh[t]] = 0.0
        found[t] = times(slopes[t], each[t]) + sources[t]
        here = times(pulling, found[t])
    return Carried(found.reshape(source.shape), credits, here.reshape(credit.shape))


def _times(matrix: FloatArray, vectors: FloatArray) -> FloatArray:
    """`matrix @ vectors`; NaN only where a NaN is multiplied by a number other than zero."""
    lost = np.isnan(vectors)
    if not lost.any():
        return np.asarray(matrix @ vectors)
    found = matrix @ np.where(lost, 0.0, vectors)
    found[(matrix != 0).astype(np.float64) @ lost.astype(np.float64) > 0] = np.nan
    return np.asarray(found)


def running_sum(sums: NDArray[Any], later: float) -> FloatArray:
    """At each step the sum over it and all later ones, given that of the steps after the last."""
    return np.asarray(np.cumsum(sums[::-1])[::-1] + later, dtype=np.float64)
