"""What the lowering does not run as it stands: products that take an addend, transposes that become a flag.

`u + W @ v` is one instruction: the product is added to what is already in its output. A transposed matrix on the left
of `@` costs nothing. Both are decided once per graph, so that the forward and the reverse program agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS

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
