"""What gradients are compared with, computed once for each distinct set of windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bpcli.checking.verdict import References
from bpcli.errors import fail
from bpcli.methods.base import Window
from bpcli.problem.model import Problem, Setup, Tensor
from bpcli.problem.perturbed import Perturbed
from bpcli.references import central, complex_step
from bpcli.references.base import Estimate, Reference
from bpcli.references.numerics.rounding import Rounding, rounding, rounding_flops

Windows = tuple[Window, ...]


# Predicted flops of the differences that stand beside the complex step, some seconds' worth.
_AFFORDABLE = 2e10


def references_for(setup: Setup, wanted: str, mode: str) -> tuple[Reference, ...]:
    """The references that `wanted` ("auto" or a name) means for this graph; `BpError` when it does not apply.

    "auto" is the complex step with central differences beside it where the graph is analytic, else central differences
    alone. Where the differences beside are expensive, the mode "auto" takes them on a sample of the entries.
    """
    reason = complex_step.REFERENCE.applies(setup.graph)
    if wanted == complex_step.REFERENCE.name:
        if reason:
            fail("reference", f"the complex step does not apply: {reason}", help="use --reference central")
        return (complex_step.REFERENCE,)
    if wanted == central.REFERENCE.name or reason:
        return (central.REFERENCE,)
    beside = central.REFERENCE.within(setup, _AFFORDABLE) if mode == "auto" else central.REFERENCE
    return (complex_step.REFERENCE, beside)


def whole(setup: Setup) -> Windows:
    """The window of the true gradient."""
    return (Window(0, 0, setup.T),)


@dataclass
class Truth:
    """The references' answers on one problem, kept by windows."""

    problem: Problem
    references: tuple[Reference, ...]
    _estimates: dict[tuple[str, Windows], Mapping[str, Estimate]] = field(default_factory=dict)
    _roundings: dict[Windows, Rounding] = field(default_factory=dict)

    def estimates(self, windows: Windows, tensor: Tensor, second: bool = False) -> References:
        """The estimates of one tensor's gradient; with `second`, differences on other points too."""
        found = {r.name: self._all(r, windows)[tensor.name] for r in self.references}
        other = self._second(windows, tensor) if second else None
        return References(found.get(complex_step.REFERENCE.name), found.get(central.REFERENCE.name), other)

    def best(self, windows: Windows, tensor: Tensor) -> Estimate:
        """The sharpest estimate."""
        return self._all(self.references[0], windows)[tensor.name]

    def rounding(self, windows: Windows) -> Rounding:
        """U_g: what a correct gradient, and the loss that comes with it, may be off by in the spec's dtype."""
        if windows not in self._roundings:
            self._roundings[windows] = rounding(self.problem, windows, self.problem.setup.dtype)
        return self._roundings[windows]

    @cached_property
    def loss(self) -> float:
        """The whole loss in float64."""
        setup = self.problem.setup
        perturbed = Perturbed(self.problem, whole(setup), np.dtype(np.float64))
        return float(perturbed.losses(setup.wrt[0], np.zeros(1, dtype=np.int64), np.zeros(1)).sum())

    def _second(self, windows: Windows, tensor: Tensor) -> Estimate | None:
        ladders = [r.on_other_points() for r in self.references if isinstance(r, central.Central)]
        return ladders[0].estimate(self.problem, windows, [tensor])[tensor.name] if ladders else None

    def _all(self, reference: Reference, windows: Windows) -> Mapping[str, Estimate]:
        key = (reference.name, windows)
        if key not in self._estimates:
            self._estimates[key] = reference.estimate(self.problem, windows, self.problem.setup.wrt)
        return self._estimates[key]


def truth_cost(setup: Setup, windows: set[Windows], used: tuple[Reference, ...]) -> float:
    """Predicted floating-point operations of all estimates, without the second ladders that wrong gradients cause."""
    each = sum(r.cost(setup, w) for r in used for w in windows) + sum(rounding_flops(setup, w) for w in windows)
    extra = 0.0 if whole(setup) in windows else used[0].cost(setup, whole(setup))
    return each + extra
