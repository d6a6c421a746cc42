"""Which equation uses which: the order to read them in, cycles, and what the loss depends on.

Nothing here recurses over equations, so a chain of thousands is fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bpcli.errors import Collector, Place
from bpcli.spec.specification import Binary, Call, Equation, Expr, Item, Negate, Ref, Slice, Spec, Transpose


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
