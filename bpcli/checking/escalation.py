"""From estimates to a verdict: the sharper references are asked about what the others leave open, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.reference_cache import Truth
from bpcli.checking.verdict import WRONG, Entries, judge, merge, powered, settle, undecided
from bpcli.methods.base import Definition
from bpcli.problem.definition import Tensor
from bpcli.references import complex_step
from bpcli.references.base import FloatArray, forward_flops
from bpcli.references.numerics.probe import directions, dot, norms

AFFORDABLE = 2e10
"""Predicted flops that are spent on what the first references leave open, or on finding the entry that is wrong."""
_COMPLEX_FLOPS, _REAL_FLOPS = 4, 24
# Directions in each half while the wrong entries are searched for.
_PROBES = 2


def decide(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray) -> Entries:
    """The verdict on each entry of a gradient `value`, in float64."""
    known = truth.rounding(definition)
    return powered(_decided(truth, definition, tensor, value), known.scale, known.lost[tensor.name])


def _decided(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray) -> Entries:
    rounding = truth.excused(definition, value, truth.rounding(definition).gradient[tensor.name])
    dtype = truth.problem.setup.dtype
    entries = judge(value, truth.estimates(definition, tensor), rounding, dtype)
    if entries.suspect.any():
        entries = judge(value, truth.estimates(definition, tensor, second=True), rounding, dtype)
    places = _open(entries, tensor)
    if not truth.sharpened(definition) or not len(places) or not affordable(truth, definition, len(places)):
        return entries
    mask = np.zeros(value.size, dtype=np.bool_)
    mask[places] = True
    again = judge(value, truth.sharper(definition, tensor, places), rounding, dtype)
    entries = merge(mask.reshape(value.shape), again, entries)
    places = _open(entries, tensor)
    if len(places):
        entries = settle(entries, *truth.rates(definition, tensor, places, value, entries.reference))
    return entries


def decide_along(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray, rows: FloatArray) -> Entries:
    """The verdict on `value` along each of the directions `rows (K, size)`."""
    known = truth.rounding(definition)
    rounding, lost = (norms(rows, part[tensor.name]) for part in (known.gradient, known.lost))
    along, dtype = dot(rows, value), truth.problem.setup.dtype
    rounding = truth.excused(definition, along, rounding)
    entries = judge(along, truth.along(definition, tensor, rows), rounding, dtype)
    if entries.suspect.any():
        entries = judge(along, truth.along(definition, tensor, rows, second=True), rounding, dtype)
    return powered(entries, known.scale * np.sqrt((rows**2).sum(axis=1)), lost)


def narrow(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray) -> Tensor:
    """The tensor, or as much of it as can be judged entry by entry, where directions say that it is wrong.

    The entries are halved again and again: of two halves the one in which directions are further off is kept.
    """
    places = tensor.pattern if tensor.pattern is not None else np.arange(tensor.entries, dtype=np.int64)
    part = tensor
    while len(places) > 1 and not affordable(truth, definition, len(places)):
        halves = [replace(tensor, pattern=half) for half in np.array_split(places, 2)]
        off = [_off(truth, definition, half, value) for half in halves]
        part = halves[int(np.argmax(off))]
        assert part.pattern is not None
        places = part.pattern
    return part


def _off(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray) -> float:
    """The largest z along directions in the entries of the tensor's pattern, infinite where nothing is finite."""
    entries = decide_along(truth, definition, tensor, value, directions(tensor, _PROBES))
    return float(np.where(entries.verdict == WRONG, np.nan_to_num(entries.z, nan=np.inf), 0.0).max())


def _open(entries: Entries, tensor: Tensor) -> NDArray[np.int64]:
    places = np.flatnonzero(undecided(entries))
    return places if tensor.pattern is None else np.intersect1d(places, tensor.pattern)


def affordable(truth: Truth, definition: Definition, count: int) -> bool:
    """Whether the references can look at so many entries."""
    judge_ = truth.references[0].name
    each = _COMPLEX_FLOPS if judge_ == complex_step.REFERENCE.name else _REAL_FLOPS
    return each * count * forward_flops(truth.problem.setup, truth.windows(definition)) <= AFFORDABLE
