"""Blame of black boxes: what the gradient looks like beside differences of the loss. Of its graph nothing is known.

Black boxes: their gradients judged by differences of their losses, entry by entry or along directions.

A black box: `params`, `loss(params)` and `grad(params)` of an object, judged by differences of the loss alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.checking.blame.signatures import PLAIN, extent, multiple, not_finite, proportional
from bpcli.checking.blame.wording import worst_entry
from bpcli.checking.check_options import Mode
from bpcli.checking.findings import Finding, Verdict, spoiled
from bpcli.checking.sources.gradient_source import differing
from bpcli.checking.sources.user_file import Function, UserFile
from bpcli.checking.sources.user_process import EndedError
from bpcli.checking.sources.user_protocol import Message
from bpcli.checking.sources.validate_gradient import FLOATS, LOSS, same
from bpcli.checking.verdict import (
    WRONG,
    Entries,
    References,
    as_direction,
    at_kink,
    cosine,
    judge,
    relative_error,
    summarise,
)
from bpcli.errors import Place, fail, nearest, printable
from bpcli.problem.definition import Array, Tensor
from bpcli.problem.limits import Limits, format_duration
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.central import TARGET, differentiate
from bpcli.references.numerics.noise import EVALUATIONS
from bpcli.references.numerics.probe import (
    COUNT,
    NOISE_ROWS,
    Indices,
    Probe,
    Sampler,
    directions,
    dot,
    norms,
    points_along,
)
from bpcli.references.numerics.rounding import FACTOR, unit_roundoff


def blame(found: Finding, cause: str) -> dict[str, object]:
    """The fields of a blame, but for how to see it again."""
    index = list(found.worst.index) if found.worst is not None and found.worst.index is not None else None
    text = "; ".join(part for part in (worst_entry(found), cause) if part)
    unknown = dict.fromkeys(("step", "sample", "node", "factor"))
    return {"index": index, **unknown, "cause": cause, "text": text, "reproduce": None}


def looks(name: str, theta: Array, value: FloatArray, entries: Entries) -> str:
    """What the error of a gradient `value` of the array `theta` looks like, whose entries were judged."""
    right, slack = entries.reference, entries.bound
    return (
        not_finite(value)
        or multiple(value, right, slack, PLAIN)
        or proportional(value, right, slack, np.asarray(theta, np.float64), name)
        or _transposed(value, right, slack)
        or extent(entries.verdict == WRONG)
    )


def _transposed(value: FloatArray, right: FloatArray, slack: FloatArray) -> str:
    square = value.ndim == 2 and value.shape == value.T.shape
    return "the gradient is transposed" if square and (np.abs(value.T - right) <= slack).all() else ""


METHOD = "grad"
# Evaluations of the loss: on each tensor for its noise, and on each entry or direction for two rounds of differences.
_FOR_NOISE, _EVALUATIONS = 8 * EVALUATIONS, 14
_BLOCK = 64
"""Entries that a wrong direction is narrowed down to, and that are then judged one by one."""


@dataclass(frozen=True, eq=False)
class Box:
    """An object of a user's file; `name` is what reports call it, `params` are its arrays, float64 or float32.

    `lines` says where `loss` and `grad` are written, as far as that is known.
    """

    name: str
    file: UserFile
    object: str
    params: Mapping[str, Array]
    lines: Mapping[str, int]

    def function(self, part: str) -> Function:
        """Its `loss` or `grad`."""
        return Function(self.file, self.object, self.lines[part], part)

    def place(self, tensor: str) -> Place:
        """Where what is found of a tensor, or of the loss, is to be mended."""
        return self.file.place(self.lines[LOSS if tensor == LOSS else METHOD])


def losses_taken(tensor: Tensor, along: bool) -> int:
    """How often the loss is evaluated for a tensor whose gradient is right, most of the time."""
    if along:
        return NOISE_ROWS * EVALUATIONS + _EVALUATIONS * COUNT
    return _FOR_NOISE + _EVALUATIONS * tensor.entries


def losses_to_narrow(tensor: Tensor) -> int:
    """How often it is evaluated, at most, for finding wrong entries of a tensor by halves of a wrong direction."""
    halvings = max(0, math.ceil(math.log2(tensor.entries / _BLOCK)))
    return halvings * (NOISE_ROWS * EVALUATIONS + 4 * _EVALUATIONS) + _FOR_NOISE + 2 * _EVALUATIONS * _BLOCK


def judge_box_entries(box: Box, tensor: Tensor, value: Array) -> Finding:
    """Every entry, with power to pass and on two ladders to condemn."""
    array, wide = box.params[tensor.name].astype(np.float64), value.astype(np.float64)
    entries = _each(box, tensor, value, np.arange(tensor.entries), tensor.shape)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    off, angle = relative_error(wide, entries.reference), cosine(wide, entries.reference)
    if not np.isfinite(entries.bound).all():
        off = angle = None
    known = (box.name, METHOD, tensor.name, tensor.shape, tensor.entries, verdict, cause, worst, off)
    kink = at_kink(entries, worst)
    # At a kink there is no one truth to be off from.
    found = Finding(*known, None if kink else off, None if kink else angle, kink=kink)
    if verdict != "wrong":
        return found
    return replace(found, blame=blame(found, cause or looks(tensor.name, array, wide, entries)))


def judge_box_along(box: Box, tensor: Tensor, value: Array) -> Finding:
    """Directions alone: what is wrong is not looked for among the entries."""
    rows = directions(tensor)
    entries, along = _along(box, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    off = relative_error(along, entries.reference)
    bias = None if (entries.high > entries.low).any() else off
    known = (box.name, METHOD, tensor.name, tensor.shape, len(rows), verdict, cause, as_direction(worst), off)
    found = Finding(*known, bias, None)
    return replace(found, blame=blame(found, cause)) if verdict == "wrong" else found


def narrowed(box: Box, tensor: Tensor, value: Array, found: Finding) -> Finding:
    """`found`, a wrong direction, with a wrong entry: the half of it that is more wrong is halved in turn.

    As it is where errors are too spread out for a half, or for any of the last `_BLOCK` entries, to be told wrong.
    """
    assert found.worst is not None and found.worst.direction is not None
    row = directions(tensor)[found.worst.direction - 1]
    block = np.arange(tensor.entries)
    while len(block) > _BLOCK:
        halves = np.array_split(block, 2)
        rows = np.zeros((2, tensor.entries))
        for part, half in zip(rows, halves, strict=True):
            part[half] = row[half]
        entries, _ = _along(box, tensor, value, rows)
        if not (entries.verdict == WRONG).any():
            return found
        z = np.where(np.isnan(entries.z), np.inf, entries.z)
        block = halves[int(np.where(entries.verdict == WRONG, z, -1.0).argmax())]
    verdict, _, worst = summarise(_each(box, tensor, value, block, (len(block),)))
    if verdict != "wrong" or worst is None or worst.index is None:
        return found
    index = tuple(int(i) for i in np.unravel_index(block[worst.index[0]], tensor.shape))
    there = replace(found, checked=len(block), worst=replace(worst, index=index), cause=found.cause)
    return replace(there, blame=blame(there, there.cause))


def _each(box: Box, tensor: Tensor, value: Array, places: Indices, shape: tuple[int, ...]) -> Entries:
    """The verdicts on the entries at the flat `places`, in `shape`."""
    array = box.params[tensor.name].astype(np.float64).reshape(-1)

    def moved(entry: int, delta: float) -> FloatArray:
        found = array.copy()
        found[entry] += delta
        return found

    around = Probe(places, array[places, None], np.arange(len(places))[:, None], summed=True)
    # In float32 an entry moves by what its rounding makes of a step.
    sampler = replace(_sampler(box, tensor, around, moved), dtype=box.params[tensor.name].dtype)
    wide = value.astype(np.float64).reshape(-1)[places].reshape(shape)

    def rounding(reference: FloatArray) -> FloatArray:
        size = FACTOR * unit_roundoff(value.dtype) * float(np.abs(reference).max())
        return np.where((wide == 0) & (reference == 0), 0.0, size + float(np.finfo(value.dtype).tiny))

    return _decided(sampler, shape, wide, rounding, value.dtype)


def _along(box: Box, tensor: Tensor, value: Array, rows: FloatArray) -> tuple[Entries, FloatArray]:
    """The verdicts along `rows (K, size)`, and the slopes there that the gradient says."""
    array = box.params[tensor.name].astype(np.float64)

    def moved(row: int, delta: float) -> FloatArray:
        return np.asarray(array.reshape(-1) + delta * rows[row])

    around = points_along(array, rows)
    sampler = replace(_sampler(box, tensor, around, moved), noise_rows=NOISE_ROWS)
    wide = value.astype(np.float64)
    along = dot(rows, wide)
    largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
    each = np.full(wide.shape, FACTOR * unit_roundoff(value.dtype) * largest + float(np.finfo(value.dtype).tiny))
    bounds = norms(rows, each)

    def rounding(reference: FloatArray) -> FloatArray:
        return np.where((along == 0) & (reference == 0), 0.0, bounds)

    return _decided(sampler, along.shape, along, rounding, value.dtype), along


def _decided(
    sampler: Sampler,
    shape: tuple[int, ...],
    value: FloatArray,
    rounding: Callable[[FloatArray], FloatArray],
    dtype: np.dtype[Any],
) -> Entries:
    """The verdict on `value`; a second ladder is asked only where the first finds something wrong."""
    central = _estimate(sampler, shape, 1.0)
    bound = rounding(central.value)
    entries = judge(value, References(central=central), bound, dtype)
    if entries.suspect.any():
        entries = judge(value, References(central=central, second=_estimate(sampler, shape, 0.75)), bound, dtype)
    return entries


def _estimate(sampler: Sampler, shape: tuple[int, ...], offset: float) -> Estimate:
    found = differentiate(sampler, TARGET, offset)
    parts = (found.value, found.bound, found.noise, found.kink)
    return Estimate(*(sampler.probe.scatter(part, shape) for part in parts))


def _sampler(box: Box, tensor: Tensor, around: Probe, moved: Callable[[int, float], FloatArray]) -> Sampler:
    """The loss around the values of one tensor, which are flat when `moved`; where it raises, nothing is learnt.

    Raises EndedError.
    """
    array, loss = box.params[tensor.name], box.function(LOSS)

    def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
        values = np.full((len(entries), 1), np.nan)
        for row, (entry, delta) in enumerate(zip(entries, deltas, strict=True)):
            shifted = moved(int(entry), float(delta)).reshape(array.shape).astype(array.dtype)
            value, _ = loss.loss({**box.params, tensor.name: shifted})
            values[row] = np.nan if value is None else value
        return values

    return Sampler.of(losses, around)


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
