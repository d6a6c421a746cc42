"""Black boxes: objects with `params`, `loss(params)` and `grad(params)`, judged by differences of the loss alone.

The gradient is judged entry by entry or along random directions. Blame has no graph to go by, so that it describes the
error from its numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bpcli.checking.blame.box_cause import NOT_CLEARED, accumulates, box_causes
from bpcli.checking.check_options import Mode
from bpcli.checking.findings import Finding, not_compared, overrule, worst_entry, worst_index
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

METHOD = "grad"
# Evaluations of the loss: per tensor for its noise, and per entry or direction for two step ladders.
_FOR_NOISE, _EVALUATIONS = 8 * EVALUATIONS, 14
_REPEATS = 16  # evaluations that detect a loss with random numbers, whose differences are unreliable
_BLOCK = 64  # entries left at the end of a bisection, to be judged one by one
AFFORDABLE = 30.0
"""Predicted seconds up to which "auto" judges every entry."""


@dataclass(frozen=True, eq=False)
class BlackBox:
    """An `object` in a user's file, called `name` in reports, with its `params`, arrays of float64 or float32.

    `lines` are those of `loss` and `grad` in the file, as far as they are known. `judged` are tensors that were judged
    entry by entry.
    """

    name: str
    file: UserFile
    object: str
    params: Mapping[str, Array]
    lines: Mapping[str, int]
    judged: dict[str, Entries] = field(default_factory=dict)

    def function(self, part: str) -> Function:
        """Its `loss` or `grad`."""
        return Function(self.file, self.object, self.lines[part], part)

    def place(self, tensor: str) -> Place:
        """Where the gradient, or for a finding on the loss the loss, is defined."""
        return self.file.place(self.lines[LOSS if tensor == LOSS else METHOD])


def losses_taken(tensor: Tensor, along: bool) -> int:
    """The typical number of loss evaluations for a tensor whose gradient is right."""
    if along:
        return NOISE_ROWS * EVALUATIONS + _EVALUATIONS * COUNT
    return _FOR_NOISE + _EVALUATIONS * tensor.entries


def losses_to_narrow(tensor: Tensor) -> int:
    """The largest number of loss evaluations that the bisection of a wrong direction takes."""
    halvings = max(0, math.ceil(math.log2(tensor.entries / _BLOCK)))
    return halvings * (NOISE_ROWS * EVALUATIONS + 4 * _EVALUATIONS) + _FOR_NOISE + 2 * _EVALUATIONS * _BLOCK


def judge_box_entries(box: BlackBox, tensor: Tensor, value: Array) -> Finding:
    """Judge every entry."""
    wide = value.astype(np.float64)
    entries = _each(box, tensor, value, np.arange(tensor.entries), tensor.shape)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    error, angle = relative_error(wide, entries.reference), cosine(wide, entries.reference)
    if not np.isfinite(entries.bound).all():
        error = angle = None
    known = (box.name, METHOD, tensor.name, tensor.shape, tensor.entries, verdict, cause, worst, error)
    kink = at_kink(entries, worst)
    box.judged[tensor.name] = entries
    # At a kink the true gradient is not unique.
    return Finding(*known, None if kink else error, None if kink else angle, kink=kink)


def _explained(
    box: BlackBox, findings: Sequence[Finding], first: Mapping[str, Array], second: Mapping[str, Array]
) -> list[Finding]:
    """The findings with the causes that their numbers show; `first` and `second` are the gradients of two calls."""
    causes = box_causes(first, box.params, {n: e for n, e in box.judged.items() if n in first})
    again = {n for n in first if n in second and accumulates(first[n], second[n])}
    told = {
        f.tensor: NOT_CLEARED if f.tensor in again else "" if f.cause else causes.get(f.tensor, "") for f in findings
    }
    wrong = [f.verdict == "wrong" and bool(told[f.tensor]) for f in findings]
    return [replace(f, blame=_blame(f, told[f.tensor])) if w else f for f, w in zip(findings, wrong, strict=True)]


def _blame(found: Finding, cause: str) -> dict[str, object]:
    """The fields of a blame; a black box cannot be rerun in smaller sizes, so that there is no `reproduce`."""
    text = "; ".join(part for part in (worst_entry(found), cause) if part)
    unknown = dict.fromkeys(("step", "sample", "node", "factor"))
    return {"index": worst_index(found), **unknown, "cause": cause, "text": text, "reproduce": None}


def judge_box_along(box: BlackBox, tensor: Tensor, value: Array) -> Finding:
    """Judge directions."""
    rows = directions(tensor)
    entries, along = _along(box, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += box.function(METHOD).where
    error = relative_error(along, entries.reference)
    bias = None if (entries.high > entries.low).any() else error
    known = (box.name, METHOD, tensor.name, tensor.shape, len(rows), verdict, cause, as_direction(worst), error)
    return Finding(*known, bias, None)


def locate_wrong_entry(box: BlackBox, tensor: Tensor, value: Array, found: Finding) -> Finding:
    """Locate a wrong entry by bisection of `found`, a wrong direction: the half with the larger error is kept.

    Returns `found` as it is where errors are too spread out for a half, or an entry in the end, to be wrong by itself.
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
    return replace(found, checked=len(block), worst=replace(worst, index=index))


