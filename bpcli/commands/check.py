"""`bp check`: judge gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands.options import Common, one_of, shared

if TYPE_CHECKING:
    from bpcli.checking.answers import Foreign
    from bpcli.checking.findings import Finding
    from bpcli.checking.run import CheckOptions
    from bpcli.cluster.connect import Cluster
    from bpcli.commands.foreign import Asked
    from bpcli.errors import Diagnostic, Place
    from bpcli.methods import MethodCall

MODES = ("auto", "directional", "full")
# Sweeps over time that the references take for each tensor: differences at fourteen shifts, the complex step, rounding.
_SWEEPS = 16


def references() -> tuple[str, ...]:
    """What `--reference` takes: a reference, or the choice that suits the spec."""
    from bpcli.references import known

    return ("auto", *known())


@dataclass
class Results:
    """What has been found so far; `skipped` takes a method and the reason to the specs it was skipped for.

    `chosen` takes what a check came down to, in words, to the specs, `declared` names their kernels; `places` are those
    of their tensors.
    """

    findings: list[Finding] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What a reader should know besides the verdicts."""
        skipped = [f"skipped {m} of {', '.join(specs)}: {reason}" for (m, reason), specs in self.skipped.items()]
        chosen = [f"judged {words}: {', '.join(specs)}" for words, specs in self.chosen.items()]
        return [*self.unused, *chosen, *skipped]

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


@click.command()
@click.argument("target", nargs=-1)
@click.option(
    "-m", "--method", multiple=True, metavar="METHOD", help="Judge this method, as tbptt:k1=1,k2=4; repeatable."
)
@click.option(
    "--kernel", multiple=True, metavar="FILE.py:FUNC",
    help="Judge a function of yours, or a [kernel.NAME] of the spec; repeatable.",
)  # fmt: skip
@click.option(
    "--gradient", multiple=True, metavar="FILE.npz", help="Judge a saved gradient, named as bp grad does; repeatable."
)
@click.option(
    "--reference", metavar="NAME", default="auto", callback=one_of(references),
    help="What to judge by; `bp list references`.",
)  # fmt: skip
@click.option(
    "--mode", metavar="MODE", default="auto", callback=one_of(lambda: MODES),
    help="full (every entry), directional, or auto.",
)  # fmt: skip
@click.option("--power", is_flag=True, help="Plant faults in place of the methods, and say which the check reveals.")
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "scheduler", "local_cluster", "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def check(
    target: tuple[str, ...],
    method: tuple[str, ...],
    kernel: tuple[str, ...],
    gradient: tuple[str, ...],
    reference: str,
    mode: str,
    power: bool,
    common: Common,
) -> int:
    """Judge the gradients of TARGET, a spec or a folder of specs, against references with error bounds of their own.

    Without TARGET the folder specs/ is taken; without -m the methods that the spec names, else backprop for a
    feed-forward network, bptt and rtrl for a recurrent one. --kernel and --gradient are judged in place of these. A
    TARGET may also be FILE.py:OBJECT, with params (a dict of arrays), loss(params) and grad(params). On a cluster the
    perturbed losses of large specs are computed by its workers, which must find the same files at the same paths.
    """
    from bpcli.checking.run import CheckOptions
    from bpcli.commands import foreign
    from bpcli.commands.choose import from_project, read
    from bpcli.commands.cluster import opened
    from bpcli.commands.progress import progress
    from bpcli.commands.specs import find, names

    boxes, targets, refused = foreign.objects(target)
    given = {"--kernel": kernel, "--gradient": gradient, "--reference": reference == "complex-step", "--power": power}
    alone = {} if targets else {"-m": method, "--set": common.overrides}
    foreign.refuse_for_objects(boxes, {name: bool(value) for name, value in {**given, **alone}.items()})
    paths, missing = find(targets) if targets or not (boxes or refused) else ([], [])
    refused += missing
    asked = foreign.read(kernel, gradient)
    foreign.refuse_for_several(gradient, paths)
    options = CheckOptions(reference, mode)  # type: ignore[arg-type] # the command line lets nothing else pass
    if power:
        from bpcli.commands.power import plant

        return plant(paths, refused, options, common)
    call = Call(
        read(method), from_project(), asked, options, common, names(paths), len(paths) == 1 and not refused + boxes
    )
    results = Results(errors=list(refused))
    with opened(common) as cluster, progress(common) as say:
        call = replace(call, cluster=cluster)
        for number, path in enumerate(paths, start=1):
            say(f"{path} ({number} of {len(paths)})")
            _judge(path, call, results)
        for box in boxes:
            say(box)
            _judge_object(box, call, results)
    results.errors += foreign.unknown(asked, results.declared)
    return _show(results, call, paths, boxes) or results.exit_code(common.strict)


