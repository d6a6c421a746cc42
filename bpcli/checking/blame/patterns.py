"""Patterns in the numbers of a wrong gradient: factors, clipping, transposed, copied and exchanged tensors, blocks.

They need the given and the right numbers alone, so that they serve black boxes too. Together they must account for all
tensors; a few entries support no pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.blame.signatures import PLAIN, explained, factor_words, projection, proportional
from bpcli.references.base import FloatArray

Arrays = Mapping[str, FloatArray]
# Entries that a factor, and a multiple of the array itself, must agree in.
_FOR_FACTOR, _FOR_DECAY = 2, 3
_ROUND, _DIGITS = 1e-9, 3
_BLOCKS = 8  # at most, as of gates that share a matrix


@dataclass(frozen=True)
class Pattern:
    """A pattern in words, and the tensors that it accounts for."""

    words: str
    tensors: frozenset[str]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Gradients by name: `given`, `right`, and the `slack` between them; the arrays `theta` that they are of.

    `known` are numbers with a name that may be factors, those of `sizes` where no plain number is equal. `terms` are
    gradients of the terms of parameters alone, empty where there are none.
    """

    given: Arrays
    right: Arrays
    slack: Arrays
    theta: Arrays
    known: Mapping[str, float] = field(default_factory=lambda: PLAIN)
    sizes: Mapping[str, float] = field(default_factory=dict)
    terms: Arrays = field(default_factory=dict)

    def explained(self, name: str, value: FloatArray) -> bool:
        """Whether `value` is what is given, to within rounding or a negligible part of its error."""
        return explained(self.given[name], self.right[name], self.slack[name], value)

    def ratio(self, value: float) -> str:
        """A factor in words."""
        return factor_words(value, self.known, self.sizes)


def patterns(numbers: Numbers, base: Arrays) -> list[Pattern] | None:
    """The patterns by which the given gradients differ from `base`; None unless they account for all tensors."""
    left = [n for n in numbers.given if not numbers.explained(n, base[n])]
    if not left or not all(np.isfinite(numbers.given[n]).all() and np.isfinite(base[n]).all() for n in left):
        return None
    if words := _of_all(numbers, base, left):
        return [Pattern(words, frozenset(left))]
    return _one_by_one(numbers, base, left) or _after_ratio(numbers, base, left)


def _after_ratio(numbers: Numbers, base: Arrays, left: Sequence[str]) -> list[Pattern] | None:
    """One factor of all tensors, which several show, and the patterns of the others."""
    for name in left:
        ratio = projection(numbers.given[name], base[name])
        if not ratio or (base[name] != 0).sum() < _FOR_FACTOR:
            continue
        scaled = {n: ratio * a for n, a in base.items()}
        others = [n for n in numbers.given if not numbers.explained(n, scaled[n])]
        if len(others) + 2 > len(numbers.given) or (found := _one_by_one(numbers, scaled, others)) is None:
            continue
        words = f"the gradient is {numbers.ratio(ratio)} times the right one"
        return [Pattern(words, frozenset(left)), *found]
    return None


def _one_by_one(numbers: Numbers, base: Arrays, left: Sequence[str]) -> list[Pattern] | None:
    """The patterns of single tensors; None where one has none."""
    found: dict[str, frozenset[str]] = {}
    for name in left:
        words = of_one(numbers, base, name)
        if not words:
            return None
        found[words] = found.get(words, frozenset()) | {name}
    return [Pattern(words, tensors) for words, tensors in found.items()]


def of_one(numbers: Numbers, base: Arrays, name: str) -> str:
    """The pattern of one tensor; "" without any."""
    if numbers.given[name].size > 1 and not numbers.given[name].any():
        return "the gradient is zero, as if it were never computed"
    for rule in (_transposed, _copied, _clipped_norm, _factor, _clipped, _block, _exchanged_blocks, _decay):
        if words := rule(numbers, base, name):
            return words
    return ""


def _of_all(numbers: Numbers, base: Arrays, left: Sequence[str]) -> str:
    """The pattern that all tensors share."""
    whole = [n for n in numbers.given if base[n].any() or numbers.given[n].any()]
    if sum(int((base[n] != 0).sum()) for n in whole) < _FOR_FACTOR:
        return ""
    if set(whole) <= set(left):
        given, right = (np.concatenate([a[n].reshape(-1) for n in whole]) for a in (numbers.given, base))
        ratio = projection(given, right)
        if ratio and all(numbers.explained(n, ratio * base[n]) for n in whole):
            norm = float(np.linalg.norm(given))
            if 0 < ratio < 1 and _is_round(norm):
                return f"the gradient is clipped: the norm of all tensors is {norm:.6g}, {_share(ratio)}"
            return f"the gradient is {numbers.ratio(ratio)} times the right one"
    if numbers.terms and (words := _of_data(numbers, base, whole)):
        return words
    bound = max(float(np.abs(numbers.given[n]).max(initial=0.0)) for n in left)
    clipped = {n: np.clip(base[n], -bound, bound) for n in whole}
    reached = sum(int((np.abs(numbers.given[n]) == bound).sum()) for n in left)
    if (reached > 1 or _is_round(bound)) and bound and all(numbers.explained(n, clipped[n]) for n in whole):
        return f"entries are clipped at ±{bound:.6g}"
    return ""


