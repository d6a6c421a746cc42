"""Gradients at kinks that several entries share, judged jointly.

Entry by entry, any value between the one-sided derivatives is right. Where entries share a kink, as equal arguments of
a maximum do, the gradient must be one convex combination of the gradients beside the kink for all of them. If all kinks
at the point bend the same way, that means, with f'(d) the one-sided derivative along a direction d,

    |g·d - (f'(d) - f'(-d)) / 2|  <=  |f'(d) + f'(-d)| / 2    for every d

(Clarke, Optimization and Nonsmooth Analysis, 1983, sections 2.1 and 2.3: f' is the support function of the set of
generalised gradients). Entries that bend one way are tested apart from those that bend the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bpcli.problem.definition import Array
from bpcli.references.base import FloatArray
from bpcli.references.numerics.probe import Indices

EVALUATIONS = 24
"""Evaluations of the loss in `unfit` for each entry."""
_MOST = 128  # entries to test together, those with the widest intervals
_STEPS = {np.dtype(np.float64): 2.0**-12, np.dtype(np.float32): 2.0**-6}
# By so much of the sum of all kinks two steps may differ, may a direction bend the other way, and must one be off.
_AGREE, _MIXED, _OFF = 0.02, 0.02, 0.25
_RANDOM = 6


@dataclass(frozen=True, eq=False)
class AtKink:
    """Entries at kinks of the tensor `name`: flat `places`, values of the gradient, and half the jumps there."""

    name: str
    places: Indices
    value: FloatArray
    kink: FloatArray


@dataclass(frozen=True)
class Unfit:
    """A direction along `entries` (tensor, flat place, ±1) in which the `slope` of the gradient is none of the slopes
    from `low` to `high` of the loss."""

    entries: tuple[tuple[str, int, float], ...]
    slope: float
    low: float
    high: float

    @property
    def tensors(self) -> frozenset[str]:
        """The names of the tensors of its entries."""
        return frozenset(name for name, _, _ in self.entries)


def unfit(
    loss: Callable[[Mapping[str, Array]], float], point: Mapping[str, Array], found: Sequence[AtKink], most: int = _MOST
) -> Unfit | None:
    """A direction along which a gradient at kinks is no combination of slopes; None where all fit, or it is unsure.

    At most so many entries are tested.
    """
    every = [
        (f.name, int(p), float(v), float(k)) for f in found for p, v, k in zip(f.places, f.value, f.kink, strict=True)
    ]
    every = sorted(every, key=lambda row: -row[3])[: min(most, _MOST)]
    if len(every) < 2:
        return None
    values, kinks = (np.array([row[i] for row in every]) for i in (2, 3))
    around = _Around(loss, point, [(row[0], row[1]) for row in every])
    bends = np.array([around.bend(unit)[1] for unit in np.eye(len(every))])
    for sign in (1.0, -1.0):
        alike = np.flatnonzero(sign * bends > kinks / 2)
        if len(alike) > 1 and (worst := _worst(around, alike, values, kinks, sign)) is not None:
            return worst
    return None


def _worst(around: _Around, alike: Indices, values: FloatArray, kinks: FloatArray, sign: float) -> Unfit | None:
    """The direction along the entries `alike` that is off the most; None where none is, or kinks bend both ways."""
    slopes = np.array([around.bend(unit)[0] for unit in np.eye(len(values))[alike]])
    off = values[alike] - slopes
    worst: tuple[FloatArray, float, float, float, float] | None = None
    by = 0.0
    for signs in _directions(off):
        d = np.zeros(len(values))
        d[alike] = signs
        slope, bend = around.bend(d)
        total = float(kinks @ np.abs(d))
        if not sign * bend >= -_MIXED * total:
            return None  # kinks that bend both ways, or a loss that is not known here
        given = float(values @ d)
        excess = (abs(given - slope) - abs(bend)) / total
        if excess > max(_OFF, by) and np.isin(signs, (-1.0, 0.0, 1.0)).all():
            turn = float(np.sign(signs[np.flatnonzero(signs)[0]]))
            worst, by = (turn * d, turn * given, turn * slope, abs(bend), total), excess
    if worst is None:
        return None
    d, given, slope, bend, total = worst
    low, high = slope - bend, slope + bend
    beside = slopes_nearby(around.loss, around.point, around.arrays(d))
    # Beside kinks that all bend one way, slopes are between those of both sides.
    if not len(beside) or not ((beside >= low - _MIXED * total) & (beside <= high + _MIXED * total)).all():
        return None
    entries = tuple((*e, float(x)) for e, x in zip(around.entries, d, strict=True) if x)
    return Unfit(entries, given, low, high)


def _directions(off: FloatArray) -> Iterator[FloatArray]:
    """Directions that show errors `off` from the mean slopes, and random ones, that show kinks which bend both ways."""
    signs = np.where(off < 0, -1.0, 1.0)
    yield signs
    yield np.ones(len(off))
    order = np.argsort(-np.abs(off), kind="stable")[:4]
    for i, one in enumerate(order):
        for other in order[:i]:
            for turn in (1.0, -1.0):
                pair = np.zeros(len(off))
                pair[one], pair[other] = signs[one], turn * signs[other]
                yield pair
    rng = np.random.default_rng(0)
    for _ in range(_RANDOM):
        yield rng.standard_normal(len(off))
        yield rng.choice([-1.0, 1.0], len(off))


_RANDOM_POINTS = 12
NEARBY = 2 * (_RANDOM_POINTS + 8)
"""Evaluations of the loss in `slopes_nearby`, for a few tensors."""
# A difference at a point near by, relative to its distance.
_CLOSE = {np.dtype(np.float64): 2.0**-6, np.dtype(np.float32): 2.0**-3}


def slopes_nearby(
    loss: Callable[[Mapping[str, Array]], float], point: Mapping[str, Array], direction: Mapping[str, FloatArray]
) -> FloatArray:
    """Slopes along a direction, of flat arrays by tensor, at points near by: of the pieces that meet at a kink."""
    rng, found = np.random.default_rng(0), []
    step = max(_STEPS[array.dtype] for array in point.values()) / 4
    close = max(_CLOSE[array.dtype] for array in point.values())
    wide = {n: a.astype(np.float64) for n, a in point.items()}
    sizes = {n: float(np.abs(a).mean()) or 1.0 for n, a in wide.items() if a.size}
    short = close * step * min(sizes[n] for n in direction)
    for shift in (*range(_RANDOM_POINTS), *((n, sign) for n in sizes for sign in (1.0, -1.0))):
        moved = dict(wide)
        for n, size in sizes.items():
            if isinstance(shift, int):
                moved[n] = wide[n] + step * size * rng.standard_normal(wide[n].shape)
            elif n == shift[0]:
                moved[n] = wide[n] + shift[1] * step * size
        ends = []
        for sign in (1.0, -1.0):
            end = {n: moved[n] + sign * short * d.reshape(moved[n].shape) for n, d in direction.items()}
            ends.append(loss({n: np.asarray(a, dtype=point[n].dtype) for n, a in {**moved, **end}.items()}))
        found.append((ends[0] - ends[1]) / (2 * short))
    slopes = np.array(found, dtype=np.float64)
    return np.asarray(slopes[np.isfinite(slopes)])


class _Around:
    """The loss along directions of `entries` (tensor, flat place)."""

    def __init__(
        self, loss: Callable[[Mapping[str, Array]], float], point: Mapping[str, Array], entries: list[tuple[str, int]]
    ) -> None:
        self.entries, self.loss, self.point = entries, loss, point
        self._base = loss(point)
        names = {name for name, _ in entries}
        self._step = max(_STEPS[point[name].dtype] for name in names)
        sizes = np.abs(np.array([point[name].reshape(-1)[place] for name, place in entries], dtype=np.float64))
        self._scale = max(float(sizes.max()), min(1.0, max(float(np.abs(point[n]).mean()) for n in names)), 1e-3)

    def bend(self, d: FloatArray) -> tuple[float, float]:
        """(f'(d) - f'(-d)) / 2 and (f'(d) + f'(-d)) / 2; NaN where two steps do not agree."""
        size = float(np.abs(d).max())
        found = [self._sides(d, step * self._scale / size) for step in (self._step, self._step / 4)]
        (up, down), (up2, down2) = found
        apart, most = max(abs(up - up2), abs(down - down2)), max(abs(up), abs(down), abs(up + down))
        if not apart <= _AGREE * most:
            return np.nan, np.nan
        return (up - down) / 2, (up + down) / 2

    def _sides(self, d: FloatArray, step: float) -> tuple[float, float]:
        """f'(d) and f'(-d), extrapolated from three steps."""
        up, down = (self._slopes(sign * d, step) for sign in (1.0, -1.0))
        weights = np.array([8.0, -6.0, 1.0]) / 3
        return float(weights @ up), float(weights @ down)

    def _slopes(self, d: FloatArray, step: float) -> FloatArray:
        losses = [self.loss(self._moved(d, t)) for t in (step, 2 * step, 4 * step)]
        return np.asarray((np.array(losses) - self._base) / (step * np.array([1.0, 2.0, 4.0])))

    def arrays(self, d: FloatArray) -> dict[str, FloatArray]:
        """The direction as flat arrays by tensor."""
        found = {name: np.zeros(self.point[name].size) for name, _ in self.entries}
        for (name, place), x in zip(self.entries, d, strict=True):
            found[name][place] = x
        return found

    def _moved(self, d: FloatArray, step: float) -> dict[str, Array]:
        moved = dict(self.point)
        for name, direction in self.arrays(d).items():
            array = self.point[name]
            shifted = array.astype(np.float64) + step * direction.reshape(array.shape)
            moved[name] = np.asarray(shifted, dtype=array.dtype)
        return moved
