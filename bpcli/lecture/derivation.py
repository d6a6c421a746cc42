"""The intermediate form of a derivation; a network within one step, forwards and from the loss backwards."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bpcli.graph.nodes import Node, Phase
from bpcli.graph.operations import Shape
from bpcli.lecture.linear_maps import RESCALE, SUM
from bpcli.lecture.named_graph import NamedGraph
from bpcli.lecture.term_values import flops
from bpcli.lecture.terms import ONE, STILL, Symbol, Term, collect, name, number

Kind = Literal["value", "total", "local", "edge", "jacobian", "immediate", "credit", "influence", "windows"]
"""How a line is checked: `bpcli.lecture.measured` has a reference for each."""
Order = Literal["each", "backwards", "forwards", "once"]


@dataclass(frozen=True)
class Claim:
    """An equation, `left` = `right`, for the derivative of node `of` with respect to node `by`.

    `of` is -1 for the loss. `middle` is another way to write the left-hand side, `entries` the indices of its entries
    in index notation, none where that would say nothing new.
    """

    left: Term
    right: Term
    kind: Kind
    of: int
    by: int
    middle: Term | None = None
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One line: a claim, the rule that it follows by, the shape of its value, and its cost in flops."""

    claim: Claim
    because: str
    shapes: Shape
    cost: float

    @property
    def key(self) -> Hashable:
        """That of the name on the left."""
        return self.claim.left.key


@dataclass(frozen=True)
class Cell:
    """A cell of a table, struck out or not."""

    text: str
    struck: bool = False


@dataclass(frozen=True)
class Section:
    """Lines under a title, after some sentences, and a table below them.

    `order` is that of the steps of time in which the lines are computed.
    """

    title: str
    sentences: tuple[str, ...]
    steps: tuple[Step, ...]
    order: Order = "each"
    rows: tuple[tuple[Cell, ...], ...] = ()


def line(claim: Claim, because: str) -> Step:
    """A step whose shape and cost are read off its claim."""
    return Step(claim, because, claim.left.shape, flops(claim.right))


def indices(shape: Shape) -> tuple[str, ...]:
    """Index letters for the entries of an array; none of a scalar."""
    return ("i", "j", "k")[: len(shape)]


@dataclass
class Sweep:
    """Contributions to the derivatives of nodes, collected from the loss backwards within one step.

    `given[n]` are those to node n with the rules that they follow by, `known` the derivatives that have a name.
    """

    net: NamedGraph
    given: dict[int, list[tuple[Term, str, int]]] = field(default_factory=dict)
    known: dict[int, Term] = field(default_factory=dict)

    def total(self, n: int) -> Term:
        """The derivative with respect to node n as a term: its name, or the sum of its contributions."""
        return self.known[n] if n in self.known else collect([term for term, _, _ in self.given.get(n, [])])

    def because(self, n: int) -> str:
        """The rules of the contributions to node n."""
        found = self.given.get(n, [])
        rules = _joined(list(dict.fromkeys(rule for _, rule, _ in found if rule)))
        strong = [rule for rule in rules if rule != SUM] or rules
        users = list(dict.fromkeys(u for u in (self.user(n) for _, _, n in found) if u))
        text = "; ".join(strong)
        return text if len(users) < 2 else f"chain rule, a sum over its uses in {', '.join(users)}: {text}"

    def user(self, n: int) -> str:
        """The named node that an expression with node n in it belongs to."""
        seen = n
        while seen >= 0 and not self.net.named(seen):
            users = self.net.users[seen]
            seen = users[0][0].index if users else -1
        return self.net.names.get(seen, "")

    def pull(self, node: Node, cotangent: Term, into: frozenset[int]) -> None:
        """Hand a node's derivative on to those of its arguments that are in `into`."""
        for slot, arg in enumerate(node.args):
            if arg in into and not cotangent.zero:
                term, because = self.net.pulled(node, slot, cotangent)
                if not term.zero:
                    self.given.setdefault(arg, []).append((term, because, node.index))


