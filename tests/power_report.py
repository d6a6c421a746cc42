"""Plants every fault in every spec, judges and blames, and prints the counts: `python tests/power_report.py [SPEC …]`.

Rows go to reports/power.csv, those of faults in the rules of online methods and in windows to
reports/method-power.csv. Takes some ten minutes for all specs; `--methods` plants the latter alone.
"""

from __future__ import annotations

import csv
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import rule_faults
from corpus import every_method
from kernel_cases import RECURRENT, small

from bpcli.checking.blame.explain import Reproducer, explain
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.faults.fault import as_method
from bpcli.checking.power import Planted, power
from bpcli.errors import fail
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

ROOT = Path(__file__).parents[1]
LIMITS = Limits(max_memory=1 << 30)


def again(path: Path) -> Reproducer:
    """A spec in the other case that tells causes apart; the search for the smallest case is refused, to save time."""

    def reopen(settings: Mapping[str, object]) -> Setup:
        if "seed" not in settings:
            fail("usage", "no smallest case is looked for", help="leave it out")
        return open_setup(path, settings, ("params",), LIMITS)

    return Reproducer(
        reopen,
        lambda method, settings: shlex.join(
            ["bp", "check", path.name, "-m", method, *(f"--set {k}={v}" for k, v in settings.items())]
        ),
    )


def blamed(path: Path, planted: Planted) -> tuple[str, str]:
    """What blame says of the first wrong tensor of a caught fault: its cause, and "yes", "second" or "no"."""
    setup, fault = open_setup(path, {}, ("params",), LIMITS), planted.fault
    call = as_method(fault.name, fault.wrong)
    wrong = [f for f in check(setup, [call], CheckOptions()) if f.verdict == "wrong" and f.tensor != "loss"]
    cause = str((explain(wrong[:1], setup, [call], again(path))[0].blame or {}).get("cause", ""))
    spoken = fault.name == "writes-to-arguments" and "writes into" in cause
    return cause, "yes" if cause.startswith(fault.what) or spoken else "second" if fault.what in cause else "no"


def in_methods(names: list[str]) -> None:
    """Plant faults in all methods that apply to a recurrent spec, at a size of three units and four steps."""
    report, total = ROOT / "reports" / "method-power.csv", Counter[str]()
    for name in RECURRENT:
        if names and name not in names:
            continue
        rows = list[list[object]]()
        for call in every_method(small(name).setup.graph):
            passes, found = rule_faults.planted(small(name), call)
            for one in found:
                tensors = "" if one.outcome != "caught" else "yes" if one.wrong == one.changed else "no"
                rows.append([name, call.text, one.fault, one.outcome, tensors, passes])
                total[one.outcome] += 1
            total["right ones accused"] += not passes
        _replace(report, name, rows)
        print(name, dict(total), flush=True)


def _replace(report: Path, spec: str, rows: list[list[object]]) -> None:
    """Put rows in place of those of a spec."""
    kept = list[list[str]]()
    if report.exists():
        with open(report, newline="", encoding="utf-8") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] != spec]
    head = ("spec", "method", "fault", "outcome", "tensors", "right_passes")
    with open(report, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *sorted([*kept, *rows], key=lambda row: row[0])])


def main(names: list[str]) -> None:
    """Run and print."""
    rows, total, right = [], Counter[str](), Counter[str]()
    for path in sorted((ROOT / "specs").glob("*.toml")):
        if names and path.stem not in names:
            continue
        setup = open_setup(path, {}, ("params",), LIMITS)
        harmless = check(setup, [as_method(f.name, f.harmless) for f in CATALOGUE], CheckOptions())
        accused = {f.method for f in harmless if f.verdict != "pass"}
        for planted in power(setup, CheckOptions()):
            cause, hit = blamed(path, planted) if planted.outcome == "caught" else ("", "")
            tensors = "" if planted.outcome != "caught" else "yes" if planted.wrong == planted.changed else "no"
            name = planted.fault.name
            rows.append((path.stem, name, planted.outcome, tensors, hit, cause, planted.advice, name in accused))
            total[planted.outcome] += 1
            right[f"cause {hit}"] += bool(hit)
            right[f"tensors {tensors}"] += bool(tensors)
        print(
            path.stem,
            dict(total),
            {k: v for k, v in right.items() if v},
            f"accused rewrites: {len(accused)}",
            flush=True,
        )
    report = ROOT / "reports" / "power.csv"
    with open(report, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("spec", "fault", "outcome", "tensors", "cause_found", "cause", "advice", "rewrite_accused"))
        writer.writerows(rows)


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if word != "--methods"]
    in_methods(asked)
    if "--methods" not in sys.argv:
        main(asked)
