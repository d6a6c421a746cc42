"""Functions as black boxes: their values contracted with cotangents, their derivatives along tangents.

A function f of many values becomes scalar losses ⟨u, f⟩, whose gradients are the products Jᵀu. The cotangents u are
random, and all unit vectors where f has few values; never ones, for which a backward pass that ignores its cotangent or
is right for a sum only would be right. JVPs become gradients by coordinates along random tangents. The derivative of a
gradient becomes that of ⟨v, Jᵀu⟩. The process that runs user code imports this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from zlib import crc32

from numpy import abs as absolute
from numpy import array, asarray, concatenate, eye, finfo, float32, float64, generic, ones, sqrt, stack, where, zeros
from numpy.random import Generator, default_rng

from bpcli.checking.sources.differentiable import Arrays, Differentiable, LackingError, UnusableError
from bpcli.checking.sources.user_protocol import Array

COTANGENTS, FEW = 3, 4
"""Random cotangents; and the largest number of values for which all unit vectors are taken instead."""
MIXED, ONES, FORWARD, SECOND = "mixed", "ones", "forward", "second"
OPTIONS = {FORWARD: "--forward", SECOND: "--order 2"}
"""The options that ask for these black boxes."""
_IN_PYTHON = {FORWARD: " (forward=True)", SECOND: " (order=2)"}
TANGENTS, SHIFTED = 8, 5
"""Tangents of each leaf; shifted points at which the rounding of derivatives is sampled."""
_UNITS = 4.0  # units of roundoff of a shift
# A relative shift that leaves a minimum; and the part of the terms of a loss by which saturated units may be judged.
_AWAY, _NATURAL = 2.0**-4, 1e-2


def contractions(function: Differentiable) -> tuple[dict[str, Any], dict[str, float]]:
    """The black boxes of a function by label, and the labels of the cotangents to judge.

    Beside these there are `ONES`, `FORWARD` and `SECOND`. If the cotangents span all, also `MIXED`, whose cotangent is
    their sum with the weights that the labels map to; else these are 0.
    """
    size = sum(value.size for value in zeros_of(function).values())
    generator = default_rng(crc32("/".join(function.points).encode()))
    few = size <= FEW
    rows = eye(size) if few else generator.standard_normal((COTANGENTS, size))
    cotangents = {f"u{number}": split(row, function) for number, row in enumerate(rows, 1)}
    row = generator.standard_normal(size)
    mixed = split(row, function)
    found: dict[str, Any] = {label: Pulled(function, u) for label, u in cotangents.items()}
    found |= {MIXED: Pulled(function, mixed)} if few else {}
    found[ONES] = Pulled(function, split(ones(size), function))
    found[FORWARD] = Pushed(function, mixed, generator)
    found[SECOND] = PulledTwice(function, cotangents["u1"] if size == 1 else mixed, generator)
    return found, dict(zip(cotangents, row.tolist() if few else [0.0] * COTANGENTS, strict=True))


def zeros_of(function: Differentiable) -> dict[str, Array]:
    """Zeros of the shapes of a function's values."""
    return {name: zeros(shape) for name, shape in function.sizes.items()}


def split(row: Array, function: Differentiable) -> dict[str, Array]:
    """The numbers of a vector as arrays of the shapes of a function's values."""
    found, start = {}, 0
    for name, like in zeros_of(function).items():
        found[name] = row[start : start + like.size].reshape(like.shape)
        start += like.size
    return found


def products(weights: Arrays, values: Mapping[str, Any]) -> Array:
    """The products of weights and values in float64, flat. Raises ValueError where the shapes differ."""
    found = []
    for name, weight in weights.items():
        value = asarray(values[name], dtype=float64) if name in values else None
        if value is None or value.shape != weight.shape:
            shape = "nothing" if value is None else f"shape {value.shape}"
            raise ValueError(f"returns {shape}, not shape {weight.shape}, for {name or 'its value'}")
        found.append((weight * value).reshape(-1))
    return concatenate(found)


