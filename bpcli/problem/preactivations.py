"""Where parameters enter linearly: in preactivations, sums of products with matrices and of biases.

In z = P v + … a change of P_ij by d is a change of z_i by d v_j at every step and sample, so that

    dL/dP_ij = Σ_(t, b) dL/dz_i(t, b) v_j(t, b),      dL/dp_i = Σ_(t, b) dL/dz_i(t, b) for z = p + …

holds whatever the loss makes of z. A network has far fewer preactivations than parameters, as long as T is small beside
the columns of its matrices, and what happens at a step concerns the steps that follow alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.fuse import fuse
from bpcli.graph.lower_reverse import active_nodes
from bpcli.graph.model import Graph, Node, Phase
from bpcli.problem.model import Setup, Tensor
from bpcli.problem.unrolled import Window

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """A parameter P in the preactivation `z`: P v with the node `vector` for v, Pᵀ v if `turned`; P where it is -1."""

    z: int
    vector: int = -1
    turned: bool = False


def terms(graph: Graph) -> dict[str, tuple[Term, ...]]:
    """All that the parameters are in, by name, for those that are in preactivations and in nothing else."""
    readers: dict[int, list[Node]] = {node.index: [] for node in graph.nodes}
    for node in graph.nodes:
        for arg in dict.fromkeys(node.args):
            readers[arg].append(node)
    uses = fuse(graph).uses

    def sum_of(node: Node) -> int:
        """The sum that a term ends up in: the derivatives are those of the term, as long as nothing else reads it."""
        while uses[node.index] == 1 and readers[node.index]:
            (reader,) = readers[node.index]
            if reader.op != "add" or reader.shape != node.shape:
                break
            node = reader
        return node.index

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
                terms.append(Term(sum_of(reader), reader.args[1], turned))
            elif (
                reader.op == "add"
                and not turned
                and reader.shape == graph.nodes[leaf].shape
                and reader.args[0] != reader.args[1]
            ):
                terms.append(Term(sum_of(reader)))
            else:
                return None
        return terms

    every = {name: found(leaf, leaf, False) for name, leaf in graph.leaf.items() if graph.nodes[leaf].op == "param"}
    roots = {graph.loss, *graph.new.values()}
    return {name: tuple(some) for name, some in every.items() if some and graph.leaf[name] not in roots}


def lasting(graph: Graph, z: int) -> bool:
    """Whether a state depends on a node, so that what happens to it lasts beyond its step."""
    return bool(active_nodes(graph, {z}) & set(graph.new.values()))


def impulse_steps(setup: Setup, windows: Sequence[Window], z: int) -> float:
    """Steps of copies that it takes to change every entry of z once in all windows."""
    graph = setup.graph
    if not lasting(graph, z):
        return graph.nodes[z].size * sum(w.stop - w.loss_from for w in windows)
    return graph.nodes[z].size * sum((w.stop - w.start) * (w.stop - w.start + 1) / 2 for w in windows)


def worthwhile(setup: Setup, windows: Sequence[Window], tensors: Sequence[Tensor], dearer: float) -> list[Tensor]:
    """The tensors of which it is cheaper to differentiate with respect to preactivations.

    A change of a preactivation is evaluated `dearer` times as often as one of an entry.
    """
    every = terms(setup.graph)
    steps = sum(w.stop - w.start for w in windows)
    groups: list[tuple[set[int], list[Tensor]]] = []
    for tensor in tensors:
        if tensor.kind != "param" or tensor.name not in every or not tensor.entries:
            continue
        # Tensors that share preactivations go together.
        zs, members = {term.z for term in every[tensor.name]}, [tensor]
        for other in [g for g in groups if g[0] & zs]:
            groups.remove(other)
            zs, members = zs | other[0], [*other[1], *members]
        groups.append((zs, members))
    return [
        tensor
        for zs, members in groups
        for tensor in members
        if dearer * sum(impulse_steps(setup, windows, z) for z in zs) < steps * sum(t.entries for t in members)
    ]


def assemble(
    some: Sequence[Term], shape: tuple[int, ...], slopes: Mapping[int, FloatArray], vector: Callable[[int], FloatArray]
) -> FloatArray:
    """A parameter's gradient from `slopes[z] (T, batch, size)`; `vector` gives the values of a node, likewise."""
    total = np.zeros(shape)
    for term in some:
        delta = slopes[term.z].reshape(-1, slopes[term.z].shape[2])
        if term.vector < 0:
            total += delta.sum(axis=0).reshape(shape)
            continue
        values = vector(term.vector)
        product = delta.T @ values.reshape(len(delta), -1)
        total += product.T if term.turned else product
    return total
