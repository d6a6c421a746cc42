"""`bp bench` and `bp merge`: measure the cost of gradients over a sweep, and join the runs of its parts."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import (
    Common,
    Refused,
    finite_seconds,
    from_project,
    opened_cluster,
    relative_bias,
    shared,
    use_threads,
)
from bpcli.render import write

if TYPE_CHECKING:
    from bpcli.backends import Peer
    from bpcli.bench.journal import Journal
    from bpcli.bench.measurement import BenchResults, Cell
    from bpcli.bench.sweep import BenchOptions, Sweep
    from bpcli.cluster.connect import Cluster


def _shard(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    """Parse `I/N`; the default is 1/1."""
    if value is None:
        return 1, 1
    part, slash, parts = value.partition("/")
    if not (slash and part.isascii() and part.isdigit() and parts.isascii() and parts.isdigit()):
        raise Refused(f'expected I/N, got "{value}"', "for example --shard 1/4 for the first of four parts")
    if not 1 <= int(part) <= int(parts):
        raise Refused(f"there is no part {part} of {parts}", f"parts are numbered from 1 to {parts}")
    return int(part), int(parts)


@click.command()
@click.argument("target", nargs=-1)
@click.option(
    "-m", "--method", multiple=True, metavar="METHOD",
    help="Method, such as tbptt:k1=1,k2=4; also `all` for every method that applies, a reference, `check` for a "
    "complete check, or FILE.py:RULE, your own online rule; repeatable.",
)  # fmt: skip
@click.option(
    "-g", "--grid", multiple=True, metavar="KEY=V1,V2,…",
    help="Sweep a dim, constant, T, batch, dtype, seed, threads or a method option; repeatable.",
)  # fmt: skip
@click.option(
    "--kernel", multiple=True, metavar="FILE.py:FUNC",
    help="Also measure your own gradient function, next to the exact method; repeatable.",
)  # fmt: skip
@click.option(
    "--peer", multiple=True, metavar="PEER", help="Also measure jax, torch or torch_nn on the same cells; repeatable."
)
@click.option(
    "--budget", type=float, default=0.5, show_default=True, metavar="SECONDS", callback=finite_seconds,
    help="Time to spend on each cell; at least seven blocks of calls are timed.",
)  # fmt: skip
@click.option(
    "--draws", type=click.IntRange(1, 10000), default=16, show_default=True, metavar="N",
    help="Estimate bias, cosine and variance of a random method from N draws.",
)  # fmt: skip
@click.option(
    "--bias", type=float, default=0.05, show_default=True, metavar="NUMBER", callback=relative_bias,
    help="Name the cheapest methods within this relative bias; for a random method, the error of one draw counts.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Measure nothing; show cells with predicted memory, operations and time.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command.")
@click.option(
    "--shard", metavar="I/N", callback=_shard, help="Measure part I of N of the cells; `bp merge` joins the parts."
)
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "scheduler", "local_cluster", "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def bench(
    target: tuple[str, ...],
    method: tuple[str, ...],
    grid: tuple[str, ...],
    kernel: tuple[str, ...],
    peer: tuple[str, ...],
    budget: float,
    draws: int,
    bias: float,
    dry_run: bool,
    resume: bool,
    shard: tuple[int, int],
    common: Common,
) -> int:
    """Measure the time, memory and accuracy of gradient methods on each TARGET, a spec or a folder of specs.

    Every cell of the sweep runs in its own process. Its gradient is checked first; a wrong gradient is not timed.
    Without TARGET, the vanilla RNN that ships with bp is measured. Methods and grid come from [bench] in the spec; -m
    replaces the methods, -g adds keys to the grid or replaces them. The rows of each spec are also written to
    reports/bench-SPEC.csv or, if options are given, to reports/bench-SPEC-DIGEST.csv, which only the same call
    replaces; --output csv=PATH names another file. Finished cells survive any interruption: repeat the command with
    --resume to continue. On a cluster, each worker measures one cell at a time; specs and the files they name must
    exist there at the same paths.
    """
    from bpcli.errors import fail

    if kernel and (common.scheduler or common.local_cluster):
        fail("usage", "--kernel measures on this machine", help="leave out --scheduler and --local-cluster")
    with opened_cluster(common, tuple(dict.fromkeys(peer))) as cluster:
        from bpcli.runtime.machine import cores

        threads = common.threads or (cluster.threads if cluster else cores())
        use_threads(threads)  # before Numba is imported, which reads it once
        from bpcli.backends import get
        from bpcli.bench.sweep import BenchOptions, parse_axis
        from bpcli.bench.user_kernel import UserKernel

        fixed = frozenset({*common.overrides, *(("threads",) if common.threads else ())})
        peers: tuple[Peer, ...] = tuple(get(name) for name in dict.fromkeys(peer))
        peers += tuple(UserKernel(text) for text in dict.fromkeys(kernel))
        swept = dict(map(parse_axis, grid))
        limits = common.limits()
        options = BenchOptions(method, from_project(), swept, fixed, budget, threads, peers, limits, shard, draws=draws)
        return _bench(target, options, (resume, dry_run), (common, cluster), bias)


def _bench(
    target: Sequence[str],
    options: BenchOptions,
    how: tuple[bool, bool],
    where: tuple[Common, Cluster | None],
    bias: float,
) -> int:
    """Measure the targets, print and write the results; returns the exit code."""
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.sweep import cells_of
    from bpcli.commands.bench_document import close_journal, csv_files, open_journal, write_csv
    from bpcli.commands.specs import find_or_packaged

    (resume, dry_run), (common, cluster) = how, where
    results = BenchResults()
    paths, results.errors = find_or_packaged(target, common)
    options = dataclasses.replace(options, alone=len(paths) == 1)
    sweeps = planned(paths, options, common, results)
    if dry_run:
        from bpcli.commands.planning import show_bench_plan

        return show_bench_plan(sweeps, options, results, common, paths)
    files = csv_files((sweep.spec.name for sweep in sweeps), options, common)
    about = _identity(sweeps, options, cluster)
    with open_journal(about, resume, common) if cells_of(sweeps, options.shard) else nullcontext() as journal:
        interrupted = journal is not None and _run(sweeps, options, results, journal, where)
        if interrupted and not results.rows:  # keep the output files of an earlier run
            common = dataclasses.replace(common, outputs=())
        _show(results, common, paths, {**about, "bias": bias}, cluster)
        write_csv(files, results, common)
        if journal is not None:  # only now are the rows elsewhere on disk
            close_journal(journal, results.planned, interrupted, common)
    return 130 if interrupted else exit_code(results, common.strict)


def planned(paths: Sequence[Path], options: BenchOptions, common: Common, results: BenchResults) -> list[Sweep]:
    """The sweep of each spec; a refusal is added to the results, and other specs are still measured."""
    from bpcli.bench.sweep import plan_sweep
    from bpcli.commands.failures import translate
    from bpcli.commands.specs import names, spec_file

    sweeps = []
    for path, name in names(paths).items():
        try:
            sweeps.append(plan_sweep(spec_file(path, common, name), options, results))
        except Exception as error:
            results.refuse(translate(error))
    return sweeps


def _identity(sweeps: Sequence[Sweep], options: BenchOptions, cluster: Cluster | None) -> dict[str, Any]:
    """Everything that the rows depend on; --resume continues only a run of the same identity."""
    from bpcli.bench.sweep import cells_of
    from bpcli.bench.user_kernel import UserKernel
    from bpcli.checking.sources.user_rule import is_rule, sha256
    from bpcli.runtime.machine import describe

    peers = [p.name for p in options.peers]
    return {
        "machine": cluster.identity if cluster else dataclasses.asdict(describe(tuple(peers))),
        "budget_s": options.budget,
        "draws": options.draws,
        "threads": options.threads,
        "peers": peers,
        "kernels": {p.name: p.sha256 for p in options.peers if isinstance(p, UserKernel)},
        "rules": {text: sha256(text) for text in options.methods if is_rule(text)},
        "shard": "{}/{}".format(*options.shard),
        "spec_sha256": {sweep.spec.name: sweep.sha256 for sweep in sweeps},
        "settings": [[dict(sweep.spec.overrides), list(sweep.spec.wrt)] for sweep in sweeps],
        "cells": [cell.key for cell in cells_of(sweeps)],
    }


def _run(
    sweeps: Sequence[Sweep],
    options: BenchOptions,
    results: BenchResults,
    journal: Journal,
    where: tuple[Common, Cluster | None],
) -> bool:
    """Measure the sweeps into `results`; returns whether the user interrupted it."""
    from bpcli.bench.bench_run import measure_cells, run_bench
    from bpcli.commands.failures import translate

    common, cluster = where

    @contextmanager
    def progress(cells: Sequence[Cell]) -> Iterator[Callable[[Cell], None]]:
        from bpcli.commands.output import prepare, remaining
        from bpcli.commands.planning import bench_notes

        if cells and (cluster is None or cluster.local):  # remote workers compile their own
            prepare(common)
        show = bench_notes(cells, results, common)
        places = {cell.index: place for place, cell in enumerate(cells)}
        with remaining([c.seconds for c in cells], [c.label for c in cells], common) as done:

            def finish(cell: Cell) -> None:
                done(places[cell.index])
                show(cell)

            yield finish

    measure = measure_cells
    if cluster is not None:
        from bpcli.cluster.remote_work import measure_remotely

        measure = functools.partial(measure_remotely, cluster=cluster)
    try:
        run_bench(sweeps, options, results, journal, measure, progress)
    except KeyboardInterrupt:
        what = "only finished cells are shown" if results.found else "no cell was finished, no file was written"
        results.note(f"interrupted: {what}")
        return True
    except Exception as error:
        results.refuse(translate(error))
    return False


def _show(
    results: BenchResults, common: Common, paths: Sequence[Path], run: Mapping[str, Any], cluster: Cluster | None
) -> None:
    """Print and write the results of a run; `run` is its identity, and the `bias` by which it is summarised."""
    from bpcli.bench.journal import run_hash
    from bpcli.commands.bench_document import brief_document, full_document
    from bpcli.commands.output import describe, emit

    identity = {k: v for k, v in run.items() if k != "bias"}
    machine = cluster.machines(results.machines) if cluster else {"machine": {**run["machine"], **results.rates}}
    about = describe(
        "bench",
        common,
        specs=[str(p) for p in paths],
        peers=run["peers"],
        budget_s=run["budget_s"],
        draws=run["draws"],
        bias=run["bias"],
        skipped=results.notes,
        spec_sha256=run["spec_sha256"],
        run_sha256=run_hash(identity),
        sweep_sha256=run_hash({k: v for k, v in identity.items() if k != "shard"}),
        shard=run["shard"],
        **machine,
    )
    document = full_document(results.rows, results.errors, about, () if common.quiet else results.notes)
    emit(document, common, brief_document(document, common.quiet))


def exit_code(results: BenchResults, strict: bool) -> int:
    """The first that applies: 2 refused, 1 wrong, 5 nothing measured, 4 inconclusive and `strict`, 0."""
    verdicts = {row["check"]["verdict"] for row in results.rows}
    if results.errors:
        return 2
    if "wrong" in verdicts:
        return 1
    if not any(row["time_s"] is not None for row in results.rows):
        return 5
    return 4 if strict and "inconclusive" in verdicts else 0


@click.command()
@click.argument("run", nargs=-1, required=True)
@click.option("-o", "--out", required=True, metavar="OUT.json", help="Output file, as JSON.")
@shared("format", "output", "quiet", "verbose", "strict")
def merge(run: tuple[str, ...], out: str, common: Common) -> int:
    """Merge RUNs saved by `bp bench --output json=RUN`, such as the parts of a sweep made by --shard, into one.

    All must come from the same version of bp, the same machine and the same specs, and no cell may be in two of them.
    """
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.saved_runs import merge as merge_runs
    from bpcli.bench.saved_runs import read_bench
    from bpcli.commands.bench_document import brief_document, full_document
    from bpcli.commands.output import emit
    from bpcli.errors import UNADVISED, Diagnostic, fail
    from bpcli.problem.array_files import check_writable

    paths = [os.path.realpath(path) for path in run]
    if len(set(paths)) < len(paths):
        fail("usage", "a run is named twice", help="name each once")
    if os.path.realpath(out) in {*paths, *(os.path.realpath(path) for _, path in common.outputs)}:
        fail("usage", f'-o "{out}" is also one of the runs or an --output', help="name another file")
    check_writable(out)
    runs = [read_bench(path) for path in run]
    rows, context, notes = merge_runs(runs)
    errors = [
        Diagnostic(str(e.get("code")), f"{r.path}: {e.get('message')}", help=str(e.get("help") or UNADVISED))
        for r in runs
        for e in r.errors
    ]
    document = full_document(rows, errors, context, () if common.quiet else [*notes, *context["skipped"]])
    write(document, "json", out)
    common.note(f"wrote {out}")
    emit(document, common, brief_document(document, common.quiet))
    return exit_code(BenchResults({0: list(rows)}, errors=errors), common.strict)
