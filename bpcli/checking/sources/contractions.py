"""Functions as black boxes: their values contracted with cotangents, their derivatives along tangents.

A function f of many values becomes scalar losses ⟨u, f⟩, whose gradients are the products Jᵀu. The cotangents u are
random, and all unit vectors where f has few values; never ones, for which a backward pass that ignores its cotangent or
is right for a sum only would be right. JVPs become gradients by coordinates along random tangents. The derivative of a
gradient becomes that of ⟨v, Jᵀu⟩. The process that runs user code imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from numpy import abs as absolute
from numpy import array, asarray, eye, finfo, float64, generic, ones, sqrt, stack, zeros
from numpy.random import Generator, default_rng

from bpcli.checking.sources.differentiable import Arrays, Differentiable, LackingError, UnusableError
from bpcli.checking.sources.user_protocol import Array

COTANGENTS, FEW = 3, 4
"""Random cotangents; and the largest number of values for which all unit vectors are taken instead."""
MIXED, ONES, FORWARD, SECOND = "mixed", "ones", "forward", "second"
OPTIONS = {FORWARD: "--forward", SECOND: "--order 2"}
"""The options that ask for these black boxes."""
_IN_PYTHON = {FORWARD: " (forward=True)", SECOND: " (order=2)"}
TANGENTS, SHIFTED = 8, 8
"""Tangents of each leaf; shifted points at which the rounding of derivatives is sampled."""
_UNITS = 4.0  # units of roundoff of a shift


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


def inner(weights: Arrays, values: Mapping[str, Any]) -> float:
    """⟨weights, values⟩ in float64. Raises ValueError where the shapes differ."""
    total = 0.0
    for name, weight in weights.items():
        value = asarray(values[name], dtype=float64) if name in values else None
        if value is None or value.shape != weight.shape:
            shape = "nothing" if value is None else f"shape {value.shape}"
            raise ValueError(f"returns {shape}, not shape {weight.shape}, for {name or 'its value'}")
        total += float((weight * value).sum())
    return total


class Pulled:
    """⟨u, f⟩ with the gradient Jᵀu; `params` are in float64 if the function computes its values in that."""

    def __init__(self, function: Differentiable, u: Arrays) -> None:
        self._function, self._u = function, u
        self.params = at_points(function)

    def loss(self, params: Arrays) -> float:
        """⟨u, f⟩."""
        return inner(self._u, self._function.run(params, self._function.wide))

    def grad(self, params: Arrays) -> dict[str, Any]:
        """Jᵀu, in the type that the code computes in."""
        return rounded(self._function.vjp(narrow(params, self._function), self._u, wide=False), self._function)


class Pushed:
    """⟨u, f⟩ by the coordinates of the inputs along random tangents, at zero: the gradient is ⟨u, J v⟩ for each v."""

    def __init__(self, function: Differentiable, u: Arrays, generator: Generator) -> None:
        self._function, self._u, self._generator = function, u, generator
        self._tangents = {name: tangents(value, generator) for name, value in function.points.items()}
        self.params = {name: zeros(TANGENTS) for name in function.points}

    def loss(self, params: Arrays) -> float:
        """⟨u, f⟩ at the point with these coordinates."""
        point = at_points(self._function)
        for name, rows in self._tangents.items():
            moved = point[name] + (params[name].reshape(-1, *(1,) * point[name].ndim) * rows).sum(axis=0)
            point[name] = moved.astype(point[name].dtype)
        return inner(self._u, self._function.run(point, self._function.wide))

    def grad(self, params: Arrays) -> dict[str, Any]:
        """⟨u, J v⟩ for the tangents v of each leaf, in the type that the code computes in."""
        each = self._products(self._function.points)
        return rounded(each, self._function)

    def gaps(self, params: Arrays) -> dict[str, Any]:
        """⟨u, J v⟩ - ⟨Jᵀu, v⟩ at the point, and at points that are shifted by roundoff, with the size of the terms.

        By leaf, `(2, 1 + SHIFTED, TANGENTS)`.
        """
        function, found = self._function, []
        for number in range(1 + SHIFTED):
            point = dict(function.points)
            for name, value in point.items() if number else ():
                unit = _UNITS * float(finfo(value.dtype).eps) / 2
                shift = unit * self._generator.standard_normal(value.shape)
                point[name] = (value * (1 + shift)).astype(value.dtype)
            pulled = function.vjp(point, self._u, wide=False)
            pushed = self._products(point)
            row = {}
            for name, rows in self._tangents.items():
                terms = (rows * array(pulled[name], dtype=float64)).reshape(TANGENTS, -1)
                row[name] = stack([pushed[name] - terms.sum(axis=1), absolute(terms).sum(axis=1)])
            found.append(row)
        return {name: stack([row[name] for row in found], axis=1) for name in params}

    def _products(self, point: Arrays) -> dict[str, Array]:
        found = {name: zeros(TANGENTS) for name in point}
        nothing = {name: zeros(value.shape) for name, value in point.items()}
        for name, rows in self._tangents.items():
            for number, row in enumerate(rows):
                pushed = self._function.jvp(point, {**nothing, name: row})
                found[name][number] = inner(self._u, pushed)
        return found


class PulledTwice:
    """⟨v, Jᵀu⟩ by the inputs and by u, with the gradient that the code has for it."""

    def __init__(self, function: Differentiable, u: Arrays, generator: Generator) -> None:
        self._function = function
        shapes = {name: value.shape for name, value in function.points.items()}
        self._v = {name: asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}
        self._u = {f"cotangent{f' {name}' if name else ''}": (name, value) for name, value in u.items()}
        by_u = function.by_cotangent
        kinds = dict.fromkeys(function.sizes, float64) if function.wide else function.kinds
        own = {label: value.astype(kinds[name]) for label, (name, value) in self._u.items()} if by_u else {}
        self.params = {**at_points(function), **own}

    def loss(self, params: Arrays) -> float:
        """⟨v, Jᵀu⟩."""
        point, u = self._parts(params)
        return inner(self._v, self._function.vjp(point, u, self._function.wide))

    def grad(self, params: Arrays) -> dict[str, Any]:
        """The gradient of ⟨v, Jᵀu⟩, in the type that the code computes in."""
        point, u = self._parts(params)
        by_point, by_u = self._function.second(narrow(point, self._function), u, self._v)
        found = {**by_point, **{label: by_u[name] for label, (name, _) in self._u.items() if name in by_u}}
        return rounded(found, self._function)

    def _parts(self, params: Arrays) -> tuple[dict[str, Array], dict[str, Array]]:
        point = {name: params[name] for name in self._function.points}
        return point, {name: params.get(label, value) for label, (name, value) in self._u.items()}


def at_points(function: Differentiable) -> dict[str, Array]:
    """The points of a function, in float64 if it computes its values in that."""
    return {name: value.astype(float64) if function.wide else value for name, value in function.points.items()}


def narrow(params: Arrays, function: Differentiable) -> dict[str, Array]:
    """Arrays in the types of a function's points."""
    return {name: params[name].astype(value.dtype) for name, value in function.points.items()}


def rounded(arrays: Mapping[str, Any], function: Differentiable) -> dict[str, Any]:
    """Arrays in the type that the function's derivatives are as accurate as; other objects as they are."""
    found = {name: asarray(value) if isinstance(value, float | generic) else value for name, value in arrays.items()}
    return {n: v.astype(function.kind) if getattr(v, "dtype", None) == float64 else v for n, v in found.items()}


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
            function.jvp(function.points, along)
        else:
            function.second(function.points, ones_of, along)
    except LackingError as error:
        raise UnusableError(str(error), f"define it, or leave out {OPTIONS[label]}{_IN_PYTHON[label]}") from error
    except Exception:
        return
