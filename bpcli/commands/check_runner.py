"""How to run a spec again with other sizes: as a Setup, and as the command line that a user would type.

One target of `bp check` after the other: judged, and what there is to say about it kept.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands import method_selection as choose

if TYPE_CHECKING:
    from bpcli.checking.blame.explain import Again
    from bpcli.commands.common import Common
if TYPE_CHECKING:
    from bpcli.checking.check_options import CheckOptions
    from bpcli.checking.findings import Finding
    from bpcli.checking.sources.gradient_source import Foreign
    from bpcli.cluster.connect import Cluster
    from bpcli.commands.common import Common
    from bpcli.commands.user_gradients import Asked
    from bpcli.errors import Diagnostic, Place
    from bpcli.methods import MethodCall
    from bpcli.problem.definition import Setup


def again(path: Path, common: Common, name: str) -> Again:
    """`path` under the shared options, and settings on top of those."""
    from bpcli.checking.blame.explain import Again
    from bpcli.commands.specs import open_spec

    def merged(settings: Mapping[str, object]) -> dict[str, object]:
        return {**common.overrides, **settings}

    def command(method: str, settings: Mapping[str, object]) -> str:
        words = ["bp", "check", str(path), *_asked(method)]
        words += [w for key, value in merged(settings).items() for w in ("--set", f"{key}={value}")]
        return shlex.join([*words, *(w for x in common.wrt for w in ("--wrt", x))])

    return Again(lambda s: open_spec(path, dataclasses.replace(common, overrides=merged(s)), name), command)


def _asked(method: str) -> tuple[str, str]:
    """The option that asks for what reports call `method`."""
    params = click.get_current_context().params
    for text in params.get("kernel", ()):
        if method in (f"kernel:{text}", f"kernel:{text.rpartition(':')[2]}"):
            return "--kernel", text
    for text in params.get("gradient", ()):
        if method == f"gradient:{Path(text).name}":
            return "--gradient", text
    return "-m", method


# Sweeps over time that the references take for each tensor: differences at fourteen shifts, the complex step, rounding.
_SWEEPS = 16
_MANY = 4


@dataclass
class Results:
    """What has been found so far; `skipped` takes a method and the reason to the specs it was skipped for.

    `chosen` takes what a check came down to, in words, to the specs, `declared` names their kernels; `places` are those
    of their tensors and of users' functions, `digests` those of what the specs say.
    """

    findings: list[Finding] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What a reader should know besides the verdicts."""
        skipped = [f"skipped {m} of {', '.join(specs)}: {reason}" for (m, reason), specs in self.skipped.items()]
        chosen = [f"judged {words}: {self._named(specs)}" for words, specs in self.chosen.items()]
        return [*self.unused, *chosen, *skipped]

    def _named(self, specs: Sequence[str]) -> str:
        """The names of specs; how many where they are all, and many."""
        every = len(specs) >= _MANY and set(specs) == {f.spec for f in self.findings}
        return f"all {len(specs)} specs" if every else ", ".join(specs)

    def exit_code(self, strict: bool) -> int:
        """The first that applies of refused, wrong, inconclusive when `strict`, good; 5 when nothing was judged."""
        verdicts = {f.verdict for f in self.findings}
        if self.errors:
            return 2
        if "wrong" in verdicts:
            return 1
        if strict and "inconclusive" in verdicts:
            return 4
        return 0 if verdicts else 5


@dataclass(frozen=True)
class Call:
    """What is asked of every spec: methods (`weak` ones give way to the spec's own), gradients from elsewhere (in
    place of the spec's own methods) and how to judge them.

    `names` says what each spec is called.
    """

    methods: tuple[MethodCall, ...]
    weak: bool
    foreign: Asked
    options: CheckOptions
    common: Common
    names: Mapping[Path, str]
    alone: bool
    cluster: Cluster | None = None


