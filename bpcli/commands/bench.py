"""`bp bench`: measure what gradients cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import Refused, shared

if TYPE_CHECKING:
    from bpcli.bench.journal import Journal
    from bpcli.bench.planning import Ask, Entry, Job, Results, Wish
    from bpcli.cluster.connect import Cluster


def _shard(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    """`i/n` as two numbers; the whole where nothing is given."""
    if value is None:
        return 1, 1
    part, slash, parts = value.partition("/")
    if not (slash and part.isascii() and part.isdigit() and parts.isascii() and parts.isdigit()):
        raise Refused(f'expected I/N, got "{value}"', "for example --shard 1/4, the first of four parts")
    if not 1 <= int(part) <= int(parts):
        raise Refused(f"there is no part {part} of {parts}", f"parts count from 1 to {parts}")
    return int(part), int(parts)


@click.command()
@click.argument("target", nargs=-1)
@click.option(
    "-m",
    "--method",
    multiple=True,
    metavar="METHOD",
    help="Measure this method, as tbptt:k1=1,k2=4, a reference, or a whole check; repeatable.",
)
@click.option(
    "-g", "--grid", multiple=True, metavar="KEY=V1,V2,…",
    help="Sweep a dim, a constant, T, batch, dtype, seed, threads or an option of methods; repeatable.",
)  # fmt: skip
@click.option("--peer", multiple=True, metavar="PEER", help="Measure this program beside bp: jax, torch; repeatable.")
@click.option(
    "--budget", type=click.FloatRange(min=0.0, min_open=True), default=0.5, show_default=True, metavar="SECONDS",
    help="How long to time each cell; seven blocks of calls at least.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on where the same call was interrupted; measures nothing twice.")
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
    peer: tuple[str, ...],
    budget: float,
    resume: bool,
    shard: tuple[int, int],
    common: Common,
) -> int:
    """Measure time, memory and truth of gradient methods over a sweep of each TARGET, a spec or a folder of specs.

    Every cell is measured in a process of its own. Its gradient is checked before it is timed; one that is wrong gets
    no timing. Without TARGET the vanilla RNN that ships with bp is measured. Methods and grid are those of [bench] in
    the spec; -m names other methods, -g adds to the grid or replaces keys of it. The rows of each spec go to
    reports/bench-SPEC.csv as well, or where --output csv=PATH says. A run that is interrupted, however, loses no
    finished cell: the same call with --resume goes on. On a cluster every worker measures one cell at a time; specs and
    the files that they name must be there, at the same paths.
    """
    from bpcli.commands.cluster_option import opened

    with opened(common, tuple(dict.fromkeys(peer))) as cluster:
        ask = _ask(peer, (budget, shard), common, cluster)  # first: it sets the threads that numba reads on import
        return _bench(target, (method, grid, resume), ask, common, cluster)


def _bench(
    target: Sequence[str],
    wanted: tuple[tuple[str, ...], tuple[str, ...], bool],
    ask: Ask,
    common: Common,
    cluster: Cluster | None,
) -> int:
    """Measure, show and write; the exit code. `wanted` are methods, grid, and whether to resume."""
    from bpcli.bench.planning import Results, Wish, entries
    from bpcli.bench.sweep import parse_axis
    from bpcli.commands.bench_document import close_journal, csv_files, open_journal, write_csv
    from bpcli.commands.method_selection import from_project
    from bpcli.commands.specs import find_or_packaged

    method, grid, resume = wanted
    results = Results()
    paths, results.errors = find_or_packaged(target, common)
    fixed = frozenset({*common.overrides, *(("threads",) if common.threads else ())})
    wish = Wish(method, from_project(), dict(map(parse_axis, grid)), fixed, alone=len(paths) == 1)
    jobs = _jobs(paths, wish, common, results)
    files = csv_files((job.target.name for job in jobs), common)
    about = _about(jobs, ask, cluster)
    listed = entries(jobs, ask.shard)
    with open_journal(about, resume, common) if listed else nullcontext() as journal:
        keys, interrupted = _run(listed, ask, results, journal, (common, cluster))
        if interrupted and not results.rows:  # takes no other run's place
            common = dataclasses.replace(common, outputs=())
        _show(results, common, paths, about, cluster)
        write_csv(files, results, common)
        if journal is not None:  # until here it was the one place on the disk where all rows were
            close_journal(journal, keys, interrupted, common)
    return 130 if interrupted else exit_code(results, common.strict)


def _ask(peer: Sequence[str], how: tuple[float, tuple[int, int]], common: Common, cluster: Cluster | None) -> Ask:
    """How to measure, with a budget and a part; kernels are told of the threads before they start."""
    from bpcli.backends import get
    from bpcli.bench.machine import cores
    from bpcli.commands.progress import use_threads

    threads = common.threads or (cluster.threads if cluster else cores())
    use_threads(threads)
    peers = tuple(get(name) for name in dict.fromkeys(peer))

    from bpcli.bench.planning import Ask

    budget, shard = how
    return Ask(budget, threads, peers, common.limits(), shard)


def _jobs(paths: Sequence[Path], wish: Wish, common: Common, results: Results) -> list[Job]:
    """The sweep of each spec; a refusal of one hides no other."""
    from bpcli.bench.planning import prepare
    from bpcli.bench.target import Target
    from bpcli.commands.failures import translate
    from bpcli.commands.specs import names, said_over

    jobs = []
    for path, name in names(paths).items():
        try:
            target = Target(str(path), name, *said_over(path, common), common.limits())
            jobs.append(prepare(target, wish, results))
        except Exception as error:
            results.refuse(translate(error))
    return jobs


def _about(jobs: Sequence[Job], ask: Ask, cluster: Cluster | None) -> dict[str, Any]:
    """What the rows of a run depend on; another run with the same goes on where one was interrupted."""
    from bpcli.bench.machine import describe
    from bpcli.bench.planning import entries
    from bpcli.commands.cluster_option import described

    machine = described(cluster) if cluster else dataclasses.asdict(describe(tuple(p.name for p in ask.peers)))
    return {
        "machine": machine,
        "budget_s": ask.budget,
        "threads": ask.threads,
        "peers": [p.name for p in ask.peers],
        "shard": "{}/{}".format(*ask.shard),
        "spec_sha256": {job.target.name: job.sha256 for job in jobs},
        "settings": [[dict(job.target.overrides), list(job.target.wrt)] for job in jobs],
        "cells": [entry.key for entry in entries(jobs)],
    }


def _run(
    listed: Sequence[Entry], ask: Ask, results: Results, journal: Journal | None, how: tuple[Common, Cluster | None]
) -> tuple[list[str], bool]:
    """Measure what is listed into `results`: the keys of what there was to measure, and whether the user stopped it."""
    from bpcli.bench.planning import orders
    from bpcli.commands.cluster_option import measuring
    from bpcli.commands.failures import translate
    from bpcli.commands.progress import prepare, remaining

    if journal is None:
        return [], False
    common, cluster = how
    results.found |= {e.index: journal.rows[e.key] for e in listed if e.key in journal.rows}
    keys, interrupted = [e.key for e in listed], False
    try:
        items = orders([e for e in listed if e.index not in results.found], ask, results)
        keys = [i.key for i in items]
        if items and (cluster is None or cluster.local):  # else the workers compile, each for itself
            prepare(common)
        with remaining([i.seconds for i in items], [i.label for i in items], common) as done:
            measuring(cluster)(items, ask, results, journal, lambda item: done(items.index(item)))
    except KeyboardInterrupt:
        what = "these are the cells that were finished" if results.found else "no cell was finished, no file written"
        results.note(f"interrupted: {what}")
        interrupted = True
    except Exception as error:
        results.refuse(translate(error))
    return keys, interrupted


def _show(
    results: Results, common: Common, paths: Sequence[Path], run: Mapping[str, Any], cluster: Cluster | None
) -> None:
    from bpcli.bench.journal import run_hash
    from bpcli.commands import output as context
    from bpcli.commands.bench_document import brief_document, full_document
    from bpcli.commands.cluster_option import machine_of
    from bpcli.commands.output import emit

    machine = machine_of(cluster, results) if cluster else {"machine": {**run["machine"], **results.rates}}
    about = context.describe(
        "bench",
        common,
        specs=[str(p) for p in paths],
        peers=run["peers"],
        budget_s=run["budget_s"],
        skipped=results.notes,
        spec_sha256=run["spec_sha256"],
        run_sha256=run_hash(run),
        sweep_sha256=run_hash({k: v for k, v in run.items() if k != "shard"}),
        shard=run["shard"],
        **machine,
    )
    document = full_document(results.rows, results.errors, about, () if common.quiet else results.notes)
    emit(document, common, brief_document(document, common.quiet))


def exit_code(results: Results, strict: bool) -> int:
    """The first that applies of refused, wrong, inconclusive when `strict`, nothing measured, good."""
    verdicts = {row["check"]["verdict"] for row in results.rows}
    if results.errors:
        return 2
    if "wrong" in verdicts:
        return 1
    if not any(row["time_s"] is not None for row in results.rows):
        return 5
    return 4 if strict and "inconclusive" in verdicts else 0
