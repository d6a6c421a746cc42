"""`bp check`: judge the gradients of specs, of functions in Python files, and of saved files."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bpcli.commands.shared_options import Common, Refused, from_project, one_of, opened_cluster, shared
from bpcli.errors import BpError, Diagnostic, fail, printable

if TYPE_CHECKING:
    from bpcli.api.check_runner import Call, Results
    from bpcli.checking.check_options import CheckOptions
    from bpcli.checking.sources.functions import Wanted
    from bpcli.checking.sources.user_process import Process
    from bpcli.cluster.connect import Cluster
    from bpcli.methods import MethodCall

# References that differentiate the loss of an object; the others need equations.
_OF_OBJECTS = ("auto", "central", "ladder")


def _modes() -> tuple[str, ...]:
    from bpcli.api.method_selection import MODES

    return MODES


def _reference(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A click callback that accepts "auto", a reference, or an installed peer."""
    if context.resilient_parsing:  # completing a line, which must be quick
        return value
    from bpcli.api.method_selection import check_options, known_references

    one_of(known_references)(context, parameter, value)
    try:
        check_options(value, "auto")
    except BpError as error:
        raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None
    return value


def _tolerance(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A click callback that accepts a relative error."""
    if context.resilient_parsing:
        return value
    from bpcli.api.method_selection import check_options

    try:
        check_options("auto", "auto", value)
    except BpError as error:
        raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None
    return value


@click.command()
@click.argument("target", nargs=-1)
@click.option(
    "-m",
    "--method",
    multiple=True,
    metavar="METHOD",
    help="Method, such as tbptt:k1=1,k2=4, or FILE.py:RULE, your own online rule; repeatable.",
)
@click.option(
    "--kernel", multiple=True, metavar="FILE.py:FUNC",
    help="Check your own gradient function, or a [kernel.NAME] of the spec; repeatable.",
)  # fmt: skip
@click.option(
    "--gradient", multiple=True, metavar="FILE.npz",
    help="Check a gradient saved with the array names of `bp grad`; repeatable.",
)  # fmt: skip
@click.option(
    "--gradbench", metavar="LOG.jsonl", help="Check the gradients in a log of GradBench, of any tool.",
)  # fmt: skip
@click.option(
    "--as", "meant", metavar="METHOD",
    help="Method that your gradient or rule is meant to compute, such as tbptt:k1=1,k2=4; default: exact.",
)  # fmt: skip
@click.option(
    "--reference", metavar="NAME", default="auto", callback=_reference,
    help="Reference to compare with; see `bp list references`.",
)  # fmt: skip
@click.option(
    "--mode", metavar="MODE", default="auto", callback=one_of(_modes),
    help="full (every entry), directional (random directions), or auto (by the predicted cost).",
)  # fmt: skip
@click.option("--forward", is_flag=True, help="Also check the forward mode (JVP) of a function.")
@click.option(
    "--order", metavar="N", default="1", callback=one_of(lambda: ("1", "2")),
    help="2 also checks the second derivative of a function.",
)  # fmt: skip
@click.option(
    "--tolerance", metavar="NUMBER", type=float, default=0.0, callback=_tolerance,
    help="Accept errors up to this size, relative to the largest entry of the tensor; default: 0.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check nothing; show predicted memory, operations and time of each spec.")
@click.option("--power", is_flag=True, help="Instead of checking, plant known faults and show which ones are revealed.")
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "user_time", "allow_outside",
    "scheduler", "local_cluster", "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def check(
    target: tuple[str, ...],
    method: tuple[str, ...],
    kernel: tuple[str, ...],
    gradient: tuple[str, ...],
    gradbench: str | None,
    meant: str | None,
    reference: str,
    mode: str,
    forward: bool,
    order: str,
    tolerance: float,
    dry_run: bool,
    power: bool,
    common: Common,
) -> int:
    """Check the gradients of each TARGET, a spec or a folder of specs, against references with error bounds.

    Without TARGET, the specs in specs/ are checked. Without -m, the methods are those named by the spec, else backprop,
    or bptt and rtrl for a recurrent network; with --kernel or --gradient, only those are checked. A TARGET can also be
    FILE.py:NAME: a function of PyTorch or JAX, an autograd.Function, a module, or a NumPy function with NAME_vjp next
    to it, at the inputs NAME_inputs; or an object with params (a dict of arrays), loss(params) and grad(params). On a
    cluster, the workers compute the perturbed losses of large specs; they must find the same files at the same paths.
    """
    from bpcli.api.check_runner import Call, Results
    from bpcli.api.method_selection import check_options
    from bpcli.api.user_gradients import read, split_rules, unknown
    from bpcli.checking.sources.functions import Wanted
    from bpcli.commands.specs import find

    options = check_options(reference, mode, tolerance)
    if gradbench is not None:
        return _check_log(gradbench, [*target, *method, *kernel, *gradient], options, common)
    boxes, targets, refused = _split_objects(target)
    given = {"--kernel": kernel, "--gradient": gradient, "--as": meant, "--power": power, "--dry-run": dry_run}
    alone = {} if targets else {"-m": method, **_settings(common)}
    _refuse_combinations(boxes, {**given, "--reference": reference not in _OF_OBJECTS, **alone}, power)
    _refuse_on_specs(targets or not boxes, {"--forward": forward, "--order": order != "1"})
    paths, missing = find(targets, common) if targets or not (boxes or refused) else ([], [])
    method, rules = split_rules(method)
    asked = read(kernel, gradient, _process(common, bool(kernel or boxes or rules)), meant, rules)
    refused += [*missing, *asked.refused]
    if gradient and len(paths) > 1:
        fail("usage", f"--gradient needs one spec, not {len(paths)}", help="name the spec of the saved gradient")
    if power:
        from bpcli.commands.fault_power import plant

        return plant(paths, refused, options, common)
    methods, unread = _methods(method)
    refused += unread
    paths, boxes = ([], []) if unread else (paths, boxes)
    results = Results(errors=list(refused))
    call = Call(methods, asked, options, from_project(), alone=len(paths) == 1 and not refused + boxes)
    wanted = Wanted(common.wrt, options.mode, forward, int(order), options.tolerance)
    if dry_run:
        return _plan(paths, hooked(call, common, None), common, results)
    with opened_cluster(common) as cluster:
        _judge(paths, boxes, hooked(call, common, cluster), common, results, wanted)
    results.errors += unknown(asked, results.declared)
    return _show(results, call, common, paths, boxes)


def _settings(common: Common) -> dict[str, bool]:
    """The options that change a spec, and whether they are given."""
    flags = {f"--{k}": k in common.overrides for k in ("dtype", "seed")}
    return {**flags, "--set": any(f"--{k}" not in flags for k in common.overrides)}


def _check_log(log: str, others: Sequence[str], options: CheckOptions, common: Common) -> int:
    """Judge the gradients in a log of GradBench, each on a spec of its own, and report them together."""
    from bpcli.api.check_runner import Call, Results, judge_spec
    from bpcli.api.gradbench_log import logged_gradients, opened
    from bpcli.api.user_gradients import Asked
    from bpcli.commands.failures import translate

    if others:
        what = f'--gradbench judges a log alone, not "{printable(others[0])}" too'
        fail("usage", what, help="leave out targets, methods and other gradients")
    found, notes = logged_gradients(Path(log))
    results, process = Results(unused=notes), _process(common, False)
    call = hooked(Call((), Asked((), (), process), options), common, None)
    for logged in found:
        with tempfile.TemporaryDirectory(prefix="bp-gradbench-") as folder:
            try:
                file, gradient = opened(logged, Path(folder), common.limits())
                asked = replace(call, foreign=Asked((gradient,), (), process))
                judge_spec(file, file.open({}), asked, results)
                # The spec is gone when someone looks for it.
                results.places = {k: logged.place if k[0] == file.name else p for k, p in results.places.items()}
            except Exception as error:
                results.errors += translate(error).diagnostics
    again = shlex.join(["bp", "check", "--gradbench", log])
    results.findings = [replace(f, blame={**f.blame, "reproduce": again}) if f.blame else f for f in results.findings]
    return _show(results, call, common, [], [log])


def _process(common: Common, needed: bool) -> Process:
    """The process for users' code, started where it is `needed`, and closed with the command."""
    from bpcli.api.user_gradients import user_process

    process = user_process(common.limits(), common.user_time)
    click.get_current_context().with_resource(contextlib.closing(process))
    if needed:
        process.start()
    return process


def _split_objects(targets: Sequence[str]) -> tuple[list[str], list[str], list[Diagnostic]]:
    """The targets `FILE.py:OBJECT`, the other targets, and a refusal for each Python file without an object."""
    from bpcli.checking.sources.user_file import IN_FILE

    boxes, others, refused = [], [], []
    for target in dict.fromkeys(targets):
        if IN_FILE.fullmatch(target):
            boxes.append(target)
        elif target.endswith(".py") and not Path(target).is_dir():
            what = f'"{printable(target)}" names no object'
            refused.append(Diagnostic("usage", what, help=f"write {printable(target)}:OBJECT"))
        else:
            others.append(target)
    return boxes, others, refused


def _refuse_combinations(boxes: Sequence[str], given: Mapping[str, object], power: bool) -> None:
    """Raise BpError for options that do not apply to objects, and for gradients beside --power."""
    for option, value in given.items():
        if boxes and value:
            advice = "an object or function brings its own gradient, which is compared with differences of its values"
            fail(
                "usage",
                f'{option} applies to specs, not to an object or function ("{printable(boxes[0])}")',
                help=advice,
            )
    for option in ("--kernel", "--gradient"):
        if power and given[option]:
            advice = "--power examines the spec; check the gradient in a separate call"
            fail("usage", f"{option} does not go with --power", help=advice)


def _refuse_on_specs(specs: object, given: Mapping[str, object]) -> None:
    """Raise BpError for options that apply to functions only, if there are specs."""
    for option, value in given.items():
        if specs and value:
            advice = "name functions alone, FILE.py:NAME; a method of a spec has one derivative"
            fail("usage", f"{option} applies to functions, not to specs", help=advice)


def _methods(texts: Sequence[str]) -> tuple[tuple[MethodCall, ...], Sequence[Diagnostic]]:
    """The methods of `-m`, or the refusals of those that are invalid."""
    from bpcli.api.method_selection import read

    try:
        return read(texts), ()
    except BpError as error:
        return (), error.diagnostics


def hooked(call: Call, common: Common, cluster: Cluster | None) -> Call:
    """The call with notes on stderr, and with losses computed on the cluster if there is one."""
    from bpcli.commands.output import prepare

    told = replace(call, note=common.note, prepare=lambda: prepare(common))
    if cluster is None:
        return told
    from bpcli.cluster.remote_work import Farm

    threads = common.threads or cluster.threads
    return replace(told, executor=lambda file, setup: Farm(cluster, file, setup, threads))


def _judge(
    paths: Sequence[Path], boxes: Sequence[str], call: Call, common: Common, results: Results, wanted: Wanted
) -> None:
    """Judge specs and objects in turn; a refusal is added to the results, and the others are still judged."""
    from bpcli.api.check_runner import judge_spec
    from bpcli.api.user_gradients import judge
    from bpcli.commands.failures import translate
    from bpcli.commands.output import progress
    from bpcli.commands.planning import LongCheck
    from bpcli.commands.specs import names, open_spec

    with progress(common) as say:
        for number, (path, name) in enumerate(names(paths).items(), start=1):
            where = f"{path} ({number} of {len(paths)})"
            say(where)
            hooks = LongCheck(common, say, where)
            try:
                problem = open_spec(path, common, name)
                judge_spec(problem.file, problem.setup, replace(call, begin=hooks.begin, told=hooks.told), results)
            except Exception as error:
                results.errors += [d if call.alone else d.about(str(path)) for d in translate(error).diagnostics]
        for box in boxes:
            say(box)
            try:
                found, notes = judge(box, call.foreign.process, wanted, common.limits())
                results.add_object(box, found)
                results.unused += notes
            except Exception as error:
                results.errors += translate(error).diagnostics


def _plan(paths: Sequence[Path], call: Call, common: Common, results: Results) -> int:
    """Show what the checks of specs would take; returns the exit code."""
    from bpcli.api.check_runner import Forecast, judge_spec
    from bpcli.commands.failures import translate
    from bpcli.commands.planning import show_check_plan
    from bpcli.commands.specs import names, open_spec

    forecasts: list[Forecast] = []

    def keep(forecast: Forecast) -> bool:
        forecasts.append(forecast)
        return False

    for path, name in names(paths).items():
        try:
            problem = open_spec(path, common, name)
            judge_spec(problem.file, problem.setup, replace(call, begin=keep), results)
        except Exception as error:
            results.errors += [d if call.alone else d.about(str(path)) for d in translate(error).diagnostics]
    return show_check_plan(forecasts, results.errors, results.notes(), common)


def _show(results: Results, call: Call, common: Common, paths: Sequence[Path], boxes: Sequence[str]) -> int:
    """Print and write the report; returns the exit code, 2 if a file could not be written."""
    from bpcli.commands.output import describe, emit

    context = describe("check", common, specs=[str(p) for p in paths], objects=list(boxes))
    report = results.report(call.options, context, call.foreign.texts)
    return emit(report.document(common.quiet), common, report.brief(common.quiet)) or report.exit_code