def _judge_object(target: str, call: Call, results: Results) -> None:
    """Add what there is to say about one object."""
    from bpcli.commands.failures import translate
    from bpcli.commands.foreign import judge

    try:
        results.findings += judge(target, call.common)
    except Exception as error:
        results.errors += translate(error).diagnostics


def _judge(path: Path, call: Call, results: Results) -> None:
    """Add what there is to say about one spec; a refusal of one hides no other."""
    from bpcli.checking import options, run
    from bpcli.checking.blame.explain import explain
    from bpcli.checking.forecast import check_bytes
    from bpcli.commands.again import again
    from bpcli.commands.check_cases import places_of
    from bpcli.commands.choose import applying, choose
    from bpcli.commands.cluster import elsewhere
    from bpcli.commands.failures import translate
    from bpcli.commands.foreign import of_spec
    from bpcli.commands.kernels import prepare
    from bpcli.commands.output import note
    from bpcli.commands.specs import open_spec
    from bpcli.problem.limits import PASSES, check_cost

    try:
        setup = open_spec(path, call.common, call.names[path])
        results.declared += setup.spec.kernels
        results.places |= places_of(setup.spec)
        idle = [name for name in setup.spec.kernels if name not in call.foreign.names]
        results.unused += [f"{setup.spec.name}: the kernel {n} was not run; --kernel {n} judges it" for n in idle]
        chosen = () if call.foreign and (call.weak or not call.methods) else choose(setup, call.methods, call.weak)
        own, skipped = applying(setup, chosen, call.alone)
        methods: tuple[MethodCall | Foreign, ...] = (*own, *of_spec(setup, path, call.foreign, call.common))
        for name, reason in skipped.items():
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
            helper = elsewhere(call.cluster, path, setup, call.common)
            findings = run.check(setup, methods, call.options, helper)
            results.findings += explain(findings, setup, methods, again(path, call.common, call.names[path]))
            results.chosen.setdefault(str(taken), []).append(setup.spec.name)
    except Exception as error:
        results.errors += [_named(d, path, call) for d in translate(error).diagnostics]


def _named(diagnostic: Diagnostic, path: Path, call: Call) -> Diagnostic:
    """A refusal that says which spec it is about, among several, by its place or in words."""
    if call.alone or diagnostic.place:
        return diagnostic
    return replace(diagnostic, what=f"{path}: {diagnostic.what}")


def _show(results: Results, call: Call, paths: Sequence[Path], boxes: Sequence[str]) -> int:
    """Print and write what was found; 0, or 2 where a file could not be written."""
    from bpcli.commands.check_document import brief_document, findings_document, with_cases
    from bpcli.commands.context import describe
    from bpcli.commands.output import emit

    context = describe(
        "check",
        call.common,
        specs=[str(p) for p in paths],
        objects=list(boxes),
        foreign=[*(f.text for f in call.foreign.given), *(f"kernel:{n}" for n in call.foreign.names)],
        reference=call.options.reference,
        mode=call.options.mode,
        notes=results.notes(),
    )
    notes = () if call.common.quiet else results.notes()
    document = with_cases(findings_document(results.findings, results.errors, context, notes), results.places)
    return emit(document, call.common, brief_document(results.findings, document, call.common.quiet))
