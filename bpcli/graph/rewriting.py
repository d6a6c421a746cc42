"""Graphs rewritten node by node: operations put in place of others, after which all indices are new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from bpcli.graph.nodes import Graph, Node


@dataclass
class Rewriting:
    """The nodes made so far, and the parameters among them that the graph did not have, by name."""

    nodes: list[Node] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=dict)

    def add(self, node: Node, args: tuple[int, ...], **changes: object) -> int:
        """Add a node like `node` with new arguments; its index."""
        self.nodes.append(replace(node, index=len(self.nodes), args=args, **changes))  # type: ignore[arg-type]
        return len(self.nodes) - 1


Rewrite = Callable[[Rewriting, Node, tuple[int, ...]], int]
"""Adds what stands for a node, given its new arguments; the index of its value."""


def rewritten(graph: Graph, rewrite: Rewrite) -> Graph:
    """The graph with every node by `rewrite`; a state at t-1 remains the leaf of its name."""
    made, at = Rewriting(), dict[int, int]()
    for node in graph.nodes:
        at[node.index] = rewrite(made, node, tuple(at[k] for k in node.args))

    def moved(names: Mapping[str, int]) -> dict[str, int]:
        return {name: at[n] for name, n in names.items()}

    leaves = {node.name: node.index for node in made.nodes if node.op == "previous"}
    previous = {name: leaves[graph.nodes[n].name] for name, n in graph.previous.items()}
    leaf, nodes = {**moved(graph.leaf), **made.params}, tuple(made.nodes)
    return Graph(nodes, leaf, moved(graph.equation), previous, moved(graph.new), at[graph.loss], graph.unused)
