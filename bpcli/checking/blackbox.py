"""A black box: `params`, `loss(params)` and `grad(params)` of an object, judged by differences of the loss alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.checking.answers import differing, same
from bpcli.checking.findings import Finding, Verdict
from bpcli.checking.returned import LOSS, FlawError, Returned, all_faulty, scalar, take
from bpcli.checking.run import cosine, relative_error
from bpcli.checking.supplied import altered
from bpcli.checking.userfile import UserFile
from bpcli.checking.verdict import References, judge, summarise
from bpcli.errors import fail, nearest, printable
from bpcli.problem.limits import Limits, format_duration
from bpcli.problem.model import Array, Tensor
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.central import TARGET
from bpcli.references.numerics.ladder import differentiate
from bpcli.references.numerics.probe import Indices, Probe, Sampler
from bpcli.references.numerics.rounding import FACTOR, unit_roundoff

_DTYPES = (np.dtype(np.float64), np.dtype(np.float32))
_METHOD = "grad"
# Evaluations of the loss: on each tensor for its noise, and on each entry for two rounds of differences.
_FOR_NOISE, _EVALUATIONS = 216, 14


@dataclass(frozen=True, eq=False)
class Box:
    """An object of a user's file; `name` is what reports call it, `params` are its arrays, float64 or float32."""

    name: str
    file: UserFile
    thing: Any
    object: str
    params: Mapping[str, Array]


