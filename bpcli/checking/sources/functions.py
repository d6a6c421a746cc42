"""Functions of PyTorch, JAX or NumPy, judged as black boxes: VJPs, JVPs, and derivatives of gradients.

A function is contracted with several cotangents u in the process that runs it (`contractions`). Each ⟨u, f⟩ is judged
like the loss of a black box, and a leaf of the inputs is wrong if it is for any u.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bpcli.checking.check_options import Mode
from bpcli.checking.findings import Finding, Worst, overrule, worst_entry
from bpcli.checking.sources import black_box
from bpcli.checking.sources.black_box import BlackBox, check_box, losses_taken, refuse_long
from bpcli.checking.sources.contractions import FORWARD, MIXED, ONES, SECOND, SHIFTED, TANGENTS
from bpcli.checking.sources.difference_judge import AFFORDABLE
from bpcli.checking.sources.user_file import UserFile
from bpcli.checking.sources.user_process import EndedError
from bpcli.checking.sources.validate_gradient import FLOATS, LOSS, same
from bpcli.checking.verdict import VERDICTS, as_direction, cosine, relative_error
from bpcli.errors import fail, printable
from bpcli.problem.definition import Array, Tensor
from bpcli.problem.limits import Limits
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import FACTOR, unit_roundoff

VJP, JVP, HVP = "vjp", "jvp", "hvp"
"""The method names of findings: reverse mode, forward mode, and the derivative of a gradient."""
IGNORES = "the backward pass ignores its cotangent"
FOR_SUMS = "the backward pass is right only where all cotangents are equal, as for a sum of the values"
IN_SINGLE = "the gradient is wrong in float32 only"
DIFFERS = "differs from the vjp"
_SHOWN = 8
_TELLING = 0.1  # the largest rounding with which a float32 gradient may pass, relative to its largest entry


@dataclass(frozen=True)
class Wanted:
    """The derivatives to judge: of the leaves `wrt`, all if empty, by reverse mode, and by `forward` mode too.

    With `order` 2 the derivatives of gradients that pass are judged as well. `tolerance` as in `check_box`.
    """

    wrt: Sequence[str] = ()
    mode: Mode = "auto"
    forward: bool = False
    order: int = 1
    tolerance: float = 0.0

    @property
    def also(self) -> list[str]:
        """The labels of the black boxes beside those of reverse mode."""
        return [FORWARD] * self.forward + [SECOND] * (self.order == 2)


@dataclass(frozen=True, eq=False)
class Contracted:
    """The function `object` of a `file`, `name` in reports, as black boxes by label; `labels` are those to judge.

    `fixed` maps the inputs that are not differentiated to their types; `dtype` is the type that the code computes in.
    The box `MIXED` is the sum of the others times `weights`, where there are weights. `reverse`: there is a VJP.
    `sharp`: the code computes in float32, and its derivatives are judged in float64, then compared with that.
    """

    name: str
    object: str
    file: UserFile
    boxes: Mapping[str, BlackBox]
    labels: Sequence[str]
    fixed: Mapping[str, str]
    dtype: np.dtype[Any]
    weights: Sequence[float]
    reverse: bool
    sharp: bool

    @property
    def box(self) -> BlackBox:
        """The first of the black boxes."""
        return self.boxes[self.labels[0]]

    def close(self) -> None:
        """Leave the framework as it was."""
        self.file.ask("close", self.object)

    def gradient(self, label: str, tensors: Sequence[Tensor]) -> Mapping[str, Array]:
        """The gradient of one contraction, without leaves for which there is none."""
        box = self.boxes[label]
        return box.function(black_box.METHOD).gradient([box.params], tensors, FLOATS).returned.arrays


@dataclass
class Judged:
    """The findings on a function, and remarks."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_function(file: UserFile, name: str) -> bool:
    """Whether `name` of a file is to be judged as a function, not as a black box. Raises BpError if it is undefined."""
    file.seek(name)
    return bool(file.learn("kind", name)[0]["function"])


