"""Comparison of two runs, figure by figure: deterministic figures first, then times by the evidence of their samples.

Deterministic figures (bytes, steps, flops, bias) have no noise: MORE is a regression, LESS an improvement that belongs
into the baseline. A baseline is a run without times, which any machine can be compared with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.bench import intervals
from bpcli.bench.measurement import Row
from bpcli.bench.saved_runs import SCHEMA_VERSION, Run, number, samples, settings, verdict
from bpcli.errors import fail

CONTROL_SHIFT = 1.05
"""The factor by which control kernels may differ between two runs on the same machine."""
WORSE, BETTER = ("WRONG", "SLOWER", "MORE"), ("LESS", "FASTER", "RIGHT")
UNDECIDED = ("INCONCLUSIVE", "MISSING")
ORDER = (*WORSE, *UNDECIDED, "NEW", *BETTER, "SAME")
"""Verdicts, worst first."""
_BASELINE = (
    "spec", "method", "backend", "tensor", "grid", "settings", "T", "batch", "dtype", "threads", "parameters", "check",
    "verdict", "cause", "worst", "kernel_error", "predicted_bytes", "allocated_bytes", "forward_steps", "flops",
    "bias", "cosine",
)  # fmt: skip
# Figure, and the relative and absolute growth that is none: measured bytes contain Python's own small objects, and the
# order of summation changes a bias.
_FIGURES = (
    ("predicted_bytes", 0.0, 0.0),
    ("allocated_bytes", 0.01, 4096.0),
    ("forward_steps", 0.0, 0.0),
    ("flops", 1e-9, 0.0),
    ("bias", 0.01, 1e-6),
)
_FLOAT32_BIAS_SLACK = 1e-3
# Rounding differs between machines: a kernel error has grown when it is ten times larger and near the limit of z.
_ERROR_FACTOR, _LARGE_Z = 10.0, 0.1


@dataclass(frozen=True)
class Line:
    """One figure of one cell in both runs.

    `verdict` is one of `ORDER`. `low` and `high` bound the ratio of head to base where it was estimated, and `margin`
    is the change that counts as none.
    """

    spec: str
    method: str
    backend: str
    settings: Mapping[str, Any]
    tensor: str
    figure: str
    base: float | str | None
    head: float | str | None
    verdict: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """The lines, worst first, and the number of cells in both runs.

    `reasons` are differences of the runs, other than bp's version, that may explain different figures.
    """

    lines: tuple[Line, ...]
    cells: int
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def compare(base: Run, head: Run, timed: bool) -> Comparison:
    """Compare two runs, times only where `timed`. Raises BpError for a bench beside a check."""
    if base.kind != head.kind:
        words = {"cells": "a benchmark", "findings": "a check"}
        what = f"{base.path} is {words[base.kind]}, {head.path} {words[head.kind]}"
        fail("incomparable", what, help="compare two runs of bp bench, or two of bp check")
    lines, both = deterministic(by_key(base.rows, base.path), by_key(head.rows, head.path))
    notes = [f"{run.path} contains {n} error{'s' * (n != 1)}" for run in (base, head) if (n := len(run.errors))]
    if timed:
        moved = _moved_rates(base, head)
        lines += _times(both, moved)
        notes += [f"contaminated: {moved}; times cannot be compared"] if moved else []
    return Comparison(tuple(sorted(lines, key=rank)), len(both), tuple(notes), tuple(_reasons(base, head)))


def machine_differences(base: Run, head: Run) -> list[str]:
    """Differences that make times incomparable: processor, cores, vector path, versions, threads."""
    named = [(k, base.machine.get(k), head.machine.get(k)) for k in ("cpu", "cores", "python")]
    if "vectors" in base.machine and "vectors" in head.machine:  # runs saved before there was a choice don't have it
        named.append(("vectors", base.machine["vectors"], head.machine["vectors"]))
    old, new = (run.machine.get("versions") or {} for run in (base, head))
    named += [(p, old.get(p), new.get(p)) for p in sorted({*old, *new} - {"bp"})]
    threads = [sorted({str(row["threads"]) for row in run.rows if "threads" in row}) for run in (base, head)]
    named.append(("threads", ", ".join(threads[0]), ", ".join(threads[1])))
    return [f"{name}: {_said(a)} and {_said(b)}" for name, a, b in named if a != b]


def has_times(base: Run, head: Run) -> bool:
    """Whether both runs hold times."""
    return all(any(samples(row) for row in run.rows) for run in (base, head))


def baseline(run: Run) -> dict[str, Any]:
    """The document of a run without times, samples and rates."""
    context = dict(run.document.get("context") or {})
    context["machine"] = {k: v for k, v in run.machine.items() if not k.endswith("_per_s")}
    rows = [{k: v for k, v in row.items() if k in _BASELINE} for row in run.rows]
    summary = run.document.get("summary", {})
    return {"schema_version": SCHEMA_VERSION, "context": context, run.kind: rows, "errors": [], "summary": summary}


def _moved_rates(base: Run, head: Run) -> str:
    """The rates of the machine that differ by more than 5% between the runs, in words."""
    moved = []
    for name, rate in base.machine.items():
        before, now = number(rate), number(head.machine.get(name))
        if name.endswith("_per_s") and before and now and max(before / now, now / before) > CONTROL_SHIFT:
            moved.append(f"{name.split('_')[0]} ran at {now / before:.2f} times its rate")
    return ", ".join(moved)


def _reasons(base: Run, head: Run) -> list[str]:
    rewritten = [s for s, digest in base.digests.items() if head.digests.get(s, digest) != digest]
    found = [f"{spec} differs between the two runs." for spec in rewritten]
    for option in ("set", "wrt"):
        old, new = (_given(run.context.get(option)) for run in (base, head))
        if old != new:
            found.append(f"--{option} differs between the two runs: {old or 'none'} and {new or 'none'}.")
    return found


def _given(values: Any) -> str:
    if isinstance(values, dict):
        return " ".join(f"{k}={_said(v)}" for k, v in sorted(values.items()))
    return " ".join(sorted(map(_said, values))) if isinstance(values, list) else ""


def _said(value: Any) -> str:
    return "unknown" if value in (None, "") else str(value)


def by_key(rows: Sequence[Row], where: str) -> dict[str, Row]:
    """The rows by cell, that is names, sizes and settings without threads. Raises BpError for a repeated cell."""
    keyed: dict[str, Row] = {}
    for row in rows:
        names = [row.get(k) for k in ("spec", "method", "backend", "tensor", "T", "batch", "dtype")]
        if keyed.setdefault(json.dumps([names, settings(row)], sort_keys=True), row) is not row:
            cell = " ".join(filter(None, (row["spec"], row["method"], row.get("tensor", ""))))
            cell += "".join(f" {k}={v}" for k, v in settings(row).items())
            fail("not-a-run", f"{where} contains {cell} twice", help="compare runs that measure each cell once")
    return keyed


def deterministic(base: Mapping[str, Row], head: Mapping[str, Row]) -> tuple[list[Line], list[tuple[Row, Row]]]:
    """The lines of all figures but time, and the pairs of rows of cells in both runs."""
    both = [(base[k], head[k]) for k in base if k in head]
    lines = [_line(base[k], "cell", "there", None, "MISSING") for k in base if k not in head]
    lines += [_line(head[k], "cell", None, "there", "NEW") for k in head if k not in base]
    lines += [_gradient({}, head[k]) for k in head if k not in base and verdict(head[k]) == "wrong"]
    for old, new in both:
        lines.append(_gradient(old, new))
        lines += [found for figure in _FIGURES if (found := _figure(*figure, (old, new)))]
        lines += _kernel_error(old, new)
    return lines, both


def _line(row: Row, figure: str, base: Any, head: Any, found: str, **more: Any) -> Line:
    names = (row["spec"], row["method"], row.get("backend", ""), settings(row), row.get("tensor", ""))
    return Line(*names, figure, base, head, found, **more)


def rank(line: Line) -> tuple[int, float]:
    """Sort key: by verdict, worst first, then by the distance of the ratio from 1."""
    far = abs(math.log(line.ratio)) if line.ratio and 0.0 < line.ratio < math.inf else 0.0
    return ORDER.index(line.verdict), -far


def _gradient(old: Row, new: Row) -> Line:
    before, now = (verdict(old) if old else None), verdict(new)
    if now == before or (now == "pass" and before is None):
        found = "WRONG" if now == "wrong" else "SAME"
    else:
        found = {"wrong": "WRONG", "inconclusive": "INCONCLUSIVE", "pass": "RIGHT"}[now]
    check = new.get("check") or {"detail": new.get("cause", "")}
    return _line(new, "gradient", before, now, found, detail=str(check.get("detail") or ""))


def _figure(name: str, relative: float, slack: float, rows: tuple[Row, Row]) -> Line | None:
    """The line of one figure; None where neither run has it, as in a check."""
    before, now = (number(row.get(name)) for row in rows)
    if before is None and now is None:
        return None
    if name == "bias" and rows[1].get("dtype", "float32") == "float32":  # a finding does not say its dtype
        slack = _FLOAT32_BIAS_SLACK
    if before is None or now is None:
        found = "MISSING" if now is None else "NEW"
    elif not now <= before * (1.0 + relative) + slack:  # so that NaN is more
        found = "SAME" if math.isnan(before) and math.isnan(now) else "MORE"
    else:
        found = "SAME" if now * (1.0 + relative) + slack >= before else "LESS"
    return _line(rows[1], name, before, now, found, ratio=now / before if before and now is not None else None)


def _kernel_error(old: Row, new: Row) -> list[Line]:
    before, now = number(old.get("kernel_error")), number(new.get("kernel_error"))
    if before is None or now is None:
        return []
    worst = new.get("worst")
    z = number(worst.get("z")) if isinstance(worst, dict) else None
    grown = not now <= _ERROR_FACTOR * before and z is not None and not z <= _LARGE_Z
    found = "MORE" if grown else "SAME"
    return [_line(new, "kernel_error", before, now, found, ratio=now / before if before else None)]


def _times(both: Sequence[tuple[Row, Row]], moved: str) -> list[Line]:
    """A line for each cell timed in both runs, all INCONCLUSIVE where the machine has `moved`."""
    timed = [(old, new, samples(old), samples(new)) for old, new in both if samples(old) and samples(new)]
    # The same measurement on both sides, as of a run beside itself or beside one resumed from it.
    same = {"ratio": 1.0, "low": 1.0, "high": 1.0, "detail": "one measurement"}
    equal = [(old, new, number(old["time_s"]), number(new["time_s"])) for old, new, a, b in timed if a == b]
    lines = [_line(new, "time_s", before, now, "SAME", **same) for _, new, before, now in equal]
    timed = [t for t in timed if t[2] != t[3]]
    ratios = [intervals.unpaired(a, b, intervals.UNPAIRED_MARGIN).ratio for _, _, a, b in timed]
    margin = intervals.unpaired_margin(ratios)
    found = [intervals.unpaired(a, b, margin) for _, _, a, b in timed]
    for (old, new, _, _), one, said in zip(timed, found, intervals.verdicts(found), strict=True):
        noisy = bool(moved or old.get("contaminated") or new.get("contaminated"))
        lines.append(time_line(old, new, one, "INCONCLUSIVE" if noisy else said, "contaminated" if noisy else ""))
    return lines


def time_line(old: Row, new: Row, found: intervals.Evidence, said: str, detail: str) -> Line:
    """The line of a cell's time."""
    estimate = {"ratio": found.ratio, "low": found.low, "high": found.high, "margin": found.margin}
    return _line(new, "time_s", number(old["time_s"]), number(new["time_s"]), said, **estimate, detail=detail)
