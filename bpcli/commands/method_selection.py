"""Which methods a command runs on a spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from bpcli.commands.shared_options import Refused, one_of
from bpcli.errors import BpError, Collector

if TYPE_CHECKING:
    from bpcli.checking.check_options import CheckOptions
    from bpcli.errors import Place
    from bpcli.methods import MethodCall
    from bpcli.problem.definition import Setup


def read(texts: Sequence[str]) -> tuple[MethodCall, ...]:
    """The methods of `-m`, each once; raises BpError."""
    return _distinct(_parsed([(text, None) for text in texts]))


def from_project() -> bool:
    """Whether the methods of this call come from `[tool.bp]`, so that a spec's own count more."""
    source = click.get_current_context().get_parameter_source("method")
    return source is ParameterSource.DEFAULT_MAP


def choose(setup: Setup, given: Sequence[MethodCall], weak: bool = False) -> tuple[MethodCall, ...]:
    """`given`; `[check] methods` where nothing is given or it is `weak`; else what suits any graph of its kind."""
    own = setup.spec.check.methods
    if given and not (weak and own):
        return tuple(given)
    place = setup.spec.source.value
    if own:
        return _distinct(_parsed([(text, place("check", "methods", str(i))) for i, text in enumerate(own)]))
    from bpcli.methods import default_methods

    return read(default_methods(setup.graph))


def reference(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A callback that lets pass what can judge here: "auto", a reference, or a peer that is installed."""
    from bpcli import backends, references

    outside = backends.known_names()
    one_of(lambda: ("auto", *references.known(), *outside))(context, parameter, value)
    if value in outside:
        try:
            backends.get(value)
        except BpError as error:
            raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None
    return value


def judged(
    setup: Setup, calls: Sequence[MethodCall], given: Sequence[MethodCall], options: CheckOptions
) -> tuple[tuple[MethodCall, ...], Mapping[str, str]]:
    """The methods that the reference can judge, and the reasons of those skipped.

    Raises BpError where one of them is `given`, or none is left.
    """
    from bpcli.checking.check_options import unjudged

    reasons = unjudged(setup, calls, options)
    collector = Collector()
    for call in calls:
        if call.text in reasons and (call in given or len(reasons) == len(calls)):
            advice = "the reference complex-step judges every method"
            collector.add("reference-refused", f"{call.text}: {reasons[call.text]}", _place(setup, call), help=advice)
    collector.finish()
    return tuple(c for c in calls if c.text not in reasons), reasons


def applying(
    setup: Setup, calls: Sequence[MethodCall], alone: bool
) -> tuple[tuple[MethodCall, ...], Mapping[str, str]]:
    """The methods that apply to the graph, and the reasons of those skipped; when `alone` these are refused instead."""
    from bpcli.methods import advice

    reasons = {call: reason for call in calls if (reason := call.refusal(setup.graph))}
    collector = Collector()
    for call, reason in reasons.items():
        collector.add("method-refused", f"{call.text}: {reason}", _place(setup, call), help=advice(setup.graph))
    if alone:
        collector.finish()
    return tuple(c for c in calls if c not in reasons), {call.text: reason for call, reason in reasons.items()}


def _place(setup: Setup, call: MethodCall) -> Place | None:
    """Where the spec names the method; None where the command line does."""
    texts = [m.strip() for m in setup.spec.check.methods]
    if call.text not in texts:
        return None
    return setup.spec.source.value("check", "methods", str(texts.index(call.text)))


def _parsed(texts: Iterable[tuple[str, Place | None]]) -> list[MethodCall]:
    """Methods and where they are named; raises BpError with all that are none."""
    from bpcli import references
    from bpcli.methods import parse

    found, collector = [], Collector()
    for text, place in texts:
        try:
            found.append(parse(text, place))
        except BpError as error:
            for told in error.diagnostics:
                judges = told.code == "unknown-method" and text.strip() in references.known()
                help_ = f"--reference {text.strip()} judges methods by it" if judges else told.help
                collector.add(told.code, told.what, told.place, help=help_)
    collector.finish()
    return found


def _distinct(calls: Sequence[MethodCall]) -> tuple[MethodCall, ...]:
    return tuple({call.text: call for call in calls}.values())
