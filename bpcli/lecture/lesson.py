"""A derivation from a setup, and its lines checked on the data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bpcli.checking.interpreter import run_forward
from bpcli.errors import Collector, fail, nearest
from bpcli.graph.build import build
from bpcli.lecture.derivation import Section, Step, feed_forward, seed
from bpcli.lecture.line_values import LineValues
from bpcli.lecture.measured import Measured, Measurement
from bpcli.lecture.named_graph import NamedGraph
from bpcli.lecture.recurrent import RecurrentDerivation
from bpcli.lecture.terms import STILL, names_in
from bpcli.lecture.through_time import recurrent
from bpcli.lecture.truncated_terms import Truncation
from bpcli.methods import MethodCall
from bpcli.methods.base import Exact, Windows
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.reverse_mode import Window
from bpcli.spec.specification import ArrayDecl, Spec


@dataclass(frozen=True, eq=False)
class Lesson:
    """A derivation of the gradients of a network.

    `results` holds the check of each line by the identity of its step; it is empty where nothing was evaluated.
    `left_out` counts lines that could not be measured, and are in no section.
    """

    net: NamedGraph
    sections: tuple[Section, ...]
    sentences: tuple[str, ...]
    results: Mapping[int, Measurement] = field(default_factory=dict)
    left_out: int = 0
    truncation: Truncation | None = None

    @property
    def title(self) -> str:
        """That of the spec."""
        return self.net.setup.spec.title or self.net.setup.spec.name

    @property
    def steps(self) -> list[Step]:
        """All lines."""
        return [step for section in self.sections for step in section.steps]

    @property
    def wrong(self) -> list[Step]:
        """The lines that differ from their references."""
        return [step for step in self.steps if id(step) in self.results and not self.results[id(step)].right]


def with_named_constants(setup: Setup) -> Setup:
    """The same network with its named constants as arrays that stand still, so that formulas show their names.

    A constant that has to be a number, such as an exponent, stays one.
    """
    spec, graph = setup.spec, setup.graph
    for name, value in setup.spec.constants.items():
        place = setup.spec.objective.place
        decl = ArrayDecl(name, "param", (), place, init="value", value=value)
        rest = {other: v for other, v in spec.constants.items() if other != name}
        tried: Spec = replace(spec, constants=rest, params={**spec.params, name: decl})
        built = build(tried, Collector())
        if built is not None and name in built.leaf:
            spec, graph = tried, built
    return replace(setup, spec=spec, graph=graph)


def on_data(problem: Problem, setup: Setup) -> Problem:
    """The arrays of a problem for its setup with named constants."""
    import numpy as np

    constants = problem.setup.spec.constants
    more: dict[str, Array] = {n: np.asarray(constants[n], setup.dtype) for n in setup.spec.params if n in constants}
    return Problem(setup, {**problem.params, **more}, problem.inputs, problem.state)


def compose(setup: Setup, methods: Sequence[MethodCall], node: str | None = None) -> Lesson:
    """The derivation of a setup by the methods, or of the derivative with respect to one equation alone.

    Raises BpError for a node that is no equation, and for a method that does not apply or is approximate.
    """
    net = NamedGraph(with_named_constants(setup))
    graph = net.graph
    targets = tuple(found for x in setup.wrt if (found := _leaf(net, x.kind, x.name)) is not None)
    if node is not None:
        known = {net.names[n]: n for n in net.equations() if n != graph.loss}
        if node not in known:
            what = f'--node "{node}" is not an equation that the loss depends on'
            fail("unknown-name", what, help=nearest(node, known))
        targets = (known[node],)
    sentences = _sentences(net)
    kinds, truncations = _kinds(setup, methods)
    if not graph.recurrent:
        sections = feed_forward(net, targets)
    else:
        sections = recurrent(net, targets, kinds if node is None else ["bptt"])
    truncation = None
    if truncations and node is None:
        truncation = Truncation(RecurrentDerivation(net, targets), *truncations[0])
        sections.append(truncation.section(None))
    if node is not None:
        keys: set[Hashable] = {("d", targets[0]), (STILL, "d", targets[0])}
        sections = _narrowed(sections, keys)
        if not any(step.key in keys for section in sections for step in section.steps):
            sentences.append(f"∂L/∂{node} = 0: no path leads from it to a loss, but for those that are constants.")
    sections = [section for section in sections if section.steps]
    return Lesson(net, tuple(sections), tuple(sentences), truncation=truncation)


def _leaf(net: NamedGraph, kind: str, name: str) -> int | None:
    return net.graph.previous.get(name) if kind == "state" else net.graph.leaf.get(name)


def _kinds(setup: Setup, methods: Sequence[MethodCall]) -> tuple[list[str], list[tuple[str, tuple[Window, ...]]]]:
    """The derivations "bptt" and "rtrl" that the methods ask for, and the windows of a truncated one."""
    kinds, truncated = list[str](), list[tuple[str, tuple[Window, ...]]]()
    for method in methods:
        refusal = method.refusal(setup.graph)
        if refusal is not None:
            fail("method-refused", f"{method.text} does not apply to {setup.spec.name}", help=refusal)
        definition = method.definition(setup)
        if not isinstance(definition, Exact | Windows):
            what = f"{method.text} is an approximation of its own, which is not derived from the losses"
            fail("method-refused", what, help="exact and truncated methods are derived: bptt, rtrl, tbptt:k1=1,k2=4")
        forwards = isinstance(definition, Exact) and "online" in method.method.tags
        kinds.append("rtrl" if forwards else "bptt")
        if "biased" in method.method.tags:
            truncated.append((method.text, definition.over(setup)))
    if truncated and "rtrl" not in kinds and len(methods) == len(truncated):
        kinds = []  # what is left out is the point: the exact methods are shown where they are asked for
    return kinds, truncated


def _sentences(net: NamedGraph) -> list[str]:
    spec, graph = net.setup.spec, net.graph
    loss, over = net.names.get(graph.loss, spec.objective.loss), spec.objective
    batch = {"mean": "mean", "sum": "sum"}[over.over_batch]
    if not graph.recurrent:
        return [f"L = {loss} of one sample; of a batch, the {batch} over samples is taken."]
    how = {"sum": "Σ_t l(t)", "mean": "1/T Σ_t l(t)", "last": "l(T)"}[over.over_time]
    text = f"L = {how} with l = {loss}, of one sample; of a batch, the {batch} over samples is taken."
    weight = {"sum": "1", "mean": "1/T", "last": "1 at step T, 0 before it,"}[over.over_time]
    weights = f"ω = ∂L/∂l is {weight} and 0 after step T. " if seed(net).kind == "name" else ""
    return [f"{text} {weights}A name alone is its value at step t."]


def _narrowed(sections: Sequence[Section], keys: set[Hashable]) -> list[Section]:
    """The lines that define `keys`, and those that these need; the network itself stays."""
    needed, lines = set(keys), [step for section in sections for step in section.steps]
    while True:
        more = {key for step in lines if step.key in needed for key in names_in(step.claim.right)} - needed
        if not more:
            break
        needed |= more
    found = []
    for section in sections:
        steps = tuple(s for s in section.steps if s.claim.kind == "value" or s.key in needed)
        found.append(replace(section, steps=steps))
    return found


def verify(lesson: Lesson, problem: Problem) -> Lesson:
    """Every line evaluated on the data and compared with its reference; lines without one are left out."""
    values = LineValues(run_forward(on_data(problem, lesson.net.setup)))
    truncation, sections = lesson.truncation, list(lesson.sections)
    pairs: Sequence[tuple[int, int]] = ()
    if truncation is not None:
        pairs = truncation.pairs()
        for n in truncation.parameters():
            values.sums["paths", n] = lambda n=n: truncation.kept(n, values)  # type: ignore[misc]
    values.compute(sections)
    measured, results, kept, left_out = Measured(lesson.net, values, pairs), {}, list[Section](), 0
    for section in sections:
        steps = []
        for step in section.steps:
            found = measured.check(step)
            if found is None:
                left_out += 1
            else:
                results[id(step)] = found
                steps.append(step)
        rows = truncation.triangle(values) if section.rows and truncation else ()
        kept.append(replace(section, steps=tuple(steps), rows=rows))
    sections = [section for section in kept if section.steps]
    return replace(lesson, sections=tuple(sections), results=results, left_out=left_out)


def cost_of(lesson: Lesson) -> tuple[int, float, int]:
    """Bytes that the values of all lines take, operations of their check, and steps of the network that it runs."""
    setup, T = lesson.net.setup, lesson.net.setup.T
    nodes = sum(node.size for node in lesson.net.nodes)
    lines = sum(_entries(step) for step in lesson.steps)
    runs = 140 * (len(lesson.steps) + 4 * len([s for s in lesson.steps if s.claim.kind in ("total", "credit")]))
    return 8 * setup.batch * T * (nodes + lines), 2.0 * runs * T * setup.batch * nodes, runs * T


def _entries(step: Step) -> int:
    rows = 1
    for n in step.shapes:
        rows *= n
    return rows