def open_function(file: UserFile, name: str, wanted: Wanted) -> Contracted:
    """The function `name` of a file at its inputs. Raises BpError if it cannot be called, or lacks a derivative."""
    title = f"{file.shown}:{name}" if file.source else name
    shown = printable(title)
    found, arrays = file.learn("function", name, also=wanted.also)
    line = file.line_of(name)
    if "refused" in found:
        what, remedy = found["refused"]
        fail("usage", f"{shown} {what}{f' ({file.at(line)})' if file.source else ''}", help=remedy)
    lines = {LOSS: line, black_box.METHOD: file.line_of(f"{name}.backward")}
    own = dict(zip(found["params"], map(np.array, arrays), strict=False))
    second = dict(zip(found["second"], map(np.array, arrays[len(own) :]), strict=True))
    along = {leaf: np.zeros(TANGENTS) for leaf in own}
    for leaf, array in own.items():
        if not np.isfinite(array).all():
            fail("not-finite", f"{shown}: {printable(leaf)} is not finite", help="start where every number is finite")
    more = {FORWARD: along, SECOND: second, ONES: own} | ({MIXED: own} if found["weights"] else {})
    params = {**dict.fromkeys(found["labels"], own), **more}
    boxes = {label: BlackBox(title, file, f"{name}:{label}", held, lines) for label, held in params.items()}
    dtype = np.dtype(found["kind"])
    labels = found["labels"]
    flags = found["reverse"], found["sharp"]
    return Contracted(title, name, file, boxes, labels, found["fixed"], dtype, found["weights"], *flags)


def check_function(function: Contracted, wanted: Wanted, limits: Limits) -> Judged:
    """Judge the derivatives of a function. Raises BpError for an unknown leaf, or if it would take too long."""
    found = Judged()
    if function.fixed:
        kinds = [f"{printable(name)} ({kind})" for name, kind in function.fixed.items()]
        more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
        found.notes.append(f"{function.name}: not differentiated: {', '.join(kinds[:_SHOWN])}{more}")
    pulled = _pulled(function, wanted, limits) if function.reverse else []
    found.findings += pulled
    if any(f.tensor == LOSS for f in pulled):
        return found
    if wanted.forward or not function.reverse:
        found.findings += _pushed(function, wanted, limits, pulled)
    if wanted.order == 2 and pulled and all(f.verdict == "pass" for f in pulled):
        box = function.boxes[SECOND]
        mode = _mode(box, wanted, 1)
        second = check_contraction(function, SECOND, wanted.wrt, limits, mode, wanted.tolerance)
        found.findings += [replace(f, method=HVP) for f in second]
    elif wanted.order == 2:
        found.notes.append(f"{function.name}: its second derivatives are not judged, as its vjp does not pass")
    return found


def check_contraction(
    function: Contracted, label: str, wrt: Sequence[str], limits: Limits, mode: Mode, tolerance: float = 0.0
) -> list[Finding]:
    """Judge a contraction as a black box, and the float32 gradient of code that is judged in float64."""
    box = function.boxes[label]
    found = check_box(box, wrt, limits, mode, tolerance)
    names = [f.tensor for f in found if function.sharp and f.verdict == "pass" and not f.kink]
    tensors = [Tensor(name, "param", (5, *box.params[name].shape)) for name in names]
    if not tensors:
        return found
    answer = replace(box.function(LOSS), part="in_single", line=box.lines[black_box.METHOD])
    returned = answer.gradient([box.params], tensors, FLOATS).returned
    for place, finding in enumerate(found):
        if finding.tensor in returned.arrays:
            found[place] = _in_single(finding, returned.arrays[finding.tensor].astype(np.float64), tolerance)
        elif finding.tensor in names:
            found[place] = overrule(finding, returned.faults[finding.tensor])
    return found


def _in_single(found: Finding, parts: FloatArray, tolerance: float) -> Finding:
    """A finding that passes in float64, for the float32 gradient of the same code, by the `parts` of `in_single`."""
    value, exact, least, sampled, largest = parts
    bound = FACTOR * (least + sampled) + float(np.finfo(np.float32).tiny) + tolerance * float(np.abs(exact).max())
    with np.errstate(all="ignore"):
        z = np.where(np.isfinite(value), np.abs(value - exact) / bound, np.inf)
    error = max(found.kernel_error or 0.0, relative_error(value, exact) or 0.0)
    if exact.any():
        found = replace(found, kernel_error=error, bias=error, cosine=cosine(value, exact))
    at = np.unravel_index(int(z.argmax()), z.shape)
    index = tuple(int(i) for i in at)
    worst = Worst(index, float(value[at]), float(exact[at]), float(bound[at]), float(z[at]))
    if worst.z <= 1 and not FACTOR * sampled.max() <= _TELLING * largest.max():
        return replace(found, verdict="inconclusive", cause="no power", worst=worst)
    if worst.z <= 1:
        return found if found.worst is not None and found.worst.z > worst.z else replace(found, worst=worst)
    cause = "not finite" if not np.isfinite(value).all() else ""
    found = replace(found, verdict="wrong", cause=cause, worst=worst)
    said = f"{worst_entry(found)}; in float32 only, while the float64 gradient of the same code is right"
    where: dict[str, object] = dict.fromkeys(("step", "sample", "node", "factor", "reproduce"))
    return replace(found, blame={"index": list(index), **where, "cause": cause or IN_SINGLE, "text": said})


