"""`bp bench`: measure what gradients cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.options import Common, shared

if TYPE_CHECKING:
    from bpcli.benching.measure import Ask
    from bpcli.benching.run import Job, Results, Wish
    from bpcli.problem.model import Setup

_REPORTS = Path("reports")


@click.command()
@click.argument("target", nargs=-1)
@click.option(
    "-m", "--method", multiple=True, metavar="METHOD", help="Measure this method, as tbptt:k1=1,k2=4; repeatable."
)
@click.option(
    "-g", "--grid", multiple=True, metavar="KEY=V1,V2,…",
    help="Sweep a dim, a constant, T, batch, dtype, seed or an option of methods; repeatable.",
)  # fmt: skip
@click.option("--peer", multiple=True, metavar="PEER", help="Measure this program beside bp: jax; repeatable.")
@click.option(
    "--budget", type=click.FloatRange(min=0.0, min_open=True), default=0.5, show_default=True, metavar="SECONDS",
    help="How long to time each cell; seven blocks of calls at least.",
)  # fmt: skip
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def bench(
    target: tuple[str, ...],
    method: tuple[str, ...],
    grid: tuple[str, ...],
    peer: tuple[str, ...],
    budget: float,
    common: Common,
) -> int:
    """Measure time, memory and truth of gradient methods over a sweep of each TARGET, a spec or a folder of specs.

    Every gradient is checked before it is timed; one that is wrong gets no timing. Without TARGET the vanilla RNN
    that ships with bp is measured. Methods and grid are those of [bench] in the spec; -m names other methods, -g adds
    to the grid or replaces keys of it. The rows of each spec go to reports/bench-SPEC.csv as well, or where --output
    csv=PATH says.
    """
    ask = _ask(peer, budget, common)  # first of all: it sets the threads that numba reads when it is imported

    from bpcli.benching.run import Results, Wish
    from bpcli.benching.sweep import parse_axis
    from bpcli.commands.choose import from_project

    results = Results()
    paths = _find(target, results)
    wish = Wish(method, from_project(), dict(map(parse_axis, grid)), frozenset(common.overrides), alone=len(paths) == 1)
    jobs = _jobs(paths, wish, common, results)
    files = _files(jobs, common)
    interrupted = _run(jobs, ask, common, results)
    _show(results, common, paths, ask)
    _write(files, results, common)
    return 130 if interrupted else _exit_code(results, common.strict)


def _ask(peer: Sequence[str], budget: float, common: Common) -> Ask:
    """How to measure; kernels and peers are told of the threads before they start."""
    from bpcli.benching.machine import cores
    from bpcli.commands.kernels import use_threads
    from bpcli.peers import get

    threads = common.threads or cores()
    use_threads(threads)
    peers = tuple(get(name) for name in dict.fromkeys(peer))
    held = {other.name: other.prepare(threads) for other in peers}

    from bpcli.benching.measure import Ask
    from bpcli.benching.store import OURS

    return Ask(budget, {OURS: threads, **held}, peers, common.limits())


def _find(target: Sequence[str], results: Results) -> list[Path]:
    """The specs to measure: those that the targets name, or the one that ships with the package."""
    from bpcli.commands.packaged import packaged_spec
    from bpcli.commands.specs import find

    if not target:
        return [packaged_spec("vanilla_rnn")]
    paths, refused = find(target)
    results.errors += refused
    return paths


def _jobs(paths: Sequence[Path], wish: Wish, common: Common, results: Results) -> dict[str, Job]:
    """The sweep of each spec by its name; a refusal of one hides no other."""
    from bpcli.benching.run import prepare
    from bpcli.commands.failures import translate
    from bpcli.commands.specs import names

    jobs = {}
    for path, name in names(paths).items():
        try:
            jobs[name] = prepare(_opener(path, name, common), wish, results)
        except Exception as error:
            results.refuse(translate(error))
    return jobs


def _opener(path: Path, name: str, common: Common) -> Callable[[Mapping[str, Any]], Setup]:
    from bpcli.commands.specs import open_spec

    def open_at(settings: Mapping[str, Any]) -> Setup:
        return open_spec(path, dataclasses.replace(common, overrides={**common.overrides, **settings}), name)

    return open_at


def _run(jobs: Mapping[str, Job], ask: Ask, common: Common, results: Results) -> bool:
    """Measure all jobs into `results`; True when the user stopped it, which loses nothing that was finished."""
    from bpcli.benching.run import run
    from bpcli.commands.failures import translate
    from bpcli.commands.kernels import load_threads, prepare

    if jobs:
        prepare(common)
        load_threads()
    try:
        with _counting(sum(j.sweep.cells for j in jobs.values()), common) as count:
            for job in jobs.values():
                try:
                    run(job, ask, results, count)
                except Exception as error:
                    results.refuse(translate(error))
    except KeyboardInterrupt:
        results.note("interrupted: these are the cells that were finished")
        return True
    return False


@contextmanager
def _counting(cells: int, common: Common) -> Iterator[Callable[[int], None]]:
    """A function to call after some cells are done, which shows how many and how long the rest may take."""
    from bpcli.commands.progress import progress

    start, done = time.monotonic(), 0
    with progress(common) as say:

        def count(more: int) -> None:
            nonlocal done
            done += more
            left = (time.monotonic() - start) / max(done, 1) * (cells - done)
            say(f"cell {min(done + 1, cells)} of {cells}" + (f", about {left:.0f} s left" if done else ""))

        count(0)
        yield count


def _files(jobs: Iterable[str], common: Common) -> dict[str, Path]:
    """The CSV file of each spec by name, tested before anything is measured; none where --output names one."""
    if any(name == "csv" for name, _ in common.outputs):
        return {}
    from bpcli.commands.specs import test_writable
    from bpcli.errors import fail

    files: dict[str, Path] = {}
    for spec in jobs:
        stem = spec.replace("/", "-")
        while (file := _REPORTS / f"bench-{stem}.csv") in files.values():
            stem += "-"  # a/net beside a-net
        files[spec] = file
    try:
        if files:
            _REPORTS.mkdir(exist_ok=True)
    except OSError as error:
        fail(
            "unwritable",
            f'cannot make the folder "{_REPORTS}": {error.strerror}',
            help="name a file: --output csv=PATH",
        )
    for file in files.values():
        test_writable(str(file))
    return files


def _write(files: Mapping[str, Path], results: Results, common: Common) -> None:
    """A CSV file for each spec that has rows."""
    from bpcli.benching.store import by_spec
    from bpcli.commands.bench_document import full_document
    from bpcli.commands.output import note
    from bpcli.render import write

    for spec, rows in by_spec(results.rows).items():
        if spec in files:
            write(full_document(rows), "csv", files[spec])
            note(f"wrote {files[spec]}", common)


def _show(results: Results, common: Common, paths: Sequence[Path], ask: Ask) -> None:
    from bpcli.benching.machine import copy_rate, describe, gemm_rate
    from bpcli.commands import context
    from bpcli.commands.bench_document import brief_document, full_document
    from bpcli.commands.output import emit

    peers = [p.name for p in ask.peers]
    dtypes = sorted({r["dtype"] for r in results.rows})
    rates = {f"gemm_{d}_flops_per_s": gemm_rate(d, ask.own_threads) for d in dtypes}
    rates |= {"copy_bytes_per_s": copy_rate()} if dtypes else {}
    machine = {**dataclasses.asdict(describe(tuple(peers))), **rates}
    about = context.describe(
        "bench",
        common,
        specs=[str(p) for p in paths],
        peers=peers,
        budget_s=ask.budget,
        machine=machine,
        skipped=results.notes,
    )
    document = full_document(results.rows, results.errors, about, () if common.quiet else results.notes)
    emit(document, common, brief_document(document, common.quiet))


def _exit_code(results: Results, strict: bool) -> int:
    """The first that applies of refused, wrong, inconclusive when `strict`, nothing measured, good."""
    verdicts = {row["check"]["verdict"] for row in results.rows}
    if results.errors:
        return 2
    if "wrong" in verdicts:
        return 1
    if not any(row["time_s"] is not None for row in results.rows):
        return 5
    return 4 if strict and "inconclusive" in verdicts else 0
