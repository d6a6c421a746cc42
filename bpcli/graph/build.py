"""Which equation uses which: the order to read them in, cycles, and what the loss depends on.

Nothing here recurses over equations, so a chain of thousands is fine.

Spec to Graph: every equation read once, what the loss and the states need kept, each node given its phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bpcli.errors import Collector, Place, nearest
from bpcli.graph.drafts import Drafts
from bpcli.graph.expressions import Scope, translate
from bpcli.graph.nodes import Graph, Node, Phase, ancestors, assign_phases
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


def references(expr: Expr) -> Iterator[Ref]:
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


def evaluation_order(equations: Mapping[str, Equation], collector: Collector) -> list[str]:
    """The names of the equations, each after those that it uses.

    A cycle is reported and cut where it closes; further cycles among equations that are in one are not reported.
    """
    order: list[str] = []
    cyclic: set[str] = set()
    done: set[str] = set()
    for start in equations:
        path: dict[str, Iterator[Ref]] = {}
        if start not in done:
            path[start] = _used_now(equations, start)
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
                    _report_cycle([*cycle, ref.name], ref.place, collector)
                cyclic.update(cycle)
            elif ref.name not in done:
                path[ref.name] = _used_now(equations, ref.name)
    return order


def _used_now(equations: Mapping[str, Equation], name: str) -> Iterator[Ref]:
    return (ref for ref in references(equations[name].expr) if ref.lag == 0 and ref.name in equations)


def _report_cycle(names: list[str], place: Place, collector: Collector) -> None:
    if len(names) > 12:
        names = [*names[:6], "…", *names[-5:]]
    help_ = "equations of one step may not depend on themselves; the value one step earlier of a state is `name[t-1]`"
    collector.add("cycle", f"equations in a cycle: {' -> '.join(names)}", place, help=help_)


def unused_names(spec: Spec) -> tuple[str, ...]:
    """Parameters, inputs and equations that the loss depends on at no step, in the file's order."""
    used = {spec.objective.loss}
    todo = [spec.objective.loss]
    while todo:
        equation = spec.equations.get(todo.pop())
        found = {ref.name for ref in references(equation.expr)} - used if equation else set()
        used |= found
        todo += found
    groups: tuple[Iterable[str], ...] = (spec.params, spec.inputs, spec.equations)
    return tuple(name for group in groups for name in group if name not in used)


def build(spec: Spec, collector: Collector) -> Graph | None:
    """The graph of one step, or None when the collector holds any error, its own or an earlier one.

    The loss is a node of its own: neither a leaf, nor part of a vector, nor inside the time loop (a copy is made of one
    that is).
    """
    _check_trainable(spec, collector)
    scope = _scope(spec, Drafts(collector))
    for name in evaluation_order(spec.equations, collector):
        _define(scope, spec.equations[name])
    loss = _loss(scope)
    if collector.diagnostics or loss is None:
        return None
    new = {name: node for name in spec.states if (node := scope.defined[name]) is not None}
    loss = _loss_of_its_own(scope, loss, new)
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


def _scope(spec: Spec, drafts: Drafts) -> Scope:
    leaf = {p.name: drafts.leaf("param", p.name, p.shape, p.place) for p in spec.params.values()}
    leaf |= {x.name: drafts.leaf("input", x.name, x.shape, x.place) for x in spec.inputs.values()}
    previous = {s.name: drafts.leaf("previous", s.name, s.shape, s.place) for s in spec.states.values()}
    return Scope(spec, drafts, leaf, previous, {})


def _define(scope: Scope, equation: Equation) -> None:
    """Read one equation; its root takes the equation's name where it has none."""
    drafts, name = scope.drafts, equation.name
    first = len(drafts.nodes)
    node = translate(scope, equation.expr)
    if name in scope.spec.states:
        node = _state_root(scope, equation, node, first)
    if node is not None and not drafts.names[node] and not drafts.is_leaf(node):
        drafts.names[node] = name
    scope.defined[name] = node


