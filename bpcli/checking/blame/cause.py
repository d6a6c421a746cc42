"""The likely cause of a wrong gradient: the fault that gives the same numbers, else what the error looks like.

How wrong each step's share of a gradient is, by planting the fault that explains it at one step after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.blame.signatures import PLAIN, extent, multiple, not_finite, proportional, single_precision
from bpcli.checking.faults.catalogue import CATALOGUE
from bpcli.checking.faults.fault import Fault
from bpcli.checking.interpreter import RIGHT, Edge, Hooks
from bpcli.graph.nodes import Node
from bpcli.references.base import FloatArray


@dataclass(frozen=True)
class Cause:
    """`name` is that of a fault of the catalogue, or of a signature; `what` says it in words.

    `node` is where the fault sits if it is in one place, `factor` as in `Fault`.
    """

    name: str
    what: str
    factor: str = ""
    node: Node | None = None


def causes(evidence: Evidence, name: str, live: Callable[[], bool]) -> list[Cause]:
    """The causes that fit the answer for tensor `name`, the likeliest first; never none.

    `live()` says whether there is time to go on. A fault that gives the whole answer goes before one that gives this
    tensor alone, and that before one in a single place.
    """
    unsteady = name in evidence.unsteady
    if unsteady and evidence.accumulates(name):
        return [Cause("buffer-not-cleared", "the buffer is not cleared: a second call adds to the first")]
    if (lost := not_finite(evidence.right[name])) and evidence.explained(name, evidence.right[name]):
        return [Cause("overflow", f"{lost} by the right rules either: a value on the way leaves the range of floats")]
    whole, alone = _everywhere(evidence, name, live)
    if whole or unsteady:  # what the numbers of one call look like says nothing where the next has others
        return whole or alone or [Cause("unsteady", "called again with the same arrays it gives other numbers")]
    ratio = _ratio(evidence, name)
    found = [*ratio, *alone] if len(evidence.wrong) == 1 else [*alone, *ratio]
    return found or list(_in_one_place(evidence, name, live)) or _looks(evidence, name)


def fits(evidence: Evidence, cause: Cause, name: str) -> bool:
    """Whether a fault of the catalogue gives the answer for `name` here too."""
    fault = next((f for f in CATALOGUE if f.name == cause.name), None)
    return fault is None or _fits(evidence, (fault.name,), fault.wrong, (name,))


def _fits(evidence: Evidence, key: tuple[object, ...], hooks: Hooks, names: tuple[str, ...]) -> bool:
    first = evidence.planted(key, hooks)
    if not all(evidence.explained(n, first[n]) for n in names):
        return False
    if not evidence.unsteady and (hooks.gather is None and hooks.answer is None):
        return True
    second = evidence.planted(key, hooks, calls=3)
    return all(evidence.explained(n, second[n], 1) for n in names)


def _everywhere(evidence: Evidence, name: str, live: Callable[[], bool]) -> tuple[list[Cause], list[Cause]]:
    """The faults that give the whole answer, and those that give this tensor."""
    whole: list[Cause] = []
    alone: list[Cause] = []
    for fault in CATALOGUE:
        if live() and _fits(evidence, (fault.name,), fault.wrong, (name,)):
            cause = Cause(fault.name, fault.what, fault.factor)
            (whole if _fits(evidence, (fault.name,), fault.wrong, tuple(evidence.answers[0])) else alone).append(cause)
    return whole, alone


def _in_one_place(evidence: Evidence, name: str, live: Callable[[], bool]) -> Iterator[Cause]:
    """The first fault that gives this tensor when it is planted at a single node."""
    for node in reversed(evidence.problem.setup.graph.nodes):
        for fault in CATALOGUE if node.args else ():
            if not live():
                return
            if (fault.wrong.edge or fault.wrong.gather or fault.wrong.add) and _fits(
                evidence, (fault.name, node.index), _only(fault, node.index), (name,)
            ):
                yield Cause(fault.name, fault.what, fault.factor, node)
                return


def _only(fault: Fault, index: int) -> Hooks:
    """The fault at one node."""
    edge, gather, add = fault.wrong.edge, fault.wrong.gather, fault.wrong.add

    def here(e: Edge) -> bool:
        return e.node.index == index

    return replace(
        fault.wrong,
        edge=edge and (lambda e: edge(e) if here(e) else e.pull()),
        gather=gather and (lambda e, g: gather(e, g) if here(e) else g.sum(axis=0, keepdims=True)),
        add=add and (lambda e, b, g: add(e, b, g) if here(e) else b + g),
    )


def _ratio(evidence: Evidence, name: str) -> list[Cause]:
    """One number by which the whole tensor is off, in words."""
    setup = evidence.problem.setup
    known = {**PLAIN, "batch": setup.batch, "1/batch": 1 / setup.batch}
    known |= {"T": setup.T, "1/T": 1 / setup.T} if setup.graph.recurrent else {}
    for constant, value in setup.spec.constants.items():
        known |= {constant: value, f"1 - {constant}": 1 - value} | ({f"1/{constant}": 1 / value} if value else {})
    words = multiple(evidence.answers[0][name], evidence.right[name], evidence.both(name), known)
    return [Cause("ratio", words)] if words else []


def _looks(evidence: Evidence, name: str) -> list[Cause]:
    """What the error looks like, where no fault of the catalogue gives it."""
    given, right, slack = evidence.answers[0][name], evidence.right[name], evidence.both(name)
    if lost := not_finite(given):
        return [Cause("not-finite", lost)]
    theta = np.asarray(evidence.problem.array(evidence.tensor(name)), float)
    if words := proportional(given, right, slack, theta, name):
        return [Cause("proportional", words)]
    if single_precision(given, right, slack, evidence.single(name)):
        return [Cause("float32-accumulator", "the gradient has the accuracy of float32")]
    return [Cause("unknown", extent(np.abs(evidence.error(name)) > slack))]


# Each step costs two gradients.
_STEPS_AT_MOST = 200


def errors_by_step(evidence: Evidence, name: str, fitting: list[Cause], live: Callable[[], bool]) -> list[float] | None:
    """The error of each step's share, from the first on, relative to the whole gradient of tensor `name`.

    An input has a gradient of its own at each step. Of other tensors the shares are known where a fault of the
    catalogue explains the answer, and the shares add up to it; None where they are not, or there is no time.
    """
    setup, size = evidence.problem.setup, float(np.linalg.norm(evidence.right[name]))
    if not setup.graph.recurrent or size == 0 or not 1 < setup.T <= _STEPS_AT_MOST:
        return None
    if evidence.tensor(name).kind == "input":
        return [float(np.linalg.norm(error)) / size for error in evidence.error(name)]
    fault = next((f for f in CATALOGUE if f.name == fitting[0].name), None) if fitting else None
    if fault is None or evidence.tensor(name).kind != "param" or fitting[0].node is not None:
        return None
    off, total = [], np.zeros_like(evidence.right[name])
    for t in range(setup.T):
        if not live():
            return None
        wrong, right = (
            evidence.planted((kind, t), _share(hooks, t))[name] for kind, hooks in _both(fault.name, fault.wrong)
        )
        off.append(float(np.linalg.norm(wrong - right)) / size)
        total += wrong
    return off if evidence.explained(name, total) else None


def _both(name: str, wrong: Hooks) -> tuple[tuple[str, Hooks], tuple[str, Hooks]]:
    return ("share of " + name, wrong), ("share", RIGHT)


def _share(hooks: Hooks, wanted: int) -> Hooks:
    """The same rules, but that step `wanted` alone gives anything to what all steps share."""
    gather = hooks.gather

    def at_step(e: Edge, given: FloatArray) -> FloatArray:
        total: FloatArray = gather(e, given) if gather else given.sum(axis=0, keepdims=True)
        return total * float(e.t == wanted)

    return replace(hooks, gather=at_step)
