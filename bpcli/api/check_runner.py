"""A check of several specs: judge them in turn, collect the results, and make one report of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.api.check_document import places_of, sizes_note
from bpcli.api.check_report import Report
from bpcli.api.method_selection import applying, choose, judged
from bpcli.api.user_gradients import Asked, of_spec
from bpcli.checking import check_options
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.findings import Finding
from bpcli.checking.sources.gradient_source import GradientSource
from bpcli.errors import Diagnostic, Place
from bpcli.methods import MethodCall, advice
from bpcli.methods.base import Recursion
from bpcli.problem.definition import Setup
from bpcli.problem.limits import PASSES, array_bytes, check_cost, predicted_seconds
from bpcli.problem.setup import SpecFile, digest
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime import kernel_loader

if TYPE_CHECKING:
    from bpcli.checking.blame.explain import Reproducer

_MANY = 4


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of checking a spec: `bytes` with the arrays, and `seconds`."""

    setup: Setup
    methods: tuple[MethodCall | GradientSource, ...]
    taken: check_options.Choice
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Call:
    """The request of a check: the methods, the users' gradients, which replace the methods of the spec, and options.

    If `weak`, methods of the spec take precedence over `methods`. If `alone`, a method that does not apply to the spec
    is refused, else it is skipped. `note` receives remarks, and `prepare` compiles the kernels. `executor` gives the
    executor for the losses of a spec, None for this process. `begin` receives the forecast of each spec before anything
    is computed, and may leave it out by returning False; `told` receives the findings on each method as they come.
    """

    methods: tuple[MethodCall, ...]
    foreign: Asked
    options: CheckOptions
    weak: bool = False
    alone: bool = True
    note: Callable[[str], None] = lambda text: None
    prepare: Callable[[], None] = lambda: kernel_loader.prepare(kernel_loader.CHECKING)
    executor: Callable[[SpecFile, Setup], Executor | None] = lambda file, setup: None
    begin: Callable[[Forecast], bool] = lambda forecast: True
    told: Callable[[Sequence[Finding]], None] = lambda found: None


@dataclass
class Results:
    """The results so far, of all specs and objects.

    `unused` are notes on parts of specs that the check ignores. `chosen` maps descriptions of the kind of check to
    specs, `skipped` maps methods and reasons to the specs they were skipped for. `declared` has the names of kernels in
    specs, `places` locates tensors and users' functions, `digests` has a hash of each spec, and
    `sizes` its T (None when feed-forward), batch and dtype.
    """

    findings: list[Finding] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Remarks on what was judged, how, and what was skipped."""
        skipped = [f"skipped {m} for {', '.join(specs)}: {reason}" for (m, reason), specs in self.skipped.items()]
        chosen = [f"{words[:1].upper()}{words[1:]}{self._named(specs)}" for words, specs in self.chosen.items()]
        return [*self.unused, *chosen, *sizes_note(self.sizes), *skipped]

    def _named(self, specs: Sequence[str]) -> str:
        """The names of specs after a colon, or their number if they are many and all; a full stop if there is one."""
        every = set(specs) == {f.spec for f in self.findings}
        if every and len(specs) == 1:
            return "."
        return f": all {len(specs)} specs" if every and len(specs) >= _MANY else f": {', '.join(specs)}"

    def add_object(self, name: str, found: Sequence[tuple[Finding, Place | None]]) -> None:
        """Add the findings on the object `name`, each with the place of its gradient."""
        self.findings += [finding for finding, _ in found]
        self.places |= {(f.spec, f.tensor): place for f, place in found if place}
        if any(f.worst is not None and f.worst.index is None for f, _ in found):
            self.chosen.setdefault("random directions checked against central differences", []).append(name)

    def report(self, options: CheckOptions, context: Mapping[str, Any], foreign: Sequence[str] = ()) -> Report:
        """The report; `context` describes the call, `foreign` names the users' gradients."""
        notes = self.notes()
        asked = {
            "foreign": list(foreign),
            "reference": options.reference,
            "mode": options.mode,
            **({"tolerance": options.tolerance} if options.tolerance else {}),
            "spec_sha256": self.digests,
            "sizes": self.sizes,
            "notes": notes,
        }
        errors, places = tuple(self.errors), dict(self.places)
        return Report(tuple(self.findings), {**context, **asked}, tuple(notes), errors, places)


