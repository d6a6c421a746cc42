"""A black box: `params`, `loss(params)` and `grad(params)` of an object, judged by differences of the loss alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bpcli.checking.answers import differing
from bpcli.checking.blame.box import blame
from bpcli.checking.boxes import (
    METHOD,
    Box,
    judge_box_along,
    judge_box_entries,
    losses_taken,
    losses_to_narrow,
    narrowed,
)
from bpcli.checking.findings import Finding, Verdict, spoiled
from bpcli.checking.options import Mode
from bpcli.checking.returned import FLOATS, LOSS, same
from bpcli.checking.user.process import EndedError
from bpcli.checking.user.wire import Message
from bpcli.checking.userfile import UserFile
from bpcli.errors import fail, nearest, printable
from bpcli.problem.definition import Tensor
from bpcli.problem.limits import Limits, format_duration

_AGAIN = 16  # evaluations that tell a loss which draws random numbers now and then from a gradient that is off
AFFORDABLE = 30.0
"""Predicted seconds up to which "auto" judges every entry."""


def open_box(file: UserFile, name: str) -> Box:
    """The object `name` of a file, a class being called for one; `BpError` where it is no black box."""
    file.seek(name)
    shown = f"{printable(file.shown)}:{printable(name)}"
    found, arrays = file.learn("open", name)
    lacking = [part for part in ("params", LOSS, METHOD) if part not in found["has"]]
    advice = "a black box has params (a dict of arrays), loss(params) and grad(params)"
    where = file.at(file.line_of(name))
    if lacking:
        fail("usage", f"{shown} lacks {' and '.join(lacking)} ({where})", help=advice)
    if found["params"] is None:
        what = f"{shown}: params is of type {found['held']}, not a dict of arrays ({where})"
        fail("usage", what, help=advice)
    for row in found["params"]:
        _refuse_odd(shown, row)
    params = {row["key"]: np.array(array) for row, array in zip(found["params"], arrays, strict=True)}
    for key, array in params.items():
        if not np.isfinite(array).all():
            fail(
                "not-finite",
                f'{shown}: params["{printable(key)}"] is not finite',
                help="start where every number is finite",
            )
    lines = {p: file.line_of(f"{found['kind']}.{p}" if p in found["own"] else name) for p in (LOSS, METHOD)}
    return Box(f"{file.shown}:{name}", file, name, params, lines)


def check_box(box: Box, wrt: Sequence[str], limits: Limits, mode: Mode = "auto") -> list[Finding]:
    """Judge `grad` of the tensors `wrt` (all where empty), and whether `loss` is fit to judge by.

    Every entry, or directions and entries of what these do not pass, all or those that a wrong direction is narrowed
    down to; "auto" goes by the time that entries take.
    `BpError` for a name that is none, or where it would take longer than is allowed.
    """
    tensors = _chosen(box, wrt)
    try:
        return [_blamed(found) for found in _judged(box, tensors, limits, mode)]
    except EndedError as error:
        return [_blamed(_wrong(box, LOSS, (), box.file.ended(error, box.lines[LOSS])))]


def _judged(box: Box, tensors: Sequence[Tensor], limits: Limits, mode: Mode) -> list[Finding]:
    """`check_box` without blame. Raises EndedError where the loss ends its process."""
    start = time.perf_counter()
    fault = _fault_of_loss(box, 2)
    each = (time.perf_counter() - start) / 2
    if fault:
        return [_wrong(box, LOSS, (), fault)]
    entries, along = (each * sum(losses_taken(t, along) for t in tensors) for along in (False, True))
    directional = mode == "directional" or (mode == "auto" and entries > max(AFFORDABLE, along))
    seconds = along if directional else entries
    if seconds > limits.max_time:
        what = f"{box.name} would take about {format_duration(seconds)}, {format_duration(each)} a loss"
        advice = "choose fewer tensors with --wrt, make it smaller, take --mode directional, or raise --max-time"
        fail("too-long", f"{what}; the limit is {format_duration(limits.max_time)}", help=advice)
    function = box.function(METHOD)
    one = function.gradient([box.params], tensors, FLOATS)
    two = one if one.ended else function.gradient([box.params], tensors, FLOATS)
    first = two.returned if two.ended else one.returned
    changed = tuple(dict.fromkeys((*one.changed, *two.changed)))
    unsteady = differing((None, first.arrays), (None, two.returned.arrays))
    findings, where = [], function.where
    for tensor in tensors:
        if tensor.name in first.faults:
            findings.append(_wrong(box, tensor.name, tensor.shape, first.faults[tensor.name]))
            continue
        value = first.arrays[tensor.name]
        found = judge_box_along(box, tensor, value) if directional else judge_box_entries(box, tensor, value)
        if directional and found.verdict != "pass" and each * losses_taken(tensor, along=False) <= AFFORDABLE:
            found = judge_box_entries(box, tensor, value)
        elif directional and found.verdict == "wrong" and each * losses_to_narrow(tensor) <= AFFORDABLE:
            found = narrowed(box, tensor, value, found)
        if changed:
            found = spoiled(found, f"changes its arguments: {', '.join(changed)}{where}")
        elif tensor.name in unsteady:
            found = spoiled(found, f"not deterministic{where}")
        findings.append(found)
    if any(f.checked and f.verdict != "pass" for f in findings) and (fault := _fault_of_loss(box, _AGAIN)):
        return [_wrong(box, LOSS, (), fault)]
    return findings + [_wrong(box, n, (), f) for n, f in first.faults.items() if n not in box.params]


def _blamed(found: Finding) -> Finding:
    """With a blame where it is wrong, whatever for."""
    wanting = found.verdict == "wrong" and found.blame is None
    return replace(found, blame=blame(found, found.cause)) if wanting else found


def _refuse_odd(shown: str, row: Message) -> None:
    """Raise `BpError` for one of the params that is no array that can be shifted."""
    if not row["name"]:
        fail("usage", f"{shown}: a key of params is {row['key']}, not a name", help="use strings as keys")
    if not row["floats"]:
        what = f'{shown}: params["{printable(row["key"])}"] is of type {row["kind"]}'
        what += ", not a NumPy array of float64 or float32"
        fail("usage", what, help="give NumPy arrays, and turn them into tensors inside of loss and grad")


def _chosen(box: Box, wrt: Sequence[str]) -> list[Tensor]:
    for word in wrt:
        if word != "params" and word not in box.params:
            what = f'{box.name}: cannot differentiate with respect to "{printable(word)}"'
            fail("unknown-wrt", what, help=nearest(word, ("params", *box.params)))
    chosen = [n for n in box.params if not wrt or n in wrt or "params" in wrt]
    tensors = [Tensor(name, "param", box.params[name].shape) for name in chosen]
    if not sum(t.entries for t in tensors):
        fail(
            "nothing-to-differentiate", f"{box.name}: params has no entries", help="give params an array with an entry"
        )
    return [t for t in tensors if t.entries]


def _fault_of_loss(box: Box, times: int) -> str:
    """What makes the loss unfit to judge by, "" where nothing does: it is evaluated so often where the check starts."""
    function = box.function(LOSS)
    values = []
    for _ in range(times):
        value, fault = function.loss(box.params)
        if value is None:
            return fault
        values.append(np.float64(value))
    if not np.isfinite(values[0]):
        return f"not finite{function.where}"
    return "" if all(same(values[0], v) for v in values) else f"not deterministic{function.where}"


def _wrong(box: Box, name: str, shape: tuple[int, ...], cause: str) -> Finding:
    verdict: Verdict = "wrong"
    return Finding(box.name, METHOD, name, shape, 0, verdict, cause, None, None, None, None)