def judge_object(target: str, call: Call, results: Results) -> None:
    """Add what there is to say about one object."""
    from bpcli.commands.failures import translate
    from bpcli.commands.user_gradients import judge

    try:
        found = judge(target, call.foreign.process, call.common, call.options.mode)
        results.findings += [finding for finding, _ in found]
        results.places |= {(f.spec, f.tensor): place for f, place in found}
        if any(f.worst is not None and f.worst.index is None for f, _ in found):
            results.chosen.setdefault("along directions by central", []).append(target)
    except Exception as error:
        results.errors += translate(error).diagnostics


def judge_spec(path: Path, call: Call, results: Results) -> None:
    """Add what there is to say about one spec; a refusal of one hides no other."""
    from bpcli.checking import check_options as options
    from bpcli.checking import checker as run
    from bpcli.checking.check_options import check_bytes
    from bpcli.commands.check_document import places_of
    from bpcli.commands.cluster_option import executor
    from bpcli.commands.failures import translate
    from bpcli.commands.output import note
    from bpcli.commands.progress import prepare
    from bpcli.commands.specs import open_spec
    from bpcli.commands.user_gradients import of_spec
    from bpcli.problem.limits import PASSES, check_cost
    from bpcli.problem.spec_file import digest

    try:
        setup = open_spec(path, call.common, call.names[path])
        results.declared += setup.spec.kernels
        results.digests[setup.spec.name] = digest(setup, str(path))
        results.places |= places_of(setup.spec)
        idle = [name for name in setup.spec.kernels if name not in call.foreign.names]
        results.unused += [f"{setup.spec.name}: the kernel {n} was not run; --kernel {n} judges it" for n in idle]
        chosen = (
            () if call.foreign and (call.weak or not call.methods) else choose.choose(setup, call.methods, call.weak)
        )
        own, skipped = choose.applying(setup, chosen, call.alone)
        own, beyond = choose.judged(setup, own, call.methods, call.options)
        others, refused = of_spec(setup, path, call.foreign, call.common)
        results.errors += refused if call.alone else [d.about(str(path)) for d in refused]
        results.places |= {(setup.spec.name, o.text): o.place for o in others if o.place}
        methods: tuple[MethodCall | Foreign, ...] = (*own, *others)
        for name, reason in {**skipped, **beyond}.items():
            results.skipped.setdefault((name, reason), []).append(setup.spec.name)
        if setup.graph.unused:
            results.unused.append(f"{setup.spec.name}: the loss does not depend on {', '.join(setup.graph.unused)}")
        limits = call.common.limits()
        for method in methods:
            cost = method.cost(setup)
            check_cost(setup, method.text, cost.bytes, cost.flops, limits, PASSES * cost.forward_steps)
        if methods:
            held = check_bytes(setup, methods, call.options)
            taken = options.choose(setup, methods, call.options)
            check_cost(setup, "the check", held, taken.flops, limits, _SWEEPS * len(setup.wrt) * setup.T)
            if taken.mode != "full":
                note(f"{setup.spec.name}: {taken}", call.common)
            prepare(call.common)  # not sooner: nobody waits for a compiler to be told of a typing error
            helper = executor(call.cluster, path, setup, call.common)
            findings = run.check(setup, methods, call.options, helper)
            results.findings += _explained(findings, setup, methods, path, call)
            results.chosen.setdefault(str(taken), []).append(setup.spec.name)
    except Exception as error:
        results.errors += [d if call.alone else d.about(str(path)) for d in translate(error).diagnostics]


def _explained(
    findings: Sequence[Finding], setup: Setup, methods: Sequence[MethodCall | Foreign], path: Path, call: Call
) -> Sequence[Finding]:
    """The findings, with blames where something is wrong: there alone, as much has to be imported for it."""
    if all(f.verdict != "wrong" for f in findings):
        return findings
    from bpcli.checking.blame.explain import explain

    return explain(findings, setup, methods, again(path, call.common, call.names[path]))
