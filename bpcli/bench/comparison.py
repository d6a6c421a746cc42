"""Whether two saved runs can be compared at all, and what is kept of one that others are compared with.

Two runs side by side: what is deterministic first, figure by figure, then time, by what its samples show.

A figure that is deterministic (bytes, steps, flops, what the method computes) has no excuse: MORE is a regression,
LESS is a win that belongs into the baseline. A time is judged by `evidence`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.bench import intervals as evidence
from bpcli.bench.rows import Row
from bpcli.bench.saved_runs import SCHEMA_VERSION, Run, number, samples, verdict
from bpcli.errors import fail

CONTROL_SHIFT = 1.05
_KEPT = (
    "spec", "method", "backend", "tensor", "grid", "settings", "T", "batch", "dtype", "threads", "parameters", "check",
    "verdict", "cause", "worst", "kernel_error", "predicted_bytes", "allocated_bytes", "forward_steps", "flops",
    "bias", "cosine",
)  # fmt: skip


def contaminated(base: Run, head: Run) -> str:
    """What shows that the machine was not the same: rates of kernels with no code of ours, apart by more than 5%."""
    moved = []
    for name, rate in base.machine.items():
        before, now = number(rate), number(head.machine.get(name))
        if name.endswith("_per_s") and before and now and max(before / now, now / before) > CONTROL_SHIFT:
            moved.append(f"{name.split('_')[0]} ran at {now / before:.2f} of its rate")
    return ", ".join(moved)


def reasons(base: Run, head: Run) -> list[str]:
    """What figures may differ for, as far as the runs say: other specs, other settings of these."""
    rewritten = [s for s, digest in base.digests.items() if head.digests.get(s, digest) != digest]
    found = [f"{spec} is not the same text in both runs." for spec in rewritten]
    for option in ("set", "wrt"):
        given = [_given(run.context.get(option)) for run in (base, head)]
        if given[0] != given[1]:
            found.append(f"--{option} is not the same in both runs: {' and '.join(g or 'none' for g in given)}.")
    return found


def _given(values: Any) -> str:
    if isinstance(values, dict):
        return " ".join(f"{k}={_said(v)}" for k, v in sorted(values.items()))
    return " ".join(sorted(map(_said, values))) if isinstance(values, list) else ""


def differences(base: Run, head: Run) -> list[str]:
    """What makes times of two runs incomparable: another processor, other versions, other numbers of threads."""
    old, new = base.machine, head.machine
    named = [(k, old.get(k), new.get(k)) for k in ("cpu", "cores", "python")]
    versions = [run.versions for run in (base, head)]
    packages = sorted({p for v in versions for p in v} - {"bp"})
    named += [(p, versions[0].get(p), versions[1].get(p)) for p in packages]
    named.append(("threads", _threads(base), _threads(head)))
    return [f"{name}: {_said(a)} and {_said(b)}" for name, a, b in named if a != b]


def has_times(base: Run, head: Run) -> bool:
    """Whether both runs hold times at all; a baseline does not."""
    return all(any(samples(row) for row in run.rows) for run in (base, head))


def baseline(run: Run) -> dict[str, Any]:
    """`run` as a baseline: its cells or findings without times and samples, so that any machine can compare with it."""
    context = dict(run.document.get("context") or {})
    context["machine"] = {k: v for k, v in run.machine.items() if not k.endswith("_per_s")}
    rows = [{k: v for k, v in row.items() if k in _KEPT} for row in run.rows]
    summary = run.document.get("summary", {})
    return {"schema_version": SCHEMA_VERSION, "context": context, run.kind: rows, "errors": [], "summary": summary}


def _threads(run: Run) -> str:
    return ", ".join(sorted({str(row.get("threads")) for row in run.rows if "threads" in row}))


def _said(value: Any) -> str:
    return "unknown" if value in (None, "") else str(value)


WORSE, BETTER = ("WRONG", "SLOWER", "MORE"), ("LESS", "FASTER", "RIGHT")
UNDECIDED = ("INCONCLUSIVE", "MISSING")
# Worst first: the order of rows, and of what is annotated.
ORDER = (*WORSE, *UNDECIDED, "NEW", *BETTER, "SAME")


@dataclass(frozen=True)
class Line:
    """One figure of one cell in both runs.

    `verdict` is one of `ORDER`; `low` and `high` hold the ratio of head to base where it was estimated, `margin` is
    what counts as the same.
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
    """The lines, worst first, how many cells both runs have, and what else a reader should know.

    `reasons` are what figures may differ for although nothing in bp did.
    """

    lines: tuple[Line, ...]
    cells: int
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A deterministic figure: a head beyond base * (1 + `part`) + `slack` is more."""

    name: str
    part: float
    slack: float


# Measured bytes contain small objects of Python's own, which come and go; bias is a sum in some order.
FIGURES = (
    Figure("predicted_bytes", 0.0, 0.0),
    Figure("allocated_bytes", 0.01, 4096.0),
    Figure("forward_steps", 0.0, 0.0),
    Figure("flops", 1e-9, 0.0),
    Figure("bias", 0.01, 1e-6),
)
_FLOAT32_BIAS_SLACK = 1e-3
# A kernel error is rounding, which another machine rounds differently: more is tenfold, and near what z allows.
_MORE_ERROR, _MUCH_Z = 10.0, 0.1


def compare(base: Run, head: Run, timed: bool) -> Comparison:
    """Head against base. Times are compared when `timed`. Raises BpError for files that can't be compared."""
    if base.kind != head.kind:
        words = {"cells": "a benchmark", "findings": "a check"}
        what = f"{base.path} is {words[base.kind]}, {head.path} {words[head.kind]}"
        fail("incomparable", what, help="compare two runs of bp bench, or two of bp check")
    lines, both = deterministic(by_key(base.rows, base.path), by_key(head.rows, head.path))
    notes = [f"{run.path} holds {n} refusal{'s' * (n != 1)}" for run in (base, head) if (n := run.refusals)]
    if timed:
        moved = contaminated(base, head)
        lines += times(both, moved)
        notes += [f"contaminated: {moved}; no time can be judged"] if moved else []
    return Comparison(tuple(sorted(lines, key=rank)), len(both), tuple(notes), tuple(reasons(base, head)))


