"""How `bp ab` judges nothing, and slowdowns of 10% and 5%: `python tests/gate_report.py [aa|10%|5%]=RUNS…`.

Without arguments: 50 comparisons of a bp with itself, 20 with a head that is 10% slower, 10 with one that is 5% slower.
Prints each run's verdict with its interval, and the counts; rows are added to reports/gate.csv as they come,
and runs are numbered on from those that are there. Nothing else may run beside it; a run of two cells takes some 15
seconds.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from injected import HOUSE, checkout, slower

SUITE = ("specs/vanilla_rnn.toml", "specs/gru.toml", "-m", "bptt", "-g", "n=32", "--set", "T=50", "--threads", "1")
FEW = ("--rounds", "4", "--budget", "0.2")
SHARES = {"aa": 0.0, "10%": 0.10, "5%": 0.05}
RUNS = {"aa": 50, "10%": 20, "5%": 10}
REPORT = HOUSE / "reports" / "gate.csv"
FIELDS = ("date", "injected", "run", "spec", "verdict", "ratio", "low", "high", "margin", "detail", "exit", "quiet")


def compare(kind: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and document of one `bp ab`."""
    sides = ["--aa"]
    if SHARES[kind]:
        head = folder / kind
        sides = ["--base", str(HOUSE), "--head", str(head) if head.exists() else checkout(head, slower(SHARES[kind]))]
    command = [sys.executable, "-m", "bpcli", "ab", *sides, *SUITE, *FEW, "--format", "json"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(done.stderr)
    return done.returncode, json.loads(done.stdout)


def rows_of(kind: str, run: int, code: int, document: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each cell's time."""
    quiet = "no" if "contaminated" in json.dumps(document) else "yes"
    about = {"date": date.today().isoformat(), "injected": kind, "run": run, "exit": code, "quiet": quiet}
    times = [r for r in document["comparisons"] if r["figure"] == "time_s"]
    return [about | {k: r.get(k) for k in FIELDS if k not in about} for r in times]


def made(kind: str) -> int:
    """How many runs of a kind are in the report."""
    if not REPORT.exists():
        return 0
    with REPORT.open(newline="", encoding="utf-8") as file:
        return max((int(row["run"]) for row in csv.DictReader(file) if row["injected"] == kind), default=0)


def main(wishes: list[str]) -> None:
    """Run and print."""
    runs = {k: int(n) for k, n in (w.split("=") for w in wishes)} or RUNS
    fresh = not REPORT.exists()
    with tempfile.TemporaryDirectory() as folder, REPORT.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for kind, count in runs.items():
            cells, slow, before = Counter[str](), 0, made(kind)
            for run in range(before + 1, before + count + 1):
                rows = rows_of(kind, run, *compare(kind, Path(folder)))
                writer.writerows(rows)
                file.flush()
                for r in rows:
                    print(f"{kind} {run}: {r['spec']} {r['verdict']} {r['low']:.3f} to {r['high']:.3f} {r['detail']}")
                cells.update(r["verdict"] for r in rows)
                slow += any(r["verdict"] == "SLOWER" for r in rows)
            print(f"{kind}: SLOWER in {slow} of {count} runs; cells {dict(cells)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
