"""What makes perturbed copies differ: changes of parameters, states, inputs, and of a node's value at a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.lower_reverse import active_nodes
from bpcli.graph.model import Phase
from bpcli.kernels.copies import Copies, Layout
from bpcli.kernels.fixes import Entries, joined, make_fixes
from bpcli.kernels.rows import BASE
from bpcli.problem.elsewhere import Change
from bpcli.problem.layouts import layout_of

if TYPE_CHECKING:
    from bpcli.problem.perturbed import Perturbed


def change_parameter(own: Perturbed, copies: Copies, change: Change) -> None:
    """Change a parameter, copy by copy: entries of matrices by fixes, vectors where they stand."""
    layout, leaf = copies.layout, copies.layout.reach.leaf
    static = {n for n in active_nodes(own.graph, {leaf}) if own.graph.nodes[n].phase is Phase.STATIC}
    changed: dict[int, Entries] = {}
    if static == {leaf}:
        shape, index = own.graph.nodes[leaf].shape, np.arange(len(change.entries))
        if len(shape) == 2:
            changed[leaf] = (index, change.entries // shape[1], change.entries % shape[1], change.deltas)
        elif leaf in layout.reach.crossing:
            copies.block(leaf)[index, change.entries] += change.deltas
    else:
        changed = _through_static(own, copies, change)
    copies.fix = make_fixes(len(own.graph.nodes), layout.copies, changed, copies.V.dtype)


def _through_static(own: Perturbed, copies: Copies, change: Change) -> dict[int, Entries]:
    """Run the static phase for each copy; vectors that the loop reads are kept, matrices as differences."""
    layout, leaf = copies.layout, copies.layout.reach.leaf
    plain = layout_of(own.setup, -1, 1, 1, 1)
    single = Copies(
        plain,
        copies.V.dtype,
        {},
        {n: own.trace.value(n, own.graph.nodes[n].size) for n in _static_nodes(own, plain)},
    )
    matrices = {n: list[Entries]() for n in layout.reach.crossing if len(own.graph.nodes[n].shape) == 2}
    for c, (entry, delta) in enumerate(zip(change.entries, change.deltas, strict=True)):
        single.block(leaf)[0, entry] += delta
        single.static_run()
        change.met[c] = own.kinks.met_static(lambda n: single.block(n)[0])
        for n in layout.reach.crossing:
            values, base = single.block(n)[0], own.trace.value(n, own.graph.nodes[n].size)
            if n in matrices:
                where = np.flatnonzero(values != base)
                columns = own.graph.nodes[n].shape[1]
                entries = (np.full(len(where), c), where // columns, where % columns, values[where] - base[where])
                matrices[n].append(entries)
            else:
                copies.block(n)[c] = values
        single.block(leaf)[0, entry] = own.trace.value(leaf, own.graph.nodes[leaf].size)[entry]
    return {n: joined(lists) for n, lists in matrices.items()}


def _static_nodes(own: Perturbed, layout: Layout) -> list[int]:
    return [n.index for n in own.graph.nodes if n.phase is Phase.STATIC and layout.places.table[n.index, BASE] >= 0]


def enter(own: Perturbed, copies: Copies, change: Change, starts: NDArray[np.int64]) -> None:
    """Put every row's state before its first step in place, changed where that is asked for and it is step 0."""
    layout, batch = copies.layout, own.setup.batch
    for node in own.graph.previous.values():
        copies.rows(node)[:] = own.held[node][starts].reshape(1, layout.rows, -1)
    if change.tensor.kind == "state":
        rows, index = copies.rows(layout.reach.leaf), np.arange(layout.copies)
        for row in np.flatnonzero(np.repeat(starts == 0, batch)):
            rows[index, row, change.entries] += change.deltas


def feed(own: Perturbed, copies: Copies, change: Change, steps: NDArray[np.int64], j: int) -> None:
    """The changed input's rows of one step."""
    leaf = copies.layout.reach.leaf
    if change.tensor.kind != "input" or leaf < 0:
        return
    rows = copies.rows(leaf)
    rows[:] = copies.inputs[leaf][j]
    size, batch = rows.shape[2], own.setup.batch
    for w, t in enumerate(steps):
        hit = np.flatnonzero(change.entries // size == t)
        for b in range(w * batch, (w + 1) * batch):
            rows[hit, b, change.entries[hit] % size] += change.deltas[hit]


def add_impulse(copies: Copies, change: Change) -> None:
    """Change one entry of the leaf's value in every row of each copy."""
    rows = copies.rows(copies.layout.reach.leaf)
    rows[np.arange(len(rows)), :, change.entries] += change.deltas[:, None]