def _of_data(numbers: Numbers, base: Arrays, whole: Sequence[str]) -> str:
    """A factor of all but the terms of parameters alone."""
    given, right, terms = (
        np.concatenate([a[n].reshape(-1) for n in whole]) for a in (numbers.given, base, numbers.terms)
    )
    ratio = projection(given - terms, right - terms)
    if not ratio or not all(
        numbers.explained(n, ratio * (base[n] - numbers.terms[n]) + numbers.terms[n]) for n in whole
    ):
        return ""
    return f"the gradient is {numbers.ratio(ratio)} times the right one, except in the term of parameters only"


def _share(ratio: float) -> str:
    return f"{ratio:.6g} of the right one's"


def _factor(numbers: Numbers, base: Arrays, name: str) -> str:
    ratio = projection(numbers.given[name], base[name])
    if ratio is None or (base[name] != 0).sum() < _FOR_FACTOR or not numbers.explained(name, ratio * base[name]):
        return ""
    return f"the gradient is {numbers.ratio(ratio)} times the right one"


def _clipped_norm(numbers: Numbers, base: Arrays, name: str) -> str:
    ratio, norm = projection(numbers.given[name], base[name]), float(np.linalg.norm(numbers.given[name]))
    if ratio is None or not 0 < ratio < 1 or not _is_round(norm) or (base[name] != 0).sum() < _FOR_FACTOR:
        return ""
    return f"the gradient is clipped to the norm {norm:.6g}" if numbers.explained(name, ratio * base[name]) else ""


def _clipped(numbers: Numbers, base: Arrays, name: str) -> str:
    given = numbers.given[name]
    bound = float(np.abs(given).max(initial=0.0))
    reached = int((np.abs(given) == bound).sum())
    if not bound or (reached < _FOR_FACTOR and not _is_round(bound)) or reached == given.size == 1:
        return ""
    return f"entries are clipped at ±{bound:.6g}" if numbers.explained(name, np.clip(base[name], -bound, bound)) else ""


def _is_round(value: float) -> bool:
    """Whether a number has three significant digits or fewer, as bounds that people choose."""
    return value > 0 and abs(float(f"{value:.{_DIGITS}g}") - value) <= _ROUND * value


def _transposed(numbers: Numbers, base: Arrays, name: str) -> str:
    right = base[name]
    square = right.ndim == 2 and right.shape == right.T.shape
    return "the gradient is transposed" if square and numbers.explained(name, right.T) else ""


def _copied(numbers: Numbers, base: Arrays, name: str) -> str:
    """Another tensor's gradient, of the same shape or transposed; two that are exchanged."""
    given = numbers.given[name]
    if given.size < _FOR_FACTOR:
        return ""
    for other, right in base.items():
        if other == name or right.size != given.size or not right.any():
            continue
        if right.shape == given.shape and numbers.explained(name, right):
            exchanged = numbers.given[other].shape == given.shape and numbers.explained(other, base[name])
            pair = " and ".join(sorted((name, other)))
            return f"the gradients of {pair} are exchanged" if exchanged else f"it is the gradient of {other}"
    return ""


def _block(numbers: Numbers, base: Arrays, name: str) -> str:
    """Whole aligned blocks of rows, all wrong by one factor."""
    given, right = numbers.given[name], base[name]
    if given.ndim == 0 or len(given) < 2 * _FOR_FACTOR:
        return ""
    off: NDArray[np.bool_] = np.abs(given - right) > numbers.slack[name]
    rows = aligned(np.asarray(off.reshape(len(given), -1).any(axis=1)))
    if rows is None:
        return ""
    ratio = projection(given[rows], right[rows])
    value = right.copy()
    if ratio is None:
        return ""
    value[rows] *= ratio
    if (right[rows] != 0).sum() < _FOR_FACTOR or not numbers.explained(name, value):
        return ""
    return f"rows {rows.start} to {rows.stop - 1}, a block, are {numbers.ratio(ratio)} times the right ones"


def _exchanged_blocks(numbers: Numbers, base: Arrays, name: str) -> str:
    """Two of at least two equal blocks of rows that are exchanged."""
    right = base[name]
    counts = [c for c in range(2, _BLOCKS + 1) if right.ndim and len(right) % c == 0 and right.size > c]
    for count, (i, j) in ((c, pair) for c in counts for pair in combinations(range(c), 2)):
        blocks = np.split(right, count)
        blocks[i], blocks[j] = blocks[j], blocks[i]
        if numbers.explained(name, np.concatenate(blocks)):
            size = len(right) // count
            one, other = (f"{k * size} to {(k + 1) * size - 1}" for k in (i, j))
            return f"rows {one} and rows {other} are exchanged"
    return ""


def aligned(off: NDArray[np.bool_]) -> slice | None:
    """The rows that are off, if they are one of at least two equal blocks of rows; None otherwise."""
    rows = np.flatnonzero(off)
    if not len(rows):
        return None
    start, stop = int(rows[0]), int(rows[-1]) + 1
    size = stop - start
    whole = size == len(rows) and size > 1 and len(off) % size == 0 and len(off) > size and start % size == 0
    return slice(start, stop) if whole else None


def _decay(numbers: Numbers, base: Arrays, name: str) -> str:
    theta = numbers.theta.get(name)
    if theta is None or (np.asarray(theta) != 0).sum() < _FOR_DECAY:
        return ""
    return proportional(numbers.given[name], base[name], numbers.slack[name], np.asarray(theta, float), name)
