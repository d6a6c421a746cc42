"""Where parameters enter linearly: in preactivations, sums of products and of biases.

In z = P v + … a change of P_ij by d is a change of z_i by d v_j at every step and sample, so that

    dL/dP_ij = Σ_(t, b) dL/dz_i(t, b) v_j(t, b),      dL/dp_i = Σ_(t, b) dL/dz_i(t, b) for z = p + …,
    dL/dp_i = Σ_(t, b) dL/dz_i(t, b) v_i(t, b) for z = p ∘ v + …

holds whatever the loss makes of z. A network has far fewer preactivations than parameters. Of a state v that is read by
such products alone, likewise dL/dv(t, b) = Σ Pᵀ dL/dz(t, b) over these.
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


@dataclass(frozen=True)
class Term:
    """A parameter P in the preactivation `z`: P v with the node `vector` for v, Pᵀ v if `turned`; P where it is -1.

    If `elementwise` P is a vector or a number, and P v entry by entry.
    """

    z: int
    vector: int = -1
    turned: bool = False
    elementwise: bool = False


@dataclass(frozen=True)
class Link:
    """A product of a state before the step with the static node `matrix`, transposed if `turned`, in the preactivation
    `z`."""

    z: int
    matrix: int
    turned: bool


@lru_cache(maxsize=16)
def _reading(graph: Graph) -> tuple[Mapping[int, Sequence[Node]], Fusion]:
    """What reads each node, and how instructions do."""
    readers: dict[int, list[Node]] = {node.index: [] for node in graph.nodes}
    for node in graph.nodes:
        for arg in dict.fromkeys(node.args):
            readers[arg].append(node)
    return readers, fuse(graph)


def _sum_of(graph: Graph, node: Node) -> int:
    """The sum that a term ends up in: the derivatives are those of the term, as long as nothing else reads it."""
    readers, fusion = _reading(graph)
    while fusion.uses[node.index] == 1 and readers[node.index]:
        (reader,) = readers[node.index]
        if reader.op != "add" or reader.shape != node.shape:
            break
        node = reader
    return node.index


@lru_cache(maxsize=16)
def terms(graph: Graph) -> Mapping[str, tuple[Term, ...]]:
    """All that the parameters are in, by name, for those that are in preactivations and in nothing else."""
    readers, _ = _reading(graph)

    def found(leaf: int, matrix: int, turned: bool) -> list[Term] | None:
        """The terms of a leaf, read as `matrix`: the leaf itself or its transpose."""
        terms = []
        for reader in readers[matrix]:
            if reader.op == "transpose" and not turned:
                more = found(leaf, reader.index, True)
                if more is None:
                    return None
                terms += more
            elif reader.phase is Phase.STATIC:
                return None
            elif reader.op == "matmul" and reader.args[1] != matrix:
                terms.append(Term(_sum_of(graph, reader), reader.args[1], turned))
            elif (
                reader.op == "add"
                and not turned
                and reader.shape == graph.nodes[leaf].shape
                and reader.args[0] != reader.args[1]
            ):
                terms.append(Term(_sum_of(graph, reader)))
            elif reader.op == "multiply" and not turned and graph.nodes[leaf].shape in ((), reader.shape):
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
    """The products that a state before the step is in, for those that are in nothing else."""
    readers, fusion = _reading(graph)
    only = {n: readers[n] for n in graph.previous.values() if all(r.op == "matmul" for r in readers[n])}
    return {
        state: tuple(Link(_sum_of(graph, product), *matrix_of(graph, fusion, product.index)) for product in some)
        for state, some in only.items()
    }


def linked(graph: Graph, zs: Sequence[int]) -> Mapping[int, tuple[Link, ...]]:
    """States before a step that are read by products in `zs` and by nothing else, with these products."""
    return {state: some for state, some in _links(graph).items() if all(link.z in zs for link in some)}


@lru_cache(maxsize=64)
def lasting(graph: Graph, z: int) -> bool:
    """Whether a state depends on a node, so that what happens to it lasts beyond its step."""
    return bool(active_nodes(graph, {z}) & set(graph.new.values()))


def step_by_step(graph: Graph, zs: Sequence[int]) -> tuple[int, ...]:
    """The nodes of which a step is differentiated: `zs`, after the states before it that are asked for, if any."""
    states = set(graph.previous.values()) - set(linked(graph, zs)) if any(lasting(graph, z) for z in zs) else ()
    return (*sorted(states), *zs)


def worthwhile(setup: Setup, tensors: Sequence[Tensor], each: float, entry: float) -> list[Tensor]:
    """Those of `tensors` that are in preactivations, if it is less work to differentiate these.

    A number of each step is changed `each` times, one of an array `entry` times.
    """
    graph, every = setup.graph, terms(setup.graph)
    some = [t for t in tensors if t.kind == "param" and t.name in every and t.entries]
    zs = {term.z for tensor in some for term in every[tensor.name]}
    numbers = sum(graph.nodes[n].size for n in step_by_step(graph, sorted(zs)))
    return some if each * numbers < entry * sum(t.entries for t in some) else []


def assemble(
    some: Sequence[Term], shape: tuple[int, ...], slopes: Mapping[int, FloatArray], values: Mapping[int, FloatArray]
) -> FloatArray:
    """Gradients (K, *shape) of a parameter from `slopes[z] (K, T, batch, size)`; `values` of vectors
    are (T, batch, size)."""
    total = np.zeros(())
    for term in some:
        slope = slopes[term.z]
        delta = slope.reshape(len(slope), -1, slope.shape[-1])
        if term.vector < 0:
            total = total + delta.sum(axis=1).reshape(-1, *shape)
            continue
        vectors = values[term.vector].reshape(delta.shape[1], -1)
        if term.elementwise:
            product = (delta * vectors).sum(axis=1)
            total = total + product.reshape(len(slope), -1, *shape).sum(axis=1)
            continue
        product = delta.swapaxes(1, 2) @ vectors
        total = total + (product.swapaxes(1, 2) if term.turned else product)
    return np.asarray(total)


def pulled(link: Link, matrix: FloatArray, slope: FloatArray) -> FloatArray:
    """What a state gets by a product, (batch, n, …), from `slope (batch, size, …)` of its preactivation.

    NaN where it is multiplied with what is NaN there, unless by zero.
    """
    turned, flat = matrix if link.turned else matrix.T, slope.reshape(*slope.shape[:2], -1)
    lost = np.isnan(flat)
    if lost.any():
        found = turned @ np.where(lost, 0.0, flat)
        found[(turned != 0).astype(np.float64) @ lost.astype(np.float64) > 0] = np.nan
    else:
        found = turned @ flat
    return np.asarray(found.reshape(len(slope), -1, *slope.shape[2:]))
