"""`bp compare`: what changed between two saved runs, in the document that `bp ab` shows too."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.errors import Diagnostic, fail
from bpcli.render.document import Case, Column, Document, seconds, words

if TYPE_CHECKING:
    from bpcli.bench.comparison import Comparison
    from bpcli.bench.saved_runs import Run

Row = Mapping[str, Any]


@click.command()
@click.argument("base")
@click.argument("head")
@click.option(
    "--across-machines", is_flag=True,
    help="Allow runs of different machines; compares deterministic figures, not times.",
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
    shown = [c for c in full.columns if not c.wide and (c.key not in _SOMETIMES or any(c.show(c.get(r)) for r in rows))]
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
    cells = f"{comparison.cells} cell{'s' * (comparison.cells != 1)} compared"
    sentences = [f"{cells}: {', '.join(changed)}, {counts['SAME']} SAME." if changed else f"{cells}: no differences."]
    sentences += comparison.reasons
    margins = [line.margin for line in comparison.lines if line.margin is not None]
    if not any(line.figure == "time_s" for line in comparison.lines):
        sentences.append("Times were not compared.")
    elif not margins:
        sentences.append("Both runs contain the same measurements of time, so there is nothing to compare.")
    else:
        low, high = min(margins), max(margins)
        span = f"{low:.1%}" if high - low < 5e-4 else f"{low:.1%} to {high:.1%}"
        sentences.append(f"Times that differ by less than {span} count as the same: these runs are not more precise.")
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
