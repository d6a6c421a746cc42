"""Graph -> Tape: the reverse program, for any choice of where cotangents enter and where they stop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.tape.instructions import (
    ACCUMULATE,
    ADDEND,
    FIELDS,
    MODE_A,
    MODE_ADDEND,
    MODE_B,
    OP,
    OUT,
    SIZE,
    STORE,
    ZERO,
    A,
    Alias,
    B,
    Product,
    Reverse,
)
from bpcli.tape.lowering import LEAVES, Fusion, instructions, matrix_of, pack, resolve

MATMUL = OPERATIONS["matmul"].opcode
SLOTS = ((A, MODE_A), (B, MODE_B), (ADDEND, MODE_ADDEND))


@dataclass
class _Draft:
    """The reverse program while it is being written."""

    rows: list[list[int]] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    reads: set[int] = field(default_factory=set)

    def append(self, row: list[int], phase: Phase) -> None:
        self.rows.append(row)
        self.phases.append(3 - int(phase))


def active_nodes(graph: Graph, leaves: Collection[int]) -> frozenset[int]:
    """The nodes whose value depends on one of `leaves` within one step."""
    active = set(leaves)
    for node in graph.nodes:
        if any(a in active for a in node.args):
            active.add(node.index)
    return frozenset(active)


def lower_reverse(
    graph: Graph,
    fusion: Fusion,
    active: frozenset[int],
    seeds: Collection[int],
    own: bool = False,
    fresh: Collection[int] = (),
) -> Reverse:
    """The instructions that take cotangents from `seeds` to the active leaves.

    `own`: every row has cotangents of its own for leaves and static nodes too, so that none are there to add to.
    `fresh` are leaves of whose cotangents nothing is there yet when the program begins, not even zeros.
    """
    draft = _Draft(touched=set(seeds))
    order = sorted(graph.nodes, key=lambda node: (-int(node.phase), -node.index))
    for node in order:
        if node.index in draft.touched and node.op not in LEAVES:
            _visit(graph, fusion, active, node, draft)
    alias = _aliases(graph, fusion, active, draft.touched)
    _drop_aliased(draft, alias)
    _set_modes(graph, draft, alias, seeds, own, fresh)
    code, bounds = pack(draft.rows, draft.phases)
    kept = _kept(graph, draft, alias)
    touched, reads = frozenset(draft.touched), frozenset(draft.reads)
    return Reverse(code, bounds, tuple(draft.products), alias, touched, reads, kept)


def _visit(graph: Graph, fusion: Fusion, active: frozenset[int], node: Node, draft: _Draft) -> None:
    """Write the reverse instructions of one node and note whom its cotangent reaches and which values that takes."""
    if node.op == "slice" or node.index in fusion.elided:
        draft.touched.update(a for a in node.args if a in active)
        return
    for row in instructions(graph, fusion, node):
        targets = [(slot, row[slot]) for slot, _ in SLOTS if row[slot] >= 0 and row[slot] in active]
        if not targets:
            continue
        draft.touched.update(arg for _, arg in targets)
        if node.index in fusion.product:
            draft.touched.add(fusion.product[node.index])
        for slot, mode in SLOTS:
            row[mode] = STORE if any(slot == s for s, _ in targets) else 0
        if row[OP] == MATMUL:
            _multiply(graph, fusion, node, row, draft)
        else:
            _read(node, row, draft)
        if any(row[mode] for _, mode in SLOTS):
            draft.append(row, node.phase)


def _multiply(graph: Graph, fusion: Fusion, node: Node, row: list[int], draft: _Draft) -> None:
    """A product reads its matrix for the vector's cotangent and its vector for the matrix's; the latter is deferred."""
    if row[MODE_B]:
        draft.reads.add(row[A])
    if row[MODE_A]:
        draft.reads.add(row[B])
        if node.phase is not Phase.STATIC:
            matrix, turned = matrix_of(graph, fusion, fusion.product.get(node.index, node.index))
            draft.products.append(Product(matrix, node.index, row[B], turned))
            row[MODE_A] = 0


def _read(node: Node, row: list[int], draft: _Draft) -> None:
    saves = OPERATIONS[node.op].saves
    if "out" in saves:
        draft.reads.add(node.index)
    if "args" in saves:
        one_factor = node.op in ("multiply", "matmat", "dot") and not (row[MODE_A] and row[MODE_B])
        if not (one_factor and row[MODE_A]):
            draft.reads.add(row[A])
        if row[B] >= 0 and not (one_factor and row[MODE_B]):
            draft.reads.add(row[B])


def _aliases(graph: Graph, fusion: Fusion, active: frozenset[int], touched: set[int]) -> dict[int, Alias]:
    """Cotangents that need no storage of their own: a slice's is part of the whole's, a term's is the sum's."""
    alias: dict[int, Alias] = {}
    roots = {graph.loss, *graph.new.values()}
    for node in reversed(graph.nodes):
        if node.index not in touched or node.phase is Phase.STATIC:
            continue
        if node.index in fusion.product:
            alias[fusion.product[node.index]] = resolve(alias, node.index, 0)
        terms = node.args if node.op == "add" else node.args[:1] if node.op in ("subtract", "copy") else ()
        for term in terms:
            arg = graph.nodes[term]
            single = fusion.uses[term] == 1 and arg.shape == node.shape and term in active and term not in roots
            if single and arg.op not in LEAVES and arg.op != "slice" and arg.phase is not Phase.STATIC:
                alias[term] = resolve(alias, node.index, 0)
    for node in graph.nodes:
        if node.op == "slice" and node.index in touched:
            alias[node.index] = resolve(alias, node.args[0], int(node.numbers[0]))
    return alias


def _owner(alias: Mapping[int, Alias], node: int) -> Alias:
    return alias.get(node, Alias(node, 0))


def _drop_aliased(draft: _Draft, alias: Mapping[int, Alias]) -> None:
    """A term whose cotangent is the sum's own takes no contribution; an instruction without any is dropped."""
    rows, phases = draft.rows, draft.phases
    draft.rows, draft.phases = [], []
    for row, phase in zip(rows, phases, strict=True):
        for slot, mode in SLOTS:
            if row[mode] and row[slot] in alias and alias[row[slot]] == _owner(alias, row[OUT]):
                row[mode] = 0
        if any(row[mode] for _, mode in SLOTS):
            draft.rows.append(row)
            draft.phases.append(phase)