class Contraction(ABC):
    """A scalar function of arrays with a gradient; `params` are in float64 if the loss is computed in that.

    Its params are `coordinates` along tangents, at zero, or arrays of the function.
    """

    params: dict[str, Array]
    coordinates: ClassVar[bool] = False

    def __init__(self, function: Differentiable) -> None:
        self.function = function

    def loss(self, params: Arrays) -> float:
        """The sum of the products."""
        return float(self.terms(params).sum())

    def grad(self, params: Arrays) -> dict[str, Any]:
        """The gradient, in float64 if float32 code allows that: how it is rounded, `in_single` says."""
        return self.gradient(params, self.function.sharp)

    def in_single(self, params: Arrays) -> dict[str, Any]:
        """The gradient in float32 and in float64, the rounding of the former in two parts, and the size of gradients.

        By name, `(5, *shape)`. No entry is rounded less than the largest one, or than the terms of the loss over the
        size of its parameter. To this adds what is sampled at points shifted by roundoff: how far the gradient moves,
        and what float32 adds. At a minimum both the gradient and these terms may vanish, but not near by.
        """
        unit, generator = float(finfo(float32).eps) / 2, default_rng(1)
        near = [self._shifted(params, _UNITS * unit, generator) for _ in range(SHIFTED)]
        points = [params, *({n: a.astype(float32).astype(float64) for n, a in there.items()} for there in near)]
        away = self._shifted(params, _AWAY, generator)
        # One type after the other: JAX may have to compile for each change.
        *exact, far = (self._as_float64(point, wide=True) for point in (*points, away))
        short = [self._as_float64(point, wide=False) for point in points]
        level = float(sqrt((self.terms(params) ** 2).sum()))
        found = {}
        for name, value in exact[0].items():
            size = absolute(params[name])
            natural = level / where(size > 0, size, 1.0)
            least = unit * (absolute(value).max(initial=0.0) + natural)
            moves = stack([other[name] - value for other in exact[1:]])
            adds = stack([narrow[name] - wide[name] for narrow, wide in zip(short[1:], exact[1:], strict=True)])
            sampled = sqrt((moves**2).mean(axis=0)) / _UNITS + adds.std(axis=0)
            largest = absolute(stack([value, far[name], _NATURAL * natural])).max(initial=0.0)
            found[name] = stack([short[0][name], value, least, sampled, largest + zeros(value.shape)])
        return found

    def _shifted(self, params: Arrays, size: float, generator: Generator) -> dict[str, Array]:
        """Params at random relative distances up to `size`, coordinates at absolute ones."""
        shifts = {name: asarray(size * generator.uniform(-1, 1, value.shape)) for name, value in params.items()}
        return shifts if self.coordinates else {name: value * (1 + shifts[name]) for name, value in params.items()}

    def _as_float64(self, params: Arrays, wide: bool) -> dict[str, Array]:
        found = self.gradient(params, wide)
        return {name: array(found[name], dtype=float64) for name in params}

    @abstractmethod
    def terms(self, params: Arrays) -> Array:
        """The products that the loss is the sum of."""

    @abstractmethod
    def gradient(self, params: Arrays, wide: bool) -> dict[str, Any]:
        """The gradient in float64 if `wide`, else in the type that the code computes in."""


class Pulled(Contraction):
    """⟨u, f⟩ with the gradient Jᵀu."""

    def __init__(self, function: Differentiable, u: Arrays) -> None:
        super().__init__(function)
        self._u, self.params = u, at_points(function)

    def terms(self, params: Arrays) -> Array:
        """u f."""
        return products(self._u, self.function.run(params, self.function.wide))

    def gradient(self, params: Arrays, wide: bool) -> dict[str, Any]:
        """Jᵀu."""
        point = params if wide else narrow(params, self.function)
        return rounded(self.function.vjp(point, self._u, wide), self.function, wide)


class Pushed(Contraction):
    """⟨u, f⟩ by the coordinates of the inputs along random tangents, at zero: the gradient is ⟨u, J v⟩ for each v."""

    coordinates: ClassVar[bool] = True

    def __init__(self, function: Differentiable, u: Arrays, generator: Generator) -> None:
        super().__init__(function)
        self._u, self._generator = u, generator
        self._tangents = {name: tangents(value, generator) for name, value in function.points.items()}
        self.params = {name: zeros(TANGENTS) for name in function.points}

    def terms(self, params: Arrays) -> Array:
        """u f at the point with these coordinates."""
        return products(self._u, self.function.run(self._at(params), self.function.wide))

    def gradient(self, params: Arrays, wide: bool) -> dict[str, Any]:
        """⟨u, J v⟩ for the tangents v of each leaf, at the nearest point of the type that the code computes in."""
        point = narrow(self._at(params), self.function)
        point = {name: value.astype(float64) for name, value in point.items()} if wide else point
        return rounded(self._along(point, wide), self.function, wide)

    def gaps(self, params: Arrays) -> dict[str, Any]:
        """⟨u, J v⟩ - ⟨Jᵀu, v⟩ at the point, and at points that are shifted by roundoff, with the size of the terms.

        By leaf, `(2, 1 + SHIFTED, TANGENTS)`.
        """
        function, found = self.function, []
        start = at_points(function) if function.sharp else function.points
        for number in range(1 + SHIFTED):
            point = dict(start)
            for name, value in point.items() if number else ():
                unit = _UNITS * float(finfo(value.dtype).eps) / 2
                shift = unit * self._generator.standard_normal(value.shape)
                point[name] = (value * (1 + shift)).astype(value.dtype)
            pulled = function.vjp(point, self._u, function.sharp)
            pushed = self._along(point, function.sharp)
            row = {}
            for name, rows in self._tangents.items():
                terms = (rows * array(pulled[name], dtype=float64)).reshape(TANGENTS, -1)
                row[name] = stack([pushed[name] - terms.sum(axis=1), absolute(terms).sum(axis=1)])
            found.append(row)
        return {name: stack([row[name] for row in found], axis=1) for name in params}

    def _at(self, params: Arrays) -> dict[str, Array]:
        point = at_points(self.function)
        for name, rows in self._tangents.items():
            moved = point[name] + (params[name].reshape(-1, *(1,) * point[name].ndim) * rows).sum(axis=0)
            point[name] = moved.astype(point[name].dtype)
        return point

    def _along(self, point: Arrays, wide: bool) -> dict[str, Array]:
        found = {name: zeros(TANGENTS) for name in point}
        nothing = {name: zeros(value.shape) for name, value in point.items()}
        for name, rows in self._tangents.items():
            for number, row in enumerate(rows):
                pushed = self.function.jvp(point, {**nothing, name: row}, wide)
                found[name][number] = products(self._u, pushed).sum()
        return found


