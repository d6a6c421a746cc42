"""Black boxes: their gradients judged by differences of their losses, entry by entry or along directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.checking.blame.box import blame, looks
from bpcli.checking.findings import Finding
from bpcli.checking.measures import cosine, relative_error
from bpcli.checking.returned import LOSS
from bpcli.checking.summary import as_direction, at_kink, summarise
from bpcli.checking.userfile import Function, UserFile
from bpcli.checking.verdict import WRONG, Entries, References, judge
from bpcli.errors import Place
from bpcli.problem.definition import Array, Tensor
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.central import TARGET, differentiate
from bpcli.references.noise import EVALUATIONS
from bpcli.references.probe import COUNT, NOISE_ROWS, Indices, Probe, Sampler, directions, dot, norms, points_along
from bpcli.references.rounding import FACTOR, unit_roundoff

METHOD = "grad"
# Evaluations of the loss: on each tensor for its noise, and on each entry or direction for two rounds of differences.
_FOR_NOISE, _EVALUATIONS = 8 * EVALUATIONS, 14
_BLOCK = 64
"""Entries that a wrong direction is narrowed down to, and that are then judged one by one."""


@dataclass(frozen=True, eq=False)
class Box:
    """An object of a user's file; `name` is what reports call it, `params` are its arrays, float64 or float32.

    `lines` says where `loss` and `grad` are written, as far as that is known.
    """

    name: str
    file: UserFile
    object: str
    params: Mapping[str, Array]
    lines: Mapping[str, int]

    def function(self, part: str) -> Function:
        """Its `loss` or `grad`."""
        return Function(self.file, self.object, self.lines[part], part)

    def place(self, tensor: str) -> Place:
        """Where what is found of a tensor, or of the loss, is to be mended."""
        return self.file.place(self.lines[LOSS if tensor == LOSS else METHOD])


def losses_taken(tensor: Tensor, along: bool) -> int:
    """How often the loss is evaluated for a tensor whose gradient is right, most of the time."""
    if along:
        return NOISE_ROWS * EVALUATIONS + _EVALUATIONS * COUNT
    return _FOR_NOISE + _EVALUATIONS * tensor.entries


def losses_to_narrow(tensor: Tensor) -> int:
    """How often it is evaluated, at most, for finding wrong entries of a tensor by halves of a wrong direction."""
    halvings = max(0, math.ceil(math.log2(tensor.entries / _BLOCK)))
    return halvings * (NOISE_ROWS * EVALUATIONS + 4 * _EVALUATIONS) + _FOR_NOISE + 2 * _EVALUATIONS * _BLOCK


def judge_box_entries(box: Box, tensor: Tensor, value: Array) -> Finding:
    """Every entry, with power to pass and on two ladders to condemn."""
    array, wide = box.params[tensor.name].astype(np.float64), value.astype(np.float64)
    entries = _each(box, tensor, value, np.arange(tensor.entries), tensor.shape)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    off, angle = relative_error(wide, entries.reference), cosine(wide, entries.reference)
    if not np.isfinite(entries.bound).all():
        off = angle = None
    known = (box.name, METHOD, tensor.name, tensor.shape, tensor.entries, verdict, cause, worst, off)
    kink = at_kink(entries, worst)
    # At a kink there is no one truth to be off from.
    found = Finding(*known, None if kink else off, None if kink else angle, kink=kink)
    if verdict != "wrong":
        return found
    return replace(found, blame=blame(found, cause or looks(tensor.name, array, wide, entries)))


def judge_box_along(box: Box, tensor: Tensor, value: Array) -> Finding:
    """Directions alone: what is wrong is not looked for among the entries."""
    rows = directions(tensor)
    entries, along = _along(box, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    off = relative_error(along, entries.reference)
    bias = None if (entries.high > entries.low).any() else off
    known = (box.name, METHOD, tensor.name, tensor.shape, len(rows), verdict, cause, as_direction(worst), off)
    found = Finding(*known, bias, None)
    return replace(found, blame=blame(found, cause)) if verdict == "wrong" else found


def narrowed(box: Box, tensor: Tensor, value: Array, found: Finding) -> Finding:
    """`found`, a wrong direction, with a wrong entry: the half of it that is more wrong is halved in turn.

    As it is where errors are too spread out for a half, or for any of the last `_BLOCK` entries, to be told wrong.
    """
    assert found.worst is not None and found.worst.direction is not None
    row = directions(tensor)[found.worst.direction - 1]
    block = np.arange(tensor.entries)
    while len(block) > _BLOCK:
        halves = np.array_split(block, 2)
        rows = np.zeros((2, tensor.entries))
        for part, half in zip(rows, halves, strict=True):
            part[half] = row[half]
        entries, _ = _along(box, tensor, value, rows)
        if not (entries.verdict == WRONG).any():
            return found
        z = np.where(np.isnan(entries.z), np.inf, entries.z)
        block = halves[int(np.where(entries.verdict == WRONG, z, -1.0).argmax())]
    verdict, _, worst = summarise(_each(box, tensor, value, block, (len(block),)))
    if verdict != "wrong" or worst is None or worst.index is None:
        return found
    index = tuple(int(i) for i in np.unravel_index(block[worst.index[0]], tensor.shape))
    there = replace(found, checked=len(block), worst=replace(worst, index=index), cause=found.cause)
    return replace(there, blame=blame(there, there.cause))


def _each(box: Box, tensor: Tensor, value: Array, places: Indices, shape: tuple[int, ...]) -> Entries:
    """The verdicts on the entries at the flat `places`, in `shape`."""
    array = box.params[tensor.name].astype(np.float64).reshape(-1)

    def moved(entry: int, delta: float) -> FloatArray:
        found = array.copy()
        found[entry] += delta
        return found

    around = Probe(places, array[places, None], np.arange(len(places))[:, None], summed=True)
    # In float32 an entry moves by what its rounding makes of a step.
    sampler = replace(_sampler(box, tensor, around, moved), dtype=box.params[tensor.name].dtype)
    wide = value.astype(np.float64).reshape(-1)[places].reshape(shape)

    def rounding(reference: FloatArray) -> FloatArray:
        size = FACTOR * unit_roundoff(value.dtype) * float(np.abs(reference).max())
        return np.where((wide == 0) & (reference == 0), 0.0, size + float(np.finfo(value.dtype).tiny))

    return _decided(sampler, shape, wide, rounding, value.dtype)


def _along(box: Box, tensor: Tensor, value: Array, rows: FloatArray) -> tuple[Entries, FloatArray]:
    """The verdicts along `rows (K, size)`, and the slopes there that the gradient says."""
    array = box.params[tensor.name].astype(np.float64)

    def moved(row: int, delta: float) -> FloatArray:
        return np.asarray(array.reshape(-1) + delta * rows[row])

    around = points_along(array, rows)
    sampler = replace(_sampler(box, tensor, around, moved), noise_rows=NOISE_ROWS)
    wide = value.astype(np.float64)
    along = dot(rows, wide)
    largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
    each = np.full(wide.shape, FACTOR * unit_roundoff(value.dtype) * largest + float(np.finfo(value.dtype).tiny))
    bounds = norms(rows, each)

    def rounding(reference: FloatArray) -> FloatArray:
        return np.where((along == 0) & (reference == 0), 0.0, bounds)

    return _decided(sampler, along.shape, along, rounding, value.dtype), along


def _decided(
    sampler: Sampler,
    shape: tuple[int, ...],
    value: FloatArray,
    rounding: Callable[[FloatArray], FloatArray],
    dtype: np.dtype[Any],
) -> Entries:
    """The verdict on `value`; a second ladder is asked only where the first finds something wrong."""
    central = _estimate(sampler, shape, 1.0)
    bound = rounding(central.value)
    entries = judge(value, References(central=central), bound, dtype)
    if entries.suspect.any():
        entries = judge(value, References(central=central, second=_estimate(sampler, shape, 0.75)), bound, dtype)
    return entries


def _estimate(sampler: Sampler, shape: tuple[int, ...], offset: float) -> Estimate:
    found = differentiate(sampler, TARGET, offset)
    parts = (found.value, found.bound, found.noise, found.kink)
    return Estimate(*(sampler.probe.scatter(part, shape) for part in parts))


def _sampler(box: Box, tensor: Tensor, around: Probe, moved: Callable[[int, float], FloatArray]) -> Sampler:
    """The loss around the values of one tensor, which are flat when `moved`; where it raises, nothing is learnt.

    Raises EndedError.
    """
    array, loss = box.params[tensor.name], box.function(LOSS)

    def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
        values = np.full((len(entries), 1), np.nan)
        for row, (entry, delta) in enumerate(zip(entries, deltas, strict=True)):
            shifted = moved(int(entry), float(delta)).reshape(array.shape).astype(array.dtype)
            value, _ = loss.loss({**box.params, tensor.name: shifted})
            values[row] = np.nan if value is None else value
        return values

    return Sampler.of(losses, around)
