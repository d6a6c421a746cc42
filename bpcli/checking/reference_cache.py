"""Reference estimates of a problem's gradients, each computed once and kept by definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.backends import oracle as outside
from bpcli.checking.verdict import POWER, Mask, References, select, small
from bpcli.methods.base import Definition, Recursion
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references import central, complex_step, get, ladder
from bpcli.references.base import Estimate, Reference
from bpcli.references.numerics.derivatives import rates
from bpcli.references.numerics.differences import Neighbourhood
from bpcli.references.numerics.overflow import overflows
from bpcli.references.numerics.probe import FloatArray, dot, norms, probe
from bpcli.references.numerics.recursion import recursion_estimates, recursion_rounding
from bpcli.references.numerics.rounding import Rounding, rounding
from bpcli.references.perturbation.jumps import jumps, sides
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime.evaluation import whole_loss
from bpcli.runtime.reverse_mode import Window

AUTO = "auto"
# Predicted flops that differences beside the complex step may take, some seconds' worth.
_AFFORDABLE = 2e10


def references_for(setup: Setup, wanted: str, mode: str) -> tuple[Reference, ...]:
    """The references for `wanted`, "auto" or the name of a reference or backend; the first one judges.

    "auto" is the complex step, checked by central differences, in the mode "auto" on a sample of the entries where all
    are too expensive.
    """
    if wanted != AUTO:
        return (outside.get(wanted) if wanted in outside.known() else get(wanted),)
    beside = central.REFERENCE.within(setup, _AFFORDABLE) if mode == AUTO else central.REFERENCE
    return (complex_step.REFERENCE, beside)


@dataclass
class ReferenceCache:
    """Estimates by `references` on one problem, kept by definition.

    `sharpens` allows Richardson extrapolation and the Taylor rate where the references do not decide. `executor`
    computes the perturbed losses. `tolerance` is that of `CheckOptions`.
    """

    problem: Problem
    references: tuple[Reference, ...]
    sharpens: bool = True
    executor: Executor | None = None
    tolerance: float = 0.0
    _estimates: dict[tuple[str, Definition], Mapping[str, Estimate]] = field(default_factory=dict)
    _alongs: dict[tuple[Reference, Definition, Tensor], Estimate] = field(default_factory=dict)
    _roundings: dict[Definition, Rounding] = field(default_factory=dict)
    _recursions: dict[Recursion, Mapping[str, Estimate]] = field(default_factory=dict)

    def estimates(self, definition: Definition, tensor: Tensor, second: bool = False) -> References:
        """Estimates of one tensor's gradient; with `second`, by differences on an independent step ladder too.

        A recursion has a single estimate, from the complex step of single steps.
        """
        if isinstance(definition, Recursion):
            return References(self._recursion(definition)[tensor.name])
        found = [self._all(r, definition)[tensor.name] for r in self.references]
        return self._by_kind(found, self._estimate(self._second(), definition, tensor) if second else None)

    def along(self, definition: Definition, tensor: Tensor, rows: FloatArray, second: bool = False) -> References:
        """The same along directions `rows (K, size)`; a tensor must always come with the same ones."""
        if isinstance(definition, Recursion):
            known = self._recursion(definition)[tensor.name]
            none = np.zeros(len(rows))
            return References(Estimate(dot(rows, known.value), norms(rows, known.bound), none, none))

        def estimate(reference: Reference) -> Estimate:
            key = (reference, definition, tensor)
            if key not in self._alongs:
                self._alongs[key] = reference.along(self.problem, self.windows(definition), {tensor: rows})[tensor.name]
            return self._alongs[key]

        return self._by_kind([estimate(r) for r in self.references], estimate(self._second()) if second else None)

    def _by_kind(self, found: Sequence[Estimate], second: Estimate | None) -> References:
        """Estimates in the order of `references`, sorted into the complex step and differences."""
        named = {r.name: e for r, e in zip(self.references, found, strict=True)}
        exact = named.pop(complex_step.REFERENCE.name, None)
        return References(exact, next(iter(named.values()), None), second)

    def sharper(self, definition: Definition, tensor: Tensor, places: NDArray[np.int64]) -> References:
        """The estimates with Richardson extrapolation at the flat `places`, where it agrees with the differences."""
        known = self.estimates(definition, tensor)
        if known.central is None:
            return known
        part = replace(tensor, pattern=places)
        mask = mask_of(places, known.central.value.shape)
        found = []
        for pair in (
            (central.REFERENCE, ladder.REFERENCE),
            (central.REFERENCE.on_other_points(), ladder.REFERENCE.on_other_points()),
        ):
            differences, extrapolated = (self._estimate(r, definition, part) for r in pair)
            # Differences on a sample of the entries may not have covered these.
            first = select(mask & ~np.isfinite(known.central.bound), differences, known.central)
            found.append(_sharpened(first, extrapolated, mask))
        return References(known.complex_step, *found)

    def taylor_verdicts(
        self,
        definition: Definition,
        tensor: Tensor,
        places: NDArray[np.int64],
        value: FloatArray,
        reference: FloatArray,
    ) -> tuple[Mask, Mask]:
        """The entries of the gradient `value`, among `places`, that the Taylor rate accepts, and those it rejects."""
        around = probe(self.problem, replace(tensor, pattern=places))
        sampler = Neighbourhood(self.problem, self.windows(definition)).entries(tensor, around)
        size = np.abs(reference)
        tolerance = POWER * np.maximum(size, small(self.problem.setup.dtype) * size.max())
        each = (a.reshape(-1)[around.places] for a in (value, tolerance))
        kept = mask_of(places, value.shape)
        right, wrong = (around.scatter(mask.astype(np.float64), value.shape) > 0 for mask in rates(sampler, *each))
        return right & kept, wrong & kept

    def windows(self, definition: Definition) -> tuple[Window, ...]:
        """The windows whose losses the references differentiate."""
        return definition.over(self.problem.setup)

    def can_sharpen(self, definition: Definition) -> bool:
        """Whether sharper references exist; a recursion has none."""
        return self.sharpens and not isinstance(definition, Recursion)

    def rounding(self, definition: Definition) -> Rounding:
        """U_g, the rounding error of a correct gradient and of its loss in the spec's dtype."""
        if definition not in self._roundings:
            dtype = self.problem.setup.dtype
            if isinstance(definition, Recursion):
                measured = {name: estimate.value for name, estimate in self._recursion(definition).items()}
                self._roundings[definition] = recursion_rounding(self.problem, definition, dtype, measured)
            else:
                self._roundings[definition] = rounding(self.problem, self.windows(definition), dtype)
        return self._roundings[definition]

    def allow_overflow(self, definition: Definition, value: FloatArray, rounding: FloatArray) -> FloatArray:
        """`rounding`, made infinite where `value` is not finite and correct rules may overflow too."""
        finite = np.isfinite(value)
        if finite.all() or isinstance(definition, Recursion) or not overflows(self.problem, self.windows(definition)):
            return rounding
        return np.where(finite, rounding, np.inf)

    @cached_property
    def loss(self) -> float:
        """The total loss in float64."""
        return whole_loss(self.problem)

    @cached_property
    def jumps(self) -> bool:
        """Whether rounding decides on which side of a jump the network is."""
        return jumps(self.problem)

    @cached_property
    def sides(self) -> tuple[tuple[ReferenceCache, ...], bool]:
        """At a jump, a cache for the network on each of its sides, and whether these are all; else this one."""
        found = sides(self.problem)
        if found is None:
            return (self,), not self.jumps
        own = (ReferenceCache(p, self.references, self.sharpens, None, self.tolerance) for p in found.problems)
        return tuple(own), found.complete

    def restricted(self, tensor: Tensor) -> ReferenceCache:
        """A cache for one tensor, or for the part of it in its pattern; what is known of recursions is shared."""
        setup = replace(self.problem.setup, wrt=(tensor,))
        own = ReferenceCache(
            replace(self.problem, setup=setup), self.references, self.sharpens, self.executor, self.tolerance
        )
        own._recursions.update(self._recursions)
        own._roundings.update({d: found for d, found in self._roundings.items() if isinstance(d, Recursion)})
        return own

    def _second(self) -> Reference:
        """Differences on a step ladder that shares no points with the others."""
        for reference in self.references:
            if isinstance(reference, central.Central | ladder.Ladder):
                return reference.on_other_points()
        return central.REFERENCE.on_other_points()

    def _recursion(self, definition: Recursion) -> Mapping[str, Estimate]:
        """Estimates of a recursion's gradient for all tensors of its setup."""
        if definition not in self._recursions:
            self._recursions[definition] = recursion_estimates(self.problem, definition)
        return self._recursions[definition]

    def _all(self, reference: Reference, definition: Definition) -> Mapping[str, Estimate]:
        key, tensors = (reference.name, definition), self.problem.setup.wrt
        if key not in self._estimates:
            self._estimates[key] = reference.estimate(self.problem, self.windows(definition), tensors, self.executor)
        return self._estimates[key]

    def _estimate(self, reference: Reference, definition: Definition, tensor: Tensor) -> Estimate:
        return reference.estimate(self.problem, self.windows(definition), (tensor,), self.executor)[tensor.name]


def mask_of(places: NDArray[np.int64], shape: tuple[int, ...]) -> Mask:
    """A mask of `shape` that is true at flat indices."""
    mask = np.zeros(shape, dtype=np.bool_)
    mask.reshape(-1)[places] = True
    return mask


def _sharpened(known: Estimate, new: Estimate, mask: Mask) -> Estimate:
    """`new` where it is sharper than `known` and agrees with it, within `mask` and away from kinks; else `known`."""
    with np.errstate(all="ignore"):
        agrees = np.abs(known.value - new.value) <= known.bound + new.bound
    return select(mask & agrees & (new.bound < known.bound) & (known.kink == 0), new, known)
