"""Whether two saved runs can be compared at all, and what is kept of one that others are compared with."""

from __future__ import annotations

from typing import Any

from bpcli.benching.runfile import SCHEMA_VERSION, Run, number, samples

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