def _each(box: BlackBox, tensor: Tensor, value: Array, places: Indices, shape: tuple[int, ...]) -> Entries:
    """Judge the entries at the flat `places`, in `shape`."""
    array = box.params[tensor.name].astype(np.float64).reshape(-1)

    def moved(entry: int, delta: float) -> FloatArray:
        found = array.copy()
        found[entry] += delta
        return found

    around = Probe(places, array[places, None], np.arange(len(places))[:, None], summed=True)
    # In float32 a step is rounded to the spacing of the entry.
    sampler = replace(_sampler(box, tensor, around, moved), dtype=box.params[tensor.name].dtype)
    wide = value.astype(np.float64).reshape(-1)[places].reshape(shape)
    return _decided(sampler, wide, value.dtype, lambda reference: _rounding(value.dtype, reference))


def _along(box: BlackBox, tensor: Tensor, value: Array, rows: FloatArray) -> tuple[Entries, FloatArray]:
    """Judge directions `rows (K, size)`; returns also the gradient's components along them."""
    array = box.params[tensor.name].astype(np.float64)

    def moved(row: int, delta: float) -> FloatArray:
        return np.asarray(array.reshape(-1) + delta * rows[row])

    around = points_along(array, rows)
    sampler = replace(_sampler(box, tensor, around, moved), noise_rows=NOISE_ROWS)
    wide = value.astype(np.float64)
    along = dot(rows, wide)
    bounds = norms(rows, np.full(wide.shape, _rounding(value.dtype, wide[np.isfinite(wide)])))
    return _decided(sampler, along, value.dtype, lambda reference: bounds), along


def _rounding(dtype: np.dtype[Any], gradient: FloatArray) -> float:
    """The rounding error to allow in any entry of a gradient computed in `dtype`."""
    largest = float(np.abs(gradient).max(initial=0.0))
    return FACTOR * unit_roundoff(dtype) * largest + float(np.finfo(dtype).tiny)


def _decided(
    sampler: Sampler, value: FloatArray, dtype: np.dtype[Any], rounding: Callable[[FloatArray], FloatArray | float]
) -> Entries:
    """Judge `value`, on a second step ladder too if the first one rejects an entry.

    `rounding` takes the estimate to the error to allow, except where both it and `value` are exactly zero.
    """
    shape = value.shape
    central = _estimate(sampler, shape, 1.0)
    bound = np.where((value == 0) & (central.value == 0), 0.0, rounding(central.value))
    entries = judge(value, References(central=central), bound, dtype)
    if entries.suspect.any():
        entries = judge(value, References(central=central, second=_estimate(sampler, shape, 0.75)), bound, dtype)
    return entries


def _estimate(sampler: Sampler, shape: tuple[int, ...], offset: float) -> Estimate:
    found = differentiate(sampler, TARGET, offset)
    parts = (found.value, found.bound, found.noise, found.kink)
    return Estimate(*(sampler.probe.scatter(part, shape) for part in parts))


