"""The document of a comparison: a row for each figure of each cell, worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from typing import Any

from bpcli.bench.comparison import BETTER, ORDER, UNDECIDED, WORSE, Comparison
from bpcli.errors import Diagnostic
from bpcli.problem.limits import format_bytes
from bpcli.render.document import Case, Column, Document

Row = Mapping[str, Any]
_STYLES = {**dict.fromkeys(WORSE, "bold red"), **dict.fromkeys(UNDECIDED, "yellow"), **dict.fromkeys(BETTER, "green")}
_WORDS = {
    "WRONG": "gradient of the head is wrong",
    "SLOWER": "time is longer",
    "MORE": "figure grew",
    "INCONCLUSIVE": "figure can't be told",
    "MISSING": "cell or figure is missing from the head",
    "NEW": "cell or figure is new",
    "LESS": "figure shrank",
    "FASTER": "time is shorter",
    "RIGHT": "gradient is right now",
}
_BADNESS = {"WRONG": 1e9, "SLOWER": 1e3, "MORE": 1e3}


def comparison_document(
    comparison: Comparison, context: Mapping[str, Any], notes: Sequence[str], errors: Sequence[Diagnostic] = ()
) -> Document:
    """Every line of the comparison."""
    return Document(
        title="Comparison",
        rows_key="comparisons",
        columns=COLUMNS,
        rows=[asdict(line) for line in comparison.lines],
        context=context,
        summary=summary(comparison),
        sentences=_sentences(comparison),
        notes=[*comparison.notes, *notes],
        errors=errors,
        style=lambda row: _STYLES.get(row["verdict"], ""),
        case=_case,
    )


def brief_document(full: Document, quiet: bool) -> Document:
    """The rows that changed and all times; where `quiet`, only those that are worse or undecided."""
    loud = (*WORSE, *UNDECIDED)
    rows = [r for r in full.rows if r["verdict"] in loud or (not quiet and _tells(r))]
    shown = [c for c in full.columns if not c.wide and (c.key not in _SOMETIMES or any(c.show(c.get(r)) for r in rows))]
    sentences = full.sentences if rows or not quiet else ()
    return replace(full, rows=rows, columns=shown, sentences=sentences, notes=() if quiet else full.notes)


def summary(comparison: Comparison) -> dict[str, int]:
    """The number of cells in both runs, and of lines of each verdict."""
    counts = Counter(line.verdict for line in comparison.lines)
    return {"cells": comparison.cells, **{v.lower(): counts[v] for v in ORDER}}


def exit_code(comparison: Comparison, strict: bool) -> int:
    """The first that applies: 1 wrong, 3 regressed, 5 nothing compared, 4 undecided where `strict`, 0."""
    found = {line.verdict for line in comparison.lines}
    if "WRONG" in found:
        return 1
    if found & set(WORSE):
        return 3
    if not comparison.cells:
        return 5
    return 4 if strict and found & set(UNDECIDED) else 0


def _tells(row: Row) -> bool:
    return bool(row["verdict"] != "SAME" or row["figure"] == "time_s")


def _sentences(comparison: Comparison) -> list[str]:
    if not comparison.cells:
        return ["Nothing was compared: the runs have no cell in common.", *comparison.reasons]
    counts = Counter(line.verdict for line in comparison.lines)
    changed = [f"{counts[v]} {v}" for v in ORDER if v != "SAME" and counts[v]]
    cells = f"{comparison.cells} cell{'s' * (comparison.cells != 1)} compared"
    sentences = [f"{cells}: {', '.join(changed)}, {counts['SAME']} SAME." if changed else f"{cells}: all is the same."]
    sentences += comparison.reasons
    margins = [line.margin for line in comparison.lines if line.margin is not None]
    if not any(line.figure == "time_s" for line in comparison.lines):
        sentences.append("Times were not compared.")
    elif not margins:
        sentences.append("Both runs hold the very same measurements of time: there is nothing to tell apart.")
    else:
        low, high = min(margins), max(margins)
        span = f"{low:.1%}" if high - low < 5e-4 else f"{low:.1%} to {high:.1%}"
        sentences.append(f"A time within {span} counts as the same: less can't be told from noise in these runs.")
    wins = [line for line in comparison.lines if line.verdict == "LESS"]
    if wins and not comparison.reasons:
        sentences.append(f"{len(wins)} win{'s' * (len(wins) != 1)} in deterministic figures: renew the baseline.")
    return sentences


def _case(row: Row) -> Case:
    found = row["verdict"]
    kind = "wrong" if found in WORSE else "inconclusive" if found in UNDECIDED else "pass"
    where = " ".join(filter(None, (row["method"], _settings(row["settings"]), row["tensor"], row["figure"])))
    badness = _BADNESS.get(found, 0.0) + (row["ratio"] or 0.0)
    return Case(row["spec"], where, kind, _message(row), badness=badness, said=found)


def _message(row: Row) -> str:
    """A line in words: `SLOWER: time is longer: 1.2 ms to 1.5 ms, ratio 1.25 [1.21, 1.28]`."""
    if row["verdict"] == "SAME":
        return ""
    parts = [f"{row['verdict']}: {_WORDS[row['verdict']]}"]
    if row["figure"] not in ("gradient", "cell"):
        parts.append(f"{row['figure']} {_value('base')(row) or 'none'} to {_value('head')(row) or 'none'}")
    if row["low"] is not None:
        parts.append(f"ratio {row['ratio']:.3f} {_interval(row)}")
    return ", ".join(parts) + (f" ({row['detail']})" if row["detail"] else "")


def _settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def _value(key: str) -> Callable[[Row], str]:
    """Format a figure of one run in its unit."""

    def show(row: Row) -> str:
        value = row[key]
        if value is None or isinstance(value, str):
            return value or ""
        if row["figure"].endswith("_bytes"):
            return format_bytes(int(value))
        if row["figure"] == "time_s":
            unit, size = next(((u, s) for u, s in _UNITS if value >= s), _UNITS[-1])
            return f"{value / size:.3g} {unit}"
        return f"{value:.6g}"

    return show


_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def _interval(row: Row) -> str:
    return "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"


def _words(value: Any) -> str:
    return "" if value is None else str(value)


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


_SOMETIMES = ("backend", "settings", "tensor", "ratio", "interval", "detail")
COLUMNS = (
    Column("verdict", "verdict", itemgetter("verdict"), _words, right=False, label=True),
    Column("spec", "spec", itemgetter("spec"), _words, right=False, label=True),
    Column("method", "method", itemgetter("method"), _words, right=False, label=True),
    Column("backend", "by", itemgetter("backend"), _words, right=False, wide=True, label=True),
    Column("settings", "at", itemgetter("settings"), _settings, right=False, label=True),
    Column("tensor", "tensor", itemgetter("tensor"), _words, right=False, label=True),
    Column("figure", "figure", itemgetter("figure"), _words, right=False, label=True),
    Column("base", "base", _value("base"), _words),
    Column("head", "head", _value("head"), _words),
    Column("ratio", "ratio", itemgetter("ratio"), _figure),
    Column("interval", "95% interval", _interval, _words),
    Column("margin", "margin", itemgetter("margin"), _figure, wide=True),
    Column("detail", "because", itemgetter("detail"), _words, right=False),
)
