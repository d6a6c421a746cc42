"""Preactivations, the sums of products and biases in which parameters enter linearly.

In z = P v + … a change of P_ij by d changes z_i by d v_j at every step and sample, so that

    dL/dP_ij = Σ_(t, b) dL/dz_i(t, b) v_j(t, b),      dL/dp_i = Σ_(t, b) dL/dz_i(t, b) for z = p + …,
    dL/dp_i = Σ_(t, b) dL/dz_i(t, b) v_i(t, b) for z = p ∘ v + …

for any dependence of the loss on z. A network has far fewer preactivations than parameters. Likewise, for a state v
that only such products read, dL/dv(t, b) = Σ Pᵀ dL/dz(t, b).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Setup, Tensor
from bpcli.tape.lowering import Fusion, active_nodes, fuse, matrix_of

FloatArray = NDArray[np.float64]
# Rows that are summed at a time.
_ROWS = 1024


@dataclass(frozen=True)
class Term:
    """A parameter P in the preactivation `z`: P v with the node `vector` for v, or Pᵀ v if `transposed`.

    A `vector` of -1 stands for P alone, a bias. If `elementwise`, P is a vector or scalar and multiplies entry by
    entry.
    """

    z: int
    vector: int = -1
    transposed: bool = False
    elementwise: bool = False


@dataclass(frozen=True)
class Link:
    """A product in the preactivation `z`: the static node `matrix`, or its transpose, times a state before the step."""

    z: int
    matrix: int
    transposed: bool


@lru_cache(maxsize=16)
def _reading(graph: Graph) -> tuple[Mapping[int, Sequence[Node]], Fusion]:
    """The nodes that read each node, and the fusion of nodes into instructions."""
    readers: dict[int, list[Node]] = {node.index: [] for node in graph.nodes}
    for node in graph.nodes:
        for arg in dict.fromkeys(node.args):
            readers[arg].append(node)
    return readers, fuse(graph)


def _sum_of(graph: Graph, node: Node) -> int:
    """The sum that a term is part of, which has the same derivative as the term if nothing else reads the term."""
    readers, fusion = _reading(graph)
    while fusion.uses[node.index] == 1 and readers[node.index]:
        (reader,) = readers[node.index]
        if reader.op != "add" or reader.shape != node.shape:
            break
        node = reader
    return node.index


@lru_cache(maxsize=16)
def terms(graph: Graph) -> Mapping[str, tuple[Term, ...]]:
    """Terms by name of the parameters that occur only in preactivations."""
    readers, _ = _reading(graph)

    def found(leaf: int, matrix: int, transposed: bool) -> list[Term] | None:
        """The terms of a leaf, read as `matrix`: the leaf itself or its transpose."""
        terms = []
        for reader in readers[matrix]:
            if reader.op == "transpose" and not transposed:
                more = found(leaf, reader.index, True)
                if more is None:
                    return None
                terms += more
            elif reader.phase is Phase.STATIC:
                return None
            elif reader.op == "matmul" and reader.args[1] != matrix:
                terms.append(Term(_sum_of(graph, reader), reader.args[1], transposed))
            elif (
                reader.op == "add"
                and not transposed
                and reader.shape == graph.nodes[leaf].shape
                and reader.args[0] != reader.args[1]
            ):
                terms.append(Term(_sum_of(graph, reader)))
            elif reader.op == "multiply" and not transposed and graph.nodes[leaf].shape in ((), reader.shape):
                first, second = reader.args
                terms.append(Term(_sum_of(graph, reader), second if first == matrix else first, elementwise=True))
            else:
                return None
        return terms

    every = {name: found(leaf, leaf, False) for name, leaf in graph.leaf.items() if graph.nodes[leaf].op == "param"}
    roots = {graph.loss, *graph.new.values()}
    return {name: tuple(some) for name, some in every.items() if some and graph.leaf[name] not in roots}


@lru_cache(maxsize=16)
def _links(graph: Graph) -> Mapping[int, tuple[Link, ...]]:
    """Products of each state before the step that only products read."""
    readers, fusion = _reading(graph)
    only = {n: readers[n] for n in graph.previous.values() if all(r.op == "matmul" for r in readers[n])}
    return {
        state: tuple(Link(_sum_of(graph, product), *matrix_of(graph, fusion, product.index)) for product in some)
        for state, some in only.items()
    }


def state_links(graph: Graph, zs: Sequence[int]) -> Mapping[int, tuple[Link, ...]]:
    """States before a step that only products in the preactivations `zs` read, with these products."""
    return {state: some for state, some in _links(graph).items() if all(link.z in zs for link in some)}


@lru_cache(maxsize=64)
def reaches_state(graph: Graph, z: int) -> bool:
    """Whether a state depends on a node, so that a change of it affects later steps."""
    return bool(active_nodes(graph, {z}) & set(graph.new.values()))


def differentiated_nodes(graph: Graph, zs: Sequence[int]) -> tuple[int, ...]:
    """The nodes with respect to which steps are differentiated: states before the step, if needed, and `zs`."""
    states = (
        set(graph.previous.values()) - set(state_links(graph, zs)) if any(reaches_state(graph, z) for z in zs) else ()
    )
    return (*sorted(states), *zs)


def chain_parameters(setup: Setup, tensors: Sequence[Tensor], each: float, entry: float) -> list[Tensor]:
    """The tensors that occur only in preactivations, where differentiating preactivations is less work.

    It takes `each` evaluations per number of a step; perturbing the tensors takes `entry` per entry.
    """
    graph, every = setup.graph, terms(setup.graph)
    some = [t for t in tensors if t.kind == "param" and t.name in every and t.entries]
    zs = {term.z for tensor in some for term in every[tensor.name]}
    numbers = sum(graph.nodes[n].size for n in differentiated_nodes(graph, sorted(zs)))
    return some if each * numbers < entry * sum(t.entries for t in some) else []


def assemble(
    some: Sequence[Term], shape: tuple[int, ...], slopes: Mapping[int, FloatArray], values: Mapping[int, FloatArray]
) -> FloatArray:
    """Gradients (K, *shape) of a parameter from `slopes[z] (K, T, batch, size)` and `values` (T, batch, size).

    Sums over many rows are compensated, so that they add no more rounding than those over a few.
    """
    total = lost = np.zeros(())
    for term in some:
        slope = slopes[term.z]
        delta = slope.reshape(len(slope), -1, slope.shape[-1])
        vectors = values[term.vector].reshape(delta.shape[1], -1) if term.vector >= 0 else None
        for start in range(0, delta.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            part = _product(term, delta[:, rows], None if vectors is None else vectors[rows], shape) - lost
            new = total + part
            lost, total = (new - total) - part, new
    return np.asarray(total)


def _product(term: Term, delta: FloatArray, vectors: FloatArray | None, shape: tuple[int, ...]) -> FloatArray:
    """The part (K, *shape) of a gradient from slopes (K, rows, size) and the vectors (rows, size) in these rows."""
    if vectors is None:
        return np.asarray(delta.sum(axis=1).reshape(-1, *shape))
    if term.elementwise:
        return np.asarray((delta * vectors).sum(axis=1).reshape(len(delta), -1, *shape).sum(axis=1))
    product = delta.swapaxes(1, 2) @ vectors
    return np.asarray(product.swapaxes(1, 2) if term.transposed else product)


def pulling(
    graph: Graph, links: Mapping[int, Sequence[Link]], nodes: Sequence[int], values: Mapping[int, FloatArray]
) -> FloatArray:
    """The matrix (N, U) that makes derivatives of the states before a step of those of its numbers, of all `nodes`.

    States among the nodes have their own, others those of the products that read them, given the `values` of matrices.
    """
    sizes = {n: graph.nodes[n].size for n in (*nodes, *graph.previous.values())}
    at, end = {}, 0
    for n in nodes:
        at[n] = slice(end, end := end + sizes[n])
    rows = []
    for state in graph.previous.values():
        own = np.zeros((sizes[state], end))
        if state in at:
            own[:, at[state]] = np.eye(sizes[state])
        else:
            for link in links[state]:
                matrix = values[link.matrix].reshape(graph.nodes[link.matrix].shape)
                own[:, at[link.z]] += matrix if link.transposed else matrix.T
        rows.append(own)
    return np.concatenate(rows) if rows else np.zeros((0, end))
