"""The references' estimates of a definition, each computed once for a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.backends import oracle as outside
from bpcli.checking.verdict import POWER, Mask, References, small, where
from bpcli.methods.base import Definition, Recursion
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references import central, complex_step, get, ladder
from bpcli.references.base import Estimate, Reference
from bpcli.references.numerics.differences import Around
from bpcli.references.numerics.float_range import overflows
from bpcli.references.numerics.probe import FloatArray, dot, norms, probe
from bpcli.references.numerics.recursion import recursion_estimates, recursion_rounding
from bpcli.references.numerics.rounding import Rounding, rounding
from bpcli.references.numerics.taylor import rates
from bpcli.references.perturbation.executor import Executor
from bpcli.runtime.evaluation import whole_loss
from bpcli.runtime.reverse_mode import Window

AUTO = "auto"
# Predicted flops of the differences that stand beside the complex step, some seconds' worth.
_AFFORDABLE = 2e10


def references_for(setup: Setup, wanted: str, mode: str) -> tuple[Reference, ...]:
    """The references that `wanted` ("auto" or a name, that of a peer too) means, the judge first.

    "auto" is the complex step with central differences beside it. Where these are expensive, the mode "auto" takes them
    on a sample of the entries.
    """
    if wanted != AUTO:
        return (outside.get(wanted) if wanted in outside.known() else get(wanted),)
    beside = central.REFERENCE.within(setup, _AFFORDABLE) if mode == AUTO else central.REFERENCE
    return (complex_step.REFERENCE, beside)


@dataclass
class Truth:
    """The references' answers on one problem, kept by definition.

    `sharpens`: what they can't decide goes to the ladder and to the Taylor rate. `executor` computes losses for them.
    """

    problem: Problem
    references: tuple[Reference, ...]
    sharpens: bool = True
    executor: Executor | None = None
    _estimates: dict[tuple[str, Definition], Mapping[str, Estimate]] = field(default_factory=dict)
    _alongs: dict[tuple[Reference, Definition, Tensor], Estimate] = field(default_factory=dict)
    _roundings: dict[Definition, Rounding] = field(default_factory=dict)
    _recursions: dict[Recursion, Mapping[str, Estimate]] = field(default_factory=dict)

    def estimates(self, definition: Definition, tensor: Tensor, second: bool = False) -> References:
        """The estimates of one tensor's gradient; with `second`, differences on other points too.

        Of a recursion there is one, by the complex step of single steps.
        """
        if isinstance(definition, Recursion):
            return References(self._recursion(definition)[tensor.name])
        found = {r.name: self._all(r, definition)[tensor.name] for r in self.references}
        other = self._estimate(self._second(), definition, (tensor,))[tensor.name] if second else None
        exact = found.pop(complex_step.REFERENCE.name, None)
        return References(exact, next(iter(found.values()), None), other)

    def along(self, definition: Definition, tensor: Tensor, rows: FloatArray, second: bool = False) -> References:
        """The same along directions `rows (K, size)`, which are always the same for one tensor."""
        if isinstance(definition, Recursion):
            known = self._recursion(definition)[tensor.name]
            none = np.zeros(len(rows))
            return References(Estimate(dot(rows, known.value), norms(rows, known.bound), none, none))
        used = (*self.references, *((self._second(),) if second else ()))
        found = []
        for reference in used:
            key = (reference, definition, tensor)
            if key not in self._alongs:
                self._alongs[key] = reference.along(self.problem, self.windows(definition), {tensor: rows})[tensor.name]
            found.append(self._alongs[key])
        other = found.pop() if second else None
        named = {r.name: e for r, e in zip(self.references, found, strict=True)}
        exact = named.pop(complex_step.REFERENCE.name, None)
        return References(exact, next(iter(named.values()), None), other)

    def sharper(self, definition: Definition, tensor: Tensor, places: NDArray[np.int64]) -> References:
        """The estimates sharpened by the ladder at `places`, flat, where it agrees with other differences."""
        known = self.estimates(definition, tensor)
        if known.central is None:
            return known
        part = replace(tensor, pattern=places)
        one, other = (
            self._laddered(definition, part, known.central, differences, steps)
            for differences, steps in (
                (central.REFERENCE, ladder.REFERENCE),
                (central.REFERENCE.on_other_points(), ladder.REFERENCE.on_other_points()),
            )
        )
        return References(known.complex_step, one, other)

    def _laddered(
        self, definition: Definition, part: Tensor, known: Estimate, differences: Reference, steps: Reference
    ) -> Estimate:
        assert part.pattern is not None
        first, sharp = (self._estimate(r, definition, (part,))[part.name] for r in (differences, steps))
        there = np.zeros(known.value.size, dtype=np.bool_)
        there[part.pattern] = True
        mask = there.reshape(known.value.shape)
        # A sample may have passed them by.
        found = where(mask & ~np.isfinite(known.bound), first, known)
        return _merged(found, sharp, mask)

    def rates(
        self,
        definition: Definition,
        tensor: Tensor,
        places: NDArray[np.int64],
        value: FloatArray,
        reference: FloatArray,
    ) -> tuple[Mask, Mask]:
        """Which entries of the gradient `value` the Taylor rate calls right, and which wrong, at `places` alone."""
        around = probe(self.problem, replace(tensor, pattern=places))
        sampler = Around(self.problem, self.windows(definition)).entries(tensor, around)
        size = np.abs(reference)
        tolerance = POWER * np.maximum(size, small(self.problem.setup.dtype) * size.max())
        each = (a.reshape(-1)[around.places] for a in (value, tolerance))
        kept = np.zeros(value.size, dtype=np.bool_)
        kept[places] = True
        right, wrong = (around.scatter(mask.astype(np.float64), value.shape) > 0 for mask in rates(sampler, *each))
        return right & kept.reshape(value.shape), wrong & kept.reshape(value.shape)

    def windows(self, definition: Definition) -> tuple[Window, ...]:
        """The windows whose losses the references differentiate."""
        return definition.over(self.problem.setup)

    def sharpened(self, definition: Definition) -> bool:
        """Whether there are sharper references for what the first leave open; of a recursion there are none."""
        return self.sharpens and not isinstance(definition, Recursion)

    def best(self, definition: Definition, tensor: Tensor) -> Estimate:
        """The sharpest estimate; what stands beside it where that knows nothing."""
        return self.estimates(definition, tensor).judge

    def rounding(self, definition: Definition) -> Rounding:
        """U_g: what a correct gradient, and the loss that comes with it, may be off by in the spec's dtype."""
        if definition not in self._roundings:
            dtype = self.problem.setup.dtype
            self._roundings[definition] = (
                recursion_rounding(self.problem, definition, dtype, self._measured(definition))
                if isinstance(definition, Recursion)
                else rounding(self.problem, self.windows(definition), dtype)
            )
        return self._roundings[definition]

    def excused(self, definition: Definition, value: FloatArray, rounding: FloatArray) -> FloatArray:
        """`rounding`, infinite where a gradient `value` is not finite as right rules may have it here."""
        finite = np.isfinite(value)
        if finite.all() or isinstance(definition, Recursion) or not overflows(self.problem, self.windows(definition)):
            return rounding
        return np.where(finite, rounding, np.inf)

    @cached_property
    def loss(self) -> float:
        """The whole loss in float64."""
        return whole_loss(self.problem)

    def part(self, tensor: Tensor) -> Truth:
        """The truth about one tensor, or the part of it that its pattern leaves."""
        setup = replace(self.problem.setup, wrt=(tensor,))
        own = Truth(replace(self.problem, setup=setup), self.references, self.sharpens, self.executor)
        own._recursions.update(self._recursions)
        own._roundings.update({d: found for d, found in self._roundings.items() if isinstance(d, Recursion)})
        return own

    def _second(self) -> Reference:
        """Differences on points that the others do not share."""
        for reference in self.references:
            if isinstance(reference, central.Central | ladder.Ladder):
                return reference.on_other_points()
        return central.REFERENCE.on_other_points()

    def _recursion(self, definition: Recursion) -> Mapping[str, Estimate]:
        """What a rule comes to, of all tensors that its setup asks for."""
        if definition not in self._recursions:
            self._recursions[definition] = recursion_estimates(self.problem, definition)
        return self._recursions[definition]

    def _measured(self, definition: Recursion) -> dict[str, FloatArray]:
        return {name: estimate.value for name, estimate in self._recursion(definition).items()}

    def _all(self, reference: Reference, definition: Definition) -> Mapping[str, Estimate]:
        key = (reference.name, definition)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(reference, definition, self.problem.setup.wrt)
        return self._estimates[key]

    def _estimate(
        self, reference: Reference, definition: Definition, tensors: Sequence[Tensor]
    ) -> Mapping[str, Estimate]:
        return reference.estimate(self.problem, self.windows(definition), tensors, self.executor)


def _merged(known: Estimate, new: Estimate, there: Mask) -> Estimate:
    """`new` where it is sharper and within the bounds of what is known, `there` and away from kinks; else `known`."""
    with np.errstate(all="ignore"):
        agrees = np.abs(known.value - new.value) <= known.bound + new.bound
    return where(there & agrees & (new.bound < known.bound) & (known.kink == 0), new, known)