def _state_root(scope: Scope, equation: Equation, node: int | None, first: int) -> int | None:
    """The node of a state's new value, the state's own: neither a leaf, nor a slice, nor used under another name.

    A value of parameters alone is computed once, and copied into the state at every step. `first` is the first node
    that this equation made. None where the shape is not the declared one.
    """
    if node is None:
        return None
    drafts = scope.drafts
    shape, declared = drafts.nodes[node].shape, scope.spec.states[equation.name].shape
    if shape != declared:
        what = f'state "{equation.name}" is declared as {describe(declared)}, its equation gives {describe(shape)}'
        drafts.collector.add(
            "shape-mismatch", what, equation.place, help="declare this shape, or make the equation give the other"
        )
        return None
    static = drafts.nodes[node].phase is Phase.STATIC
    if node < first or static or drafts.is_leaf(node) or drafts.nodes[node].op == "slice":
        copy = drafts.apply("copy", (node,), equation.expr.place)
        assert copy is not None, "a copy fits any shape"
        node = copy
    drafts.claim(node)
    return node


def _loss(scope: Scope) -> int | None:
    """The node of the loss equation; None where it is missing, in error or no scalar."""
    objective, spec = scope.spec.objective, scope.spec
    if objective.loss in spec.refused or (objective.loss in spec.states and objective.loss not in spec.equations):
        return None  # the loader has reported it
    if objective.loss not in spec.equations:
        what = f'the loss "{objective.loss}" is not an equation'
        known = nearest(objective.loss, spec.equations)
        help_ = "; ".join(filter(None, ('write it in [equations], or name another with `loss = "…"`', known)))
        scope.collector.add("unknown-name", what, objective.place, help=help_)
        return None
    node = scope.defined[objective.loss]
    if node is not None and scope.drafts.nodes[node].shape != ():
        what = f'the loss "{objective.loss}" must be a scalar, it is {describe(scope.drafts.nodes[node].shape)}'
        help_ = "make it one with `sum`, `mean` or `dot`"
        scope.collector.add("loss-not-scalar", what, objective.place, help=help_)
        return None
    return node


def _loss_of_its_own(scope: Scope, loss: int, new: Mapping[str, int]) -> int:
    """The loss, or a copy of it where it is a leaf, part of a vector or a value that the loop computes for a state."""
    drafts, name = scope.drafts, scope.spec.objective.loss
    looped = drafts.nodes[loss].phase is Phase.RECURRENT and loss in ancestors(new.values(), _args(drafts))
    if not looped and not drafts.is_leaf(loss) and drafts.nodes[loss].op != "slice":
        return loss
    copy = drafts.apply("copy", (loss,), scope.spec.equations[name].expr.place)
    assert copy is not None, "a copy fits any shape"
    if drafts.names[loss] != name:
        drafts.names[copy] = name
        scope.defined[name] = copy
    return copy


def _args(drafts: Drafts) -> list[tuple[int, ...]]:
    return [draft.args for draft in drafts.nodes]


def _assemble(scope: Scope, loss: int, new: Mapping[str, int]) -> Graph:
    """Drop what nothing needs, give phases, and number the nodes phase by phase."""
    drafts = scope.drafts
    args = _args(drafts)
    phases = assign_phases([draft.phase for draft in drafts.nodes], ancestors(new.values(), args))
    kept = ancestors([loss, *new.values(), *scope.previous.values()], args)
    order = sorted(kept, key=lambda index: (phases[index], index))
    number = {old: position for position, old in enumerate(order)}
    nodes: list[Node] = []
    for old in order:
        draft = drafts.nodes[old]
        ends = tuple(number[arg] for arg in draft.args)
        node = Node(len(nodes), draft.op, ends, draft.shape, phases[old], draft.numbers, drafts.names[old], draft.place)
        nodes.append(node)

    def renumber(names: Mapping[str, int | None]) -> dict[str, int]:
        return {name: number[old] for name, old in names.items() if old is not None and old in number}

    equations = {name: scope.defined[name] for name in scope.spec.equations}
    return Graph(
        nodes=tuple(nodes),
        leaf=renumber(scope.leaf),
        equation=renumber(equations),
        previous=renumber(scope.previous),
        new=renumber(new),
        loss=number[loss],
        unused=unused_names(scope.spec),
    )


def _check_float32(graph: Graph, collector: Collector) -> None:
    for node in graph.nodes:
        if any(abs(number) > FLOAT32_MAX for number in node.numbers):
            help_ = 'set `dtype = "float64"` or use smaller numbers'
            collector.add("not-finite", "this number is not finite in float32", node.place, help=help_)
