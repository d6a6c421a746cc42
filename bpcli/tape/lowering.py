"""Lowering: a graph to its forward program and, for any choice of seeds and leaves, to its reverse program.

Two things are decided once per graph (`fuse`), so that both programs agree on them: `u + W @ v` is one instruction, as
the product is added to what stands in its output, and a transposed matrix on the left of `@` is a flag. Slices, addends
with a single reader and the cotangents of both have no storage of their own but are part of another node's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS, STOPPING
from bpcli.tape.instructions import (
    ACCUMULATE,
    ADDEND,
    FIELDS,
    INNER,
    MATMUL,
    MODE_A,
    MODE_ADDEND,
    MODE_B,
    NONE,
    NUMBER,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    SIZE_B,
    STORE,
    TURNED,
    ZERO,
    A,
    Alias,
    B,
    Forward,
    Integers,
    Product,
    Reverse,
)

LEAVES = frozenset({"param", "constant", "input", "previous"})
SLOTS = ((A, MODE_A), (B, MODE_B), (ADDEND, MODE_ADDEND))
"""The fields of arguments, each with the field that says what becomes of its cotangent."""
Row = list[int]
Rows = list[tuple[int, Row]]
"""Instructions, each with the part of its program that it belongs to, 0 to 3: phases, in reverse the last one first."""


@dataclass(frozen=True)
class Fusion:
    """`product` takes a sum's node to its matmul node, `addend` to the other term; `elided` nodes have no instruction.

    `uses` counts the readers of each node; being the loss or the new value of a state counts as one.
    """

    product: Mapping[int, int]
    addend: Mapping[int, int]
    elided: frozenset[int]
    uses: Mapping[int, int]


def fuse(graph: Graph) -> Fusion:
    """Find the sums that become products with an addend, and the transposes that become flags."""
    roots = _roots(graph)
    uses = Counter(a for node in graph.nodes for a in node.args)
    uses.update(roots)
    product: dict[int, int] = {}
    addend: dict[int, int] = {}
    for node in graph.nodes:
        if node.op != "add" or node.phase is Phase.STATIC:
            continue
        for one, other in (node.args, node.args[::-1]):
            term = graph.nodes[one]
            alike = term.shape == graph.nodes[other].shape == node.shape  # a scalar would not fill the sum's storage
            if term.op == "matmul" and one not in roots and uses[one] == 1 and term.phase is node.phase and alike:
                product[node.index], addend[node.index] = one, other
                break
    flags = {
        node.index
        for node in graph.nodes
        if node.op == "transpose"
        and all(r.op == "matmul" and r.args[1] != node.index for r in graph.nodes if node.index in r.args)
    }
    return Fusion(product, addend, frozenset({*product.values(), *flags}), uses)


def matrix_of(graph: Graph, fusion: Fusion, product: int) -> tuple[int, bool]:
    """The matrix that a matmul node reads and whether it is read transposed."""
    matrix = graph.nodes[graph.nodes[product].args[0]]
    if matrix.op == "transpose" and matrix.index in fusion.elided:
        return matrix.args[0], True
    return matrix.index, False


def active_nodes(graph: Graph, leaves: Collection[int], stopped: bool = False) -> frozenset[int]:
    """The nodes that have a derivative with respect to one of `leaves` within one step; with `stopped`, all that are
    computed from one of them."""
    active = set(leaves)
    for node in graph.nodes:
        if (stopped or node.op not in STOPPING) and any(a in active for a in node.args):
            active.add(node.index)
    return frozenset(active)


def resolve(alias: Mapping[int, Alias], node: int, shift: int = 0) -> Alias:
    """The storage of entry `shift` of a node, through the aliases known so far."""
    there = alias.get(node, Alias(node, 0))
    return Alias(there.owner, there.shift + shift)


def lower_forward(graph: Graph, fusion: Fusion) -> Forward:
    """The instructions that compute every node of `graph`, phase by phase."""
    rows: Rows = []
    for node in graph.nodes:
        if node.op not in LEAVES and node.op != "slice" and node.index not in fusion.elided:
            rows += [(int(node.phase), row) for row in _instructions(graph, fusion, node)]
    code, bounds = _pack(sorted(rows, key=lambda pair: pair[0]))
    numbers = [node.numbers[0] if node.numbers else 0.0 for node in graph.nodes]
    return Forward(code, bounds, np.array(numbers, dtype=np.float64), _value_aliases(graph, fusion))


def lower_reverse(
    graph: Graph,
    fusion: Fusion,
    active: frozenset[int],
    seeds: Collection[int],
    own: bool = False,
    fresh: Collection[int] = (),
) -> Reverse:
    """The instructions that take cotangents from `seeds` to the active leaves.

    Whoever runs the program clears the cotangents of states, and of leaves and static nodes; the latter two not if
    `own`, where each row has cotangents of its own for them, and the static phase is left out. Those of the leaves
    `fresh` are not even cleared.
    """
    draft = _Draft(graph, fusion, active, set(seeds))
    for node in sorted(graph.nodes, key=lambda node: (-node.phase, -node.index)):
        if node.index in draft.touched and node.op not in LEAVES:
            draft.visit(node)
    alias = _cotangent_aliases(graph, fusion, active, draft.touched)
    held = {n.index for n in graph.nodes if (n.op in LEAVES or n.phase is Phase.STATIC) and not own} - set(fresh)
    held |= {resolve(alias, n).owner for n in (*seeds, *graph.new.values())}
    used = [(part, row) for part, row in draft.rows if not own or part != _part(Phase.STATIC)]
    rows = _with_modes(graph, _without_aliased(used, alias), alias, held, fresh)
    code, bounds = _pack(rows)
    kept = {resolve(alias, product.delta).owner for product in draft.products}
    kept |= {resolve(alias, n).owner for n in draft.touched if graph.nodes[n].phase is not Phase.RECURRENT}
    for row in (row for part, row in rows if part == _part(Phase.OUTPUT)):
        kept |= {resolve(alias, row[slot]).owner for slot, mode in SLOTS if row[mode]}
        kept |= {row[OUT]} if row[OP] == ZERO else set()
    touched, reads = frozenset(draft.touched), frozenset(draft.reads)
    return Reverse(code, bounds, tuple(draft.products), alias, touched, reads, frozenset(kept))


def _roots(graph: Graph) -> set[int]:
    """Nodes that are read although no node reads them."""
    return {graph.loss, *graph.new.values()}


def _part(phase: Phase) -> int:
    """The part of the reverse program that belongs to a phase."""
    return 3 - int(phase)


def _pack(rows: Rows) -> tuple[Integers, Integers]:
    """Sorted rows as one array, and the bounds of the four parts, (5,)."""
    code = np.array([row for _, row in rows], dtype=np.int64).reshape(len(rows), FIELDS)
    bounds = np.searchsorted(np.array([part for part, _ in rows], dtype=np.int64), np.arange(5)).astype(np.int64)
    return code, bounds


def _instructions(graph: Graph, fusion: Fusion, node: Node) -> list[Row]:
    """The instructions of one node: several for a concatenation, one otherwise. Modes are left at NONE."""
    args, nodes, row = node.args, graph.nodes, [0] * FIELDS
    row[OP], row[OUT], row[NUMBER], row[SIZE] = OPERATIONS[node.op].opcode, node.index, node.index, node.size
    row[A] = row[B] = row[ADDEND] = -1
    if node.op == "concat":
        starts = np.cumsum([0, *(nodes[a].size for a in args)]).tolist()
        parts = [row.copy() for _ in args]
        for part, arg, start in zip(parts, args, starts, strict=False):
            part[A], part[SIZE_A], part[INNER] = arg, nodes[arg].size, start
        return parts
    if node.index in fusion.product:
        row[OP], row[ADDEND] = MATMUL, fusion.addend[node.index]
        args = nodes[fusion.product[node.index]].args
    row[A], row[SIZE_A] = args[0], nodes[args[0]].size
    if len(args) > 1:
        row[B], row[SIZE_B] = args[1], nodes[args[1]].size
    if row[OP] == MATMUL:
        row[A], row[TURNED] = matrix_of(graph, fusion, fusion.product.get(node.index, node.index))
    elif node.op == "matmat":
        row[INNER] = nodes[args[0]].shape[1]
    elif node.op == "transpose":
        row[INNER] = node.shape[0]
    return [row]


def _value_aliases(graph: Graph, fusion: Fusion) -> dict[int, Alias]:
    """Where the values of slices, and of addends that grow in the storage of their sum, are found."""
    alias: dict[int, Alias] = {}
    for node in graph.nodes:
        if node.op == "slice":
            alias[node.index] = resolve(alias, node.args[0], int(node.numbers[0]))
    for total in sorted(fusion.addend, reverse=True):
        if _grows_in_place(graph, fusion, total):
            alias[fusion.addend[total]] = resolve(alias, total)
    return alias


def _grows_in_place(graph: Graph, fusion: Fusion, total: int) -> bool:
    """Whether the addend of `total` may be computed in the sum's own storage: nothing else reads its value.

    What `stop_gradient` holds is read by references.
    """
    node, term = graph.nodes[total], graph.nodes[fusion.addend[total]]
    computed = term.op not in (*LEAVES, *STOPPING, "slice") and term.index not in _roots(graph)
    alone = fusion.uses[term.index] == 1 and term.phase is node.phase and term.shape == node.shape
    return computed and alone and "out" not in OPERATIONS[term.op].saves


@dataclass
class _Draft:
    """The reverse program while it is written; `touched` begins with the seeds."""

    graph: Graph
    fusion: Fusion
    active: frozenset[int]
    touched: set[int]
    rows: Rows = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)

    def visit(self, node: Node) -> None:
        """Write the reverse instructions of one node, and note the cotangents they reach and the values they read."""
        if node.op in STOPPING:
            return
        if node.op == "slice" or node.index in self.fusion.elided:
            self.touched.update(a for a in node.args if a in self.active)
            return
        for row in _instructions(self.graph, self.fusion, node):
            for slot, mode in SLOTS:
                row[mode] = STORE if row[slot] >= 0 and row[slot] in self.active else NONE
            targets = _targets(row)
            if not targets:
                continue
            self.touched.update(targets)
            if node.index in self.fusion.product:
                self.touched.add(self.fusion.product[node.index])
            if row[OP] == MATMUL:
                self._multiply(node, row)
            else:
                self._read(node, row)
            if _targets(row):
                self.rows.append((_part(node.phase), row))

    def _multiply(self, node: Node, row: Row) -> None:
        """A product reads its matrix for the vector's cotangent and its vector for the matrix's, which is deferred."""
        if row[MODE_B]:
            self.reads.add(row[A])
        if row[MODE_A]:
            self.reads.add(row[B])
            if node.phase is not Phase.STATIC:
                self.products.append(Product(row[A], node.index, row[B], bool(row[TURNED])))
                row[MODE_A] = NONE

    def _read(self, node: Node, row: Row) -> None:
        """Note the values that the rule reads; of a bilinear one, a single cotangent takes the other factor alone."""
        saves = OPERATIONS[node.op].saves
        if "out" in saves:
            self.reads.add(node.index)
        if "args" in saves:
            one_factor = node.op in ("multiply", "matmat", "dot") and not (row[MODE_A] and row[MODE_B])
            if not (one_factor and row[MODE_A]):
                self.reads.add(row[A])
            if row[B] >= 0 and not (one_factor and row[MODE_B]):
                self.reads.add(row[B])


def _targets(row: Row) -> list[int]:
    """The arguments whose cotangent an instruction contributes to."""
    return [row[slot] for slot, mode in SLOTS if row[mode]]


def _cotangent_aliases(graph: Graph, fusion: Fusion, active: frozenset[int], touched: set[int]) -> dict[int, Alias]:
    """Cotangents without storage of their own: a slice's is part of its argument's, a term's is that of the sum."""
    alias: dict[int, Alias] = {}
    roots = _roots(graph)
    for node in reversed(graph.nodes):
        if node.index not in touched or node.phase is Phase.STATIC:
            continue
        if node.index in fusion.product:
            alias[fusion.product[node.index]] = resolve(alias, node.index)
        terms = node.args if node.op == "add" else node.args[:1] if node.op in ("subtract", "copy") else ()
        for term in terms:
            arg = graph.nodes[term]
            single = fusion.uses[term] == 1 and arg.shape == node.shape and term in active and term not in roots
            if single and arg.op not in LEAVES and arg.op != "slice" and arg.phase is not Phase.STATIC:
                alias[term] = resolve(alias, node.index)
    for node in graph.nodes:
        if node.op == "slice" and node.index in touched:
            alias[node.index] = resolve(alias, node.args[0], int(node.numbers[0]))
    return alias


