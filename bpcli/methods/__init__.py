"""Registry of gradient methods and parser of method strings.

A method is a module found by its file name, or an entry point of the group `bpcli.methods` in another package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
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

    def step_gradients(self, problem: Problem) -> Iterator[Gradient] | None:
        """The gradient of every step, see `Stepwise`; None where the method has none."""
        from bpcli.methods.base import Stepwise

        return self.method.step_gradients(problem, self.options) if isinstance(self.method, Stepwise) else None


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


@dataclass(frozen=True)
class About:
    """A method's source, a paper with its year, and its cost for each step and sample in symbols.

    F are the operations of a step forwards, V the numbers that one holds, N the state's size, P the parameters that
    reach it, c the entries of a column of the influence M, m by n the sizes of a product's matrix. All are "" where the
    method's package does not say them.
    """

    source: str = ""
    time: str = ""
    memory: str = ""


def about(name: str) -> About:
    """Of a built-in method: the first parenthesis with a year in its module's docstring, and `PER_STEP` there."""
    if name not in built_in():
        return About()
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    source = re.search(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)", (module.__doc__ or "").partition("\n\n")[0])
    return About(" ".join(source[1].split()) if source else "", *getattr(module, "PER_STEP", ()))


_TYPICAL = {"k": "1", "k1": "1", "k2": "8", "tau": "8", "s": "10", "p": "0.1", "r": "2", "h": "8"}


def typical(name: str) -> MethodCall:
    """A method with usual values of the options that have no default. Raises BpError if it cannot be used."""
    method = load(name)
    needed = [o.removesuffix("=…") for o in options_of(method) if o.endswith("=…")]
    types = typing.get_type_hints(method.Options)
    given = [f"{o}={_TYPICAL.get(o, '4' if types[o] is int else '0.5')}" for o in needed]
    return parse(f"{name}:{','.join(given)}" if given else name)


def advice(graph: Graph) -> str:
    """A phrase that lists the built-in methods that apply to a graph."""
    fit = [name for name in known_names() if name not in installed() and load(name).refusal(graph) is None]
    return f"methods that apply here: {', '.join(fit)}"


def stepwise_methods(graph: Graph) -> tuple[str, ...]:
    """The built-in methods that apply to a graph and have the gradient of every step, with some of their options."""
    from bpcli.methods.base import Stepwise

    found = [(name, load(name)) for name in known_names() if name not in installed()]
    return tuple(n for n, m in found if isinstance(m, Stepwise) and "online" in m.tags and m.refusal(graph) is None)


def exact_method(graph: Graph) -> str:
    """The name of the cheapest method that computes the total derivative of a graph."""
    return next(name for name in by_reverse_mode() if load(name).refusal(graph) is None)


def default_methods(graph: Graph) -> tuple[str, ...]:
    """The methods to run where none is named: those tagged "default" that apply to the graph."""
    return tuple(n for n in _tagged("default") if load(n).refusal(graph) is None)


def all_methods(setup: Setup) -> tuple[str, ...]:
    """All built-in methods that apply to a setup's graph, with usual options; the exact ones first, `bptt` ahead."""
    from bpcli.methods.base import KINDS

    calls = [typical(name) for name in known_names() if name not in installed()]
    kinds = {call: KINDS[type(call.definition(setup))] for call in calls if call.refusal(setup.graph) is None}
    first = exact_method(setup.graph)
    return tuple(c.text for c in sorted(kinds, key=lambda c: (list(KINDS.values()).index(kinds[c]), c.text != first)))


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
    if several := _several(text):
        words = " ".join(f"-m {m}" for m in several) if place is None else f"methods = {json.dumps(several)}"
        fail("unknown-method", f'"{text}" is more than one method', place, help=f"write {words}")
    if name not in known_names():
        first, _, options = name.partition(",")
        advice = nearest(name, known_names())
        if "=" in options and first in known_names():
            advice = f"options follow a colon: {first}:{options}"
        fail("unknown-method", f'unknown method "{name}"', place, help=advice)
    method = load(name)
    return MethodCall(text, method, read(name, method.Options, tail if colon else None, place, "methods"))


def _several(text: str) -> list[str]:
    """The methods of a list, separated by commas, semicolons or blanks; nothing where it is no list of methods."""
    found: list[str] = []
    for part in filter(None, re.split(r"[,;\s]+", text)):
        if part.partition(":")[0] in known_names():
            found.append(part)
        elif found and "=" in part:  # an option of the method before
            found[-1] += f",{part}"
        else:
            return []
    return found if len(found) > 1 else []


def options_of(method: Method) -> tuple[str, ...]:
    """The method's options in order, as `name=default`, or `name=…` where there is no default."""
    return listed(method.Options)
