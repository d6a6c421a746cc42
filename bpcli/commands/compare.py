"""`bp compare` and `bp ab`: differences between two saved runs, and between two installations that are timed in turn.

Both show the same document.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, finite_seconds, from_project, shared
from bpcli.errors import Diagnostic, fail
from bpcli.render import Case, Column, Document, seconds, words

if TYPE_CHECKING:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.measurement import BenchResults, Cell
    from bpcli.bench.pairing import Plan, Sides
    from bpcli.bench.saved_runs import Run
    from bpcli.bench.sweep import BenchOptions, Sweep
    from bpcli.bench.worker_process import Environment

Row = Mapping[str, Any]


@click.command()
@click.argument("base")
@click.argument("head")
@click.option(
    "--across-machines", is_flag=True,
    help="Allow runs from different machines: compare deterministic figures, not times.",
)  # fmt: skip
@click.option(
    "--write-baseline", metavar="FILE",
    help="Write the deterministic figures of HEAD as a new BASE, unless a gradient is wrong.",
)  # fmt: skip
@shared("format", "output", "quiet", "verbose", "strict")
def compare(base: str, head: str, across_machines: bool, write_baseline: str | None, common: Common) -> int:
    """Compare the run HEAD with the run BASE, both saved by `bp bench` or `bp check` with --output json=FILE.

    Gradients and deterministic figures are compared first: bytes, steps, flops and bias. Any growth is a regression.
    Times are compared by their samples, if both runs have them and are from the same machine: SLOWER, FASTER or SAME
    requires that the whole confidence interval of the ratio supports it. `bp ab` detects smaller changes, since it
    times both sides in turn.
    """
    from bpcli.bench.comparison import compare as compare_runs
    from bpcli.bench.comparison import has_times, machine_differences
    from bpcli.bench.saved_runs import read
    from bpcli.commands.output import emit

    old, new = read(base), read(head)
    _check_baseline(write_baseline, head, common)
    timed = has_times(old, new)
    apart = machine_differences(old, new)
    if timed and apart and not across_machines:
        advice = "--across-machines compares deterministic figures only"
        fail("incomparable", f"{base} and {head} are from different machines: {'; '.join(apart)}", help=advice)
    comparison = compare_runs(old, new, timed and not across_machines)
    code = exit_code(comparison, common.strict)
    notes = [f"different machines: {'; '.join(apart)}"] if apart else []
    if write_baseline is not None:
        notes.append(_write_baseline(write_baseline, new, code))
    about = {k: {"file": r.path, "machine": dict(r.machine)} for k, r in (("base", old), ("head", new))}
    document = comparison_document(comparison, {"command": "compare", "strict": common.strict, **about}, notes)
    return emit(document, common, brief_document(document, common.quiet)) or code


def _check_baseline(path: str | None, head: str, common: Common) -> None:
    """Raise BpError for a baseline that cannot be written, or that is HEAD or an --output."""
    from bpcli.problem.array_files import check_writable

    if path is None:
        return
    if os.path.realpath(path) == os.path.realpath(head):
        fail("usage", f'--write-baseline "{path}" is HEAD itself', help="name another file")
    if os.path.realpath(path) in {os.path.realpath(p) for _, p in common.outputs}:
        fail("usage", f'--write-baseline and --output both go to "{path}"', help="give each a path of its own")
    check_writable(path)


def _write_baseline(path: str, run: Run, code: int) -> str:
    """Write the baseline unless a gradient is wrong; returns a note."""
    from bpcli.bench.comparison import baseline
    from bpcli.problem.array_files import replace_file
    from bpcli.render.data import plain

    if code == 1:
        return f"{path} was not written: a gradient is wrong"
    content = (json.dumps(plain(baseline(run)), indent=1) + "\n").encode("utf-8")
    replace_file(path, lambda stream: stream.write(content))
    return f"wrote {path}, the new baseline"


# Of each verdict its meaning, its style in a table, its verdict as a test and its badness; the worst come first.
_VERDICTS = {
    "WRONG": ("gradient of the head is wrong", "bold red", "wrong", 1e9),
    "SLOWER": ("time is longer", "bold red", "wrong", 1e3),
    "MORE": ("figure grew", "bold red", "wrong", 1e3),
    "INCONCLUSIVE": ("figure can't be compared", "yellow", "inconclusive", 0.0),
    "MISSING": ("cell or figure is missing from the head", "yellow", "inconclusive", 0.0),
    "NEW": ("cell or figure is new", "", "pass", 0.0),
    "LESS": ("figure shrank", "green", "pass", 0.0),
    "FASTER": ("time is shorter", "green", "pass", 0.0),
    "RIGHT": ("gradient is right now", "green", "pass", 0.0),
    "SAME": ("", "", "pass", 0.0),
}


def comparison_document(
    comparison: Comparison, context: Mapping[str, Any], notes: Sequence[str], errors: Sequence[Diagnostic] = ()
) -> Document:
    """A row for each figure of each cell, the worst first."""
    counts = Counter(line.verdict for line in comparison.lines)
    return Document(
        title="Comparison",
        rows_key="comparisons",
        columns=COLUMNS,
        rows=[asdict(line) for line in comparison.lines],
        context=context,
        summary={"cells": comparison.cells, **{v.lower(): counts[v] for v in _VERDICTS}},
        sentences=_sentences(comparison, counts),
        notes=[*comparison.notes, *notes],
        errors=errors,
        style=lambda row: _VERDICTS[row["verdict"]][1],
        case=_case,
    )


def brief_document(full: Document, quiet: bool) -> Document:
    """The rows that changed and all times; if `quiet`, only those that are worse or undecided."""
    rows = [
        row
        for row in full.rows
        if _VERDICTS[row["verdict"]][2] != "pass"
        or not (quiet or (row["verdict"] == "SAME" and row["figure"] != "time_s"))
    ]
    empty = {c.key for c in full.columns if c.key in _SOMETIMES and not any(c.show(c.get(r)) for r in rows)}
    empty |= {"spec"} if len({row["spec"] for row in full.rows}) == 1 else set()
    shown = [c for c in full.columns if not c.wide and c.key not in empty]
    sentences = full.sentences if rows or not quiet else ()
    return replace(full, rows=rows, columns=shown, sentences=sentences, notes=() if quiet else full.notes)


def exit_code(comparison: Comparison, strict: bool) -> int:
    """The first that applies: 1 wrong, 3 regressed, 5 nothing compared, 4 undecided and `strict`, 0."""
    found = {line.verdict for line in comparison.lines}
    outcomes = {_VERDICTS[verdict][2] for verdict in found}
    if "wrong" in outcomes:
        return 1 if "WRONG" in found else 3
    if not comparison.cells:
        return 5
    return 4 if strict and "inconclusive" in outcomes else 0


def _sentences(comparison: Comparison, counts: Mapping[str, int]) -> list[str]:
    if not comparison.cells:
        return ["Nothing was compared: the runs have no cell in common.", *comparison.reasons]
    changed = [f"{counts[v]} {v}" for v in _VERDICTS if v != "SAME" and counts[v]]
    specs = {line.spec for line in comparison.lines}
    of = f" of {specs.pop()}" if len(specs) == 1 else ""
    cells = f"{comparison.cells} cell{'s' * (comparison.cells != 1)}{of} compared"
    sentences = [f"{cells}: {', '.join(changed)}, {counts['SAME']} SAME." if changed else f"{cells}: no differences."]
    sentences += comparison.reasons
    margins = [line.margin for line in comparison.lines if line.margin is not None]
    if not any(line.figure == "time_s" for line in comparison.lines):
        sentences.append("Times were not compared.")
    elif not margins:
        sentences.append("Both runs contain the same time measurements, so times cannot be compared.")
    else:
        low, high = min(margins), max(margins)
        span = f"{low:.1%}" if high - low < 5e-4 else f"{low:.1%} to {high:.1%}"
        sentences.append(f"Times that differ by less than {span} count as equal, as these runs are no more precise.")
    if (wins := counts["LESS"]) and not comparison.reasons:
        improved = f"{wins} deterministic figure{'s' * (wins != 1)} improved"
        sentences.append(f"{improved}: update the baseline with --write-baseline.")
    return sentences


def _case(row: Row) -> Case:
    _, _, kind, badness = _VERDICTS[row["verdict"]]
    where = " ".join(filter(None, (row["method"], _settings(row["settings"]), row["tensor"], row["figure"])))
    return Case(row["spec"], where, kind, _message(row), badness=badness + (row["ratio"] or 0.0), said=row["verdict"])


def _message(row: Row) -> str:
    """A row in words: `SLOWER: time is longer: 1.2 ms to 1.5 ms, ratio 1.25 [1.21, 1.28]`."""
    if row["verdict"] == "SAME":
        return ""
    parts = [f"{row['verdict']}: {_VERDICTS[row['verdict']][0]}"]
    if row["figure"] not in ("gradient", "cell"):
        parts.append(f"{row['figure']} {_value('base')(row) or 'none'} to {_value('head')(row) or 'none'}")
    if row["low"] is not None:
        parts.append(f"ratio {row['ratio']:.3f} {_interval(row)}")
    return ", ".join(parts) + (f" ({row['detail']})" if row["detail"] else "")


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={words(v)}" for k, v in values.items())


def _value(key: str) -> Callable[[Row], str]:
    """A formatter of the figure of one run, in its unit."""

    def show(row: Row) -> str:
        from bpcli.problem.limits import format_bytes

        value = row[key]
        if value is None or isinstance(value, str):
            return value or ""
        if row["figure"].endswith("_bytes"):
            return format_bytes(int(value))
        return seconds(value) if row["figure"] == "time_s" else f"{value:.6g}"

    return show


def _interval(row: Row) -> str:
    return "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


_SOMETIMES = ("backend", "settings", "tensor", "ratio", "interval", "detail")
COLUMNS = (
    Column("verdict", "verdict", itemgetter("verdict"), words, right=False, label=True),
    Column("spec", "spec", itemgetter("spec"), words, right=False, label=True),
    Column("method", "method", itemgetter("method"), words, right=False, label=True),
    Column("backend", "by", itemgetter("backend"), words, right=False, wide=True, label=True),
    Column("settings", "at", itemgetter("settings"), _settings, right=False, label=True),
    Column("tensor", "tensor", itemgetter("tensor"), words, right=False, label=True),
    Column("figure", "figure", itemgetter("figure"), words, right=False, label=True),
    Column("base", "base", _value("base"), words),
    Column("head", "head", _value("head"), words),
    Column("ratio", "ratio", itemgetter("ratio"), _figure),
    Column("interval", "95% interval", _interval, words),
    Column("margin", "margin", itemgetter("margin"), _figure, wide=True),
    Column("detail", "because", itemgetter("detail"), words, right=False),
)


@click.command()
@click.argument("target", nargs=-1)
@click.option("--base", metavar="PYTHON", help="Python interpreter with the old bp, or a checkout of it.")
@click.option("--head", metavar="PYTHON", help="Python interpreter with the new bp, or a checkout of it.")
@click.option("--aa", is_flag=True, help="Compare the base with itself, to measure the noise.")
@click.option("-m", "--method", multiple=True, metavar="METHOD", help="Method, such as tbptt:k1=1,k2=4; repeatable.")
@click.option(
    "-g", "--grid", multiple=True, metavar="KEY=V1,V2,…", help="Sweep a setting or method option; repeatable."
)
@click.option(
    "--rounds", type=click.IntRange(2, 100), default=8, show_default=True, metavar="N",
    help="Number of rounds; each times every cell in fresh processes.",
)  # fmt: skip
@click.option(
    "--budget", type=float, default=0.5, show_default=True, metavar="SECONDS", callback=finite_seconds,
    help="Time to spend on each cell in each round; at least five pairs are timed.",
)  # fmt: skip
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "format", "output", "quiet", "verbose", "strict",
)  # fmt: skip
def ab(
    target: tuple[str, ...],
    base: str | None,
    head: str | None,
    aa: bool,
    method: tuple[str, ...],
    grid: tuple[str, ...],
    rounds: int,
    budget: float,
    common: Common,
) -> int:
    """Compare two installations of bp on each TARGET, a spec or a folder of specs.

    Gradients are checked and deterministic figures compared first. Then base, head and a second copy of the base are
    timed in turn, in fresh processes, round after round. Apparent changes are measured again before they count.
    Methods and grid are chosen as in `bp bench`. --aa needs no --base: it then compares the running bp with itself.
    """
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.pairing import Plan, Sides
    from bpcli.bench.sweep import BenchOptions, parse_axis
    from bpcli.commands.bench import planned
    from bpcli.commands.specs import find_or_packaged
    from bpcli.runtime.machine import cores

    sides = Sides(*_environments(base, head, aa), common.threads or cores())
    results = BenchResults()
    paths, results.errors = find_or_packaged(target, common)
    swept, fixed = dict(map(parse_axis, grid)), frozenset(common.overrides)
    threads, limits, alone = sides.threads, common.limits(), len(paths) == 1
    options = BenchOptions(method, from_project(), swept, fixed, budget, threads, limits=limits, alone=alone)
    cells = _cells(planned(paths, options, common, results), options, results)
    return _show(cells, sides, Plan(rounds, budget, seed=0), (results, common))


def _environments(base: str | None, head: str | None, aa: bool) -> tuple[Environment, Environment]:
    """The environments of base and head. Raises BpError where one is missing, or --head contradicts --aa."""
    import bpcli
    from bpcli.bench.worker_process import Environment, environment
    from bpcli.errors import fail

    if aa and head is not None:
        fail("usage", "--aa compares the base with itself and takes no --head", help="give --head or --aa")
    if aa:
        own = Environment("--base", "this bp", sys.executable, os.path.dirname(os.path.dirname(bpcli.__file__)))
        same = own if base is None else environment("--base", base)
        return same, replace(same, option="--aa")
    if base is None or head is None:
        missing = "base" if base is None else "head"
        advice = "--base OLD --head NEW names two Pythons or checkouts; --aa measures the noise"
        fail("usage", f"bp ab needs --{missing}", help=advice)
    return environment("--base", base), environment("--head", head)


def _cells(sweeps: Sequence[Sweep], options: BenchOptions, results: BenchResults) -> list[Cell]:
    """The cells of all specs. Raises BpError where the grid has threads, which are fixed for each worker."""
    from bpcli.bench.sweep import admit, cells_of
    from bpcli.errors import fail

    cells = admit(sweeps, cells_of(sweeps), options, results)
    if any(cell.threads != options.threads for cell in cells):
        fail("usage", "bp ab can't sweep threads", help="run it once for each number of --threads")
    return cells


def _show(cells: Sequence[Cell], sides: Sides, plan: Plan, call: tuple[BenchResults, Common]) -> int:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.pairing import compare_environments
    from bpcli.commands.output import describe, emit, progress

    results, common = call
    comparison, who = Comparison((), 0), dict[str, Any]()
    if cells:
        with progress(common) as say:
            comparison, hellos = compare_environments(sides, cells, plan, say)
            who = {k: {"given": getattr(sides, k).given, **hello} for k, hello in hellos.items()}
    more = {"strict": common.strict, "rounds": plan.rounds, "budget_s": plan.budget, **who}
    about = {**describe("ab", common, **more), "threads": sides.threads}
    doubtful = any(line.verdict == "INCONCLUSIVE" and line.figure == "time_s" for line in comparison.lines)
    advice = ["more --rounds would narrow the intervals and the margin"] if doubtful else []
    document = comparison_document(comparison, about, [*advice, *results.notes], results.errors)
    emitted = emit(document, common, brief_document(document, common.quiet))
    return emitted or (2 if results.errors else exit_code(comparison, common.strict))
