"""The files of a bench run: a CSV file for each spec, and the journal while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.commands.options import Common

if TYPE_CHECKING:
    from bpcli.bench.journal import Journal
    from bpcli.bench.planning import Results

_REPORTS = Path("reports")
_NAMED = 12


def csv_files(jobs: Iterable[str], common: Common) -> dict[str, Path]:
    """The CSV file of each spec by name, tested before anything is measured; none where --output names one."""
    if any(name == "csv" for name, _ in common.outputs):
        return {}
    from bpcli.commands.specs import test_writable

    files: dict[str, Path] = {}
    for spec in jobs:
        stem = spec.replace("/", "-")
        while (file := _REPORTS / f"bench-{stem}.csv") in files.values():
            stem += "-"  # a/net beside a-net
        files[spec] = file
    if files:
        _make_reports()
    for file in files.values():
        test_writable(str(file))
    return files


def _make_reports() -> None:
    from bpcli.errors import fail

    try:
        _REPORTS.mkdir(exist_ok=True)
    except OSError as error:
        fail(
            "unwritable",
            f'cannot make the folder "{_REPORTS}": {error.strerror}',
            help="name a file: --output csv=PATH",
        )


def write_csv(files: Mapping[str, Path], results: Results, common: Common) -> None:
    """A CSV file for each spec that has rows."""
    from bpcli.bench.rows import by_spec
    from bpcli.commands.bench_document import full_document
    from bpcli.commands.output import note
    from bpcli.render import write

    for spec, rows in by_spec(results.rows).items():
        if spec in files:
            write(full_document(rows), "csv", files[spec])
            note(f"wrote {files[spec]}", common)


def open_journal(about: Mapping[str, Any], resume: bool, common: Common) -> Journal:
    """The journal of the run that `about` describes: in reports/, or beside the CSV file that --output names.

    Its name holds the run's hash, by which `resume` finds it again.
    """
    from bpcli.bench.journal import Journal, run_hash
    from bpcli.commands.output import note

    run = run_hash(about)
    named = next((Path(path).parent for name, path in common.outputs if name == "csv"), None)
    journal = Journal((named or _REPORTS) / f"bench-{run[:_NAMED]}.journal.jsonl", run, resume)
    if resume and not journal.rows:
        note("nothing to resume: no cell of this very run was finished before", common)
    if journal.kept:
        note(f"an unfinished run of the same cells is kept as {journal.kept}; --resume would have gone on", common)
    return journal


def close_journal(journal: Journal, keys: Sequence[str], interrupted: bool, common: Common) -> None:
    """Remove the journal where every cell is in it, or none, else say how to go on."""
    from bpcli.commands.output import note

    left = sum(key not in journal.rows for key in keys)
    journal.close(remove=not journal.rows or (not left and not interrupted))
    if left and journal.rows:
        note(f"{left} of {len(keys)} cells are left; the same call with --resume goes on ({journal.path})", common)
