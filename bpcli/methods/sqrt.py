"""BPTT from snapshots every √T steps: one more forward pass, memory for about 2 √T steps (Chen et al. 2016).

The first pass keeps the state before each of about √T segments; from the last segment to the first, each is taken
forwards again, held whole, and taken back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from bpcli.methods._checkpointed import Action, Checkpointed, Counts
from bpcli.methods.base import NoOptions


def schedule(segments: int, options: NoOptions) -> Iterator[Action]:
    """Snapshots of all segments but the last, which is recorded at once."""
    last = segments - 1
    for k in range(last):
        yield "save", k
        yield "advance", k
    yield "record", last
    for k in reversed(range(last)):
        yield "restore", k
        yield "record", k


PER_STEP = ("4 F", "2 √T V")
METHOD = Checkpointed(
    name="sqrt",
    summary="bptt from snapshots every sqrt(T) steps: one more forward pass, memory for 2 sqrt(T) steps",
    Options=NoOptions,
    schedule=schedule,
    counts=lambda segments, options: Counts(segments - 1, min(1, segments - 1), segments - 1),
    steps=lambda T, options: math.isqrt(T - 1) + 1,
)
