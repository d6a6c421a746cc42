"""`bp advise`: the method to take for a spec within given memory, time and bias, with its reason and the runners-up."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, Refused, relative_bias, shared, size_option
from bpcli.render import Column, Document, digits, seconds

if TYPE_CHECKING:
    from bpcli.api.advice import Advice, Candidate, Demand
    from bpcli.problem.definition import Setup

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    """Parse a time such as 1ms to seconds; without one there is no limit."""
    if value is None:
        return math.inf
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{0,12})?(?:e-?\d{1,2})?)\s*(|s|ms|us|µs|ns)\s*", value, re.ASCII)
    if found is None or not float(found[1]) > 0:
        raise Refused(f'"{value}" is not a positive time', "give seconds, or a number with a unit: 1ms, 50us")
    return float(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("spec")
@click.option(
    "--memory", required=True, metavar="SIZE", callback=size_option,
    help="Memory that the method may use besides the arrays, such as 64MB.",
)  # fmt: skip
@click.option(
    "--bias", type=float, default=0.0, show_default=True, metavar="NUMBER", callback=relative_bias,
    help="Largest relative bias allowed; 0 requires an exact method.",
)  # fmt: skip
@click.option(
    "--per-step-time", metavar="TIME", callback=_duration, help="Time allowed per step, for all samples, such as 1ms."
)
@shared(
    "set", "dtype", "seed", "wrt", "threads", "allow_outside", "format", "output", "quiet", "verbose",
)  # fmt: skip
def advise(spec: str, memory: int, bias: float, per_step_time: float, common: Common) -> int:
    """Recommend a method and its options for SPEC, given limits on memory, bias and time per step.

    Memory is predicted as by `bp bench`, and time from operations, memory traffic and the machine's rates; both are
    measured if a gradient takes little time. The bias of truncated, approximate and random methods is the relative
    error of one gradient, measured on the spec or, if that takes long, on a smaller case of it, which is shown. If
    nothing fits, the nearest method is shown and the exit code is 1.
    """
    from bpcli.api.advice import Demand
    from bpcli.api.advice import advise as advised
    from bpcli.commands.output import announce, emit, progress
    from bpcli.commands.specs import open_spec, single
    from bpcli.runtime.machine import cores

    problem = open_spec(single(spec), common)
    demand = Demand(memory, bias, per_step_time)
    announce(common)
    with progress(common) as say:
        say(problem.setup.spec.name)
        found = advised(problem.file, problem.setup, demand, common.threads or cores())
    emit(_document(found, demand, problem.setup, spec, common), common)
    return 0 if found.found else 1


def _document(found: Advice, demand: Demand, setup: Setup, spec: str, common: Common) -> Document:
    from bpcli.commands.output import describe
    from bpcli.problem.limits import format_bytes

    rows = [_row(c, "advised" if i == 0 else "runner-up") for i, c in enumerate(found.found)]
    rows += [_row(found.nearest, "nearest")] if found.nearest else []
    columns = [
        _column("method", "method", str, right=False),
        _column("advice", "advice", str, right=False),
        _column("bytes", "memory", format_bytes),
        _column("step_s", "time per step", seconds),
        _column("measured", "basis", lambda value: "measured" if value else "predicted", right=False),
        _column("bias", "bias", digits(2)),
        _column("bias_at", "bias measured at", _settings, right=False),
    ]
    limit = None if math.isinf(demand.step_seconds) else demand.step_seconds
    context = describe(
        "advise", common, spec=setup.spec.name, memory_bytes=demand.memory, bias=demand.bias, per_step_time_s=limit,
        fitting=found.fitting, considered=found.considered,
    )  # fmt: skip
    sentences = _chosen(found, demand, _bench(setup, spec, common)) if found.found else _none(found, demand)
    return Document("Advice", "methods", columns, rows, context, sentences=sentences)


def _column(key: str, heading: str, show: Any, right: bool = True) -> Column:
    return Column(key, heading, lambda row: row[key], show, right)


def _settings(values: Mapping[str, Any] | None) -> str:
    return "" if values is None else ", ".join(f"{k}={v}" for k, v in values.items()) or "full size"


def _row(candidate: Candidate, advice: str) -> dict[str, Any]:
    measured = not candidate.exact and candidate.bias is not None
    return {
        "method": candidate.call.text,
        "advice": advice,
        "bytes": candidate.bytes,
        "step_s": candidate.seconds,
        "measured": candidate.measured,
        "exact": candidate.exact,
        "bias": candidate.bias,
        "bias_at": dict(candidate.at) if measured else None,
    }


def _bench(setup: Setup, spec: str, common: Common) -> list[str]:
    """The command that measures a method at the same sizes, which the spec's own grid must not replace."""
    own = {**setup.spec.constants, **setup.spec.dims, "T": setup.T, "batch": setup.batch, "dtype": setup.dtype.name}
    swept = {key: own[key] for key in setup.spec.bench.grid if key in own}
    sizes = {**swept, **common.overrides}
    words = ["bp", "bench", spec, *(w for k, v in sizes.items() for w in ("--set", f"{k}={v}"))]
    return [*words, *(w for x in common.wrt for w in ("--wrt", x)), "-m"]


def _chosen(found: Advice, demand: Demand, bench: list[str]) -> tuple[str, ...]:
    """The advice with its reason, and the command that measures it."""
    from bpcli.problem.limits import format_bytes

    best = found.found[0]
    bias = "" if demand.bias == 0 else ", and is exact" if best.exact else f", and has a bias of {best.bias:.2g}"
    memory = f"{format_bytes(best.bytes)} of the {format_bytes(demand.memory)} allowed"
    many = f"{found.fitting} of {found.considered} candidates fit in memory{_and_time(demand)}"
    fastest = "candidate with an acceptable bias" if demand.bias > 0 else "exact candidate"
    again = shlex.join([*bench, best.call.text])
    needs = f"{best.call.text} needs {memory} and {seconds(best.seconds)} per step{bias}"
    return (f"{needs}: the fastest {fastest} ({many}).", f"  measure it: {again}")


def _and_time(demand: Demand) -> str:
    return "" if math.isinf(demand.step_seconds) else " and time"


def _none(found: Advice, demand: Demand) -> tuple[str, ...]:
    """Why nothing fits, and how far off the nearest is."""
    from bpcli.problem.limits import format_bytes

    near = found.nearest
    if near is None:
        return ("No method applies.",)
    if near.bytes <= demand.memory and near.bias is not None and near.bias > demand.bias:
        return (
            f"Nothing fits: {found.fitting} of {found.considered} candidates fit in memory{_and_time(demand)}, but the "
            f"least biased, {near.call.text}, has a bias of {near.bias:.2g} ({demand.bias:g} allowed).",
        )
    lacks = []
    if near.bytes > demand.memory:
        lacks.append(f"needs {format_bytes(near.bytes)} of memory ({format_bytes(demand.memory)} allowed)")
    if near.seconds > demand.step_seconds:
        lacks.append(f"takes {seconds(near.seconds)} per step ({seconds(demand.step_seconds)} allowed)")
    return (f"Nothing fits: the nearest method, {near.call.text}, {' and '.join(lacks) or 'has an unknown bias'}.",)
