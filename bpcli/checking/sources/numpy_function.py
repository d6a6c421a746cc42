"""Functions of NumPy arrays with handwritten derivatives: vjp, jvp and hvp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from numpy import array, asarray, dtype, float64, generic, ndarray

from bpcli.checking.sources.differentiable import (
    FLOATS,
    RULES,
    Arguments,
    Arrays,
    Differentiable,
    Given,
    LackingError,
    UnusableError,
    is_float,
    kind_name,
    refuse_type,
    under,
)
from bpcli.checking.sources.pytree import flatten, rebuild
from bpcli.checking.sources.user_protocol import Array


class NumpyFunction(Differentiable):
    """A function of NumPy arrays with handwritten derivatives, `RULES`, given by name or as its attributes.

    `vjp(*inputs, u)` returns the products of u, of the structure of the function's values, with the Jacobian: a tuple
    of one for each input, or for each input of floats. `jvp(*inputs, *tangents)` takes a tangent for each input, None
    for those that are fixed. `hvp(*inputs, u, *tangents)` is the derivative of the vjp along the tangents; for a
    function with a scalar value it takes no u.
    """

    by_cotangent: ClassVar[bool] = False

    def __init__(self, given: Given) -> None:
        self._function = given.function
        own = {rule: getattr(given.function, rule, None) for rule in RULES}
        self._rules = {**{rule: f for rule, f in own.items() if callable(f)}, **given.rules}
        if "vjp" not in self._rules and "jvp" not in self._rules:
            remedy = "give its derivative, vjp=…, or a function of PyTorch tensors or JAX arrays"
            raise UnusableError("returns no PyTorch tensors or JAX arrays, and has no vjp", remedy)
        self.reverse = "vjp" in self._rules
        self._arguments = Arguments(given.function, given.inputs)
        self.points, self.fixed = {}, {}
        for name, leaf in self._arguments.leaves.items():
            if isinstance(leaf, ndarray | generic):
                refuse_type(name, kind_name(leaf))
            if is_float(leaf):
                self.points[name] = array(leaf)
            else:
                self.fixed[name] = kind_name(leaf)

    def close(self) -> None:
        """Nothing is left behind."""

    def run(self, point: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""
        self._returned = self._function(*self._inputs(point))
        found = {name: asarray(v) for name, v in flatten(self._returned).items() if is_float(v)}
        return {name: value for name, value in found.items() if value.dtype in FLOATS}

    def vjp(self, point: Arrays, cotangents: Arrays, wide: bool) -> dict[str, Any]:
        """See `Differentiable`."""
        return self._by_leaf(self._rule("vjp")(*self._inputs(point), self._cotangent(cotangents, wide)))

    def jvp(self, point: Arrays, tangents: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""
        found = flatten(self._rule("jvp")(*self._inputs(point), *self._tangents(tangents, wide)))
        return {name: asarray(value) for name, value in found.items() if name in self.sizes}

    def second(
        self, point: Arrays, cotangents: Arrays, tangents: Arrays, wide: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Differentiable`; not by the cotangents."""
        rule = self._rule("hvp")
        if self.scalar:
            (factor,) = cotangents.values()
            found = self._by_leaf(rule(*self._inputs(point), *self._tangents(tangents, wide)))
            return {name: value * float(factor) for name, value in found.items()}, {}
        into = self._cotangent(cotangents, wide)
        return self._by_leaf(rule(*self._inputs(point), into, *self._tangents(tangents, wide))), {}

    @property
    def scalar(self) -> bool:
        """Whether the function has one value, a number."""
        return list(self.sizes.items()) == [("", ())]

    def _rule(self, name: str) -> Callable[..., Any]:
        if name not in self._rules:
            raise LackingError(f"has no {name}")
        rule: Callable[..., Any] = self._rules[name]
        return rule

    def _inputs(self, point: Arrays) -> list[Any]:
        # A number is passed as a number, which has the operations of an array.
        given = {name: value[()] if value.ndim == 0 else value for name, value in point.items()}
        return self._arguments.filled({**self._arguments.leaves, **given})

    def _cotangent(self, cotangents: Arrays, wide: bool) -> Any:
        """The cotangents in the structure of the values, None for values that are not differentiated."""
        kinds = dict.fromkeys(self.kinds, dtype(float64)) if wide else self.kinds
        leaves = {n: cotangents[n].astype(kinds[n])[()] if n in cotangents else None for n in flatten(self._returned)}
        return rebuild(self._returned, iter(leaves.values()))

    def _tangents(self, tangents: Arrays, wide: bool) -> list[Any]:
        kinds = {name: dtype(float64) if wide else value.dtype for name, value in self.points.items()}
        leaves = {n: tangents[n].astype(kinds[n])[()] if n in tangents else None for n in self._arguments.leaves}
        return self._arguments.filled(leaves)

    def _by_leaf(self, returned: Any) -> dict[str, Any]:
        """The gradients that a rule returns, by leaf; under the number of its input where it does not fit in."""
        every = self._arguments.of_input
        moving = [own for own in every if any(name in self.points for name, _ in own)]
        if len(every) == 1 and not (isinstance(returned, tuple) and len(returned) == 1):
            returned = (returned,)
        if not isinstance(returned, tuple | list) or len(returned) not in (len(every), len(moving)):
            count = f"{len(returned)} gradients" if isinstance(returned, tuple | list) else type(returned).__name__
            raise ValueError(f"a derivative returns {count}, for {len(every)} inputs")
        found: dict[str, Any] = {}
        for own, tree in zip(every if len(returned) == len(every) else moving, returned, strict=True):
            names = {step: name for name, step in own}
            parts = {names.get(step, under(own[0][0], step)): leaf for step, leaf in flatten(tree).items()}
            found |= {name: leaf for name, leaf in parts.items() if leaf is not None and name not in self.fixed}
        return found