def by_key(rows: Sequence[Row], where: str) -> dict[str, Row]:
    """The rows by what identifies a cell. Raises BpError where two are the same cell."""
    keyed: dict[str, Row] = {}
    for row in rows:
        if keyed.setdefault(key(row), row) is not row:
            fail("not-a-run", f"{where} holds {_called(row)} twice", help="compare runs that measure each cell once")
    return keyed


def key(row: Row) -> str:
    """What tells one cell from another: names, sizes and settings, not the threads it ran on."""
    settings = {**row.get("grid", {}), **row.get("settings", {})}
    names = [row.get(k) for k in ("spec", "method", "backend", "tensor", "T", "batch", "dtype")]
    return json.dumps([names, settings], sort_keys=True)


def deterministic(base: Mapping[str, Row], head: Mapping[str, Row]) -> tuple[list[Line], list[tuple[Row, Row]]]:
    """The lines of everything but time, and the cells that are in both runs."""
    both = [(base[k], head[k]) for k in base if k in head]
    lines = [line(base[k], "cell", "there", None, "MISSING") for k in base if k not in head]
    lines += [line(head[k], "cell", None, "there", "NEW") for k in head if k not in base]
    lines += [_gradient({}, head[k]) for k in head if k not in base and verdict(head[k]) == "wrong"]
    for old, new in both:
        lines.append(_gradient(old, new))
        lines += [found for figure in FIGURES if (found := _figure(figure, old, new))]
        lines += _kernel_error(old, new)
    return lines, both


def line(row: Row, figure: str, base: Any, head: Any, found: str, **more: Any) -> Line:
    """A line about the cell of `row`."""
    settings = {**row.get("grid", {}), **row.get("settings", {})}
    names = (row["spec"], row["method"], row.get("backend", ""), settings, row.get("tensor", ""))
    return Line(*names, figure, base, head, found, **more)