def _joined(rules: Sequence[str]) -> list[str]:
    """The rules, those of elementwise functions in one phrase."""
    slopes = [rule.removeprefix(RESCALE) for rule in rules if rule.startswith(RESCALE)]
    return [rule for rule in rules if not rule.startswith(RESCALE)] + ([RESCALE + ", ".join(slopes)] if slopes else [])


def delta(net: NamedGraph, n: int, form: str = "delta") -> Term:
    """The name of ∂L/∂n."""
    node = net.nodes[n]
    symbol = Symbol("gradient" if node.op in ("param", "input") or form == "gradient" else form, (net.names[n],))
    still = net.graph.recurrent and node.phase is Phase.STATIC
    return name(symbol, (STILL, "d", n) if still else ("d", n), node.shape)


def forward(net: NamedGraph, wanted: frozenset[int]) -> Section:
    """The network itself, an equation a line."""
    steps = []
    for n in net.equations():
        if n in wanted:
            claim = Claim(net.term(n), net.expression(n), "value", n, n)
            steps.append(Step(claim, "", net.nodes[n].shape, flops(claim.right)))
    return Section("The network", (), tuple(steps))


def feed_forward(net: NamedGraph, targets: Sequence[int]) -> list[Section]:
    """The derivatives of all nodes between the loss and `targets`, then those of parameters and inputs, read off."""
    graph = net.graph
    into = net.reaches(frozenset({graph.loss})) & _leading(net, targets)
    sweep, inner, leaves = Sweep(net), list[Step](), list[Step]()
    for node in reversed(net.nodes[: graph.loss + 1]):
        n = node.index
        if n == graph.loss:
            sweep.known[n] = ONE
        elif n not in into or n not in sweep.given:
            continue
        elif net.named(n):
            step = derived(net, sweep, n)
            (leaves if net.leaf(n) else inner).append(step)
            sweep.known[n] = step.claim.left
        sweep.pull(node, sweep.total(n), into)
    leaves.sort(key=lambda step: step.claim.by)
    network = forward(net, net.reaches(frozenset({graph.loss})))
    found = [network, Section("Nodes, from the loss backwards", (), tuple(inner))]
    kinds = "Parameters" if all(net.nodes[s.claim.by].op == "param" for s in leaves) else "Parameters and inputs"
    return [*found, Section(f"{kinds}, read off the nodes", (), tuple(leaves))]


def derived(net: NamedGraph, sweep: Sweep, n: int) -> Step:
    """The line of ∂L/∂n from the contributions collected so far."""
    left = delta(net, n)
    middle = delta(net, n, "gradient") if left.symbol and left.symbol.form == "delta" else None
    claim = Claim(left, sweep.total(n), "total", -1, n, middle, indices(left.shape))
    return line(claim, sweep.because(n))


def _leading(net: NamedGraph, targets: Sequence[int]) -> frozenset[int]:
    """The nodes that depend on one of `targets`, themselves included."""
    found = set(targets)
    for node in net.nodes:
        if found & set(node.args):
            found.add(node.index)
    return frozenset(found)


def seed(net: NamedGraph) -> Term:
    """∂L/∂l(t): 1 where the losses of all steps are added; a name if it is needed past the last step, where it is 0."""
    graph, over, T = net.graph, net.setup.spec.objective.over_time, net.setup.T
    if not graph.recurrent:
        return ONE
    past = net.reaches(frozenset({graph.loss}), frozenset(graph.new.values()))
    if over == "last" or not past.isdisjoint(graph.previous.values()):
        return name(Symbol("name", ("ω",)), "ω", ())
    return ONE if over == "sum" else number(1.0 / T)


def by_key(sections: Sequence[Section]) -> Mapping[Hashable, Step]:
    """All lines by the key of what they define."""
    return {step.key: step for section in sections for step in section.steps}