def _pulled(function: Contracted, wanted: Wanted, limits: Limits) -> list[Finding]:
    """Judge reverse mode by every cotangent; the finding on each leaf is the worst.

    By default, all cotangents but the first are judged along directions, and further where these do not pass.
    """
    labels = list(function.labels)
    mode = _mode(function.box, wanted, len(labels))
    modes = {label: mode if label == labels[0] or wanted.mode != "auto" else "directional" for label in labels}
    if len(labels) > 1 and (one := _seconds_of_loss(function.box)) is not None:
        entries, along = (_losses(function.box, wanted, way) for way in (False, True))
        losses = sum(min(entries, along) if way == "directional" else entries for way in modes.values())
        refuse_long(function.name, losses * one, one, limits)  # of all cotangents, before any is judged
    each = {
        label: check_contraction(function, label, wanted.wrt, limits, modes[label], wanted.tolerance)
        for label in labels
    }
    names = list(dict.fromkeys(f.tensor for found in each.values() for f in found))
    if LOSS in names:
        return [replace(next(f for found in each.values() for f in found if f.tensor == LOSS), method=VJP)]
    tensors = [Tensor(n, "param", a.shape) for n, a in function.boxes[labels[0]].params.items() if n in names]
    if MIXED in function.boxes and not _adds_up(function, tensors):
        labels.append(MIXED)
        each[MIXED] = check_contraction(function, MIXED, wanted.wrt, limits, mode, wanted.tolerance)
    worst = {n: max(((f, label) for label in labels for f in each[label] if f.tensor == n), key=_rank) for n in names}
    wrong = {n for n, (f, _) in worst.items() if f.verdict == "wrong" and (f.blame or {}).get("cause") != IN_SINGLE}
    causes = _causes(function, [t for t in tensors if t.name in wrong], limits, mode)
    return [_described(function, f, label, causes.get(name, "")) for name, (f, label) in worst.items()]


def _rank(found: tuple[Finding, str]) -> tuple[int, int, float]:
    """Larger for what is worse: the verdict, then z; among those that pass, for what was judged by more entries."""
    finding, _ = found
    z = finding.worst.z if finding.worst is not None else np.inf
    checked = finding.checked if finding.verdict == "pass" and finding.worst and finding.worst.index else 0
    return VERDICTS.index(finding.verdict), checked, np.inf if np.isnan(z) else z


def _described(function: Contracted, found: Finding, label: str, cause: str) -> Finding:
    """A finding on reverse mode, with the cause of an error, or else the cotangent that shows it."""
    found = replace(found, method=VJP)
    if found.blame is None or not found.checked:
        return found
    unit = bool(function.weights)
    which = f"for value {label[1:]} alone" if unit and label != MIXED else "for a random cotangent"
    text = f"{worst_entry(found)}; {cause}" if cause else f"{found.blame['text']}"
    text = f"{text}, {which}" if len(function.labels) > 1 or label == MIXED else text
    return replace(found, blame={**found.blame, "cause": cause or found.blame["cause"], "text": text})


def _mode(box: BlackBox, wanted: Wanted, times: int) -> Mode:
    """Every entry of a box and others like it where that is affordable for all of them, else directions."""
    if wanted.mode != "auto":
        return wanted.mode
    each = _seconds_of_loss(box)
    if each is None:
        return "auto"
    entries, along = (times * each * _losses(box, wanted, way) for way in (False, True))
    return "directional" if entries > max(AFFORDABLE, along) else "full"


def _seconds_of_loss(box: BlackBox) -> float | None:
    """The time of a loss; None where it ends its process."""
    try:
        box.function(LOSS).loss(box.params)  # which may compile it
        start = time.perf_counter()
        box.function(LOSS).loss(box.params)
    except EndedError:
        return None
    return time.perf_counter() - start


def _losses(box: BlackBox, wanted: Wanted, along: bool) -> int:
    """The losses that a check of a box takes, along directions or for every entry."""
    tensors = [Tensor(n, "param", a.shape) for n, a in box.params.items() if not wanted.wrt or n in wanted.wrt]
    return sum(losses_taken(t, along) for t in tensors)


