"""How wrong each step's share of a gradient is, by planting the fault that explains it at one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bpcli.checking.blame.cause import Cause
from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.faults.catalogue import CATALOGUE
from bpcli.checking.interpreter.hooks import RIGHT, Edge, Hooks
from bpcli.references.base import FloatArray

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
