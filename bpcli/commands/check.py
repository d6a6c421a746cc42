"""`bp check`: judge gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import Refused, from_project, one_of, shared

if TYPE_CHECKING:
    from bpcli.api.check_runner import Call, Results
    from bpcli.cluster.connect import Cluster
    from bpcli.errors import Diagnostic
    from bpcli.methods import MethodCall

_OF_OBJECTS = ("auto", "central", "ladder")


def _modes() -> tuple[str, ...]:
    from bpcli.api.method_selection import MODES

    return MODES


def _reference(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A callback that lets pass what can judge here: "auto", a reference, or a peer that is installed."""
    from bpcli.api.method_selection import check_options, known_references
    from bpcli.errors import BpError

    one_of(known_references)(context, parameter, value)
    try:
        check_options(value, "auto")
    except BpError as error:
        raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None
    return value


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
    "--reference", metavar="NAME", default="auto", callback=_reference,
    help="What to judge by; `bp list references`.",
)  # fmt: skip
@click.option(
    "--mode", metavar="MODE", default="auto", callback=one_of(_modes),
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
    from bpcli.api.check_runner import Call, Results
    from bpcli.api.method_selection import check_options
    from bpcli.api.user_gradients import read, unknown
    from bpcli.commands import python_targets as python
    from bpcli.commands.cluster_option import opened
    from bpcli.commands.specs import find

    boxes, targets, refused = python.objects(target)
    given = {"--kernel": kernel, "--gradient": gradient, "--reference": reference not in _OF_OBJECTS, "--power": power}
    named = ("dtype", "seed")
    others = {k: v for k, v in common.overrides.items() if k not in named}
    flags = {f"--{k}": k in common.overrides for k in named}
    alone = {} if targets else {"-m": method, "--set": others, **flags}
    python.refuse_for_objects(boxes, {name: bool(value) for name, value in {**given, **alone}.items()})
    python.refuse_for_power({"--kernel": kernel, "--gradient": gradient} if power else {})
    paths, missing = find(targets, common) if targets or not (boxes or refused) else ([], [])
    refused += missing
    asked = read(kernel, gradient, python.process(common, wanted=bool(kernel or boxes)))
    refused += asked.refused
    python.refuse_for_several(gradient, paths)
    options = check_options(reference, mode)
    if power:
        from bpcli.commands.fault_power import plant

        return plant(paths, refused, options, common)
    methods, unread = _methods(method)
    refused += unread
    paths, boxes = ([], []) if unread else (paths, boxes)
    call = Call(methods, asked, options, from_project(), alone=len(paths) == 1 and not refused + boxes)
    results = Results(errors=list(refused))
    with opened(common) as cluster:
        _judge(paths, boxes, hooked(call, common, cluster), common, results)
    results.errors += unknown(asked, results.declared)
    return _show(results, call, common, paths, boxes)


def _methods(texts: Sequence[str]) -> tuple[tuple[MethodCall, ...], Sequence[Diagnostic]]:
    """The methods of `-m`, or why one of them is none."""
    from bpcli.api.method_selection import read
    from bpcli.errors import BpError

    try:
        return read(texts), ()
    except BpError as error:
        return (), error.diagnostics


def hooked(call: Call, common: Common, cluster: Cluster | None) -> Call:
    """The call with remarks and compiling told on stderr, and losses computed by the cluster where there is one."""
    from bpcli.commands.cluster_option import executor
    from bpcli.commands.output import note
    from bpcli.commands.progress import prepare

    told = replace(call, note=lambda text: note(text, common), prepare=lambda: prepare(common))
    if cluster is None:
        return told
    return replace(told, executor=lambda file, setup: executor(cluster, file, setup, common))


def _judge(paths: Sequence[Path], boxes: Sequence[str], call: Call, common: Common, results: Results) -> None:
    """Judge specs and objects one after the other; a refusal of one hides no other."""
    from bpcli.api.check_runner import judge_spec
    from bpcli.api.user_gradients import judge
    from bpcli.commands.failures import translate
    from bpcli.commands.progress import progress
    from bpcli.commands.specs import names, open_spec

    with progress(common) as say:
        for number, (path, name) in enumerate(names(paths).items(), start=1):
            say(f"{path} ({number} of {len(paths)})")
            try:
                problem = open_spec(path, common, name)
                judge_spec(problem.file, problem.setup, call, results)
            except Exception as error:
                results.errors += [d if call.alone else d.about(str(path)) for d in translate(error).diagnostics]
        for box in boxes:
            say(box)
            try:
                found = judge(box, call.foreign.process, common.wrt, common.limits(), call.options.mode)
                results.add_object(box, found)
            except Exception as error:
                results.errors += translate(error).diagnostics


def _show(results: Results, call: Call, common: Common, paths: Sequence[Path], boxes: Sequence[str]) -> int:
    """Print and write what was found; the exit code, 2 where a file could not be written."""
    from bpcli.commands.output import describe, emit

    context = describe("check", common, specs=[str(p) for p in paths], objects=list(boxes))
    report = results.report(call.options, context, call.foreign.texts)
    return emit(report.document(common.quiet), common, report.brief(common.quiet)) or report.exit_code