class PulledTwice(Contraction):
    """⟨v, Jᵀu⟩ by the inputs and by u, with the gradient that the code has for it."""

    def __init__(self, function: Differentiable, u: Arrays, generator: Generator) -> None:
        super().__init__(function)
        shapes = {name: value.shape for name, value in function.points.items()}
        self._v = {name: asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}
        self._u = {f"cotangent{f' {name}' if name else ''}": (name, value) for name, value in u.items()}
        kinds = dict.fromkeys(function.sizes, float64) if function.wide else function.kinds
        own = {label: value.astype(float32).astype(kinds[name]) for label, (name, value) in self._u.items()}
        self.params = {**at_points(function), **(own if function.by_cotangent else {})}

    def terms(self, params: Arrays) -> Array:
        """v Jᵀu."""
        point, u = self._parts(params)
        return products(self._v, self.function.vjp(point, u, self.function.wide))

    def gradient(self, params: Arrays, wide: bool) -> dict[str, Any]:
        """The gradient of ⟨v, Jᵀu⟩."""
        point, u = self._parts(params)
        at = point if wide else narrow(point, self.function)
        by_point, by_u = self.function.second(at, u, self._v, wide)
        found = {**by_point, **{label: by_u[name] for label, (name, _) in self._u.items() if name in by_u}}
        return rounded(found, self.function, wide)

    def _parts(self, params: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        point = {name: params[name] for name in self.function.points}
        return point, {name: params.get(label, value) for label, (name, value) in self._u.items()}


def at_points(function: Differentiable) -> dict[str, Array]:
    """The points of a function, in float64 if it computes its values in that."""
    return {name: value.astype(float64) if function.wide else value for name, value in function.points.items()}


def narrow(params: Arrays, function: Differentiable) -> dict[str, Array]:
    """Arrays in the types of a function's points."""
    return {name: params[name].astype(value.dtype) for name, value in function.points.items()}


def rounded(arrays: Mapping[str, Any], function: Differentiable, wide: bool) -> dict[str, Any]:
    """Arrays in the type that the function's derivatives are as accurate as; other objects as they are."""
    found = {name: asarray(value) if isinstance(value, float | generic) else value for name, value in arrays.items()}
    kind = float64 if wide else function.kind
    return {n: v.astype(kind) if getattr(v, "dtype", None) == float64 else v for n, v in found.items()}


def tangents(value: Array, generator: Generator) -> Array:
    """Random tangents `(TANGENTS, *shape)` of the size of an array's entries, of size 1 where these are zero."""
    size = float(sqrt((value.astype(float64) ** 2).mean())) if value.size else 1.0
    return generator.standard_normal((TANGENTS, *value.shape)) * (size if 0 < size < float("inf") else 1.0)


def require(function: Differentiable, label: str) -> None:
    """Raise UnusableError if the function lacks the derivatives of `FORWARD` or `SECOND`; other errors are findings."""
    ones_of = {name: ones(shape) for name, shape in function.sizes.items()}
    along = {name: ones(value.shape) for name, value in function.points.items()}
    try:
        if label == FORWARD:
            function.jvp(function.points, along, wide=False)
        else:
            function.second(function.points, ones_of, along, wide=False)
    except LackingError as error:
        raise UnusableError(str(error), f"define it, or leave out {OPTIONS[label]}{_IN_PYTHON[label]}") from error
    except Exception:
        return