def rank(found: Line) -> tuple[int, float]:
    """Worst first: by verdict, then by how far the ratio is from one."""
    far = abs(math.log(found.ratio)) if found.ratio and 0.0 < found.ratio < math.inf else 0.0
    return ORDER.index(found.verdict), -far


def _gradient(old: Row, new: Row) -> Line:
    before, now = (verdict(old) if old else None), verdict(new)
    if now == before or (now == "pass" and before is None):
        found = "WRONG" if now == "wrong" else "SAME"
    else:
        found = {"wrong": "WRONG", "inconclusive": "INCONCLUSIVE", "pass": "RIGHT"}[now]
    check = new.get("check") or {"detail": new.get("cause", "")}
    return line(new, "gradient", before, now, found, detail=str(check.get("detail") or ""))


def _figure(figure: Figure, old: Row, new: Row) -> Line | None:
    """The line of one figure; None where neither run has it, or it is a check's, which has it by tensor."""
    before, now = number(old.get(figure.name)), number(new.get(figure.name))
    if before is None and now is None:
        return None
    slack = _FLOAT32_BIAS_SLACK if figure.name == "bias" and _single(new) else figure.slack
    ratio = now / before if before and now is not None else None
    if before is None or now is None:
        found = "MISSING" if now is None else "NEW"
    elif not now <= before * (1.0 + figure.part) + slack:  # so that NaN is more
        found = "SAME" if math.isnan(before) and math.isnan(now) else "MORE"
    else:
        found = "SAME" if now * (1.0 + figure.part) + slack >= before else "LESS"
    return line(new, figure.name, before, now, found, ratio=ratio)


def _single(row: Row) -> bool:
    """Whether figures may be those of float32; a finding does not say in what it was computed."""
    return str(row.get("dtype", "float32")) == "float32"


def _kernel_error(old: Row, new: Row) -> list[Line]:
    before, now = number(old.get("kernel_error")), number(new.get("kernel_error"))
    if before is None or now is None:
        return []
    worst = new.get("worst")
    z = number(worst.get("z")) if isinstance(worst, dict) else None
    grown = not now <= _MORE_ERROR * before and z is not None and not z <= _MUCH_Z
    ratio = now / before if before else None
    return [line(new, "kernel_error", before, now, "MORE" if grown else "SAME", ratio=ratio)]


def times(both: Sequence[tuple[Row, Row]], moved: str) -> list[Line]:
    """A line for each cell that was timed in both runs; `moved` says why no time can be judged, "" where it can."""
    timed = [(old, new, samples(old), samples(new)) for old, new in both if samples(old) and samples(new)]
    # A run beside itself, or beside one that went on from it: what was measured once has not changed.
    lines = [_same_time(old, new) for old, new, a, b in timed if a == b]
    timed = [t for t in timed if t[2] != t[3]]
    shares = [evidence.unpaired(a, b, evidence.UNPAIRED_MARGIN).ratio for _, _, a, b in timed]
    margin = evidence.unpaired_margin(shares)
    found = [evidence.unpaired(a, b, margin) for _, _, a, b in timed]
    for (old, new, _, _), one, said in zip(timed, found, evidence.verdicts(found), strict=True):
        loud = bool(moved or old.get("contaminated") or new.get("contaminated"))
        lines.append(time_line(old, new, one, "INCONCLUSIVE" if loud else said, "contaminated" if loud else ""))
    return lines


def _same_time(old: Row, new: Row) -> Line:
    before, now = number(old["time_s"]), number(new["time_s"])
    return line(new, "time_s", before, now, "SAME", ratio=1.0, low=1.0, high=1.0, detail="one measurement")


def time_line(old: Row, new: Row, found: evidence.Evidence, said: str, detail: str) -> Line:
    """The line of a cell's time."""
    estimate = {"ratio": found.ratio, "low": found.low, "high": found.high, "margin": found.margin}
    return line(new, "time_s", number(old["time_s"]), number(new["time_s"]), said, **estimate, detail=detail)


def _called(row: Row) -> str:
    settings = "".join(f" {k}={v}" for k, v in {**row.get("grid", {}), **row.get("settings", {})}.items())
    return " ".join(filter(None, (row["spec"], row["method"], row.get("tensor", "")))) + settings
