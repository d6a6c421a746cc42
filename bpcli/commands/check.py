"""`bp check`: judge gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands import method_selection as choose
from bpcli.commands.common import Common
from bpcli.commands.shared_options import one_of, shared

if TYPE_CHECKING:
    from bpcli.commands.check_runner import Call, Results
    from bpcli.errors import Diagnostic
    from bpcli.methods import MethodCall

_OF_OBJECTS = ("auto", "central", "ladder")
MODES = ("auto", "directional", "full")


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
    "--reference", metavar="NAME", default="auto", callback=choose.reference,
    help="What to judge by; `bp list references`.",
)  # fmt: skip
@click.option(
    "--mode", metavar="MODE", default="auto", callback=one_of(lambda: MODES),
    help="full (every entry), directional, or auto.",
)  # fmt: skip
@click.option("--power", is_flag=True, help="Plant faults in place of the methods, and say which the check reveals.")
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "user_time", "allow_outside",
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
    from bpcli.checking.check_options import CheckOptions
    from bpcli.commands import user_gradients as foreign
    from bpcli.commands.check_runner import Call, Results, judge_object, judge_spec
    from bpcli.commands.cluster_option import opened
    from bpcli.commands.method_selection import from_project
    from bpcli.commands.progress import progress
    from bpcli.commands.specs import find, names

    boxes, targets, refused = foreign.objects(target)
    given = {"--kernel": kernel, "--gradient": gradient, "--reference": reference not in _OF_OBJECTS, "--power": power}
    named = ("dtype", "seed")
    others = {k: v for k, v in common.overrides.items() if k not in named}
    flags = {f"--{k}": k in common.overrides for k in named}
    alone = {} if targets else {"-m": method, "--set": others, **flags}
    foreign.refuse_for_objects(boxes, {name: bool(value) for name, value in {**given, **alone}.items()})
    foreign.refuse_for_power({"--kernel": kernel, "--gradient": gradient} if power else {})
    paths, missing = find(targets, common) if targets or not (boxes or refused) else ([], [])
    refused += missing
    asked = foreign.read(kernel, gradient, foreign.process(common, wanted=bool(kernel or boxes)))
    refused += asked.refused
    foreign.refuse_for_several(gradient, paths)
    options = CheckOptions(reference, mode)  # type: ignore[arg-type] # the command line lets nothing else pass
    if power:
        from bpcli.commands.fault_power import plant

        return plant(paths, refused, options, common)
    methods, unread = _methods(method)
    refused += unread
    paths, boxes = ([], []) if unread else (paths, boxes)
    call = Call(methods, from_project(), asked, options, common, names(paths), len(paths) == 1 and not refused + boxes)
    results = Results(errors=list(refused))
    with opened(common) as cluster, progress(common) as say:
        call = replace(call, cluster=cluster)
        for number, path in enumerate(paths, start=1):
            say(f"{path} ({number} of {len(paths)})")
            judge_spec(path, call, results)
        for box in boxes:
            say(box)
            judge_object(box, call, results)
    results.errors += foreign.unknown(asked, results.declared)
    return _show(results, call, paths, boxes) or results.exit_code(common.strict)


def _methods(texts: Sequence[str]) -> tuple[tuple[MethodCall, ...], Sequence[Diagnostic]]:
    """The methods of `-m`, or why one of them is none."""
    from bpcli.commands.method_selection import read
    from bpcli.errors import BpError

    try:
        return read(texts), ()
    except BpError as error:
        return (), error.diagnostics


def _show(results: Results, call: Call, paths: Sequence[Path], boxes: Sequence[str]) -> int:
    """Print and write what was found; 0, or 2 where a file could not be written."""
    from bpcli.commands.check_document import brief_document, findings_document, with_cases
    from bpcli.commands.output import describe, emit

    context = describe(
        "check",
        call.common,
        specs=[str(p) for p in paths],
        objects=list(boxes),
        foreign=[*(f.text for f in call.foreign.given), *(f"kernel:{n}" for n in call.foreign.names)],
        reference=call.options.reference,
        mode=call.options.mode,
        spec_sha256=results.digests,
        notes=results.notes(),
    )
    notes = () if call.common.quiet else results.notes()
    document = with_cases(findings_document(results.findings, results.errors, context, notes), results.places)
    return emit(document, call.common, brief_document(results.findings, document, call.common.quiet))