def open_box(file: UserFile, name: str) -> Box:
    """The object `name` of a file, a class being called for one; `BpError` where it is no black box."""
    thing = file.get(name)
    shown = f"{printable(file.shown)}:{printable(name)}"
    with file.running():
        try:
            thing = thing() if isinstance(thing, type) else thing
            parts = {part: getattr(thing, part, None) for part in ("params", "loss", "grad")}
            given = dict(parts["params"] or {})
            params = {key: np.array(value) for key, value in given.items()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            fail("user-code", f"{shown} {file.raised(error, file.line_of(name))}")
    lacking = [part for part, value in parts.items() if value is None or (part != "params" and not callable(value))]
    if lacking:
        advice = "a black box has params (a dict of arrays), loss(params) and grad(params)"
        fail("usage", f"{shown} lacks {' and '.join(lacking)} ({file.at(file.line_of(name))})", help=advice)
    arrays = {key: _floats(shown, key, given[key], array) for key, array in params.items()}
    return Box(f"{file.shown}:{name}", file, thing, name, arrays)


def check_box(box: Box, wrt: Sequence[str], limits: Limits) -> list[Finding]:
    """Judge every entry of `grad` of the tensors `wrt` (all where empty), and whether `loss` is fit to judge by.

    `BpError` for a name that is none, or where it would take longer than is allowed.
    """
    tensors = _chosen(box, wrt)
    start = time.perf_counter()
    fault = _fault_of_loss(box)
    each = (time.perf_counter() - start) / 2
    if fault:
        return [_wrong(box, LOSS, (), fault)]
    seconds = each * sum(_FOR_NOISE + _EVALUATIONS * t.entries for t in tensors)
    if seconds > limits.max_time:
        what = f"{box.name} would take about {format_duration(seconds)}, {format_duration(each)} a loss"
        advice = "choose fewer tensors with --wrt, make it smaller, or raise --max-time"
        fail("too-long", f"{what}; the limit is {format_duration(limits.max_time)}", help=advice)
    (first, changed), (second, later) = _gradient(box, tensors), _gradient(box, tensors)
    unsteady = differing((None, first.arrays), (None, second.arrays))
    findings = []
    for tensor in tensors:
        if tensor.name in first.faults:
            findings.append(_wrong(box, tensor.name, tensor.shape, first.faults[tensor.name]))
            continue
        found = _judged(box, tensor, first.arrays[tensor.name])
        if changed or later:
            found = _spoiled(found, f"changes its arguments: {', '.join(dict.fromkeys((*changed, *later)))}", box)
        elif tensor.name in unsteady:
            found = _spoiled(found, "not deterministic", box)
        findings.append(found)
    return findings + [_wrong(box, n, (), f) for n, f in first.faults.items() if n not in box.params]


def _floats(shown: str, key: object, given: Any, array: Any) -> Array:
    """One of the params as an array that can be shifted."""
    if not isinstance(key, str):
        fail("usage", f"{shown}: a key of params is {printable(repr(key), 60)}, not a name")
    if isinstance(given, int) and not isinstance(given, bool):
        array = array.astype(np.float64)
    if array.dtype not in _DTYPES or type(given).__module__.partition(".")[0] == "torch":
        kind = printable(type(given).__name__) if array.dtype in _DTYPES else str(array.dtype)
        what = f'{shown}: params["{printable(key)}"] is of type {kind}, not a NumPy array of float64 or float32'
        fail("usage", what, help="give NumPy arrays, and turn them into tensors inside of loss and grad")
    if not np.isfinite(array).all():
        fail("not-finite", f'{shown}: params["{printable(key)}"] is not finite')
    return np.asarray(array)


def _chosen(box: Box, wrt: Sequence[str]) -> list[Tensor]:
    for word in wrt:
        if word != "params" and word not in box.params:
            what = f'{box.name}: cannot differentiate with respect to "{printable(word)}"'
            fail("unknown-wrt", what, help=nearest(word, ("params", *box.params)))
    chosen = [n for n in box.params if not wrt or n in wrt or "params" in wrt]
    tensors = [Tensor(name, "param", box.params[name].shape) for name in chosen]
    if not sum(t.entries for t in tensors):
        fail("nothing-to-differentiate", f"{box.name}: params has no entries", help="params is a dict of arrays")
    return [t for t in tensors if t.entries]


def _copies(box: Box) -> dict[str, Array]:
    return {name: array.copy() for name, array in box.params.items()}


def _line(box: Box, part: str) -> int:
    return box.file.line_of(f"{type(box.thing).__name__}.{part}") if _own(box, part) else box.file.line_of(box.object)


def _own(box: Box, part: str) -> bool:
    """Whether the object's class is one of the file, so that a method of it has a line there."""
    return part in vars(type(box.thing)) and type(box.thing).__module__ == box.file.module.__name__


def _fault_of_loss(box: Box) -> str:
    """What makes the loss unfit to judge by, "" where nothing does: it is evaluated twice where the check starts."""
    where = f" ({box.file.at(_line(box, 'loss'))})"
    values = []
    for _ in range(2):
        params = _copies(box)
        with box.file.running():
            try:
                values.append(scalar(box.thing.loss(params)))
            except KeyboardInterrupt:
                raise
            except FlawError as flaw:
                return f"{flaw}{where}"
            except BaseException as error:
                return box.file.raised(error, _line(box, "loss"))
        if changed := altered(params, box.params):
            return f"changes its arguments: {', '.join(changed)}{where}"
    if not np.isfinite(values[0]):
        return f"not finite{where}"
    return "" if same(np.float64(values[0]), np.float64(values[1])) else f"not deterministic{where}"


def _gradient(box: Box, tensors: Sequence[Tensor]) -> tuple[Returned, list[str]]:
    """What `grad` gives for fresh copies, and which of them it changed."""
    params, line = _copies(box), _line(box, "grad")
    where = f" ({box.file.at(line)})"
    with box.file.running():
        try:
            returned = take(box.thing.grad(params), tensors, set(box.params), _DTYPES).located(where)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            returned = all_faulty(tensors, box.file.raised(error, line))
    return returned, altered(params, box.params)


def _judged(box: Box, tensor: Tensor, value: Array) -> Finding:
    """By differences, with power to pass and on two ladders to condemn."""
    sampler = _sampler(box, tensor)
    central = _estimate(sampler, tensor, 1.0)
    wide = value.astype(np.float64)
    rounding = _rounding(wide, central.value, value.dtype)
    entries = judge(wide, References(central=central), rounding, value.dtype)
    if entries.suspect.any():
        second = _estimate(sampler, tensor, 0.75)
        entries = judge(wide, References(central=central, second=second), rounding, value.dtype)
    verdict, cause, worst = summarise(entries)
    if verdict == "wrong" and cause:
        cause += f" ({box.file.at(_line(box, 'grad'))})"
    off = relative_error(wide, entries.reference)
    angle = cosine(wide, entries.reference)
    return Finding(box.name, _METHOD, tensor.name, tensor.shape, tensor.entries, verdict, cause, worst, off, off, angle)


def _estimate(sampler: Sampler, tensor: Tensor, offset: float) -> Estimate:
    found = differentiate(sampler, TARGET, offset)
    parts = (found.value, found.bound, found.noise, found.kink)
    return Estimate(*(sampler.probe.scatter(part, tensor.shape) for part in parts))


def _rounding(value: FloatArray, reference: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Roundings of the tensor's largest entry; none where nothing moves the loss and the gradient says so."""
    size = FACTOR * unit_roundoff(dtype) * float(np.abs(reference).max())
    return np.where((value == 0) & (reference == 0), 0.0, size + float(np.finfo(dtype).tiny))


def _sampler(box: Box, tensor: Tensor) -> Sampler:
    """The loss around the values of one tensor; where it raises, nothing is learnt."""
    array = box.params[tensor.name]
    places = np.arange(array.size)
    around = Probe(places, array.reshape(-1)[:, None].astype(np.float64), places[:, None], summed=True)

    def losses(entries: Indices, deltas: FloatArray) -> FloatArray:
        values = np.full((len(entries), 1), np.nan)
        with box.file.running():
            for row, (entry, delta) in enumerate(zip(entries, deltas, strict=True)):
                params = _copies(box)
                params[tensor.name].reshape(-1)[entry] = np.float64(array.reshape(-1)[entry]) + delta
                try:
                    values[row] = scalar(box.thing.loss(params))
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    continue
        return values

    return Sampler(losses, around, losses(places[:1], np.zeros(1))[0], array.dtype)


def _spoiled(found: Finding, cause: str, box: Box) -> Finding:
    return replace(found, verdict="wrong", cause=f"{cause} ({box.file.at(_line(box, 'grad'))})")


def _wrong(box: Box, name: str, shape: tuple[int, ...], cause: str) -> Finding:
    verdict: Verdict = "wrong"
    return Finding(box.name, _METHOD, name, shape, 0, verdict, cause, None, None, None, None)
