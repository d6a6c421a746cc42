"""The finding on one tensor of one answer: entry by entry, or along directions first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bpcli.checking.decide import affordable, decide, decide_along, narrow
from bpcli.checking.findings import Finding
from bpcli.checking.measures import cosine, kernel_error, relative_error
from bpcli.checking.summary import as_direction, at_kink, summarise
from bpcli.checking.truth import Truth, Windows, whole
from bpcli.checking.verdict import Entries
from bpcli.problem.definition import Tensor
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.probe import directions, dot

Judged = Callable[[Truth, Windows, Tensor, FloatArray, Finding], Finding]
"""Takes the gradient of a tensor, in float64 and zero outside its pattern, and fills in a blank finding."""


def judge_entries(truth: Truth, windows: Windows, tensor: Tensor, value: FloatArray, blank: Finding) -> Finding:
    """Every entry."""
    entries = decide(truth, windows, tensor, value)
    verdict, cause, worst = summarise(entries, tensor.pattern)
    true = truth.best(whole(truth.problem.setup), tensor)
    one_truth = not (true.kink > 0).any() and bool(np.isfinite(true.bound).all())
    if verdict == "pass" and one_truth and _vanishes(true, entries):
        return replace(blank, checked=tensor.entries, verdict=verdict, cause=cause, worst=worst)
    return replace(
        blank,
        checked=tensor.entries,
        verdict=verdict,
        cause=cause,
        worst=worst,
        kernel_error=kernel_error(value, truth.best(windows, tensor)),
        bias=relative_error(value, true.value) if one_truth else None,
        cosine=cosine(value, true.value) if one_truth else None,
        kink=at_kink(entries, worst, tensor.pattern),
    )


def judge_along(truth: Truth, windows: Windows, tensor: Tensor, value: FloatArray, blank: Finding) -> Finding:
    """Directions; where these do not pass, every entry, or as many as are affordable of those that look wrong.

    Where directions are at a kink every entry is judged too, if that is affordable. Errors are estimated: the norm
    of a tensor is that of its components along Gaussian directions, on average.
    """
    rows = directions(tensor)
    entries = decide_along(truth, windows, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    true = truth.along(whole(truth.problem.setup), tensor, rows).judge
    one_truth = not (true.kink > 0).any() and bool(np.isfinite(true.bound).all())
    if verdict == "pass" and one_truth and _vanishes(true, entries):
        return replace(blank, checked=len(rows), verdict=verdict, cause=cause, worst=as_direction(worst))
    found = replace(
        blank,
        checked=len(rows),
        verdict=verdict,
        cause=cause,
        worst=as_direction(worst),
        kernel_error=kernel_error(entries.value, truth.along(windows, tensor, rows).judge),
        bias=relative_error(dot(rows, value), true.value) if one_truth else None,
    )
    # What lies between the slopes at a kink along a direction may do so by an error in any of its entries.
    if verdict == "pass" and not (cause == "kink" and affordable(truth, windows, tensor.entries)):
        return found
    part = narrow(truth, windows, tensor, value)
    looked = judge_entries(truth.part(part), windows, part, value, blank)
    if part is tensor:
        return looked
    if looked.verdict != "wrong":  # that a part of it passes says nothing about the tensor
        return found
    return replace(looked, kernel_error=found.kernel_error, bias=found.bias, cosine=None)


def _vanishes(true: Estimate, entries: Entries) -> bool:
    """Whether a gradient is rounding alone, over which a distance would be anything."""
    largest = np.maximum(np.abs(true.value), np.abs(entries.reference))
    return bool((largest <= entries.bound).all())
