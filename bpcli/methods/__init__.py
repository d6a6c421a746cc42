"""Registry of gradient methods and parser of method strings.

A method is a module found by its file name, or an entry point of the group `bpcli.methods` in another package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.errors import Place, fail, nearest
from bpcli.spec.options import listed, read

if TYPE_CHECKING:
    from bpcli.graph.nodes import Graph
    from bpcli.methods.base import Cost, Definition, Gradient, Method
    from bpcli.problem.definition import Problem, Setup

GROUP = "bpcli.methods"
_NOT_METHODS = frozenset({"base"})


@dataclass(frozen=True)
class MethodCall:
    """A method with its options; `text`, as the user wrote it, names the method in every report."""

    text: str
    method: Method
    options: Any

    def refusal(self, graph: Graph) -> str | None:
        """Why the method does not apply to this graph, with methods that do; None when it applies."""
        return self.method.refusal(graph)

    def definition(self, setup: Setup) -> Definition:
        """The mathematics that the gradient is judged against."""
        return self.method.definition(setup, self.options)

    def cost(self, setup: Setup) -> Cost:
        """Predicted cost, from sizes alone."""
        return self.method.cost(setup, self.options)

    def gradient(self, problem: Problem) -> Gradient:
        """The gradient with respect to `problem.setup.wrt`."""
        return self.method.gradient(problem, self.options)


def known_names() -> tuple[str, ...]:
    """The names of all methods, sorted. Nothing is imported: a method of another package may still fail to load."""
    return tuple(sorted({*built_in(), *installed()}))


@functools.cache
def installed() -> Mapping[str, importlib.metadata.EntryPoint]:
    """Entry points of other packages by name; the first of a name wins, and built-in methods take precedence."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found


@functools.cache
def built_in() -> tuple[str, ...]:
    """The names of the built-in methods, sorted, from the file names."""
    files = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(f.replace("_", "-") for f in files if f not in _NOT_METHODS and not f.startswith("_")))


def load(name: str) -> Method:
    """Import the method `name`, one of `known_names()`; built-in methods take precedence.

    Raises BpError if a method of another package cannot be used.
    """
    if name not in built_in():
        from bpcli.methods._installed import load as load_installed

        return load_installed(installed()[name])
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return typing.cast("Method", module.METHOD)


def advice(graph: Graph) -> str:
    """A phrase that lists the built-in methods that apply to a graph."""
    fit = [name for name in known_names() if name not in installed() and load(name).refusal(graph) is None]
    return f"methods that apply here: {', '.join(fit)}"


def exact_method(graph: Graph) -> str:
    """The name of the cheapest method that computes the total derivative of a graph."""
    return next(name for name in by_reverse_mode() if load(name).refusal(graph) is None)


def default_methods(graph: Graph) -> tuple[str, ...]:
    """The methods to run where none is named: those tagged "default" that apply to the graph."""
    return tuple(n for n in _tagged("default") if load(n).refusal(graph) is None)


def by_reverse_mode() -> tuple[str, ...]:
    """The exact reverse-mode methods: the cheapest way to the true gradient, one for each kind of graph."""
    return _tagged("exact", "reverse")


def _tagged(*tags: str) -> tuple[str, ...]:
    """The built-in methods that have all of these tags."""
    return tuple(n for n in known_names() if n not in installed() and load(n).tags.issuperset(tags))


def parse(text: str, place: Place | None = None) -> MethodCall:
    """Parse `name`, `name:option=value,…` or, for a method with one option, `name:value`.

    Raises BpError at `place` (None: the command line) for an unknown name or option, a value of the wrong type or out
    of range, a missing or repeated option.
    """
    text = text.strip()
    name, colon, tail = text.partition(":")
    name = name.strip()
    if name not in known_names():
        fail("unknown-method", f'unknown method "{name}"', place, help=nearest(name, known_names()))
    method = load(name)
    return MethodCall(text, method, read(name, method.Options, tail if colon else None, place, "methods"))


def options_of(method: Method) -> tuple[str, ...]:
    """The method's options in order, as `name=default`, or `name=…` where there is no default."""
    return listed(method.Options)
