"""Selection of the methods to run on a spec, and validation of the options of a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast, get_args

from bpcli import backends, references
from bpcli.checking.check_options import CheckOptions, Mode, unjudged
from bpcli.checking.reference_cache import AUTO
from bpcli.errors import BpError, Collector, Place, fail, nearest
from bpcli.methods import MethodCall, advice, parse
from bpcli.problem.definition import Setup

MODES: tuple[str, ...] = get_args(Mode)


def read(texts: Sequence[str]) -> tuple[MethodCall, ...]:
    """Parse `texts` to distinct methods; raises BpError for invalid ones."""
    return _distinct(_parsed([(text, None) for text in texts]))


def choose(setup: Setup, given: Sequence[MethodCall], weak: bool = False) -> tuple[MethodCall, ...]:
    """`given`, or `[check] methods` if nothing is given or `given` is `weak`, or the defaults for the kind of graph."""
    own = setup.spec.check.methods
    if given and not (weak and own):
        return tuple(given)
    place = setup.spec.source.value
    if own:
        return _distinct(_parsed([(text, place("check", "methods", str(i))) for i, text in enumerate(own)]))
    from bpcli.methods import default_methods

    return read(default_methods(setup.graph))


def known_references() -> tuple[str, ...]:
    """The values of `reference`: "auto", the references, and the backends, whether installed or not."""
    return (AUTO, *references.known(), *backends.known_names())


def check_options(reference: str, mode: str, tolerance: float = 0.0) -> CheckOptions:
    """The options of a check; raises BpError for an unknown value, or a backend that is not installed."""
    for what, word, known in (("reference", reference, known_references()), ("mode", mode, MODES)):
        if word not in known:
            fail("usage", f'{what}: unknown value "{word}"', help=nearest(word, known))
    if not 0 <= tolerance < 1:
        what = f"tolerance: expected a number from 0 to 1, got {tolerance:g}"
        fail("usage", what, help="it is relative to the largest entry of a gradient, for example 1e-6")
    if reference in backends.known_names():
        backends.get(reference)
    return CheckOptions(reference, cast("Mode", mode), tolerance)


def judged(
    setup: Setup, calls: Sequence[MethodCall], given: Sequence[MethodCall], options: CheckOptions
) -> tuple[tuple[MethodCall, ...], Mapping[str, str]]:
    """The methods that the reference can judge, and the reasons why others are skipped.

    Raises BpError if a skipped method is among `given`, or all are skipped.
    """
    reasons = unjudged(setup, calls, options)
    collector = Collector()
    for call in calls:
        if call.text in reasons and (call in given or len(reasons) == len(calls)):
            remedy = "the reference complex-step judges every method"
            collector.add("reference-refused", f"{call.text}: {reasons[call.text]}", _place(setup, call), help=remedy)
    collector.finish()
    return tuple(c for c in calls if c.text not in reasons), reasons


def applying(
    setup: Setup, calls: Sequence[MethodCall], alone: bool
) -> tuple[tuple[MethodCall, ...], Mapping[str, str]]:
    """The methods that apply to the graph, and the reasons why others are skipped or, if `alone`, refused."""
    reasons = {call: reason for call in calls if (reason := call.refusal(setup.graph))}
    collector = Collector()
    for call, reason in reasons.items():
        collector.add("method-refused", f"{call.text}: {reason}", _place(setup, call), help=advice(setup.graph))
    if alone:
        collector.finish()
    return tuple(c for c in calls if c not in reasons), {call.text: reason for call, reason in reasons.items()}


def _place(setup: Setup, call: MethodCall) -> Place | None:
    """The place of the method in the spec; None if it is from the command line."""
    texts = [m.strip() for m in setup.spec.check.methods]
    if call.text not in texts:
        return None
    return setup.spec.source.value("check", "methods", str(texts.index(call.text)))


def _parsed(texts: Iterable[tuple[str, Place | None]]) -> list[MethodCall]:
    """Parse methods, given with their places; raises BpError for all invalid ones together."""
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
