"""`bp list methods --for SPEC`: the methods for a spec, with their cost at its sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bpcli.commands.shared_options import Common
from bpcli.errors import BpError
from bpcli.render import Column, Document, digits

if TYPE_CHECKING:
    from bpcli.methods import MethodCall
    from bpcli.problem.definition import Setup


def document(spec: str, common: Common) -> Document:
    """A row for each method that is installed, and one for each that the spec names with other options."""
    from bpcli.commands.output import describe
    from bpcli.commands.specs import open_spec, single
    from bpcli.problem.limits import format_bytes

    setup = open_spec(single(spec), common).setup
    context = describe("list", common, what="methods", spec=setup.spec.name, **_sizes(setup))
    columns = [
        _column("method", "method", str, right=False),
        _column("kind", "kind", _text, right=False),
        _column("time", "time per step", _text, right=False),
        _column("memory", "memory", _text, right=False),
        _column("flops", "flops", digits(3)),
        _column("bytes", "predicted", lambda value: "" if value is None else format_bytes(value)),
        _column("source", "source", _text, right=False),
        _column("reason", "why not", _text, right=False),
    ]
    rows = [*_rows(setup)]
    if all(row["reason"] is None for row in rows):
        columns = columns[:-1]
    words = ", ".join(f"{key} = {value:g}" for key, value in _sizes(setup).items())
    return Document("Methods", "methods", columns, rows, context, sentences=(f"{setup.spec.name}: {words}",))


def _column(key: str, heading: str, show: Any, right: bool = True) -> Column:
    return Column(key, heading, lambda row: row[key], show, right)


def _text(value: str | None) -> str:
    return value or ""


def _sizes(setup: Setup) -> Mapping[str, float]:
    """The values of the symbols in costs, at the sizes of a spec."""
    from bpcli.graph.nodes import Phase
    from bpcli.runtime.local_derivatives import influence_layout
    from bpcli.tape.plan import phase_flops

    nodes = setup.graph.nodes
    found: dict[str, float] = {
        "F": sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC),
        "V": sum(node.size for node in nodes if node.phase is not Phase.STATIC),
    }
    if setup.graph.recurrent:
        layout = influence_layout(setup)
        found |= {"N": layout.N, "P": layout.P, "T": setup.T}
    return {**found, "batch": setup.batch}


def kind_of(call: MethodCall, setup: Setup) -> str:
    """The kind of a method's definition: exact, windows, recursion, expectation."""
    return type(call.definition(setup)).__name__.lower()


def _rows(setup: Setup) -> Iterator[Mapping[str, Any]]:
    from bpcli.methods import about, known_names, parse, typical

    calls = {}
    for name in known_names():
        try:
            call = typical(name)
        except BpError:  # of another package: `bp list methods` says why
            continue
        calls[call.text] = call
    for text in (*setup.spec.check.methods, *setup.spec.bench.methods):
        try:
            call = parse(text)
        except BpError:  # such as `check`, which is measured like a method
            continue
        calls.setdefault(call.text, call)
    for call in sorted(calls.values(), key=lambda c: c.text):
        known = about(call.method.name)
        row = {"method": call.text, "time": known.time, "memory": known.memory, "source": known.source}
        if reason := call.refusal(setup.graph):
            yield {**row, "kind": None, "flops": None, "bytes": None, "reason": reason}
            continue
        cost = call.cost(setup)
        yield {**row, "kind": kind_of(call, setup), "flops": cost.flops, "bytes": int(cost.bytes), "reason": None}
