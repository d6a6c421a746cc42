"""A black box: `params`, `loss(params)` and `grad(params)` of an object, judged by differences of the loss alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bpcli.checking.answers import differing, same
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
from bpcli.checking.returned import LOSS, FlawError, Returned, all_faulty, scalar, take
from bpcli.checking.supplied import altered
from bpcli.checking.userfile import UserFile
from bpcli.errors import fail, nearest, printable
from bpcli.problem.limits import Limits, format_duration
from bpcli.problem.model import Array, Tensor

_DTYPES = (np.dtype(np.float64), np.dtype(np.float32))
AFFORDABLE = 30.0
"""Predicted seconds up to which "auto" judges every entry."""


def open_box(file: UserFile, name: str) -> Box:
    """The object `name` of a file, a class being called for one; `BpError` where it is no black box."""
    thing = file.get(name)
    shown = f"{printable(file.shown)}:{printable(name)}"
    with file.running():
        try:
            thing = thing() if isinstance(thing, type) else thing
            parts = {part: getattr(thing, part, None) for part in ("params", "loss", "grad")}
            held = parts["params"]
            given = dict(held) if isinstance(held, Mapping) else {}
            params = {key: np.array(value) for key, value in given.items()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            fail(
                "user-code",
                f"{shown} {file.raised(error, file.line_of(name))}",
                help="mend it: bp reads params, loss and grad",
            )
    lacking = [part for part, value in parts.items() if value is None or (part != "params" and not callable(value))]
    advice = "a black box has params (a dict of arrays), loss(params) and grad(params)"
    where = file.at(file.line_of(name))
    if lacking:
        fail("usage", f"{shown} lacks {' and '.join(lacking)} ({where})", help=advice)
    if not isinstance(held, Mapping):
        kind = printable(type(held).__name__, 60)
        fail("usage", f"{shown}: params is of type {kind}, not a dict of arrays ({where})", help=advice)
    arrays = {key: _floats(shown, key, given[key], array) for key, array in params.items()}
    return Box(f"{file.shown}:{name}", file, thing, name, arrays)


def check_box(box: Box, wrt: Sequence[str], limits: Limits, mode: Mode = "auto") -> list[Finding]:
    """Judge `grad` of the tensors `wrt` (all where empty), and whether `loss` is fit to judge by.

    Every entry, or directions and entries of what these do not pass, all or those that a wrong direction is narrowed
    down to; "auto" goes by the time that entries take.
    `BpError` for a name that is none, or where it would take longer than is allowed.
    """
    tensors = _chosen(box, wrt)
    start = time.perf_counter()
    fault = _fault_of_loss(box)
    each = (time.perf_counter() - start) / 2
    if fault:
        return [_blamed(_wrong(box, LOSS, (), fault))]
    entries, along = (each * sum(losses_taken(t, along) for t in tensors) for along in (False, True))
    directional = mode == "directional" or (mode == "auto" and entries > max(AFFORDABLE, along))
    seconds = along if directional else entries
    if seconds > limits.max_time:
        what = f"{box.name} would take about {format_duration(seconds)}, {format_duration(each)} a loss"
        advice = "choose fewer tensors with --wrt, make it smaller, take --mode directional, or raise --max-time"
        fail("too-long", f"{what}; the limit is {format_duration(limits.max_time)}", help=advice)
    (first, changed), (second, later) = _gradient(box, tensors), _gradient(box, tensors, again=True)
    unsteady = differing((None, first.arrays), (None, second.arrays))
    findings, where = [], f" ({box.file.at(box.line('grad'))})"
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
        if changed or later:
            found = spoiled(found, f"changes its arguments: {', '.join(dict.fromkeys((*changed, *later)))}{where}")
        elif tensor.name in unsteady:
            found = spoiled(found, f"not deterministic{where}")
        findings.append(found)
    findings += [_wrong(box, n, (), f) for n, f in first.faults.items() if n not in box.params]
    return [_blamed(found) for found in findings]


def _blamed(found: Finding) -> Finding:
    """With a blame where it is wrong, whatever for."""
    wanting = found.verdict == "wrong" and found.blame is None
    return replace(found, blame=blame(found, found.cause)) if wanting else found


def _floats(shown: str, key: object, given: Any, array: Any) -> Array:
    """One of the params as an array that can be shifted."""
    if not isinstance(key, str):
        fail("usage", f"{shown}: a key of params is {printable(repr(key), 60)}, not a name", help="use strings as keys")
    if isinstance(given, int) and not isinstance(given, bool):
        array = array.astype(np.float64)
    if array.dtype not in _DTYPES or type(given).__module__.partition(".")[0] == "torch":
        kind = printable(type(given).__name__) if array.dtype in _DTYPES else str(array.dtype)
        what = f'{shown}: params["{printable(key)}"] is of type {kind}, not a NumPy array of float64 or float32'
        fail("usage", what, help="give NumPy arrays, and turn them into tensors inside of loss and grad")
    if not np.isfinite(array).all():
        fail(
            "not-finite",
            f'{shown}: params["{printable(key)}"] is not finite',
            help="start where every number is finite",
        )
    return np.asarray(array)


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


def _fault_of_loss(box: Box) -> str:
    """What makes the loss unfit to judge by, "" where nothing does: it is evaluated twice where the check starts."""
    where = f" ({box.file.at(box.line('loss'))})"
    values = []
    for again in (False, True):
        params = box.copies()
        with box.file.running(again):
            try:
                values.append(scalar(box.thing.loss(params)))
            except KeyboardInterrupt:
                raise
            except FlawError as flaw:
                return f"{flaw}{where}"
            except BaseException as error:
                return box.file.raised(error, box.line("loss"))
        if changed := altered(params, box.params):
            return f"changes its arguments: {', '.join(changed)}{where}"
    if not np.isfinite(values[0]):
        return f"not finite{where}"
    return "" if same(np.float64(values[0]), np.float64(values[1])) else f"not deterministic{where}"


def _gradient(box: Box, tensors: Sequence[Tensor], again: bool = False) -> tuple[Returned, list[str]]:
    """What `grad` gives for fresh copies, and which of them it changed."""
    params, line = box.copies(), box.line("grad")
    where = f" ({box.file.at(line)})"
    with box.file.running(again):
        try:
            returned = take(box.thing.grad(params), tensors, set(box.params), _DTYPES).located(where)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            returned = all_faulty(tensors, box.file.raised(error, line))
    return returned, altered(params, box.params)


def _wrong(box: Box, name: str, shape: tuple[int, ...], cause: str) -> Finding:
    verdict: Verdict = "wrong"
    return Finding(box.name, METHOD, name, shape, 0, verdict, cause, None, None, None, None)
