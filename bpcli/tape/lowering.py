"""What the lowering does not run as it stands: products that take an addend, transposes that become a flag.

`u + W @ v` is one instruction: the product is added to what is already in its output. A transposed matrix on the left
of `@` costs nothing. Both are decided once per graph, so that the forward and the reverse program agree.

Graph -> Tape: the forward program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.tape.instructions import (
    ADDEND,
    FIELDS,
    INNER,
    NUMBER,
    OP,
    OUT,
    SIZE,
    SIZE_A,
    SIZE_B,
    TURNED,
    A,
    Alias,
    B,
    Forward,
    Integers,
)

LEAVES = frozenset({"param", "constant", "input", "previous"})


@dataclass(frozen=True)
class Fusion:
    """`product` takes a sum's node to its matmul node, `addend` to the other term; `elided` nodes have no instruction.

    `uses` counts how often a node is read, being a state's new value or the loss included.
    """

    product: Mapping[int, int]
    addend: Mapping[int, int]
    elided: frozenset[int]
    uses: Mapping[int, int]


def fuse(graph: Graph) -> Fusion:
    """Find the sums that become products with an addend, and the transposes that become flags."""
    uses = Counter(a for node in graph.nodes for a in node.args)
    roots = {graph.loss, *graph.new.values()}
    uses.update(roots)
    product: dict[int, int] = {}
    addend: dict[int, int] = {}
    for node in graph.nodes:
        if node.op != "add" or node.phase is Phase.STATIC:
            continue
        for one, other in (node.args, node.args[::-1]):
            term = graph.nodes[one]
            whole = term.shape == graph.nodes[other].shape == node.shape  # a scalar would not fill the sum's storage
            if term.op == "matmul" and one not in roots and uses[one] == 1 and term.phase is node.phase and whole:
                product[node.index], addend[node.index] = one, other
                break
    elided = set(product.values())
    for node in graph.nodes:
        if node.op == "transpose" and all(
            reader.op == "matmul" and reader.args[1] != node.index for reader in _readers(graph, node.index)
        ):
            elided.add(node.index)
    return Fusion(product, addend, frozenset(elided), uses)


def grows_in_place(graph: Graph, fusion: Fusion, total: int) -> bool:
    """Whether the addend of `total` may be built up in the sum's own storage: nobody else reads its value."""
    term = graph.nodes[fusion.addend[total]]
    roots = {graph.loss, *graph.new.values()}
    return (
        term.op not in LEAVES
        and term.op != "slice"
        and term.index not in roots
        and fusion.uses[term.index] == 1
        and _alike(term, graph.nodes[total])
        and "out" not in OPERATIONS[term.op].saves
    )


def matrix_of(graph: Graph, fusion: Fusion, product: int) -> tuple[int, bool]:
    """The matrix that a matmul node reads and whether it is read transposed."""
    matrix = graph.nodes[graph.nodes[product].args[0]]
    if matrix.op == "transpose" and matrix.index in fusion.elided:
        return matrix.args[0], True
    return matrix.index, False


def _alike(one: Node, other: Node) -> bool:
    return one.phase is other.phase and one.shape == other.shape


def _readers(graph: Graph, index: int) -> list[Node]:
    return [node for node in graph.nodes if index in node.args]


def lower_forward(graph: Graph, fusion: Fusion) -> Forward:
    """The instructions that compute every node of `graph`, phase by phase."""
    rows: list[tuple[Phase, list[int]]] = []
    for node in graph.nodes:
        if node.op not in LEAVES and node.op != "slice" and node.index not in fusion.elided:
            rows += [(node.phase, row) for row in instructions(graph, fusion, node)]
    rows.sort(key=lambda pair: pair[0])
    code, bounds = pack([row for _, row in rows], [int(phase) for phase, _ in rows])
    numbers = [node.numbers[0] if node.numbers else 0.0 for node in graph.nodes]
    return Forward(code, bounds, np.array(numbers, dtype=np.float64), value_aliases(graph, fusion))


def pack(rows: list[list[int]], places: list[int]) -> tuple[Integers, Integers]:
    """Rows as one array, and where each of the four groups (`places`, ascending) begins and ends."""
    code = np.array(rows, dtype=np.int64).reshape(len(rows), FIELDS)
    bounds = np.searchsorted(np.array(places, dtype=np.int64), np.arange(5)).astype(np.int64)
    return code, bounds


def instructions(graph: Graph, fusion: Fusion, node: Node) -> list[list[int]]:
    """The instructions of one node: several for a concatenation, one otherwise. Modes are left at NONE."""
    row = [0] * FIELDS
    row[OP], row[OUT], row[SIZE] = OPERATIONS[node.op].opcode, node.index, node.size
    row[A] = row[B] = row[ADDEND] = -1
    row[NUMBER] = node.index
    if node.op == "concat":
        return _joints(graph, node, row)
    args = node.args
    if node.index in fusion.product:
        product = graph.nodes[fusion.product[node.index]]
        row[OP], row[ADDEND], args = OPERATIONS["matmul"].opcode, fusion.addend[node.index], product.args
    row[A] = args[0]
    row[SIZE_A] = graph.nodes[args[0]].size
    if len(args) > 1:
        row[B], row[SIZE_B] = args[1], graph.nodes[args[1]].size
    if row[OP] == OPERATIONS["matmul"].opcode:
        matrix, turned = matrix_of(graph, fusion, fusion.product.get(node.index, node.index))
        row[A], row[TURNED] = matrix, int(turned)
    elif node.op == "matmat":
        row[INNER] = graph.nodes[args[0]].shape[1]
    elif node.op == "transpose":
        row[INNER] = node.shape[0]
    return [row]


def _joints(graph: Graph, node: Node, row: list[int]) -> list[list[int]]:
    """One copy for each part of a concatenation; INNER is where the part begins."""
    joints = []
    start = 0
    for arg in node.args:
        size = graph.nodes[arg].size
        joint = row.copy()
        joint[A], joint[SIZE_A], joint[INNER] = arg, size, start
        joints.append(joint)
        start += size
    return joints


def value_aliases(graph: Graph, fusion: Fusion) -> dict[int, Alias]:
    """Where the value of a slice, or of an addend that grows in place, is to be found."""
    alias: dict[int, Alias] = {}
    for node in graph.nodes:
        if node.op == "slice":
            alias[node.index] = resolve(alias, node.args[0], int(node.numbers[0]))
    for total in sorted(fusion.addend, reverse=True):
        if grows_in_place(graph, fusion, total):
            alias[fusion.addend[total]] = resolve(alias, total, 0)
    return alias


def resolve(alias: dict[int, Alias], node: int, shift: int) -> Alias:
    """The owner of entry `shift` of `node`, through the aliases known so far."""
    if node in alias:
        return Alias(alias[node].owner, alias[node].shift + shift)
    return Alias(node, shift)
