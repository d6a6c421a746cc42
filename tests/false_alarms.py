"""No right gradient is accused: runs the corpus, and prints how many entries there were and the largest z among them.

`python tests/false_alarms.py` takes some minutes; stopped, it goes on from its journal, which is to be deleted after a
change to what is judged or to what judges. `--part 1/2` and `--part 2/2` share
the work between processes; whichever comes last writes `reports/false-alarms.csv`, a line per group and dtype. With
`--only WORD` it replaces the lines of the groups that hold the word.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import script_journal
from corpus import ROOT, Case, cases, every_method, exact_methods, problem

from bpcli import __version__
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.errors import BpError

COLUMNS = (
    "group", "dtype", "cases", "refused", "entries", "directions",
    "largest_z", "wrong", "inconclusive", "not_finite", "version",
)  # fmt: skip
# Groups in which nothing may be left open: numbers of ordinary size.
ORDINARY = ("ordinary", "sizes", "directions", "every method")


def run(case: Case) -> dict[str, Any]:
    """The journal's line on one case."""
    start = time.perf_counter()
    line: dict[str, Any] = {"case": str(case), "group": case.group, "dtype": case.dtype}
    try:
        given = problem(case)
        options = CheckOptions(case.reference, case.mode)
        methods = (every_method if case.every_method else exact_methods)(given.setup.graph)
        findings = check_problem(given, methods, options)
    except BpError as error:
        return {**line, "refused": error.diagnostics[0].what}
    # Where the method itself overflows, what it gives is no right gradient.
    lost = [f for f in findings if f.cause == "not finite"]
    findings = [f for f in findings if f.cause != "not finite"]
    entries = [f for f in findings if not _along(f)]
    odd = [f for f in findings if f.verdict != "pass"]
    return {
        **line,
        "entries": sum(f.checked for f in entries),
        "directions": sum(f.checked for f in findings if _along(f)),
        "z": max((f.worst.z for f in findings if f.worst and f.verdict == "pass"), default=0.0),
        "not_finite": len(lost),
        "odd": [[f.verdict, f.method, f.tensor, f.cause, repr(f.worst)] for f in odd],
        "seconds": round(time.perf_counter() - start, 3),
    }


def _along(finding: Finding) -> bool:
    return finding.worst is not None and finding.worst.index is None


def report(lines: list[dict[str, Any]], complete: bool) -> bool:
    """Print the sums, and where the groups are `complete`, replace their rows in the table.

    Returns whether there was no false alarm, and nothing left open where none may be.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["group"], line["dtype"]].append(line)
    rows = [_row(*key, members) for key, members in sorted(groups.items())]
    if complete:
        target = ROOT / "reports" / "false-alarms.csv"
        text = _table(rows, target)
        temporary = target.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    sums = {name: sum(row[COLUMNS.index(name)] for row in rows) for name in COLUMNS[2:6] + COLUMNS[7:10]}
    largest = max(row[COLUMNS.index("largest_z")] for row in rows)
    left = sum(row[COLUMNS.index("inconclusive")] for row in rows if row[0] in ORDINARY)
    print(", ".join(f"{name} {count}" for name, count in sums.items()), f", largest z {largest:.3g}")
    print(f"left open among numbers of ordinary size: {left}")
    for line in lines:
        for odd in line.get("odd", []):
            print(line["case"], *odd)
    return sums["wrong"] == 0 and left == 0


def _table(rows: list[tuple[Any, ...]], old: Path) -> str:
    """The text of the table: these rows, and those of groups that were not asked for."""
    own, known = {row[0] for row in rows}, {case.group for case in cases()}
    kept = []
    if old.exists():
        with old.open(newline="", encoding="utf-8") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] in known - own]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *sorted([*map(list, rows), *kept], key=lambda r: r[:2])])
    return text.getvalue()


def _row(group: str, dtype: str, members: list[dict[str, Any]]) -> tuple[Any, ...]:
    judged = [line for line in members if "refused" not in line]
    odd = [verdict for line in judged for verdict, *_ in line["odd"]]
    z = max((line["z"] for line in judged), default=0.0)
    counts = (sum(line[key] for line in judged) for key in ("entries", "directions"))
    verdicts = (odd.count("wrong"), odd.count("inconclusive"), sum(line["not_finite"] for line in judged))
    return (group, dtype, len(members), len(members) - len(judged), *counts, float(f"{z:.3g}"), *verdicts, __version__)


def main() -> int:
    """0 when no right gradient was accused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="which share of the cases, as 1/2")
    parser.add_argument("--journal", type=Path, default=ROOT / "reports" / "false-alarms.journal")
    parser.add_argument("--only", default="", help="groups that hold this word")
    asked = parser.parse_args()
    part, parts = (int(word) for word in asked.part.split("/"))
    wanted = [case for case in cases() if asked.only in case.group]
    done = script_journal.read(asked.journal)
    for number, case in enumerate(wanted):
        if number % parts == part - 1 and str(case) not in done:
            line = run(case)
            script_journal.add(asked.journal, line)
            if line.get("odd"):
                print(line["case"], line["odd"], file=sys.stderr)
    lines = script_journal.lines_of(asked.journal, wanted)
    return 0 if report(lines, len(lines) == len(wanted)) else 1


if __name__ == "__main__":
    sys.exit(main())
