"""Black boxes: objects with `params`, `loss(params)` and `grad(params)`, judged by differences of the loss alone.

The gradient is judged entry by entry or along random directions. Blame has no graph to go by, so that it describes the
error from its numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bpcli.checking.blame.box_cause import NOT_CLEARED, accumulates, box_causes
from bpcli.checking.check_options import Mode
from bpcli.checking.findings import (
    Finding,
    distinct_digits,
    not_compared,
    overrule,
    position,
    worst_entry,
    worst_index,
)
from bpcli.checking.sources.black_box_noise import (
    ROUNDING_LIKE,
    dtype_of,
    gradient_noise,
    in_float64,
    is_coarse,
    sizes,
    unsteadiness,
)
from bpcli.checking.sources.difference_judge import AFFORDABLE, DifferenceJudge
from bpcli.checking.sources.shared_kinks import EVALUATIONS as EVALUATIONS_AT_KINKS
from bpcli.checking.sources.shared_kinks import AtKink, unfit
from bpcli.checking.sources.user_file import Function, UserFile
from bpcli.checking.sources.user_process import EndedError
from bpcli.checking.sources.user_protocol import Message
from bpcli.checking.sources.validate_gradient import FLOATS, LOSS, same
from bpcli.checking.verdict import (
    FEW_DIGITS,
    WRONG,
    Entries,
    as_direction,
    at_kink,
    cosine,
    relative_error,
    summarise,
)
from bpcli.errors import Place, fail, nearest, printable
from bpcli.problem.definition import Array, Tensor
from bpcli.problem.limits import Limits, format_duration
from bpcli.references.numerics.noise import EVALUATIONS
from bpcli.references.numerics.probe import (
    COUNT,
    NOISE_ROWS,
    directions,
)

METHOD = "grad"
# Evaluations of the loss: per tensor for its noise, and per entry or direction for two step ladders.
_FOR_NOISE, _EVALUATIONS = 8 * EVALUATIONS, 14
_REPEATS = 16  # evaluations that detect a loss with random numbers, whose differences are unreliable
_SEEDED = 4  # evaluations with the same random numbers, which agree if the loss is random on purpose
_NAMED = 4  # entries that a sentence names
_BLOCK = 64  # entries left at the end of a bisection, to be judged one by one


@dataclass(frozen=True, eq=False)
class BlackBox:
    """An `object` in a user's file, called `name` in reports, with its `params`, arrays of float64 or float32.

    `lines` are those of `loss` and `grad` in the file, as far as they are known. `wide` are the params in float64 for a
    loss that computes in the type of its arguments, and is judged so. `judged` are tensors that were judged entry by
    entry.
    """

    name: str
    file: UserFile
    object: str
    params: Mapping[str, Array]
    lines: Mapping[str, int]
    wide: Mapping[str, Array] | None = None
    judged: dict[str, Entries] = field(default_factory=dict)

    @property
    def point(self) -> Mapping[str, Array]:
        """The params at which the loss is differentiated."""
        return self.params if self.wide is None else self.wide

    def value(self, params: Mapping[str, Array]) -> float:
        """The loss; NaN where there is none. Raises EndedError."""
        value, _ = self.function(LOSS).loss(params)
        return math.nan if value is None else value

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


def judge_box_entries(
    box: BlackBox, tensor: Tensor, value: Array, judge: DifferenceJudge
) -> tuple[Finding, AtKink | None]:
    """Judge every entry; returns also the entries that pass at kinks."""
    wide = value.astype(np.float64)
    entries = judge.entries(tensor, value, np.arange(tensor.entries), tensor.shape)
    verdict, cause, worst = summarise(entries)
    cause = _in_words(box, verdict, cause, entries)
    error, angle = relative_error(wide, entries.reference), cosine(wide, entries.reference)
    if not np.isfinite(entries.bound).all() or _vanishes(verdict, entries):
        error = angle = None
    known = (box.name, METHOD, tensor.name, tensor.shape, tensor.entries, verdict, cause, worst, error)
    kink = at_kink(entries, worst)
    box.judged[tensor.name] = entries
    # At a kink the true gradient is not unique.
    found = Finding(*known, None if kink else error, None if kink else angle, kink=kink)
    if verdict == "wrong":
        return found, None
    half = (entries.high - entries.low).reshape(-1) / 2
    places = np.flatnonzero(half > 0)
    return found, AtKink(tensor.name, places, wide.reshape(-1)[places], half[places])


def _in_words(box: BlackBox, verdict: str, cause: str, entries: Entries) -> str:
    """The cause of a verdict, with the line of a wrong gradient, or the digits that are known to be right."""
    if verdict == "wrong" and cause:
        return cause + box.function(METHOD).where
    if cause == FEW_DIGITS:
        largest = float(np.abs(entries.reference).max())
        bound = float(entries.bound.max())
        digits = max(1, math.floor(-math.log10(bound / largest))) if 0 < bound < largest else 0
        return f"right to {digits} digit{'s' if digits > 1 else ''} of the largest entry" if digits else ""
    return cause


def _vanishes(verdict: str, entries: Entries) -> bool:
    """Whether a gradient passes that is rounding alone, so that relative errors mean nothing."""
    largest = np.maximum(np.abs(entries.value), np.abs(entries.reference))
    return verdict == "pass" and bool((largest <= entries.bound).all())


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


def judge_box_along(box: BlackBox, tensor: Tensor, value: Array, judge: DifferenceJudge) -> Finding:
    """Judge directions."""
    rows = directions(tensor)
    entries, along = judge.along(tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    cause = _in_words(box, verdict, cause, entries)
    error = None if _vanishes(verdict, entries) else relative_error(along, entries.reference)
    bias = None if (entries.high > entries.low).any() else error
    known = (box.name, METHOD, tensor.name, tensor.shape, len(rows), verdict, cause, as_direction(worst), error)
    return Finding(*known, bias, None)


def locate_wrong_entry(box: BlackBox, tensor: Tensor, value: Array, found: Finding, judge: DifferenceJudge) -> Finding:
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
        entries, _ = judge.along(tensor, value, rows)
        if not (entries.verdict == WRONG).any():
            return found
        z = np.where(np.isnan(entries.z), np.inf, entries.z)
        block = halves[int(np.where(entries.verdict == WRONG, z, -1.0).argmax())]
    verdict, _, worst = summarise(judge.entries(tensor, value, block, (len(block),)))
    if verdict != "wrong" or worst is None or worst.index is None:
        return found
    index = tuple(int(i) for i in np.unravel_index(block[worst.index[0]], tensor.shape))
    return replace(found, checked=len(block), worst=replace(worst, index=index))


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


def check_box(
    box: BlackBox, wrt: Sequence[str], limits: Limits, mode: Mode = "auto", tolerance: float = 0.0
) -> list[Finding]:
    """Judge `grad` of the tensors `wrt` (all if empty), and whether `loss` is reproducible and finite.

    The mode "full" judges every entry. "directional" judges directions, unless every entry takes less time, and where
    these do not pass every entry if that is affordable, else those that a bisection finds. "auto" judges every entry
    if that is affordable. A gradient that is off by
    `tolerance` at most, relative to the largest entry of its tensor, passes. Raises BpError for an unknown name, or if
    the check would exceed the time limit.
    """
    tensors = _chosen(box, wrt)
    try:
        return [_blamed(found) for found in _judged(box, tensors, limits, mode, tolerance)]
    except EndedError as error:
        return [_blamed(_wrong(box, LOSS, box.file.ended(error, box.lines[LOSS])))]


def _judged(box: BlackBox, tensors: Sequence[Tensor], limits: Limits, mode: Mode, tolerance: float) -> list[Finding]:
    """`check_box` without blame. Raises EndedError if the loss ends its process."""
    fault, each = _try_loss(box, tensors)
    if fault:
        return [_wrong(box, LOSS, fault)]
    directional = _choose_directions(box, tensors, limits, mode, each)
    function = box.function(METHOD)
    one = function.gradient([box.params], tensors, FLOATS)
    two = one if one.ended else function.gradient([box.params], tensors, FLOATS)
    first = two.returned if two.ended else one.returned
    changed = tuple(dict.fromkeys((*one.changed, *two.changed)))
    unsteady = {} if two.ended else _differences(first.arrays, two.returned.arrays)
    if any(tensor.name not in first.faults for tensor in tensors):
        box = replace(box, wide=in_float64(box.value, box.params))
    findings, kinked, where = list[Finding](), list[AtKink](), function.where
    judge = _judge_of(box, tensors, first.arrays, each, tolerance)
    for tensor in tensors:
        if tensor.name in first.faults:
            findings.append(_wrong(box, tensor.name, first.faults[tensor.name], tensor.shape))
            continue
        found, kinks = _judge_tensor(box, tensor, first.arrays[tensor.name], directional, judge)
        kinked += [kinks] if kinks else []
        if changed:
            found = overrule(found, f"changes its arguments: {', '.join(changed)}{where}")
        elif tensor.name in unsteady:
            found = overrule(found, f"not deterministic: {unsteady[tensor.name]}{where}")
        findings.append(found)
    findings = _explained(box, findings, first.arrays, two.returned.arrays)
    findings = _judge_jointly(box, findings, kinked, judge.affordable(EVALUATIONS_AT_KINKS))
    if any(f.checked and f.verdict != "pass" for f in findings) and (fault := _fault_of_loss(box, tensors, _REPEATS)):
        return [_wrong(box, LOSS, fault)]
    return findings + [_wrong(box, n, f) for n, f in first.faults.items() if n not in box.params]


def _judge_tensor(
    box: BlackBox, tensor: Tensor, value: Array, directional: bool, judge: DifferenceJudge
) -> tuple[Finding, AtKink | None]:
    """Judge entries, or directions and then as many entries as are affordable."""
    if not directional:
        return judge_box_entries(box, tensor, value, judge)
    found = judge_box_along(box, tensor, value, judge)
    if found.verdict != "pass" and judge.each * losses_taken(tensor, along=False) <= AFFORDABLE:
        return judge_box_entries(box, tensor, value, judge)
    if found.verdict == "wrong" and judge.each * losses_to_narrow(tensor) <= AFFORDABLE:
        return locate_wrong_entry(box, tensor, value, found, judge), None
    return found, None


def _judge_jointly(box: BlackBox, findings: Sequence[Finding], kinked: Sequence[AtKink], most: int) -> list[Finding]:
    """The findings, of which those are wrong whose entries do not fit together at a kink that they share.

    At most so many entries are tested.
    """
    shapes = {f.tensor: f.shape for f in findings}
    found = unfit(box.value, box.point, kinked, most)
    if found is None:
        return list(findings)
    words = ""
    for name, place, sign in found.entries[:_NAMED]:
        at = position(tuple(int(i) for i in np.unravel_index(place, shapes[name])))
        words += f"{' + ' if sign > 0 else ' - '}{name}{at}"
    words += f" and {len(found.entries) - _NAMED} more" if len(found.entries) > _NAMED else ""
    value, low = distinct_digits(found.slope, found.low)
    high = f"{found.high:.6g}"
    right = low if f"{found.low:.6g}" == high else f"from {low} to {high}"
    cause = f"entries share a kink: the slope along {words.removeprefix(' + ').strip()} is {value}, should be {right}"
    cause += box.function(METHOD).where
    return [
        overrule(replace(f, verdict="pass"), cause) if f.tensor in found.tensors and f.verdict != "wrong" else f
        for f in findings
    ]


def _try_loss(box: BlackBox, tensors: Sequence[Tensor]) -> tuple[str, float]:
    """Why the loss is unusable, or "", and the seconds that it takes; the first call may compile, and is not timed."""
    if fault := _fault_of_loss(box, tensors, 1):
        return fault, 0.0
    start = time.perf_counter()
    fault = _fault_of_loss(box, tensors, 2)
    return fault, (time.perf_counter() - start) / 2


def _choose_directions(box: BlackBox, tensors: Sequence[Tensor], limits: Limits, mode: Mode, each: float) -> bool:
    """Whether to judge directions. Raises BpError if the check would exceed the time limit."""
    entries, along = (each * sum(losses_taken(t, along) for t in tensors) for along in (False, True))
    directional = mode != "full" and entries > (max(AFFORDABLE, along) if mode == "auto" else along)
    refuse_long(box.name, along if directional else entries, each, limits)
    return directional


def refuse_long(name: str, seconds: float, each: float, limits: Limits) -> None:
    """Raise BpError if a check of `seconds`, with `each` second for a loss, would exceed the time limit."""
    if seconds > limits.max_time:
        what = f"{name} would take about {format_duration(seconds)}, {format_duration(each)} a loss"
        advice = "choose fewer tensors with --wrt, make it smaller, use --mode directional, or raise --max-time"
        fail("too-long", f"{what}; the limit is {format_duration(limits.max_time)}", help=advice)


def _judge_of(
    box: BlackBox, tensors: Sequence[Tensor], first: Mapping[str, Array], each: float, tolerance: float
) -> DifferenceJudge:
    """The judge of a gradient of which `first` are the arrays that can be judged. Raises EndedError."""
    function = box.function(METHOD)
    noise = gradient_noise(lambda params: function.gradient([params], tensors, FLOATS), box.params, first)
    judged = [tensor for tensor in tensors if tensor.name in first]
    level, size = sizes(box.value, box.point, judged)
    coarse = is_coarse(box.value, box.point)
    return DifferenceJudge(box.value, box.point, noise, level, size, each, tolerance, coarse)


def _differences(one: Mapping[str, Array], two: Mapping[str, Array]) -> dict[str, str]:
    """By tensor, how far two gradients at the same point differ, where that is more than rounding."""
    found = {}
    for name, array in one.items():
        other = two.get(name)
        if same(array, other):
            continue
        if other is None:
            found[name] = "a second call has none"
            continue
        largest = float(np.abs(array).max())
        apart = float(np.abs(array.astype(np.float64) - other).max()) / (largest or 1.0)
        if not apart <= ROUNDING_LIKE[dtype_of(array)]:
            found[name] = f"two calls differ by {apart:.2g} of the largest entry"
    return found


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


def _fault_of_loss(box: BlackBox, tensors: Sequence[Tensor], times: int) -> str:
    """Evaluate the loss several times at the starting point; returns why it is unusable, or ""."""
    function = box.function(LOSS)
    values = []
    for _ in range(times):
        value, fault = function.loss(box.params)
        if value is None:
            return fault
        values.append(value)
    if not np.isfinite(values[0]):
        return f"not finite{function.where}"
    apart = unsteadiness(box.value, box.params, values, lambda: sizes(box.value, box.params, tensors)[0])
    if apart <= ROUNDING_LIKE[np.dtype(np.float64)]:
        return ""
    again = [function.loss(box.params, seed=0)[0] for _ in range(_SEEDED)]
    why = "draws random numbers" if None not in again and len(set(again)) == 1 else "not deterministic"
    return f"{why}: calls differ by {apart:.2g} of the loss{function.where}"


def _wrong(box: BlackBox, name: str, cause: str, shape: tuple[int, ...] = ()) -> Finding:
    return not_compared(box.name, METHOD, name, cause, shape)
