"""What makes perturbed copies differ: changes of parameters, states and inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels.jit import BASE
from bpcli.problem.elsewhere import FloatArray, Piece, Values
from bpcli.runtime.copies import Copies, Layout, layout_of, reach
from bpcli.runtime.rank_one_updates import Entries, joined, make_fixes

if TYPE_CHECKING:
    from bpcli.problem.perturbed import Perturbed


def change_parameters(own: Perturbed, copies: Copies, piece: Piece, met: FloatArray) -> None:
    """Change parameters, copy by copy: entries of matrices by fixes, vectors where they stand."""
    layout, changed = copies.layout, dict[int, list[Entries]]()
    for leaf in dict.fromkeys(piece.nodes.tolist()):
        if leaf < 0 or own.graph.nodes[leaf].op != "param":
            continue
        index, shape = np.flatnonzero(piece.nodes == leaf), own.graph.nodes[leaf].shape
        entries, deltas = piece.entries[index], piece.deltas[index]
        static = {n for n in reach(own.setup, frozenset({leaf})).reached if own.graph.nodes[n].phase is Phase.STATIC}
        if static != {leaf}:
            _through_static(own, copies, leaf, (index, entries, deltas), changed, met)
        elif len(shape) == 2:
            changed.setdefault(leaf, []).append((index, entries // shape[1], entries % shape[1], deltas))
        elif leaf in layout.reach.crossing:
            copies.block(leaf)[index, entries] += deltas
    fixes = {n: joined(lists) for n, lists in changed.items()}
    copies.fix = make_fixes(len(own.graph.nodes), layout.copies, fixes, copies.V.dtype)


def _through_static(
    own: Perturbed,
    copies: Copies,
    leaf: int,
    change: tuple[NDArray[np.int64], NDArray[np.int64], Values],
    changed: dict[int, list[Entries]],
    met: FloatArray,
) -> None:
    """Run the static phase for each copy (copies, entries, deltas): vectors that the loop reads are kept, matrices as
    differences in `changed`."""
    layout, nodes = copies.layout, own.graph.nodes
    plain = layout_of(own.setup, frozenset(), 1, 1, 1)
    values = {n: own.trace.value(n, nodes[n].size) for n in _static_nodes(own, plain)}
    single = Copies(plain, copies.V.dtype, {}, values)
    for c, entry, delta in zip(*change, strict=True):
        single.block(leaf)[0, entry] += delta
        single.static_run()
        met[c] = own.kinks.met_static(lambda n: single.block(n)[0])
        for n in layout.reach.crossing:
            found, base = single.block(n)[0], own.trace.value(n, nodes[n].size)
            if len(nodes[n].shape) == 2:
                where = np.flatnonzero(found != base)
                columns = nodes[n].shape[1]
                entries = (np.full(len(where), c), where // columns, where % columns, found[where] - base[where])
                changed.setdefault(n, []).append(entries)
            else:
                copies.block(n)[c] = found
        single.block(leaf)[0, entry] = own.trace.value(leaf, nodes[leaf].size)[entry]


def _static_nodes(own: Perturbed, layout: Layout) -> list[int]:
    return [n.index for n in own.graph.nodes if n.phase is Phase.STATIC and layout.places.table[n.index, BASE] >= 0]


def enter(own: Perturbed, copies: Copies, piece: Piece, steps: NDArray[np.int64]) -> None:
    """Put every row's state before its first step in place, changed where that is asked for and it is step 0.

    `steps (length, windows)` are those of the windows.
    """
    layout, batch = copies.layout, own.setup.batch
    for node in own.graph.previous.values():
        rows = copies.rows(node)
        rows[:] = own.held[node][steps[0]].reshape(1, layout.rows, -1)
    for node in piece.leaves & set(own.graph.previous.values()):
        rows, index = copies.rows(node), np.flatnonzero(piece.nodes == node)
        for row in np.flatnonzero(np.repeat(steps[0] == 0, batch)):
            rows[index, row, piece.entries[index]] += piece.deltas[index]


def feed(own: Perturbed, copies: Copies, piece: Piece, steps: NDArray[np.int64], j: int) -> None:
    """The changed inputs' rows of one step."""
    for leaf in piece.leaves & set(copies.inputs):
        rows = copies.rows(leaf)
        rows[:] = copies.inputs[leaf][j]
        size, batch = rows.shape[2], own.setup.batch
        for w, t in enumerate(steps):
            hit = np.flatnonzero((piece.nodes == leaf) & (piece.entries // size == t))
            for b in range(w * batch, (w + 1) * batch):
                rows[hit, b, piece.entries[hit] % size] += piece.deltas[hit]