def _without_aliased(rows: Rows, alias: Mapping[int, Alias]) -> Rows:
    """Drop contributions to terms whose cotangent is the sum's own, and instructions that are left without any."""
    for _, row in rows:
        for slot, mode in SLOTS:
            if row[mode] and row[slot] in alias and alias[row[slot]] == resolve(alias, row[OUT]):
                row[mode] = NONE
    return [(part, row) for part, row in rows if _targets(row)]


def _with_modes(graph: Graph, rows: Rows, alias: Mapping[int, Alias], held: set[int], fresh: Collection[int]) -> Rows:
    """The first contribution to a cotangent is stored and later ones are added, unless it is among those `held`.

    Where slices write parts of a whole, each part is stored first if the parts tile the whole; else an instruction sets
    the whole to zero before. Another one does so for each of `fresh` that nothing contributes to.
    """
    touches: dict[int, list[tuple[int, int, tuple[int, int]]]] = defaultdict(list)
    for position, (_, row) in enumerate(rows):
        for slot, mode in SLOTS:
            if row[mode]:
                there = resolve(alias, row[slot])
                part = (there.shift, there.shift + graph.nodes[row[slot]].size)
                touches[there.owner].append((position, mode, part))
    zeros: dict[int, list[int]] = defaultdict(list)
    for owner, contributions in touches.items():
        parts = sorted({part for _, _, part in contributions})
        tiled = [0, *(stop for _, stop in parts)] == [*(start for start, _ in parts), graph.nodes[owner].size]
        stored: set[tuple[int, int]] = set()
        for position, mode, part in contributions:
            first = owner not in held and tiled and part not in stored
            rows[position][1][mode] = STORE if first else ACCUMULATE
            stored.add(part)
        if owner not in held and not tiled:
            zeros[contributions[0][0]].append(owner)
    found = [(_part(Phase.OUTPUT), _zero(graph, n)) for n in fresh if n not in touches]
    for position, (group, row) in enumerate(rows):
        found += [(group, _zero(graph, owner)) for owner in zeros.get(position, ())]
        found.append((group, row))
    return found


def _zero(graph: Graph, node: int) -> Row:
    row = [0] * FIELDS
    row[OP], row[OUT], row[SIZE] = ZERO, node, graph.nodes[node].size
    return row
