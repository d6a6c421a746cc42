"""Judges and blames every handwritten slip of `slips`, alone and in pairs: `python tests/slips_report.py [NETWORK …]`.

Rows go to reports/slips.csv. A slip is `right` if every wrong tensor has its cause first (of a pair one or both, and
both in all), `false` if any tensor has another cause, else `none`. Takes some ten minutes.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from slips import BOXES, NETWORKS, NO_CAUSE, PAIRS, SLIPS, Regression

import bpcli
from bpcli.checking.blame.explain import Reproducer, explain
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Definition, Exact, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.runtime.evaluation import whole_loss

ROOT = Path(__file__).parents[1]
LIMITS = Limits(max_memory=1 << 30)


class Handwritten:
    """A network's gradient with some slips, as a method."""

    def __init__(self, network: str, slips: frozenset[str]) -> None:
        self.gradient_of, self.slips = NETWORKS[network].gradient, slips

    def refusal(self, graph: object) -> str | None:
        """It applies."""
        return None

    def definition(self, setup: Setup, options: object) -> Definition:
        """The total derivative."""
        return Exact()

    def cost(self, setup: Setup, options: object) -> Cost:
        """Little."""
        return Cost(1e3, 0, setup.T)

    def gradient(self, problem: Problem, options: object) -> Gradient:
        """By hand."""
        numbers = SimpleNamespace(**problem.setup.spec.constants, **problem.setup.spec.dims)
        groups = [dict(group) for group in problem.arrays]
        return Gradient(whole_loss(problem), self.gradient_of(*groups, numbers, self.slips))


@cache
def path_of(network: str) -> Path:
    """The file of a network's spec."""
    text = NETWORKS[network].spec
    if "\n" not in text:
        return ROOT / "specs" / f"{text}.toml"
    path = Path(tempfile.mkdtemp()) / f"{network.replace(' ', '_')}.toml"
    path.write_text(text, encoding="utf-8")
    draw = np.random.default_rng(3)
    last = np.zeros((5, 2))
    last[-1] = 1.0
    np.savez(path.with_name("data.npz"), x=draw.normal(size=(5, 2, 3)), last=last)
    return path


def blamed(network: str, slips: frozenset[str]) -> list[Finding]:
    """The findings on a network with some slips, explained."""
    path = path_of(network)

    def reopen(settings: Mapping[str, object]) -> Setup:
        return open_setup(path, settings, ("params",), LIMITS)

    setup, method = reopen({}), MethodCall("by hand", cast("Any", Handwritten(network, slips)), SimpleNamespace())
    again = Reproducer(reopen, lambda text, settings: f"{text} {dict(settings)}")
    return explain(check(setup, [method], CheckOptions()), setup, [method], again)


def boxed(name: str) -> tuple[Finding, ...]:
    """The findings on a black box."""
    box, answer = Regression(), BOXES[name][0]
    return bpcli.check_gradient(box.loss, lambda p: answer(box, box.right(p)), box.params).findings


def judged(findings: Sequence[Finding], words: Sequence[Sequence[str]]) -> tuple[str, str]:
    """ "right", "none" or "false", and the causes that were given; `words` are those of each slip that was made."""
    causes = {f.tensor: str((f.blame or {}).get("cause", "")) for f in findings if f.verdict == "wrong"}
    told = "; ".join(sorted({f"{tensor}: {cause}" for tensor, cause in causes.items()}))
    seen, outcome = set[int](), "right"
    for cause in causes.values():
        for part in cause.split(" (or: ")[0].split("; and "):
            found = {k for k, some in enumerate(words) if any(word in part for word in some)}
            if not found and any(word in part for word in NO_CAUSE):
                outcome = "none" if outcome == "right" else outcome
            elif not found:
                outcome = "false"
            seen |= found
    return ("none" if outcome == "right" and len(seen) < len(words) else outcome), told if causes else "passes"


def main(names: list[str]) -> None:
    """Run and print."""
    rows: list[tuple[str, str, str, str, str]] = []
    total: dict[str, Counter[str]] = {"single": Counter(), "pair": Counter()}

    def add(network: str, slip: str, kind: str, findings: Sequence[Finding], words: Sequence[Sequence[str]]) -> None:
        outcome, told = judged(findings, words)
        rows.append((network, slip, kind, outcome, told))
        total[kind][outcome] += 1
        if outcome != "right":
            print(network, "|", slip, "|", outcome, "|", told, flush=True)

    for network, slips in SLIPS.items():
        if names and network not in names:
            continue
        start = time.perf_counter()
        assert all(f.verdict == "pass" for f in blamed(network, frozenset())) or network.endswith(("3", "4"))
        for slip, words in slips.items():
            add(network, slip, "single", blamed(network, frozenset([slip])), [words])
        for pair in PAIRS.get(network, ()):
            add(
                network,
                " + ".join(pair),
                "pair",
                blamed(network, frozenset(pair)),
                [slips.get(s, SLIPS["leaky"].get(s, ())) for s in pair],
            )
        print(network, {k: dict(v) for k, v in total.items()}, f"{time.perf_counter() - start:.0f} s", flush=True)
    for name, (_, words) in BOXES.items() if not names or "boxes" in names else ():
        several = [[w] for w in words] if " and " in name else [words]
        add("black box", name, "pair" if " and " in name else "single", boxed(name), several)
    print({k: dict(v) for k, v in total.items()})
    if not names:
        with open(ROOT / "reports" / "slips.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("network", "slips", "kind", "outcome", "causes"))
            writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
