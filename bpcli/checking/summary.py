"""What the verdicts on entries come to: one for the tensor, its worst entry, and where it is at a kink."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.findings import Kink, Verdict, Worst
from bpcli.checking.verdict import CAUSES, PASS, VERDICTS, Entries


def summarise(entries: Entries, places: NDArray[np.int64] | None = None) -> tuple[Verdict, str, Worst | None]:
    """The tensor's verdict, its cause and its worst entry; `places` are the flat indices of the entries that exist.

    One wrong entry makes a tensor wrong, one inconclusive entry keeps it from passing. The worst entry is the one with
    the largest z among those that decided.
    """
    if places is None:
        places = np.arange(entries.verdict.size)
    if not len(places):
        return "inconclusive", "nothing compared", None
    verdicts = entries.verdict.reshape(-1)[places]
    decided = int(verdicts.max())
    deciding = places[verdicts == decided]
    z = entries.z.reshape(-1)[deciding]
    worst = int(deciding[np.where(np.isnan(z), np.inf, z).argmax()])
    value, reference, bound = (float(a.reshape(-1)[worst]) for a in (entries.value, entries.reference, entries.bound))
    index = tuple(int(i) for i in np.unravel_index(worst, entries.verdict.shape))
    cause = CAUSES[int(entries.cause.reshape(-1)[worst])]
    if decided == PASS and (entries.cause.reshape(-1)[places] == CAUSES.index("kink")).any():
        cause = "kink"
    z_worst = float(entries.z.reshape(-1)[worst])
    return VERDICTS[decided], cause, Worst(index, value, reference, bound, z_worst)


def at_kink(entries: Entries, worst: Worst | None, places: NDArray[np.int64] | None = None) -> Kink | None:
    """The worst entry where it is at a kink, else the one with the widest interval of slopes; None where none is."""
    width = (entries.high - entries.low).reshape(-1)
    if places is None:
        places = np.arange(width.size)
    if worst is None or not (width[places] > 0).any():
        return None
    assert worst.index is not None
    here = int(np.ravel_multi_index(worst.index, entries.low.shape)) if worst.index else 0
    where = here if width[here] > 0 else int(places[width[places].argmax()])
    index = tuple(int(i) for i in np.unravel_index(where, entries.low.shape))
    return Kink(index, *(float(a.reshape(-1)[where]) for a in (entries.value, entries.low, entries.high)))


def as_direction(worst: Worst | None) -> Worst | None:
    """`worst` of directions, whose index is the number of one: it counts from 1 and is no entry's."""
    return worst and replace(worst, index=None, direction=worst.index[0] + 1 if worst.index else None)
