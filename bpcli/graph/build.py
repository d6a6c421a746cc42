"""Spec to Graph: equations in the order of their use, states and loss as nodes of their own, a phase for every node.

Nothing here recurses over equations, so that a chain of thousands is fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bpcli.errors import Collector, nearest
from bpcli.graph.expressions import Scope, translate
from bpcli.graph.node_builder import NodeBuilder
from bpcli.graph.nodes import Graph, Node, Phase, ancestors
from bpcli.graph.operations import describe
from bpcli.spec.specification import (
    FLOAT32_MAX,
    Binary,
    Call,
    Equation,
    Expr,
    Item,
    Negate,
    Ref,
    Slice,
    Spec,
    Transpose,
)


def build(spec: Spec, collector: Collector) -> Graph | None:
    """The graph of one step, or None when the collector holds any error, its own or an earlier one.

    The loss is a node of its own: a copy where its equation gives a leaf, a part of a vector or a value that the time
    loop needs.
    """
    _check_trainable(spec, collector)
    scope = _scope(spec, NodeBuilder(collector))
    for name in _evaluation_order(spec.equations, collector):
        _define(scope, spec.equations[name])
    loss = _loss(scope)
    if collector.diagnostics or loss is None:
        return None
    new = {name: node for name in spec.states if (node := scope.defined[name]) is not None}
    loss = _separate_loss(scope, loss, new)
    graph = _assemble(scope, loss, new)
    if spec.dtype == "float32":
        _check_float32(graph, collector)
    return None if collector.diagnostics else graph


def _check_trainable(spec: Spec, collector: Collector) -> None:
    if spec.refused or spec.inputs or spec.states:
        return
    if not any(param.trainable for param in spec.params.values()):
        help_ = "declare a parameter, an input or a state; `trainable = false` makes a parameter a constant"
        what = "nothing remains to differentiate: no trainable parameter, no input, no state"
        collector.add("nothing-to-differentiate", what, spec.source.key("params"), help=help_)


def _scope(spec: Spec, builder: NodeBuilder) -> Scope:
    leaf = {p.name: builder.leaf("param", p.name, p.shape, p.place) for p in spec.params.values()}
    leaf |= {x.name: builder.leaf("input", x.name, x.shape, x.place) for x in spec.inputs.values()}
    previous = {s.name: builder.leaf("previous", s.name, s.shape, s.place) for s in spec.states.values()}
    return Scope(spec, builder, leaf, previous, {})


def _references(expr: Expr) -> Iterator[Ref]:
    """Every name used as a value in an expression, left to right; bounds of slices are sizes, not values."""
    todo = [expr]
    while todo:
        node = todo.pop()
        match node:
            case Ref():
                yield node
            case Negate(operand) | Transpose(operand):
                todo.append(operand)
            case Binary(_, left, right):
                todo += (right, left)
            case Call(_, args):
                todo += reversed(args)
            case Item(vector) | Slice(vector):
                todo.append(vector)


def _evaluation_order(equations: Mapping[str, Equation], collector: Collector) -> list[str]:
    """The names of the equations, each after those that it uses.

    A cycle is reported and cut where it closes; further cycles among its equations are not reported.
    """

    def used(name: str) -> Iterator[Ref]:
        return (ref for ref in _references(equations[name].expr) if ref.lag == 0 and ref.name in equations)

    order: list[str] = []
    cyclic: set[str] = set()
    done: set[str] = set()
    for start in equations:
        path = {} if start in done else {start: used(start)}
        while path:
            name = next(reversed(path))
            ref = next(path[name], None)
            if ref is None:
                del path[name]
                done.add(name)
                order.append(name)
            elif ref.name in path:
                names = list(path)
                cycle = names[names.index(ref.name) :]
                if not cyclic.issuperset(cycle):
                    _report_cycle([*cycle, ref.name], ref, collector)
                cyclic.update(cycle)
            elif ref.name not in done:
                path[ref.name] = used(ref.name)
    return order


def _report_cycle(names: list[str], closing: Ref, collector: Collector) -> None:
    if len(names) > 12:
        names = [*names[:6], "…", *names[-5:]]
    help_ = "equations of one step may not depend on themselves; the value one step earlier of a state is `name[t-1]`"
    collector.add("cycle", f"equations in a cycle: {' -> '.join(names)}", closing.place, help=help_)


def _define(scope: Scope, equation: Equation) -> None:
    """Read one equation; its root takes the equation's name where it has none."""
    builder, name = scope.builder, equation.name
    first = len(builder.nodes)
    node = translate(scope, equation.expr)
    if name in scope.spec.states and node is not None:
        node = _state_root(scope, equation, node, first)
    if node is not None and not builder.names[node] and not builder.is_leaf(node):
        builder.names[node] = name
    scope.defined[name] = node


