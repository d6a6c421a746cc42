"""Blame of black boxes: what the gradient looks like beside differences of the loss. Of its graph nothing is known."""

from __future__ import annotations

import numpy as np

from bpcli.checking.blame.signatures import PLAIN, extent, multiple, not_finite, proportional
from bpcli.checking.blame.spoken import worst_entry
from bpcli.checking.findings import Finding
from bpcli.checking.verdict import WRONG, Entries
from bpcli.problem.definition import Array
from bpcli.references.base import FloatArray


def blame(found: Finding, cause: str) -> dict[str, object]:
    """The fields of a blame, but for how to see it again."""
    index = list(found.worst.index) if found.worst is not None and found.worst.index is not None else None
    text = "; ".join(part for part in (worst_entry(found), cause) if part)
    unknown = dict.fromkeys(("step", "sample", "node", "factor"))
    return {"index": index, **unknown, "cause": cause, "text": text, "reproduce": None}


def looks(name: str, theta: Array, value: FloatArray, entries: Entries) -> str:
    """What the error of a gradient `value` of the array `theta` looks like, whose entries were judged."""
    right, slack = entries.reference, entries.bound
    return (
        not_finite(value)
        or multiple(value, right, slack, PLAIN)
        or proportional(value, right, slack, np.asarray(theta, np.float64), name)
        or _transposed(value, right, slack)
        or extent(entries.verdict == WRONG)
    )


def _transposed(value: FloatArray, right: FloatArray, slack: FloatArray) -> str:
    square = value.ndim == 2 and value.shape == value.T.shape
    return "the gradient is transposed" if square and (np.abs(value.T - right) <= slack).all() else ""