def _sampler(box: BlackBox, tensor: Tensor, around: Probe, moved: Callable[[int, float], FloatArray]) -> Sampler:
    """The loss around one tensor's values, with `moved(entry, delta)` the flat perturbed ones; NaN where it raises.

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


def open_box(file: UserFile, name: str) -> BlackBox:
    """The object `name` of a file, or an instance of that class. Raises BpError if it is no black box."""
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
        _refuse_unusable(shown, row)
    params = {row["key"]: np.array(array) for row, array in zip(found["params"], arrays, strict=True)}
    for key, array in params.items():
        if not np.isfinite(array).all():
            what = f'{shown}: params["{printable(key)}"] is not finite'
            fail("not-finite", what, help="start where every number is finite")
    lines = {p: file.line_of(f"{found['kind']}.{p}" if p in found["own"] else name) for p in (LOSS, METHOD)}
    return BlackBox(f"{file.shown}:{name}", file, name, params, lines)


def check_box(box: BlackBox, wrt: Sequence[str], limits: Limits, mode: Mode = "auto") -> list[Finding]:
    """Judge `grad` of the tensors `wrt` (all if empty), and whether `loss` is reproducible and finite.

    The mode "full" judges every entry. "directional" judges directions, and where these do not pass every entry if that
    is affordable, else those that a bisection finds. "auto" chooses by the predicted time. Raises BpError for an
    unknown name, or if the check would exceed the time limit.
    """
    tensors = _chosen(box, wrt)
    try:
        return [_blamed(found) for found in _judged(box, tensors, limits, mode)]
    except EndedError as error:
        return [_blamed(_wrong(box, LOSS, box.file.ended(error, box.lines[LOSS])))]


def _judged(box: BlackBox, tensors: Sequence[Tensor], limits: Limits, mode: Mode) -> list[Finding]:
    """`check_box` without blame. Raises EndedError if the loss ends its process."""
    start = time.perf_counter()
    fault = _fault_of_loss(box, 2)
    each = (time.perf_counter() - start) / 2
    if fault:
        return [_wrong(box, LOSS, fault)]
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
            findings.append(_wrong(box, tensor.name, first.faults[tensor.name], tensor.shape))
            continue
        value = first.arrays[tensor.name]
        found = judge_box_along(box, tensor, value) if directional else judge_box_entries(box, tensor, value)
        if directional and found.verdict != "pass" and each * losses_taken(tensor, along=False) <= AFFORDABLE:
            found = judge_box_entries(box, tensor, value)
        elif directional and found.verdict == "wrong" and each * losses_to_narrow(tensor) <= AFFORDABLE:
            found = locate_wrong_entry(box, tensor, value, found)
        if changed:
            found = overrule(found, f"changes its arguments: {', '.join(changed)}{where}")
        elif tensor.name in unsteady:
            found = overrule(found, f"not deterministic{where}")
        findings.append(found)
    findings = _explained(box, findings, first.arrays, two.returned.arrays)
    if any(f.checked and f.verdict != "pass" for f in findings) and (fault := _fault_of_loss(box, _REPEATS)):
        return [_wrong(box, LOSS, fault)]
    return findings + [_wrong(box, n, f) for n, f in first.faults.items() if n not in box.params]


def _blamed(found: Finding) -> Finding:
    """The finding with a blame if it is wrong and has none."""
    wanting = found.verdict == "wrong" and found.blame is None
    return replace(found, blame=_blame(found, found.cause)) if wanting else found


def _refuse_unusable(shown: str, row: Message) -> None:
    """Raise BpError for an item of params that is not a NumPy array of floats under a name."""
    if not row["name"]:
        fail("usage", f"{shown}: a key of params is {row['key']}, not a name", help="use strings as keys")
    if not row["floats"]:
        what = f'{shown}: params["{printable(row["key"])}"] is of type {row["kind"]}'
        what += ", not a NumPy array of float64 or float32"
        fail("usage", what, help="give NumPy arrays, and turn them into tensors inside of loss and grad")


def _chosen(box: BlackBox, wrt: Sequence[str]) -> list[Tensor]:
    """The tensors with entries that `wrt` names. Raises BpError for an unknown name, or if none is left."""
    for word in wrt:
        if word != "params" and word not in box.params:
            what = f'{box.name}: cannot differentiate with respect to "{printable(word)}"'
            fail("unknown-wrt", what, help=nearest(word, ("params", *box.params)))
    chosen = [n for n in box.params if not wrt or n in wrt or "params" in wrt]
    tensors = [Tensor(name, "param", box.params[name].shape) for name in chosen]
    if not sum(t.entries for t in tensors):
        what, advice = f"{box.name}: params has no entries", "give params an array with an entry"
        fail("nothing-to-differentiate", what, help=advice)
    return [t for t in tensors if t.entries]


def _fault_of_loss(box: BlackBox, times: int) -> str:
    """Evaluate the loss several times at the starting point; returns why it is unusable, or ""."""
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


def _wrong(box: BlackBox, name: str, cause: str, shape: tuple[int, ...] = ()) -> Finding:
    return not_compared(box.name, METHOD, name, cause, shape)