def _state_root(scope: Scope, equation: Equation, node: int, first: int) -> int | None:
    """The node of a state's new value, the state's own: neither a leaf, nor a slice, nor used under another name.

    A value of parameters alone is computed once, and copied into the state at every step. `first` is the first node
    that this equation made. None where the shape is not the declared one.
    """
    builder = scope.builder
    shape, declared = builder.nodes[node].shape, scope.spec.states[equation.name].shape
    if shape != declared:
        what = f'state "{equation.name}" is declared as {describe(declared)}, its equation gives {describe(shape)}'
        help_ = "declare this shape, or make the equation give the other"
        builder.collector.add("shape-mismatch", what, equation.place, help=help_)
        return None
    static = builder.nodes[node].phase is Phase.STATIC
    if node < first or static or builder.is_leaf(node) or builder.nodes[node].op == "slice":
        node = builder.copy(node, equation.expr.place)
    builder.claim(node)
    return node


def _loss(scope: Scope) -> int | None:
    """The node of the loss equation; None where it is missing, in error or no scalar."""
    objective, spec = scope.spec.objective, scope.spec
    if objective.loss in spec.refused or (objective.loss in spec.states and objective.loss not in spec.equations):
        return None  # reported by the loader
    if objective.loss not in spec.equations:
        what = f'the loss "{objective.loss}" is not an equation'
        known = nearest(objective.loss, spec.equations)
        help_ = "; ".join(filter(None, ('write it in [equations], or name another with `loss = "…"`', known)))
        scope.collector.add("unknown-name", what, objective.place, help=help_)
        return None
    node = scope.defined[objective.loss]
    if node is not None and (shape := scope.builder.nodes[node].shape) != ():
        what = f'the loss "{objective.loss}" must be a scalar, it is {describe(shape)}'
        help_ = "make it one with `sum`, `mean` or `dot`"
        scope.collector.add("loss-not-scalar", what, objective.place, help=help_)
        return None
    return node


def _separate_loss(scope: Scope, loss: int, new: Mapping[str, int]) -> int:
    """The loss, or a copy of it where it is a leaf, part of a vector or a value that the loop computes for a state."""
    builder, name = scope.builder, scope.spec.objective.loss
    node = builder.nodes[loss]
    looped = node.phase is Phase.RECURRENT and loss in ancestors(new.values(), _args(builder))
    if not looped and not builder.is_leaf(loss) and node.op != "slice":
        return loss
    copy = builder.copy(loss, scope.spec.equations[name].expr.place)
    if builder.names[loss] != name:
        builder.names[copy] = name
        scope.defined[name] = copy
    return copy


def _args(builder: NodeBuilder) -> list[tuple[int, ...]]:
    return [node.args for node in builder.nodes]


def _assemble(scope: Scope, loss: int, new: Mapping[str, int]) -> Graph:
    """Drop what nothing needs, give phases, and number the nodes phase by phase."""
    builder = scope.builder
    args = _args(builder)
    looped = ancestors(new.values(), args)
    phases = [
        Phase.OUTPUT if node.phase is Phase.RECURRENT and index not in looped else node.phase
        for index, node in enumerate(builder.nodes)
    ]
    kept = ancestors([loss, *new.values(), *scope.previous.values()], args)
    order = sorted(kept, key=lambda index: (phases[index], index))
    number = {old: position for position, old in enumerate(order)}
    nodes: list[Node] = []
    for old in order:
        draft = builder.nodes[old]
        ends = tuple(number[arg] for arg in draft.args)
        name, phase = builder.names[old], phases[old]
        nodes.append(Node(len(nodes), draft.op, ends, draft.shape, phase, draft.numbers, name, draft.place))

    def renumber(names: Mapping[str, int | None]) -> dict[str, int]:
        return {name: number[old] for name, old in names.items() if old is not None and old in number}

    return Graph(
        nodes=tuple(nodes),
        leaf=renumber(scope.leaf),
        equation=renumber({name: scope.defined[name] for name in scope.spec.equations}),
        previous=renumber(scope.previous),
        new=renumber(new),
        loss=number[loss],
        unused=_unused_names(scope.spec),
    )


def _unused_names(spec: Spec) -> tuple[str, ...]:
    """Parameters, inputs and equations that the loss depends on at no step, in the file's order."""
    used = {spec.objective.loss}
    todo = [spec.objective.loss]
    while todo:
        equation = spec.equations.get(todo.pop())
        found = {ref.name for ref in _references(equation.expr)} - used if equation else set()
        used |= found
        todo += found
    groups: tuple[Iterable[str], ...] = (spec.params, spec.inputs, spec.equations)
    return tuple(name for group in groups for name in group if name not in used)


def _check_float32(graph: Graph, collector: Collector) -> None:
    for node in graph.nodes:
        if any(abs(number) > FLOAT32_MAX for number in node.numbers):
            help_ = 'set `dtype = "float64"` or use smaller numbers'
            collector.add("not-finite", "this number is not finite in float32", node.place, help=help_)