def _adds_up(function: Contracted, tensors: Sequence[Tensor]) -> bool:
    """Whether the gradient for a random cotangent is the sum of those for its parts, which were judged."""
    mixed = function.gradient(MIXED, tensors)
    parts = [function.gradient(label, tensors) for label in function.labels]
    for tensor in tensors:
        if any(tensor.name not in held for held in (mixed, *parts)):
            return True  # a finding already
        terms = [w * part[tensor.name].astype(np.float64) for w, part in zip(function.weights, parts, strict=True)]
        size = sum(float(np.abs(term).max(initial=0.0)) for term in terms)
        slack = FACTOR * unit_roundoff(mixed[tensor.name].dtype) * size
        if not (np.abs(mixed[tensor.name] - sum(terms)) <= slack).all():
            return False
    return True


def _causes(function: Contracted, wrong: Sequence[Tensor], limits: Limits, mode: Mode) -> dict[str, str]:
    """By wrong leaf, how its gradient depends on the cotangent, where that says what is wrong."""
    if not wrong:
        return {}
    found = {}
    one, other = (function.gradient(n, wrong) for n in (function.labels[0], _other(function)))
    for tensor in wrong:
        if tensor.name in one and one[tensor.name].any() and same(one[tensor.name], other.get(tensor.name)):
            found[tensor.name] = IGNORES
    left = [t.name for t in wrong if t.name not in found and t.name in one]
    if left and len(function.labels) > 1:
        summed = check_contraction(function, ONES, left, limits, mode)
        found |= {f.tensor: FOR_SUMS for f in summed if f.verdict == "pass" and f.tensor in left}
    return found


def _other(function: Contracted) -> str:
    """A label beside the first, of another cotangent."""
    return MIXED if MIXED in function.boxes else function.labels[1]


def _pushed(function: Contracted, wanted: Wanted, limits: Limits, pulled: Sequence[Finding]) -> list[Finding]:
    """Judge forward mode along tangents, and where it passes, compare it with reverse mode to within rounding."""
    shapes = {n: a.shape for n, a in function.boxes[ONES].params.items()}
    found = check_contraction(function, FORWARD, wanted.wrt, limits, "full", wanted.tolerance)
    passing = [f.tensor for f in pulled if f.verdict == "pass" and not f.kink]
    compared = [f.tensor for f in found if f.verdict == "pass" and not f.kink and f.tensor in passing]
    apart = _gaps(function, compared)
    return [_along(replace(f, method=JVP), shapes, apart.get(f.tensor, "")) for f in found]


def _along(found: Finding, shapes: Mapping[str, tuple[int, ...]], apart: str) -> Finding:
    """A finding on coordinates along tangents as one on directions; inconclusive if it is `apart` from the VJP."""
    worst = as_direction(found.worst)
    found = replace(found, worst=worst, shape=shapes.get(found.tensor, found.shape))
    if apart:
        return replace(found, verdict="inconclusive", cause=apart)
    if found.blame is None or worst is None:
        return found
    cause = str(found.blame["cause"] or "")
    if found.checked and not cause.startswith("the gradient is"):  # patterns of entries are not those of directions
        cause = found.cause
    text = "; ".join(part for part in (worst_entry(found), cause) if part)
    return replace(found, blame={**found.blame, "index": None, "cause": cause, "text": text})


def _gaps(function: Contracted, names: Sequence[str]) -> dict[str, str]:
    """By leaf, how far ⟨u, J v⟩ and ⟨Jᵀu, v⟩ are apart, where rounding does not account for it.

    Rounding is sampled at points that are shifted by roundoff.
    """
    box = function.boxes[FORWARD]
    tensors = [Tensor(name, "param", (2, 1 + SHIFTED, TANGENTS)) for name in names]
    if not tensors:
        return {}
    arrays = replace(box.function(LOSS), part="gaps").gradient([box.params], tensors, FLOATS).returned.arrays
    found = {}
    for name, (gaps, sizes) in arrays.items():
        unit = unit_roundoff(np.dtype(np.float64) if function.sharp else function.dtype)
        slack = FACTOR * (unit * sizes[0] + gaps[1:].std(axis=0))
        if not (np.abs(gaps[0]) <= slack).all():
            size = np.where(sizes[0] > 0, sizes[0], 1.0)
            found[name] = f"{DIFFERS} by {float((np.abs(gaps[0]) / size).max()):.1g}"
    return found
