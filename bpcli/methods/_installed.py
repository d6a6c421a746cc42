"""Methods of other packages, from entry points of the group `bpcli.methods`: a METHOD, or a module that has one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from bpcli.errors import fail, printable
from bpcli.graph.nodes import Graph
from bpcli.methods.base import (
    Cost,
    Definition,
    Exact,
    Expectation,
    Gradient,
    Method,
    Recursion,
    Stepwise,
    Windows,
)
from bpcli.problem.definition import Problem, Setup

_Result = TypeVar("_Result")
_PARTS = ("refusal", "definition", "cost", "gradient")


def load(point: importlib.metadata.EntryPoint) -> Method:
    """Load the method of an entry point. Raises BpError if it cannot be used."""
    name = point.name
    try:
        loaded = point.load()
        method = getattr(loaded, "METHOD", loaded)
        fault = _fault(method, name)
    except (Exception, SystemExit) as error:
        _refuse(point, error)
    if fault:
        advice = f"bpcli/methods/base.py says what a method has; {_origin(point)} should be mended, or uninstalled"
        fail("plug-in", f'the method "{printable(name)}" of {_origin(point)} is not a method: {fault}', help=advice)
    return cast("Method", _Guarded(method.name, method.summary, frozenset(method.tags), method.Options, method, point))


@dataclass(frozen=True)
class _Guarded:
    """A method of another package, whose exceptions are reported as faults of that package."""

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    method: Method
    point: importlib.metadata.EntryPoint

    def refusal(self, graph: Graph) -> str | None:
        """See `Method`."""
        return self._run(lambda: self.method.refusal(graph))

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        return self._run(lambda: _defined(self.method.definition(setup, options)))

    def cost(self, setup: Setup, options: Any) -> Cost:
        """See `Method`."""
        return self._run(lambda: self.method.cost(setup, options))

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """See `Method`."""
        return self._run(lambda: self.method.gradient(problem, options))

    def step_gradients(self, problem: Problem, options: Any) -> Iterator[Gradient] | None:
        """See `Stepwise`."""
        if not isinstance(self.method, Stepwise):
            return None
        method = self.method
        found = self._run(lambda: method.step_gradients(problem, options))
        return None if found is None else self._each(found)

    def _each(self, gradients: Iterator[Gradient]) -> Iterator[Gradient]:
        try:
            yield from gradients
        except (Exception, SystemExit) as error:
            _refuse(self.point, error)

    def _run(self, part: Callable[[], _Result]) -> _Result:
        try:
            return part()
        except (Exception, SystemExit) as error:
            _refuse(self.point, error)


def _defined(found: Any) -> Definition:
    """Check that `found` is a definition. Raises TypeError if it is none."""
    if isinstance(found, Windows):
        return Windows(tuple(found.windows))
    if isinstance(found, Exact | Recursion | Expectation):
        return found
    raise TypeError(f"definition gives {type(found).__name__}, not Exact() or Windows(windows) of bpcli.methods.base")


def _fault(method: Any, name: str) -> str:
    """The first reason why an object is no method; "" if it is one."""
    lacking = [part for part in ("name", "summary", "tags", "Options", *_PARTS) if not hasattr(method, part)]
    if lacking == ["definition"] and hasattr(method, "windows"):
        return "it has `windows` where a `definition` is wanted, Exact() or Windows(windows) of bpcli.methods.base"
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    if method.name != name:
        return f'it calls itself "{printable(str(method.name))}"'
    if not dataclasses.is_dataclass(method.Options) or not isinstance(method.Options, type):
        return "its Options are not a dataclass"
    uncalled = [part for part in _PARTS if not callable(getattr(method, part))]
    return f"{', '.join(uncalled)} can't be called" if uncalled else ""


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f'the entry point "{printable(point.value)}"'


def _refuse(point: importlib.metadata.EntryPoint, error: BaseException) -> NoReturn:
    where = "".join(f" ({f.filename}:{f.lineno})" for f in traceback.extract_tb(error.__traceback__)[-1:])
    what = f'the method "{printable(point.name)}" of {_origin(point)} fails: {type(error).__name__}: {error}{where}'
    fail("plug-in", what, help=f"{_origin(point)} should be mended, or uninstalled")
