"""`bp compare`: what changed between two saved runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared

if TYPE_CHECKING:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.saved_runs import Run


@click.command()
@click.argument("base")
@click.argument("head")
@click.option(
    "--across-machines", is_flag=True,
    help="Compare runs of different machines: what is deterministic, and no times.",
)  # fmt: skip
@click.option(
    "--write-baseline", metavar="FILE",
    help="Write what is deterministic in HEAD, as the BASE of times to come; not where a gradient is wrong.",
)  # fmt: skip
@shared("format", "output", "quiet", "verbose", "strict")
def compare(base: str, head: str, across_machines: bool, write_baseline: str | None, common: Common) -> int:
    """Compare two runs that `bp bench` or `bp check` saved with --output json=FILE: HEAD against BASE.

    Gradients and deterministic figures come first: bytes, steps, flops, bias. Any growth there is a regression. Times
    are judged by their samples, and only where both runs have them and are of one machine: SLOWER, FASTER and SAME
    are said when the whole interval of the ratio says so. `bp ab` tells more: it runs both sides in turn.
    """
    from bpcli.bench.comparison import compare as compare_runs
    from bpcli.bench.comparison import has_times, machine_differences
    from bpcli.bench.saved_runs import read
    from bpcli.errors import fail

    old, new = read(base), read(head)
    _test_baseline(write_baseline, head, common)
    timed = has_times(old, new)
    apart = machine_differences(old, new)
    if timed and apart and not across_machines:
        advice = "--across-machines compares what is deterministic, and no times"
        fail("incomparable", f"{base} and {head} are of different machines: {'; '.join(apart)}", help=advice)
    comparison = compare_runs(old, new, timed and not across_machines)
    notes = [f"different machines: {'; '.join(apart)}"] if apart else []
    return _show(comparison, (old, new), notes, (write_baseline, common))


def _test_baseline(path: str | None, head: str, common: Common) -> None:
    """Raise BpError for a baseline that cannot be written, or whose path is HEAD or an --output."""
    from bpcli.commands.specs import test_writable
    from bpcli.errors import fail

    if path is None:
        return
    if os.path.realpath(path) == os.path.realpath(head):
        fail("usage", f'--write-baseline "{path}" is HEAD itself', help="name another file")
    if os.path.realpath(path) in {os.path.realpath(p) for _, p in common.outputs}:
        fail("usage", f'--write-baseline and --output both go to "{path}"', help="give each a path of its own")
    test_writable(path)


def _show(comparison: Comparison, runs: tuple[Run, Run], notes: list[str], where: tuple[str | None, Common]) -> int:
    from bpcli.commands.comparison_document import brief_document, comparison_document, exit_code
    from bpcli.commands.output import emit

    path, common = where
    code = exit_code(comparison, common.strict)
    if path is not None:
        notes += [_write(path, runs[1], code)]
    about: dict[str, Any] = {"command": "compare", "strict": common.strict}
    about |= dict(zip(("base", "head"), ({"file": r.path, "machine": dict(r.machine)} for r in runs), strict=True))
    document = comparison_document(comparison, about, notes)
    return emit(document, common, brief_document(document, common.quiet)) or code


def _write(path: str, run: Run, code: int) -> str:
    """Write the baseline where no gradient is wrong; return a note on it."""
    from bpcli.bench.comparison import baseline
    from bpcli.problem.array_writer import replace_file
    from bpcli.render.json import plain

    if code == 1:
        return f"{path} was not written: a gradient is wrong"
    content = (json.dumps(plain(baseline(run)), indent=1) + "\n").encode("utf-8")
    replace_file(path, lambda stream: stream.write(content))
    return f"wrote {path}, the new baseline"
