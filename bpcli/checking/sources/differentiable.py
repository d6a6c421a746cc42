"""Functions of PyTorch, JAX and NumPy behind one interface: their values, and the derivatives that are to be judged.

Values are computed in float64 where the code follows the type of its arguments, at the very numbers that it is given;
derivatives are those of its own type. The process that runs user code imports this module, so NumPy and the standard
library are all it needs, and a framework is imported only after the user's file has done so.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy import abs as absolute
from numpy import dtype, float32, float64, floating, isfinite, issubdtype, ones, zeros
from numpy.random import default_rng

from bpcli.checking.sources.pytree import flatten, joined, rebuild, unused
from bpcli.checking.sources.user_protocol import Array

Arrays = Mapping[str, Array]
FLOATS = (dtype(float64), dtype(float32))
# Shifts of a few units of roundoff of float32, and samples of them.
_SHIFT, _SAMPLES = 2.0**-21, 8
# The largest difference between the values of a function in float32 and in float64, relative to the largest value.
_ALIKE = 1e-3
RULES = ("vjp", "jvp", "hvp")
"""The derivatives that a NumPy function comes with."""


class UnusableError(Exception):
    """A function or its inputs cannot be judged: why, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class LackingError(Exception):
    """A function has no derivative of the kind that was asked for."""


@dataclass(frozen=True, eq=False)
class Given:
    """A function and the inputs to judge it at, with the `rules` of a NumPy function, named as in `RULES`."""

    function: Any
    inputs: tuple[Any, ...]
    rules: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


