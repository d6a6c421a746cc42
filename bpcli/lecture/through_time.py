"""Backpropagation through time and real-time recurrent learning, from q, J and M̄ of a recurrent network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from bpcli.graph.nodes import Phase
from bpcli.lecture.derivation import (
    Claim,
    Section,
    Step,
    Sweep,
    delta,
    derived,
    forward,
    indices,
    line,
    seed,
)
from bpcli.lecture.named_graph import NamedGraph
from bpcli.lecture.recurrent import RecurrentDerivation
from bpcli.lecture.terms import (
    STILL,
    ZERO,
    Symbol,
    Term,
    add,
    apply_matrix,
    chain,
    collect,
    name,
    shaped,
    shifted,
    transpose,
)


def credit(d: RecurrentDerivation, new: int, lag: int = 0) -> Term:
    """The name of c(t): the derivative of this and all later losses by a state, other states held fixed."""
    return name(Symbol("credit", d.parts(new), lag), ("c", new), d.net.nodes[new].shape)


def _column(v: Term) -> Term:
    """A scalar as a vector of one entry."""
    return shaped(v, v.shape or (1,))


def credit_section(d: RecurrentDerivation) -> Section:
    """BPTT as the recursion c(t) = q(t) + J(t+1)ᵀ c(t+1)."""
    alive = {new for new, before in d.states.values() if new in d.local.known or before in d.local.given}
    for _ in d.states:  # a state that feeds another one that counts, counts
        alive |= {new for new, before in d.states.values() if any(d.paths(other, before)[1] for other in alive)}
    steps = list[Step]()
    for new, before in d.states.values():
        terms = [d.local.known[new]] if new in d.local.known else []
        if before in d.local.given:
            terms.append(d.q(before, 1))
        for other in [other for other, _ in d.states.values() if other in alive and d.paths(other, before)[1]]:
            worth = apply_matrix(transpose(d.J(other, before, 1)), _column(credit(d, other, 1)))
            terms.append(shaped(worth, d.net.nodes[new].shape))
        if terms:
            claim = Claim(credit(d, new), add(*terms), "credit", -1, new, None, ())
            steps.append(line(claim, "own loss, and all later ones by way of the next state; c(T+1) = 0"))
    sentences = ("c(t) collects the losses from step t on, other states of step t held fixed; it runs from T to 1.",)
    return Section("Backpropagation through time: the recursion", sentences, tuple(steps), "backwards")


def node_section(d: RecurrentDerivation) -> list[Section]:
    """BPTT as it is computed: δ of every node at every step, no Jacobian ever formed, and the gradients read off."""
    net, graph = d.net, d.net.graph
    moving = {Phase.RECURRENT, Phase.INPUT}
    loop = [n for n in net.names if n in d.relevant and net.nodes[n].phase in moving]
    loop = [n for n in loop if n not in graph.previous.values()]
    while True:
        sweep = Sweep(net)
        sweep.known = {n: term for n, term in d.local.known.items() if net.nodes[n].phase is Phase.OUTPUT}
        sweep.known |= {graph.loss: seed(net), **{n: delta(net, n) for n in loop}}
        for node in reversed(net.nodes):
            if node.index in sweep.known or node.index in sweep.given:
                sweep.pull(node, sweep.total(node.index), d.relevant)
        alive = [n for n in loop if _contributions(d, sweep, n)]
        if len(alive) == len(loop):
            break
        loop = alive  # a node that no loss depends on has no line, and gives nothing to others
    steps = []
    for n in sorted(loop, reverse=True):
        if not net.leaf(n):
            right = collect(_contributions(d, sweep, n))
            why = "its own loss, its uses in this step, and those of the next one"
            because = why if n in graph.new.values() else sweep.because(n)
            letters = indices(net.nodes[n].shape)
            claim = Claim(sweep.known[n], right, "total", -1, n, delta(net, n, "gradient"), letters)
            steps.append(line(claim, because))
    sentences = ("The same, as it is computed: a vector for each node and step. All δ are 0 after the last step.",)
    found = [Section("Backpropagation through time: node by node", sentences, tuple(steps), "backwards")]
    return [*found, *gradient_sections(d, sweep)]


def static_steps(d: RecurrentDerivation, summed: Mapping[int, tuple[Term, str]], tag: str) -> list[Step]:
    """The gradients of parameters and of functions of them, from the parts that are summed over steps."""
    net, found, sweep = d.net, list[Step](), Sweep(d.net)
    for node in reversed(net.nodes):
        n = node.index
        if node.phase is not Phase.STATIC or n not in d.relevant:
            continue
        own, reason = summed.get(n, (ZERO, ""))
        if n == net.graph.loss:  # a loss of parameters alone
            sweep.pull(node, Term("timesum", (seed(net),), ()), d.relevant)
            continue
        right = collect([own, *(term for term, _, _ in sweep.given.get(n, []))])
        if right.zero:
            continue
        if net.named(n):
            left = name(Symbol("gradient", (net.names[n],)), (STILL, tag, n), node.shape)
            because = "; ".join(filter(None, (reason, sweep.because(n))))
            letters = indices(node.shape) if tag == "d" or n not in summed else ()
            found.append(line(Claim(left, right, "total", -1, n, None, letters), because))
            right = left
        sweep.pull(node, right, d.relevant)
    return sorted(found, key=lambda s: (net.leaf(s.claim.by), s.claim.by if net.leaf(s.claim.by) else -s.claim.by))


def _contributions(d: RecurrentDerivation, sweep: Sweep, n: int) -> list[Term]:
    """The parts of δ of a node: by its uses in its own step and, for a state, by those in the next one."""
    net, graph = d.net, d.net.graph
    given = list(sweep.given.get(n, []))
    own = [term for term, _, _ in given]
    state = next((s for s, new in graph.new.items() if new == n), None)
    if state is not None:
        direct = all(net.nodes[u].phase is Phase.OUTPUT for m in d.local.known for _, _, u in d.local.given.get(m, []))
        if direct and n in d.local.known:
            own = [d.local.known[n], *(term for term, _, u in given if net.nodes[u].phase is not Phase.OUTPUT)]
        names: dict[Hashable, Term] = {p: net.term(graph.new[s]) for s, p in graph.previous.items()}
        later = collect([shifted(term, names) for term, _, _ in sweep.given.get(graph.previous[state], [])])
        own += [Term("next", (later,), later.shape)] if not later.zero else []
    return [term for term in own if not term.zero]


def gradient_sections(d: RecurrentDerivation, sweep: Sweep) -> list[Section]:
    """The gradients of parameters, summed over steps, and of inputs and initial states."""
    net, graph = d.net, d.net.graph
    summed, moving, first = dict[int, tuple[Term, str]](), list[Step](), list[Step]()
    for n, given in sweep.given.items():
        own = [g for g in given if net.nodes[g[2]].phase is not Phase.STATIC]
        if net.nodes[n].phase is Phase.STATIC and own:
            body = Term("timesum", (collect([term for term, _, _ in own]),), net.nodes[n].shape)
            summed[n] = (body, Sweep(net, {n: own}).because(n))
    still = static_steps(d, summed, "d")
    for n in d.targets:
        if net.nodes[n].op == "input" and n in sweep.given:
            moving.append(derived(net, Sweep(net, sweep.given), n))
    first = []
    for s, before in graph.previous.items():
        if before in d.targets and before in sweep.given:
            body = collect([t for t, _, _ in sweep.given[before]])
            left = name(Symbol("gradient", (f"{s}[0]",)), (STILL, "d", before), net.nodes[before].shape)
            right = Term("first", (body,), net.nodes[before].shape)
            first.append(line(Claim(left, right, "total", -1, before), "the uses of the initial state in step 1"))
    found = [Section("Gradients, read off the nodes", ("The same parameter acts at every step: sum over steps.",),
                     tuple(still), "once")] if still else []  # fmt: skip
    if moving:
        found.append(Section("Inputs", (), tuple(moving)))
    return [*found, Section("Initial states", (), tuple(first), "once")] if first else found


def influence_sections(d: RecurrentDerivation) -> list[Section]:
    """RTRL: the recursion M(t) = J(t) M(t-1) + M̄(t), block by block, and the gradient as Σ q M."""
    net, steps, parts = d.net, list[Step](), dict[int, list[Term]]()
    N, P = (sum(net.nodes[n].size for n in some) for some in ([new for new, _ in d.states.values()], d.met))
    for s in d.met:
        shape = net.nodes[s].shape
        for state, (new, before) in d.states.items():
            right = influence_right(d, state, s)
            if right.zero:
                continue
            claim = Claim(d.M(new, s), right, "influence", new, s)
            steps.append(line(claim, "by way of the states, and within the step; M(0) = 0"))
            if new in d.local.known:
                worth = apply_matrix(transpose(d.M(new, s)), _column(d.local.known[new]))
                parts.setdefault(s, []).append(shaped(worth, shape))
            if before in d.local.given:
                worth = apply_matrix(transpose(d.M(new, s, -1)), _column(d.q(before)))
                parts.setdefault(s, []).append(shaped(worth, shape))
    for n in d.relevant:
        if net.nodes[n].phase is Phase.STATIC and net.named(n) and n in d.local.given:
            parts.setdefault(n, []).append(d.q(n))
    because = "the influence on the states times what they are worth, and what the loss owes directly"
    summed = {n: (Term("timesum", (add(*some),), net.nodes[n].shape), because) for n, some in parts.items()}
    cost = (
        f"N = {N} states and P = {P} parameters that reach them: J M takes 2 N² P = {2 * N * N * P:,} flops a step and",
        f"sample if J is dense, and M holds N P = {N * P:,} numbers, whatever T is.",
    )
    recursion = Section("Real-time recurrent learning: the recursion", (" ".join(cost),), tuple(steps), "forwards")
    text = ("At each step, as soon as its loss is known. A matrix of parameters is a row of M, read row by row.",)
    sums = static_steps(d, summed, "g")
    return [recursion, Section("Real-time recurrent learning: the gradient", text, tuple(sums), "once")]


def influence_right(d: RecurrentDerivation, state: str, s: int) -> Term:
    """J M(t-1) + M̄ of one state and parameter, over those states that the parameter ever reaches."""
    new, terms = d.states[state][0], list[Term]()
    for other, old in d.states.values():
        if d.paths(new, old)[1] and d.influenced(other, s):
            terms.append(chain(d.J(new, old), d.M(other, s, -1)))
    if not d.immediate(new, s).zero:
        terms.append(d.Mbar(new, s))
    return add(*terms) if terms else ZERO


def recurrent(net: NamedGraph, targets: Sequence[int], methods: Sequence[str]) -> list[Section]:
    """All sections for the methods "bptt" and "rtrl"; with neither, q, J and M̄ alone."""
    d = RecurrentDerivation(net, tuple(targets))
    graph = net.graph
    network = forward(net, net.reaches(frozenset({graph.loss, *graph.new.values()})))
    found = [network, d.loss_section(), d.jacobian_section()]
    Mbar = d.immediate_section()
    extra = d.new_edges(found[2].steps, Mbar.steps)
    found.append(Section(Mbar.title, Mbar.sentences, (*extra, *Mbar.steps)))
    if "bptt" in methods:
        found += [credit_section(d), *node_section(d)]
    if "rtrl" in methods:
        found += influence_sections(d)
    return [section for section in found if section.steps]