def _set_modes(
    graph: Graph,
    draft: _Draft,
    alias: Mapping[int, Alias],
    seeds: Collection[int],
    own: bool,
    fresh: Collection[int],
) -> None:
    """The first contribution to a cotangent is stored and later ones are added, unless something is there already.

    Cotangents of states, and of leaves and static nodes if not `own`, are cleared by whoever runs the program, but for
    those of `fresh`. Where slices write parts of a whole, each part is stored first if the parts tile the whole; else
    the whole is set to zero by an instruction.
    """
    held = {n.index for n in graph.nodes if (n.op in LEAVES or n.phase is Phase.STATIC) and not own} - set(fresh)
    held |= {_owner(alias, n).owner for n in (*seeds, *graph.new.values())}
    touches: dict[int, list[tuple[int, int, tuple[int, int]]]] = defaultdict(list)
    for position, row in enumerate(draft.rows):
        for slot, mode in SLOTS:
            if row[mode]:
                place = _owner(alias, row[slot])
                size = graph.nodes[row[slot]].size
                touches[place.owner].append((position, mode, (place.shift, place.shift + size)))
    zeros: dict[int, list[int]] = defaultdict(list)
    for owner, contributions in touches.items():
        whole = graph.nodes[owner].size
        stored: set[tuple[int, int]] = set()
        tiled = _tiles([part for _, _, part in contributions], whole)
        for position, mode, part in contributions:
            first = owner not in held and tiled and part not in stored
            draft.rows[position][mode] = STORE if first else ACCUMULATE
            stored.add(part)
        if owner not in held and not tiled:
            zeros[contributions[0][0]].append(owner)
    _insert_zeros(graph, draft, zeros, [n for n in fresh if n not in touches])


def _tiles(parts: list[tuple[int, int]], whole: int) -> bool:
    """Whether the distinct parts cover 0 to `whole` without overlap."""
    end = 0
    for start, stop in sorted(set(parts)):
        if start != end:
            return False
        end = stop
    return end == whole


def _insert_zeros(graph: Graph, draft: _Draft, zeros: Mapping[int, list[int]], untouched: Collection[int]) -> None:
    """Set to zero what an instruction adds to first, by its position, and what none adds to."""
    rows, phases = draft.rows, draft.phases
    draft.rows, draft.phases = [], []
    for owner in untouched:
        _zero(graph, owner, draft, 3 - int(Phase.OUTPUT))
    for position, (row, phase) in enumerate(zip(rows, phases, strict=True)):
        for owner in zeros.get(position, ()):
            _zero(graph, owner, draft, phase)
        draft.rows.append(row)
        draft.phases.append(phase)


def _zero(graph: Graph, owner: int, draft: _Draft, phase: int) -> None:
    row = [0] * FIELDS
    row[OP], row[OUT], row[SIZE] = ZERO, owner, graph.nodes[owner].size
    draft.rows.append(row)
    draft.phases.append(phase)


def _kept(graph: Graph, draft: _Draft, alias: Mapping[int, Alias]) -> frozenset[int]:
    """Owners whose cotangent is read after its step: by a matrix gradient, or in a phase other than the recurrent."""
    kept = {_owner(alias, product.delta).owner for product in draft.products}
    kept |= {_owner(alias, n).owner for n in draft.touched if graph.nodes[n].phase is not Phase.RECURRENT}
    for row, phase in zip(draft.rows, draft.phases, strict=True):
        if phase == 3 - int(Phase.OUTPUT):
            kept |= {_owner(alias, row[slot]).owner for slot, mode in SLOTS if row[mode]}
            kept |= {row[OUT]} if row[OP] == ZERO else set()
    return frozenset(kept)