class Differentiable(ABC):
    """A function whose arguments and values are arrays by name, the names of leaves.

    `points` are the arrays to differentiate at, in the type that the code computes in; `fixed` maps other leaves to
    their kind. `kinds` has the type of every value, `sizes` its shape. `kind` is the type that derivatives are as
    accurate as, that of the least accurate array. If `wide`, values can be computed in float64; if `sharp`, derivatives
    of float32 code too. `reverse`: there is a VJP. If `by_cotangent`, second derivatives include those by cotangents.
    """

    by_cotangent: ClassVar[bool] = True
    reverse: bool = True

    points: dict[str, Array]
    fixed: dict[str, str]

    def prepare(self) -> None:
        """Evaluate the function once, to learn its values and whether it runs in float64. Raises what it raises."""
        found = self.run(self.points, wide=False)
        self.kinds = {name: value.dtype for name, value in found.items()}
        self.sizes = {name: value.shape for name, value in found.items()}
        if not sum(value.size for value in found.values()):
            raise UnusableError("returns no numbers of a floating type", "return at least one, float64 or float32")
        double = all(a.dtype == float64 for a in (*self.points.values(), *found.values()))
        self.kind = dtype(float64 if double else float32)
        self.wide = double or self._runs_wide(found)
        self.sharp = self.wide and not double and self._derives_wide()

    def _runs_wide(self, narrow: Arrays) -> bool:
        """Whether the function computes in float64 if it is given float64, and comes to the same values.

        The same are those that differ by the rounding of float32, which may be large where small shifts change much.
        """
        point, generator = {n: a.astype(float64) for n, a in self.points.items()}, default_rng(0)
        try:
            found = self.run(point, wide=True)
            if found.keys() != narrow.keys() or any(value.dtype != float64 for value in found.values()):
                return False
            if any(found[name].shape != value.shape for name, value in narrow.items()):
                return False
            slack = {n: _ALIKE * absolute(v[isfinite(v)]).max(initial=0.0) + zeros(v.shape) for n, v in found.items()}
            if _within(found, narrow, slack):
                return True
            for _ in range(_SAMPLES):
                units = {n: 1 + _SHIFT * generator.uniform(-1, 1, a.shape) for n, a in point.items()}
                near = self.run({n: a * units[n] for n, a in point.items()}, wide=True)
                slack = {n: slack[n] + absolute(near[n] - found[n]) for n in found}
        except Exception:
            return False
        return _within(found, narrow, slack)

    def _derives_wide(self) -> bool:
        """Whether derivatives are computed in float64 too if the function is given float64."""
        point = {name: value.astype(float64) for name, value in self.points.items()}
        try:
            if self.reverse:
                found = self.vjp(point, {name: ones(shape) for name, shape in self.sizes.items()}, wide=True)
            else:
                found = self.jvp(point, {name: ones(value.shape) for name, value in point.items()}, wide=True)
        except Exception:
            return False
        return all(getattr(value, "dtype", None) == float64 for value in found.values())

    @abstractmethod
    def close(self) -> None:
        """Leave the framework as it was."""

    @abstractmethod
    def run(self, point: Arrays, wide: bool) -> dict[str, Array]:
        """The values at a point, those of a floating type."""

    @abstractmethod
    def vjp(self, point: Arrays, cotangents: Arrays, wide: bool) -> dict[str, Any]:
        """The products of `cotangents`, one for each value, with the Jacobian: an array for each point."""

    @abstractmethod
    def jvp(self, point: Arrays, tangents: Arrays, wide: bool) -> dict[str, Array]:
        """The products of the Jacobian with `tangents`, one for each point: an array for each value.

        Raises LackingError if the function has none.
        """

    @abstractmethod
    def second(
        self, point: Arrays, cotangents: Arrays, tangents: Arrays, wide: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The gradient of ⟨tangents, vjp(point, cotangents)⟩ by the points and by the cotangents.

        Raises LackingError if the function has none.
        """


def _within(one: Arrays, other: Arrays, slack: Arrays) -> bool:
    return all(bool((absolute(one[name] - other[name]) <= slack[name]).all()) for name in one)


def parameters(function: Any) -> list[str]:
    """The names of the positional parameters of a function, as far as they are known."""
    owner = function if isinstance(function, type) else getattr(function, "__self__", None)
    if isinstance(owner, type) and hasattr(owner, "backward") and hasattr(owner, "forward"):
        torch = sys.modules.get("torch")
        base = torch.autograd.Function.setup_context if torch else None
        plain = getattr(owner, "setup_context", base) is not base
        return _positional(owner.forward)[0 if plain else 1 :]
    return _positional(getattr(function, "forward", function) if is_module(function) else function)


def _positional(function: Any) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def is_module(function: Any) -> bool:
    """Whether an object is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(function, torch.nn.Module)


class Arguments:
    """The `inputs` of a function, its `leaves` by name, and for each input the names of its leaves and their paths."""

    def __init__(self, function: Any, inputs: tuple[Any, ...]) -> None:
        self.inputs = inputs
        names = parameters(function)
        self.leaves: dict[str, Any] = {}
        self.of_input: list[list[tuple[str, str]]] = []
        for number, tree in enumerate(inputs):
            name = names[number] if number < len(names) else str(number)
            own = []
            for step, leaf in flatten(tree).items():
                # The items of a function's only input need no prefix.
                full = step if step and len(inputs) == 1 and not step.startswith("[") else under(name, step)
                full = unused(full, self.leaves)
                self.leaves[full] = leaf
                own.append((full, step))
            self.of_input.append(own)

    def filled(self, values: Mapping[str, Any]) -> list[Any]:
        """The inputs with other leaves."""
        rest: Iterator[Any] = iter([values[name] for name in self.leaves])
        return [rebuild(tree, rest) for tree in self.inputs]


def under(name: str, step: str) -> str:
    """The name of a leaf at the path `step` below an input."""
    return joined(name, step if step.startswith("[") or not step else f".{step}")


def kind_name(leaf: Any) -> str:
    """The type of a leaf that is not differentiated."""
    of = getattr(leaf, "dtype", None)
    return str(of) if of is not None else "None" if leaf is None else type(leaf).__name__


def refuse_type(name: str, kind: str) -> None:
    """Raise UnusableError for floating or complex types that cannot be judged."""
    if any(word in kind for word in ("complex", "float16", "float8", "half", "float128", "longdouble")):
        raise UnusableError(f"has an input {name} of type {kind}", "judge it with float64 or float32 arrays")


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating number or an array of them."""
    if isinstance(leaf, float):
        return True
    kind = getattr(leaf, "dtype", None)
    return isinstance(kind, dtype) and bool(issubdtype(kind, floating)) and hasattr(leaf, "__array__")


@contextmanager
def lacking(*signs: str) -> Iterator[None]:
    """Turn the refusal of a framework to run in forward mode, known by `signs` in its text, into LackingError."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if not any(sign in str(error) for sign in signs):
            raise
        raise LackingError(f"has no forward mode: {' '.join(str(error).split())}") from error
