"""No right gradient of a black box is accused and no wrong one passes: runs the corpus of `black_box_corpus.py`.

`python tests/black_box_alarms.py` takes about an hour on one core; stopped, it goes on from its journal, which is to be
deleted after a change to what judges. `--share 20` takes every twentieth case. Each library and dtype runs in a process
of its own, as JAX computes in float64 only where a whole process does. The whole corpus writes
`reports/black-box-alarms.csv`, a line per group, library and dtype.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import script_journal
from black_box_corpus import FAULTS, LIBRARIES, Box, Case, Params, build, cases

import bpcli
from bpcli.checking.findings import Finding

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "group", "library", "dtype", "cases", "tensors", "entries", "accused", "inconclusive", "causes", "faults", "found",
    "left_open", "missed", "version",
)  # fmt: skip
_LARGEST = 16  # size up to which faults are planted
# Kinds at which several gradients are right, or a fault may be one of them; and those judged in float32 alone.
_SEVERAL = ("kink", "tie", "ties", "corners", "shared corner")
# A fault counts if it moves an entry by so much of itself and of its tensor's largest entry.
_OF_ITSELF, _OF_LARGEST, _OF_LARGEST_SINGLE = 5e-3, 1e-5, 5e-3


def remembered(loss: Callable[[Params], Any]) -> Callable[[Params], Any]:
    """The loss, which is evaluated once for the same arguments."""
    known: dict[int, Any] = {}

    def again(p: Params) -> Any:
        key = hash(b"".join(array.tobytes() + array.dtype.char.encode() for array in p.values()))
        if key not in known:
            known[key] = loss(p)
        return known[key]

    return again


def run(case: Case) -> dict[str, Any]:
    """The journal's line on one case."""
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        box = build(case)
        right = bpcli.check_gradient(box.loss, box.grad, box.params)
        line = {
            "case": str(case),
            "right": [[f.tensor, f.checked, f.verdict, f.cause, _worst(f)] for f in right.findings],
            "wrong": list(wrong_ones(case, box)),
        }
    return {**line, "seconds": round(time.perf_counter() - start, 3)}


def _worst(found: Finding) -> str:
    worst = found.worst
    return f"{worst.index} {worst.value!r} {worst.reference!r} {worst.bound:.2g} z={worst.z:.2g}" if worst else ""


def wrong_ones(case: Case, box: Box) -> Iterator[list[Any]]:
    """Faults that move the gradient, and the verdict on each."""
    if case.size > _LARGEST or case.kind in _SEVERAL or "edge" in case.kind or case.kind == "oscillation":
        return
    right = box.grad(box.params)
    rng = np.random.default_rng(case.seed + 1)
    loss = box.loss if case.kind == "flicker" else remembered(box.loss)
    for name, g in right.items():
        fault = "constant added" if "fit" in case.kind else str(rng.choice(list(FAULTS)))
        made = np.asarray(FAULTS[fault](g, box.params[name], rng), dtype=g.dtype)
        if matters(case, g, made):
            wrong = bpcli.check_gradient(loss, lambda p, n=name, m=made: {**box.grad(p), n: m}, box.params, wrt=(name,))
            yield [name, fault, wrong.findings[0].verdict, wrong.findings[0].cause, _worst(wrong.findings[0])]


def matters(case: Case, right: np.ndarray, made: np.ndarray) -> bool:
    """Whether a fault is larger than the noise of the case."""
    g, size = right.astype(np.float64), np.abs(right).max()
    off = np.abs(made - g)
    if "fit" in case.kind:
        return bool(off.max() > 1e-4)
    if case.dtype == "float32":
        return bool((off > _OF_LARGEST_SINGLE * size).any() and size > 1e-5)
    if case.kind in ("noise", "flicker"):
        return bool((off > _OF_LARGEST_SINGLE * size).any() and size > 1e-9)
    return bool(((off > _OF_ITSELF * np.abs(g)) & (off > _OF_LARGEST * size)).any() and size > 1e-9)


def report(lines: list[dict[str, Any]], complete: bool) -> bool:
    """Print the sums, and write the table where the corpus is `complete`; returns whether all is as it should be."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        name, dtype, layer, _, _, kind = line["case"].split(":")
        groups[kind.split("=")[0] if kind != "plain" else layer, name, dtype].append(line)
    rows = [_row(key, members) for key, members in sorted(groups.items())]
    if complete:
        text = "\n".join(",".join(map(str, row)) for row in [COLUMNS, *rows]) + "\n"
        (ROOT / "reports" / "black-box-alarms.csv").write_text(text, encoding="utf-8")
    for line in lines:
        for tensor, _, verdict, cause, worst in line["right"]:
            if verdict != "pass":
                print(line["case"], tensor, verdict, cause, worst)
        for tensor, fault, verdict, cause, worst in line["wrong"]:
            if verdict == "pass":
                print("MISSED", line["case"], tensor, fault, cause, worst)
    for dtype in ("float64", "float32"):
        some = [dict(zip(COLUMNS, row, strict=True)) for row in rows if row[2] == dtype]
        sums = {key: sum(row[key] for row in some) for key in COLUMNS[3:8] + COLUMNS[9:13]}
        share = sums["inconclusive"] / max(1, sums["tensors"])
        print(dtype, *(f"{key} {count}" for key, count in sums.items()), f"inconclusive {share:.2%}")
    return not any(row[6] or row[12] for row in rows)


def _row(key: tuple[str, ...], members: list[dict[str, Any]]) -> tuple[Any, ...]:
    right = [found for line in members for found in line["right"]]
    wrong = [verdict for line in members for _, _, verdict, _, _ in line["wrong"]]
    verdicts, faults = Counter(found[2] for found in right), Counter(wrong)
    causes = Counter(found[3] for found in right if found[2] == "inconclusive")
    return (
        *key, len(members), len(right), sum(found[1] for found in right), verdicts["wrong"], verdicts["inconclusive"],
        " + ".join(f"{cause or 'none'} {count}" for cause, count in causes.items()), len(wrong), faults["wrong"],
        faults["inconclusive"], faults["pass"], bpcli.__version__,
    )  # fmt: skip


def work(name: str, dtype: str, share: int, only: str, journal: Path) -> None:
    """Run the cases of one library and dtype that the journal lacks."""
    done = script_journal.read(journal)
    for case in _wanted(share, only):
        if (case.library, case.dtype) == (name, dtype) and str(case) not in done:
            script_journal.add(journal, run(case))


def _wanted(share: int, only: str) -> list[Case]:
    return [case for number, case in enumerate(cases()) if number % share == 0 and only in str(case)]


def main() -> int:
    """0 when no right gradient was accused and no wrong one passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=int, default=1, help="every so many-th case")
    parser.add_argument("--journal", type=Path, default=ROOT / "reports" / "black-box-alarms.journal")
    parser.add_argument("--only", default="", help="cases that hold this word")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(*asked.worker.split(":"), asked.share, asked.only, asked.journal)
        return 0
    wanted = _wanted(asked.share, asked.only)
    for name, dtype in LIBRARIES:
        if any((case.library, case.dtype) == (name, dtype) for case in wanted):
            environment = {**os.environ, "JAX_ENABLE_X64": str(int(dtype == "float64")), "JAX_PLATFORMS": "cpu"}
            subprocess.run([sys.executable, *sys.argv, "--worker", f"{name}:{dtype}"], env=environment, check=True)
    lines = script_journal.lines_of(asked.journal, wanted)
    return 0 if report(lines, asked.share == 1 and not asked.only) else 1


if __name__ == "__main__":
    sys.exit(main())
