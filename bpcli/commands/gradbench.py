"""`bp gradbench`: a tool of GradBench, which answers messages on stdin by responses on stdout."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.errors import Place

if TYPE_CHECKING:
    from bpcli.api.gradbench_evals import Eval
    from bpcli.problem.definition import Problem

_STDIN = "stdin"


@click.command()
@click.option("-m", "--method", metavar="METHOD", help="Method for gradients; default: backprop, or bptt over time.")
@shared("threads", "max_memory", "max_time")
def gradbench(method: str | None, common: Common) -> int:
    """Answer the messages of an eval of GradBench on stdin, one line of JSON each, on stdout.

    The evals gmm, hello, llsq, lse, lstm and ode are defined; GradBench starts this command as its --tool. A line that
    is no message ends it with exit code 2. `bp check --gradbench LOG.jsonl` judges the gradients of other tools.
    """
    from bpcli.api.gradbench_log import field, parse_line

    for number, text in enumerate(sys.stdin, 1):
        if not text.strip():
            continue
        message, place = parse_line(text, _STDIN, number), Place(_STDIN, number, 1, text.rstrip("\n"))
        response = {"id": field(message, "id", int, place)}
        kind = field(message, "kind", str, place)
        if kind in ("define", "evaluate"):
            field(message, "module", str, place)
        if kind == "evaluate":
            field(message, "function", str, place)
        click.echo(json.dumps(response | _respond(kind, message, method, common)))
        sys.stdout.flush()
    return 0


def _respond(kind: str, message: dict[str, Any], method: str | None, common: Common) -> dict[str, Any]:
    """What the protocol asks for beside the id: nothing for kinds that it does not name."""
    from bpcli import __version__
    from bpcli.commands.failures import translate

    if kind == "start":
        return {"tool": "bp", "config": {"version": __version__, "method": method or "exact"}}
    if kind not in ("define", "evaluate"):
        return {}
    try:
        return _defined(message, common) if kind == "define" else _evaluated(message, method, common)
    except Exception as error:
        told = translate(error).diagnostics
        return {"success": False, "error": "; ".join(f"{d.what} ({d.help})" for d in told)}


def _defined(message: dict[str, Any], common: Common) -> dict[str, Any]:
    """Whether there are equations for a module; the kernels are compiled here, so that no evaluation waits."""
    from bpcli.api.gradbench_evals import eval_of
    from bpcli.commands.output import prepare

    eval_of(message["module"])
    start = time.perf_counter_ns()
    prepare(common)
    return {"success": True, "timings": [_timing("prepare", start)]}


def _evaluated(message: dict[str, Any], method: str | None, common: Common) -> dict[str, Any]:
    """The output of a function, run as often and as long as the input asks."""
    from bpcli.api.gradbench_evals import eval_of, parse_input, workload_of
    from bpcli.errors import fail
    from bpcli.problem.draw import draw
    from bpcli.problem.setup import open_setup

    found = eval_of(message["module"])
    if message["function"] not in (found.value, found.gradient):
        what = f'{message["module"]} has no function "{message["function"]}"'
        fail("unknown-function", what, help=f"known: {found.value}, {found.gradient}")
    given = parse_input(found, message.get("input"))
    with tempfile.TemporaryDirectory(prefix="bp-gradbench-") as folder:
        path = workload_of(found, given).write(Path(folder))
        problem = draw(open_setup(path, {}, (), common.limits()))
    run = _function(found, message["function"], problem, given, method)
    timings: list[dict[str, Any]] = []
    began = time.perf_counter()
    while len(timings) < given.min_runs or time.perf_counter() - began < given.min_seconds:
        start = time.perf_counter_ns()
        result = run()
        timings.append(_timing("evaluate", start))
    output = found.join(given, result) if message["function"] == found.gradient else result.tolist()
    return {"success": True, "output": output, "timings": timings}


def _function(found: Eval, name: str, problem: Problem, given: Any, method: str | None) -> Callable[[], Any]:
    """The function to time: the gradients by name, or the value as an array."""
    import numpy as np

    from bpcli.errors import fail
    from bpcli.methods import advice, exact_method, parse
    from bpcli.runtime.evaluation import node_values, whole_loss

    graph = problem.setup.graph
    if name == found.value:
        if not found.state:
            return lambda: np.float64(whole_loss(problem))
        node = graph.equation[found.state]
        return lambda: node_values(problem, (node,))[node][-1, 0]
    call = parse(method or exact_method(graph))
    if reason := call.refusal(graph):
        fail("method-refused", f"{call.text}: {reason}", help=advice(graph))
    return lambda: call.gradient(problem).arrays


def _timing(name: str, start: int) -> dict[str, Any]:
    return {"name": name, "nanoseconds": time.perf_counter_ns() - start}
