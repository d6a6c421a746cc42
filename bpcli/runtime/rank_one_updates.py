"""Changes to single matrix entries, copy by copy: how perturbed copies share one product.

A perturbed copy's product is the shared one plus, in its own rows, change · v[column] at the changed row: a rank-one
fix. `fix = (slots, ends, rows, columns, changes)`: `slots[node]` is a matrix's slot or -1; the changes of copy o in
slot s are entries `ends[s, o]` to `ends[s, o + 1]` of the three lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fix = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]


def no_fixes(nodes: int, dtype: np.dtype) -> Fix:
    """Nothing is changed."""
    nothing = np.zeros(0, np.int64)
    return np.full(nodes, -1, np.int64), np.zeros((1, 1), np.int64), nothing, nothing, np.zeros(0, dtype)


def make_fixes(nodes: int, copies: int, changed: Mapping[int, Entries], dtype: np.dtype) -> Fix:
    """`changed` takes a matrix's node to (copy, row, column, change) lists, sorted by copy."""
    slots = np.full(nodes, -1, np.int64)
    ends = np.zeros((max(1, len(changed)), copies + 1), np.int64)
    start = 0
    for slot, (node, entries) in enumerate(changed.items()):
        slots[node] = slot
        ends[slot] = start + np.searchsorted(entries[0], np.arange(copies + 1))
        start += len(entries[0])
    lists = [np.concatenate([e[i] for e in changed.values()] or [np.zeros(0)]) for i in range(1, 4)]
    rows, columns = (np.ascontiguousarray(x, dtype=np.int64) for x in lists[:2])
    return slots, ends, rows, columns, np.ascontiguousarray(lists[2], dtype=dtype)


def joined(lists: Sequence[Entries]) -> Entries:
    """Lists of changes one after another."""
    copies, rows, columns, changes = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    return copies, rows, columns, changes
