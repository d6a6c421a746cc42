"""The likely cause of a wrong gradient: a planted fault that gives the same numbers, else the pattern of the error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.blame.signatures import (
    PLAIN,
    constant_factor,
    extent,
    not_finite,
    proportional,
    single_precision,
)
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.faults.fault import Fault
from bpcli.checking.interpreter import Edge, Hooks
from bpcli.graph.nodes import Node

_BY_NAME = {fault.name: fault for fault in CATALOGUE}


@dataclass(frozen=True)
class Cause:
    """A cause in words, the `fault` of the catalogue that it is, if any, and its `node` if it is in one place."""

    what: str
    fault: Fault | None = None
    node: Node | None = None

    @property
    def factor(self) -> str | None:
        """The factor of the gradient that is wrong, "J", "M̄" or "q", where a fault has one."""
        return (self.fault and self.fault.factor) or None


def causes(evidence: Evidence, name: str, in_time: Callable[[], bool]) -> list[Cause]:
    """The causes that fit the answer for tensor `name`, the likeliest first; at least one.

    A fault that explains all tensors precedes one that explains this tensor alone, and that one precedes a fault at a
    single node. The search stops when `in_time()` is false.
    """
    unsteady = name in evidence.unsteady
    if unsteady and evidence.accumulates(name):
        fault = _BY_NAME["buffer-not-cleared"]
        return [Cause(fault.what, fault)]
    if (lost := not_finite(evidence.right[name])) and evidence.explained(name, evidence.right[name]):
        return [Cause(f"{lost} by the right rules either: a value on the way leaves the range of floats")]
    whole, alone = _everywhere(evidence, name, in_time)
    if whole or unsteady:  # the pattern of one call's numbers says nothing where the next call has others
        return whole or alone or [Cause("called again with the same arrays it gives other numbers")]
    factor = _constant_factor(evidence, name)
    found = [*factor, *alone] if len(evidence.wrong) == 1 else [*alone, *factor]
    return found or list(_in_one_place(evidence, name, in_time)) or [_pattern(evidence, name)]


def fits(evidence: Evidence, cause: Cause, name: str) -> bool:
    """Whether a cause gives the answer for `name` here too; true of one that is no fault of the catalogue."""
    return cause.fault is None or _fits(evidence, (cause.fault.name,), cause.fault.wrong, (name,))


def _fits(evidence: Evidence, key: tuple[object, ...], hooks: Hooks, names: tuple[str, ...]) -> bool:
    first = evidence.planted(key, hooks)
    if not all(evidence.explained(n, first[n]) for n in names):
        return False
    if not evidence.unsteady and (hooks.gather is None and hooks.answer is None):
        return True
    third = evidence.planted(key, hooks, calls=3)
    return all(evidence.explained(n, third[n], 1) for n in names)


def _everywhere(evidence: Evidence, name: str, in_time: Callable[[], bool]) -> tuple[list[Cause], list[Cause]]:
    """The faults that give the whole answer, and those that give this tensor."""
    whole: list[Cause] = []
    alone: list[Cause] = []
    for fault in CATALOGUE:
        if in_time() and _fits(evidence, (fault.name,), fault.wrong, (name,)):
            every = _fits(evidence, (fault.name,), fault.wrong, tuple(evidence.answers[0]))
            (whole if every else alone).append(Cause(fault.what, fault))
    return whole, alone


def _in_one_place(evidence: Evidence, name: str, in_time: Callable[[], bool]) -> Iterator[Cause]:
    """The first fault that gives this tensor when it is planted at a single node."""
    for node in reversed(evidence.problem.setup.graph.nodes):
        for fault in CATALOGUE if node.args else ():
            if not in_time():
                return
            if (fault.wrong.edge or fault.wrong.gather or fault.wrong.add) and _fits(
                evidence, (fault.name, node.index), _at_node(fault.wrong, node.index), (name,)
            ):
                yield Cause(fault.what, fault, node)
                return


def _at_node(hooks: Hooks, index: int) -> Hooks:
    """The same rules at one node alone."""
    edge, gather, add = hooks.edge, hooks.gather, hooks.add

    def here(e: Edge) -> bool:
        return e.node.index == index

    return replace(
        hooks,
        edge=edge and (lambda e: edge(e) if here(e) else e.vjp()),
        gather=gather and (lambda e, g: gather(e, g) if here(e) else g.sum(axis=0, keepdims=True)),
        add=add and (lambda e, b, g: add(e, b, g) if here(e) else b + g),
    )


def _constant_factor(evidence: Evidence, name: str) -> list[Cause]:
    """The factor by which the whole tensor is off, if there is one."""
    setup = evidence.problem.setup
    known = {**PLAIN, "batch": setup.batch, "1/batch": 1 / setup.batch}
    known |= {"T": setup.T, "1/T": 1 / setup.T} if setup.graph.recurrent else {}
    for constant, value in setup.spec.constants.items():
        known |= {constant: value, f"1 - {constant}": 1 - value} | ({f"1/{constant}": 1 / value} if value else {})
    words = constant_factor(evidence.answers[0][name], evidence.right[name], evidence.tolerance(name), known)
    return [Cause(words)] if words else []


def _pattern(evidence: Evidence, name: str) -> Cause:
    """The pattern of an error that no fault of the catalogue gives."""
    given, right, slack = evidence.answers[0][name], evidence.right[name], evidence.tolerance(name)
    if lost := not_finite(given):
        return Cause(lost)
    theta = np.asarray(evidence.problem.array(evidence.tensor(name)), float)
    if words := proportional(given, right, slack, theta, name):
        return Cause(words)
    if single_precision(given, right, slack, evidence.float32_rounding(name)):
        return Cause("the gradient has the accuracy of float32", _BY_NAME["float32-accumulator"])
    return Cause(extent(np.abs(evidence.error(name)) > slack))
