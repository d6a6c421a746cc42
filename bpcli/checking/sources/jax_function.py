"""Functions of JAX arrays: values with 64-bit types enabled, gradients by `jax.vjp` as JAX is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from numpy import allclose, array, float32, float64, generic, ndarray

from bpcli.checking.sources.differentiable import (
    FLOATS,
    Arguments,
    Arrays,
    Differentiable,
    Given,
    UnusableError,
    is_float,
    kind_name,
    lacking,
    refuse_type,
)
from bpcli.checking.sources.pytree import flatten
from bpcli.checking.sources.user_protocol import Array

# Differences between code that is compiled as a whole and operation by operation.
_SAME = 1e-9
_OTHER_MODE = "RuntimeProgramInputMismatch"


class Compiled:
    """A function of arrays in dicts, compiled if that comes to the same values, which may vary from call to call."""

    def __init__(self, jax: Any, function: Callable[..., dict[str, Any]]) -> None:
        self._jax, self._function, self._compiled = jax, function, None
        self._tried = False

    def __call__(self, *given: Arrays) -> dict[str, Any]:
        """The values; the first call decides how later ones are computed."""
        if self._compiled is not None:
            return self._compiled(*given)  # converts arrays of NumPy several times faster than `asarray`
        arrays = [_converted(self._jax, each) for each in given]
        found = self._function(*arrays)
        if not self._tried:
            self._tried = True
            with suppress(Exception):  # of code that cannot be compiled
                compiled = self._jax.jit(lambda *given: self._function(*given))  # traces are kept by function
                other = compiled(*arrays)
                if all(allclose(found[n], other[n], rtol=_SAME, atol=0.0, equal_nan=True) for n in found):
                    self._compiled = compiled
        return found


def _converted(jax: Any, arrays: Arrays) -> dict[str, Any]:
    return {name: jax.numpy.asarray(value) for name, value in arrays.items()}


class JaxFunction(Differentiable):
    """A function of JAX arrays: plain, jitted, or with a custom VJP or JVP.

    Derivatives are computed as JAX is configured, usually in float32; values with 64-bit types enabled.
    """

    def __init__(self, given: Given) -> None:
        import jax

        self._jax, self._function = jax, given.function
        self._arguments = Arguments(given.function, given.inputs)
        self._warm = self._mixed = self._last = False
        self._own_wide = bool(jax.numpy.zeros(()).dtype == float64)
        self._run, self._run_back = Compiled(jax, self._values), Compiled(jax, self._pulled)
        self.points, self.fixed = {}, {}
        for name, leaf in self._arguments.leaves.items():
            if isinstance(leaf, float | ndarray | generic | jax.Array):
                refuse_type(name, kind_name(leaf))
            if is_float(leaf):
                point = array(leaf)
                self.points[name] = point if self._own_wide else point.astype(float32)
            else:
                self.fixed[name] = kind_name(leaf)

    def run(self, point: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""

        def values() -> dict[str, Any]:
            if wide:
                return self._run(point)
            at = self._arrays(point)
            found = self._values(at)
            if not self._warm:
                self._warm = True
                with suppress(Exception):  # which a gradient that is judged will raise again
                    self._pulled(at, found)
            return found

        return self._computed(values, wide)

    def vjp(self, point: Arrays, cotangents: Arrays, wide: bool) -> dict[str, Any]:
        """See `Differentiable`."""

        def pulled() -> dict[str, Any]:
            return self._run_back(point, cotangents) if wide else self._pulled(self._arrays(point), cotangents)

        return self._computed(pulled, wide)

    def jvp(self, point: Arrays, tangents: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""

        def pushed() -> dict[str, Any]:
            at = self._arrays(point)
            along = {name: self._as(tangents[name], value) for name, value in at.items()}
            found: dict[str, Any] = self._jax.jvp(self._values, (at,), (along,))[1]
            return found

        with lacking("forward-mode"):
            return self._computed(pushed, wide)

    def second(
        self, point: Arrays, cotangents: Arrays, tangents: Arrays, wide: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Differentiable`."""

        def total(at: Any, into: Any, along: Any) -> Any:
            first = self._pulled(at, into)
            return sum((first[name] * along[name]).sum() for name in first)

        def gradient() -> dict[str, Any]:
            at = self._arrays(point)
            values = self._jax.eval_shape(self._values, at)
            into = {name: self._as(cotangents[name], value) for name, value in values.items()}
            along = {name: self._as(tangents[name], value) for name, value in at.items()}
            by_point, by_cotangent = self._jax.grad(total, argnums=(0, 1))(at, into, along)
            return {**{f"x{n}": v for n, v in by_point.items()}, **{f"u{n}": v for n, v in by_cotangent.items()}}

        found = self._computed(gradient, wide)
        return {n: found[f"x{n}"] for n in point}, {n: found[f"u{n}"] for n in cotangents}

    def close(self) -> None:
        """Forget code that was compiled with 64-bit types, whose constants JAX would find again without them."""
        if not self._own_wide:
            self._jax.clear_caches()

    def _computed(self, work: Callable[[], dict[str, Any]], wide: bool) -> dict[str, Array]:
        """Arrays that are computed with or without 64-bit types.

        JAX keeps constants of NumPy in code compiled for the other mode, and finds out when it runs; then it forgets.
        """
        if self._mixed and wide != self._last:
            self._jax.clear_caches()
        self._last = wide
        home = self._jax if hasattr(self._jax, "enable_x64") else self._jax.experimental  # by version
        with home.enable_x64(wide or self._own_wide):
            try:
                found = work()
            except Exception as error:
                if _OTHER_MODE not in str(error):
                    raise
                self._mixed = True
                self._jax.clear_caches()
                found = work()
            return {name: array(value) for name, value in found.items()}

    def _pulled(self, at: Mapping[str, Any], cotangents: Mapping[str, Any]) -> dict[str, Any]:
        values, pull = self._jax.vjp(self._values, at)
        found: dict[str, Any] = pull({name: self._as(cotangents[name], value) for name, value in values.items()})[0]
        return found

    def _values(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {name: leaf for name, leaf in self._arguments.leaves.items() if name not in arrays}
        found = flatten(self._function(*self._arguments.filled({**fixed, **arrays})))
        return {name: self._jax.numpy.asarray(value) for name, value in found.items() if self._floats(value)}

    def _floats(self, value: Any) -> bool:
        kind = getattr(value, "dtype", None)
        if kind is not None and self._jax.numpy.issubdtype(kind, self._jax.numpy.inexact) and kind not in FLOATS:
            raise UnusableError(f"returns values of type {kind}", "return float64 or float32")
        return isinstance(value, float) or (kind is not None and kind in FLOATS)

    def _arrays(self, point: Arrays) -> dict[str, Any]:
        return _converted(self._jax, point)

    def _as(self, values: Any, like: Any) -> Any:
        return self._jax.numpy.asarray(values, dtype=like.dtype)