def judge_spec(file: SpecFile, setup: Setup, call: Call, results: Results) -> None:
    """Judge a spec and add the findings to `results`; raises BpError for a spec that is refused.

    A refused kernel is added to the errors of `results` if others can be judged.
    """
    # Imported here, since tests and tools replace `checker.check`.
    from bpcli.checking import checker

    spec, name = setup.spec, setup.spec.name
    results.declared += spec.kernels
    results.digests[name] = digest(setup, file.path)
    results.places |= places_of(spec)
    idle = [kernel for kernel in spec.kernels if kernel not in call.foreign.names]
    results.unused += [f"{name}: the kernel {kernel} was not run; check it with --kernel {kernel}" for kernel in idle]
    methods = _chosen(file, setup, call, results)
    if setup.graph.unused:
        results.unused.append(f"{name}: the loss does not depend on {', '.join(setup.graph.unused)}")
    for method in methods:
        cost = method.cost(setup)
        check_cost(setup, method.text, cost.bytes, cost.flops, file.limits, PASSES * cost.forward_steps)
    if not methods:
        return
    held = check_options.check_bytes(setup, methods, call.options)
    taken = check_options.choose(setup, methods, call.options)
    check_cost(setup, "the check", held, taken.flops, file.limits, taken.steps)
    total = held + sum(array_bytes(setup).values())
    if not call.begin(Forecast(setup, methods, taken, total, predicted_seconds(taken.flops, taken.steps))):
        return
    if taken.mode != "full":
        call.note(f"{name}: {taken}")
    call.prepare()  # only now, so that refusals do not wait for the compiler
    findings = checker.check(setup, methods, call.options, call.executor(file, setup), call.told)
    if any(f.verdict == "wrong" for f in findings):  # imported only when needed, as it is large
        from bpcli.checking.blame.explain import explain

        findings = explain(findings, setup, methods, again(file, call.foreign))
    results.findings += findings
    length = setup.T if setup.graph.recurrent else None
    results.sizes[name] = {"T": length, "batch": setup.batch, "dtype": setup.dtype.name}
    results.chosen.setdefault(str(taken), []).append(name)
    _note_definitions(setup, methods, findings, results)


def _note_definitions(
    setup: Setup, methods: Sequence[MethodCall | GradientSource], findings: Sequence[Finding], results: Results
) -> None:
    """Note which methods were compared with something else than the true gradient."""
    name = setup.spec.name
    compared = {f.method for f in findings if f.checked}
    ruled = [
        m for m in methods if m.text in compared and isinstance(d := m.definition(setup), Recursion) and _own(m, d)
    ]
    rules = [m.text for m in ruled]
    random = [m.text for m in methods if check_options.has_mean(setup, m)]
    meant = [f"{m.text} judged as {m.meant.text}" for m in methods if isinstance(m, GradientSource) and m.meant]
    results.unused += [f"{name}: {', '.join(meant)}"] if meant else []
    if rules:
        results.unused.append(
            f"{name} {', '.join(rules)}: compared with the same rule applied to numerically measured local "
            "derivatives, so an error in the rule itself shows only as bias"
        )
    if random:
        results.unused.append(
            f"{name} {', '.join(random)}: each draw compared with the same rule applied to numerically measured local "
            "derivatives; the mean (over all outcomes, or over a sample of draws) compared with the true gradient"
        )


def _own(method: MethodCall | GradientSource, definition: Recursion) -> bool:
    """Whether a recursion is the method's own, not that of another method that a user's gradient is meant to be."""
    return isinstance(method, MethodCall) or (method.meant is None and definition.draws == method.text)


def _chosen(file: SpecFile, setup: Setup, call: Call, results: Results) -> tuple[MethodCall | GradientSource, ...]:
    """The methods and users' gradients to judge on a spec; skipped and refused ones are added to `results`."""
    elsewhere = bool(call.foreign) and (call.weak or not call.methods)
    chosen = () if elsewhere else choose(setup, call.methods, call.weak)
    own, skipped = applying(setup, chosen, call.alone)
    own, beyond = judged(setup, own, call.methods, call.options)
    others, refused = of_spec(setup, Path(file.path), call.foreign, file.limits)
    unjudged = check_options.unjudged(setup, others, call.options)
    remedy = "the reference complex-step judges every method"
    refused += tuple(Diagnostic("reference-refused", f"{t}: {why}", help=remedy) for t, why in unjudged.items())
    unfit = {o.text: why for o in others if (why := o.refusal(setup))}
    if call.alone:
        refused += tuple(
            Diagnostic("method-refused", f"{t}: {why}", help=advice(setup.graph)) for t, why in unfit.items()
        )
    else:
        skipped = {**skipped, **unfit}
    others = tuple(o for o in others if o.text not in {**unjudged, **unfit})
    results.errors += refused if call.alone else [d.about(file.path) for d in refused]
    results.places |= {(setup.spec.name, o.text): o.place for o in others if o.place}
    for name, reason in {**skipped, **beyond}.items():
        results.skipped.setdefault((name, reason), []).append(setup.spec.name)
    return (*own, *others)


def again(file: SpecFile, foreign: Asked) -> Reproducer:
    """A way to open the spec under other settings, and to write the command line that does the same."""
    from bpcli.checking.blame.explain import Reproducer

    def command(method: str, settings: Mapping[str, object]) -> str:
        merged = {**file.overrides, **settings}
        if method in foreign.functions:
            sizes = "".join(f", {key}={value!r}" for key, value in merged.items())
            sizes += f", wrt={list(file.wrt)!r}" if file.wrt else ""
            meant = "" if foreign.meant is None else f', as_="{foreign.meant.text}"'
            return f'bpcli.load("{file.path}"{sizes}).check({method.removeprefix("kernel:")}{meant})'
        words = ["bp", "check", file.path, *foreign.option(method)]
        words += [w for key, value in merged.items() for w in ("--set", f"{key}={value}")]
        return shlex.join([*words, *(w for x in file.wrt for w in ("--wrt", x))])

    return Reproducer(file.open, command)
