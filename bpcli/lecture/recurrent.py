"""The derivation of a recurrent network: q, J and M̄ of a step, then BPTT, RTRL, and what truncation leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import pairwise

from bpcli.graph.nodes import Phase
from bpcli.lecture.derivation import (
    Claim,
    Section,
    Step,
    Sweep,
    delta,
    indices,
    line,
    seed,
)
from bpcli.lecture.named_graph import NamedGraph
from bpcli.lecture.terms import (
    ZERO,
    Symbol,
    Term,
    add,
    add_matrices,
    chain,
    collect,
    name,
    names_in,
    size_of,
    times,
)

SHORT = 24
"""Nodes of a product of Jacobians that is written out."""
_THIRD = "a third-order tensor: entry (j, k) of the matrix reaches unit i by row j"
_SECOND = "the Jacobian of the state with respect to the parameter's use"
MOST_PATHS = 12
"""Paths of a block of J that are written out; of more, their sum node by node."""


@dataclass
class RecurrentDerivation:
    """The derivation for the leaves `targets`; lines are made once and shared by the sections that use them."""

    net: NamedGraph
    targets: tuple[int, ...]
    edges: dict[tuple[int, int], Step] = field(default_factory=dict)

    @property
    def states(self) -> dict[str, tuple[int, int]]:
        """By state, its nodes at t and at t-1."""
        graph = self.net.graph
        return {s: (graph.new[s], graph.previous[s]) for s in graph.previous}

    def parts(self, *states: int) -> tuple[str, ...]:
        """Names of states for a subscript; of the only one there is none."""
        return tuple(self.net.nodes[n].name for n in states) if len(self.states) > 1 else ()

    def q(self, n: int, lag: int = 0) -> Term:
        """The name of ∂l(t)/∂n with the states held fixed: q of a state at t."""
        new = n in self.net.graph.new.values()
        symbol = Symbol("loss", self.parts(n), lag) if new else Symbol("direct", (self.net.names[n],), lag)
        return name(symbol, ("q", n), self.net.nodes[n].shape)

    def J(self, new: int, before: int, lag: int = 0) -> Term:
        """The name of a block of J."""
        shape = (self.net.nodes[new].size, self.net.nodes[before].size)
        return name(Symbol("jacobian", self.parts(new, before), lag), ("J", new, before), shape)

    def Mbar(self, new: int, s: int) -> Term:
        """The name of a block of M̄."""
        names, nodes = self.net.names, self.net.nodes
        symbol = Symbol("immediate", (*self.parts(new), names[s]), about=(names[new], names[s]))
        return name(symbol, ("Mbar", new, s), (nodes[new].size, nodes[s].size))

    def M(self, new: int, s: int, lag: int = 0) -> Term:
        """The name of a block of M: the influence of a parameter on a state, by way of all steps so far."""
        symbol = Symbol("influence", (*self.parts(new), self.net.names[s]), lag)
        return name(symbol, ("M", new, s), (self.net.nodes[new].size, self.net.nodes[s].size))

    @cached_property
    def relevant(self) -> frozenset[int]:
        """The nodes whose derivatives are needed: those that depend on a target or a state and lead to the loss."""
        graph = self.net.graph
        found = {*self.targets, *graph.previous.values(), *graph.new.values()}
        for node in self.net.nodes:
            if found & set(node.args):
                found.add(node.index)
        ends = frozenset({graph.loss, *graph.new.values()})
        return frozenset(found) & self.net.reaches(ends)

    @cached_property
    def local(self) -> Sweep:
        """The pass of a step's own loss: names for nodes behind the loop, and for states at t and t-1."""
        net, graph = self.net, self.net.graph
        sweep, ends = Sweep(net), set(graph.new.values())
        sweep.known[graph.loss] = seed(net)
        for node in reversed(net.nodes):
            n = node.index
            if n in ends and n in sweep.given:
                sweep.known[n] = self.q(n)
            elif (
                n in sweep.given and net.named(n) and not net.leaf(n) and node.phase is Phase.OUTPUT and n != graph.loss
            ):
                sweep.known[n] = delta(net, n)
            whole = node.phase is Phase.STATIC and net.named(n)  # its own arguments are a matter of parameters alone
            if n not in ends and not whole and (n in sweep.given or n == graph.loss):
                sweep.pull(node, sweep.total(n), self.relevant)
        return sweep

    def loss_section(self) -> Section:
        """q(t), with the derivatives of the nodes behind the loop, and what the loss owes to parameters directly."""
        net, sweep, steps, later = self.net, self.local, list[Step](), list[Step]()
        ends, before = set(net.graph.new.values()), set(net.graph.previous.values())
        for node in reversed(net.nodes):
            n = node.index
            if n == net.graph.loss or n not in sweep.given:
                continue
            terms, because = collect([term for term, _, _ in sweep.given[n]]), sweep.because(n)
            if n in ends:
                claim = Claim(sweep.known[n], terms, "local", -1, n, None, indices(node.shape))
                steps.append(line(claim, because))
            elif n in sweep.known:
                middle = delta(net, n, "gradient")
                claim = Claim(sweep.known[n], terms, "local", -1, n, middle, indices(node.shape))
                steps.append(line(claim, because))
            elif n in before:
                steps.append(line(Claim(self.q(n), terms, "local", -1, n, None, indices(node.shape)), because))
            elif node.phase is Phase.STATIC and net.named(n):
                later.append(line(Claim(self.q(n), terms, "local", -1, n, None, indices(node.shape)), because))
        none = [f"q_{s}" for s, (new, _) in self.states.items() if new not in sweep.known]
        sentences = ["q is the derivative of the step's own loss, with all states held fixed at t and at t-1."]
        if none:
            sentences.append(f"{', '.join(none)} = 0: the loss does not depend on it directly.")
        return Section("q(t): the loss of one step", tuple(sentences), (*steps, *sorted(later, key=_by)))

    def edge(self, n: int, m: int) -> Term:
        """∂n/∂m between neighbouring named nodes, and its line."""
        net = self.net
        if (n, m) not in self.edges:
            matrix = net.jacobian(n, m)
            rows, columns = net.nodes[n].size, net.nodes[m].size
            symbol = Symbol("partial", (net.names[n], net.names[m]))
            left = name(symbol, ("edge", n, m), (rows, columns))
            claim = Claim(left, matrix, "edge", n, m, None, ("i", "j"))
            because = "with all other named nodes held fixed"
            because += "; I with a range is those rows of the identity" if _has_rows(matrix) else ""
            self.edges[n, m] = line(claim, because)
        step = self.edges[n, m]
        return ZERO if step.claim.right.zero else step.claim.left

    @cached_property
    def neighbours(self) -> dict[int, list[int]]:
        """By named node, the named nodes of the step that it is computed from directly, constants left out."""
        net, found = self.net, dict[int, list[int]]()
        for n in net.equations():
            todo, seen = list(net.nodes[n].args), set[int]()
            while todo:
                m = todo.pop()
                if m in seen:
                    continue
                seen.add(m)
                if not net.named(m):
                    todo += net.nodes[m].args
            found[n] = sorted(
                (m for m in seen if net.named(m) and net.nodes[m].phase is not Phase.STATIC), reverse=True
            )
        return found

    def paths(self, start: int, end: int) -> tuple[list[tuple[int, ...]], int]:
        """Paths from a named node back to another one by way of named nodes, at most so many, and their number."""
        count = {end: 1}
        for n in [n for n in self.net.equations() if end < n <= start]:
            count[n] = sum(count.get(m, 0) for m in self.neighbours[n] if not self.net.jacobian(n, m).zero)
        found, todo = list[tuple[int, ...]](), list[tuple[int, ...]]([(start,)])
        while todo and count.get(start, 0) <= MOST_PATHS:
            path = todo.pop()
            if path[-1] == end:
                found.append(path)
                continue
            following = [m for m in self.neighbours.get(path[-1], []) if count.get(m, 0)]
            todo += [(*path, m) for m in following if not self.edge(path[-1], m).zero]
        return sorted(found, key=len), count.get(start, 0)

    def product(self, path: Sequence[int]) -> Term:
        """The product of the edges along a path."""
        matrices = [self.edge(n, m) for n, m in pairwise(path)]
        return chain(*matrices) if matrices else ZERO

    def spelled(self, path: Sequence[int]) -> str:
        """A path in the order of computation: `h[t-1] → r → c → h`."""
        return " → ".join(self.net.names[n] for n in reversed(path))

    def jacobian_section(self) -> Section:
        """J(t), a block for every pair of states, each a sum over named paths."""
        blocks, zero = list[Step](), list[str]()
        for s, (new, _) in self.states.items():
            for r, (_, before) in self.states.items():
                paths, count = self.paths(new, before)
                if not count:
                    zero.append(f"J_{s},{r}")
                    continue
                right = add(*(self.product(p) for p in paths)) if paths else self.accumulated(new, before)
                names = "; ".join(self.spelled(p) for p in paths)
                because = f"a sum over {count} paths: {names}" if count > 1 else f"one path: {names}"
                because = because if paths else f"a sum over {count} paths, node by node"
                plain = self.inserted(right)
                middle = right if plain is not right and right.kind != "name" else None
                claim = Claim(self.J(new, before), plain, "jacobian", new, before, middle, ("i", "j"))
                blocks.append(line(claim, because))
        edges = [step for step in self.edges.values() if not step.claim.right.zero]
        edges.sort(key=lambda step: (step.claim.of, step.claim.by))
        if all(path_of.claim.middle is None and path_of.claim.right.kind != "name" for path_of in blocks):
            edges = [] if not any(_uses(step, "edge") for step in blocks) else edges
        whole = "J = ∂a(t)/∂a(t-1): every path from a state at t-1 to one at t contributes the product of its edges."
        sentences = [whole]
        if zero:
            sentences.append(f"{', '.join(zero)} = 0: no path.")
        return Section("J(t): from step to step", tuple(sentences), (*edges, *blocks))

    def inserted(self, term: Term) -> Term:
        """A short term with the edges in it written out, a longer one as it is."""
        plain = self._inserted(term)
        return plain if size_of(plain) <= SHORT else term

    def _inserted(self, term: Term) -> Term:
        if isinstance(term.key, tuple) and term.key[:1] == ("edge",):
            return self.edges[term.key[1], term.key[2]].claim.right
        args = tuple(self._inserted(arg) for arg in term.args)
        if args == term.args:
            return term
        match term.kind:
            case "chain":
                return chain(*args)
            case "sum":
                return reduce(add_matrices, args)
            case "product":
                return times(*args)
        return replace(term, args=args)

    def accumulated(self, new: int, before: int) -> Term:
        """A block of J with too many paths, as a sum over the last edge only."""
        memo: dict[int, Term] = {}
        net = self.net
        for n in [n for n in net.equations() if before < n <= new]:
            terms = []
            for m in self.neighbours[n]:
                step = self.edge(n, m)
                inner = memo.get(m)
                if m == before and not step.zero:
                    terms.append(step)
                elif inner is not None and not step.zero:
                    terms.append(chain(step, inner))
            if terms:
                memo[n] = add(*terms)
        return memo.get(new, ZERO)

    @cached_property
    def met(self) -> list[int]:
        """The named functions of parameters (and the parameters themselves) that the loop of steps uses."""
        net = self.net
        ends = net.reaches(frozenset(net.graph.new.values()))
        found = []
        for n in net.names:
            if net.nodes[n].phase is Phase.STATIC and n in self.relevant and n in ends:
                through = [*net.users[n]]
                through += [u for user, _ in net.users[n] if self.turns(user.index) for u in net.users[user.index]]
                if any(user.phase is Phase.RECURRENT or user.phase is Phase.INPUT for user, _ in through):
                    found.append(n)
        return found

    def turns(self, n: int) -> bool:
        """Whether a node is a transposed matrix without a name."""
        return self.net.nodes[n].op == "transpose" and not self.net.named(n)

    def immediate(self, new: int, s: int) -> Term:
        """M̄ of one state and one parameter: D_ij v_k summed over the products that a matrix is in, D for a vector."""
        net = self.net
        if len(net.nodes[s].shape) < 2:
            return add(*terms) if (terms := [t for t in self._to(new, s) if not t.zero]) else ZERO
        found = []
        for m, turned in [(s, False), *((u.index, True) for u, _ in net.users[s] if self.turns(u.index))]:
            for user, slot in net.users[m]:
                if user.op != "matmul" or slot != 0:
                    continue
                v = net.term(user.args[1])
                shape = (net.nodes[new].size, net.nodes[s].size)
                numbers = (1.0,) if turned else ()
                jacobians = [D for D in self._to(new, user.index) if not D.zero]
                found += [Term("third", (D, v), shape, numbers=numbers) for D in jacobians]
        return add(*found) if found else ZERO

    def _to(self, new: int, target: int) -> Iterable[Term]:
        """The Jacobians from a state to a node that may have no name, a matrix for each last named node."""
        net, named = self.net, self.net.named(target) and self.net.nodes[target].phase is not Phase.STATIC
        for m in [n for n in net.equations() if target <= n <= new]:
            last = net.jacobian(m, target)
            if last.zero or (named and m != target):
                continue
            if m == new:
                yield last
                continue
            paths, count = self.paths(new, m)
            if count:
                before = add(*(self.product(p) for p in paths)) if paths else self.accumulated(new, m)
                yield chain(before, last)

    def immediate_section(self) -> Section:
        """M̄(t), a block for every state and parameter."""
        net, steps = self.net, list[Step]()
        for s in self.met:
            for new, _ in self.states.values():
                right = self.immediate(new, s)
                if right.zero:
                    continue
                order = ("i", *(("j", "k") if len(net.nodes[s].shape) == 2 else ("j",) if net.nodes[s].shape else ()))
                plain = self.inserted(right)
                middle = right if plain is not right and right.kind != "name" else None
                claim = Claim(self.Mbar(new, s), plain, "immediate", new, s, middle, order)
                steps.append(line(claim, _THIRD if len(net.nodes[s].shape) == 2 else _SECOND))
        sentence = "M̄ = ∂a(t)/∂w with a(t-1) held fixed: the effect of a parameter within one step."
        return Section("M̄(t): parameters within one step", (sentence,), tuple(steps))

    def influenced(self, new: int, s: int) -> bool:
        """Whether a parameter ever reaches a state, within a step or by way of other states."""
        found = {n for n, _ in self.states.values() if not self.immediate(n, s).zero}
        for _ in self.states:
            found |= {
                n
                for n, _ in self.states.values()
                for m, old in self.states.values()
                if m in found and self.paths(n, old)[1]
            }
        return new in found

    def new_edges(self, known: Iterable[Step], Mbar: Iterable[Step]) -> list[Step]:
        """The lines of edges that M̄ uses beside those of J."""
        shown = {step.key for step in known}
        uses = {
            key for step in Mbar for term in (step.claim.right, step.claim.middle) if term for key in names_in(term)
        }
        found = [s for s in self.edges.values() if s.key in uses - shown and not s.claim.right.zero]
        return sorted(found, key=lambda step: (step.claim.of, step.claim.by))


def _has_rows(term: Term) -> bool:
    return term.kind == "select" or any(_has_rows(arg) for arg in term.args)


def _by(step: Step) -> int:
    return step.claim.by


def _uses(step: Step, kind: str) -> bool:
    """Whether a line's right-hand side has a name of this kind."""
    return any(isinstance(key, tuple) and key[0] == kind for key in names_in(step.claim.right))
