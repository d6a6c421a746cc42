"""`bp merge`: put saved bench runs together."""

from __future__ import annotations

import os

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared


@click.command()
@click.argument("run", nargs=-1, required=True)
@click.option("-o", "--out", required=True, metavar="OUT.json", help="Where the merged run goes, as JSON.")
@shared("format", "output", "quiet", "verbose", "strict")
def merge(run: tuple[str, ...], out: str, common: Common) -> int:
    """Put the RUNs that `bp bench --output json=RUN` wrote into one, such as the parts of a sweep cut by --shard.

    Refused are runs of other versions, machines or specs than the first, and cells that are in two of them.
    """
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.saved_runs import merge as merge_runs
    from bpcli.bench.saved_runs import read_bench
    from bpcli.commands.bench import exit_code
    from bpcli.commands.bench_document import brief_document, full_document
    from bpcli.commands.output import emit, note
    from bpcli.commands.specs import test_writable
    from bpcli.errors import UNADVISED, Diagnostic, fail
    from bpcli.render import write

    paths = [os.path.realpath(path) for path in run]
    if len(set(paths)) < len(paths):
        fail("usage", "a run is named twice", help="name each once")
    if os.path.realpath(out) in {*paths, *(os.path.realpath(path) for _, path in common.outputs)}:
        fail("usage", f'-o "{out}" is one of the runs, or goes to an --output too', help="name another file")
    test_writable(out)
    runs = [read_bench(path) for path in run]
    rows, context, notes = merge_runs(runs)
    errors = [
        Diagnostic(str(e.get("code")), f"{r.path}: {e.get('message')}", help=str(e.get("help") or UNADVISED))
        for r in runs
        for e in r.errors
    ]
    document = full_document(rows, errors, context, () if common.quiet else [*notes, *context["skipped"]])
    write(document, "json", out)
    note(f"wrote {out}", common)
    emit(document, common, brief_document(document, common.quiet))
    return exit_code(BenchResults({0: list(rows)}, errors=errors), common.strict)
