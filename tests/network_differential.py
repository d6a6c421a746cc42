"""One network against everything that ought to agree on it: methods, the loop-only twin, references, JAX, the check.

A network is a spec's text. What is found is an `Outcome`; its `failures` are faults of the program, each of a kind.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import naive
import numpy as np
from kernel_cases import expected, gradient, loops
from twin_sides import stands_elsewhere

from bpcli.api.check_document import findings_document
from bpcli.backends.jax import PEER as JAX
from bpcli.bench.profiling import allocated_bytes
from bpcli.checking import checker as run
from bpcli.checking.check_options import CheckOptions, check_bytes, check_cost
from bpcli.checking.checker import decide
from bpcli.checking.findings import Finding
from bpcli.checking.reference_cache import ReferenceCache
from bpcli.checking.verdict import CAUSES, INCONCLUSIVE, PASS
from bpcli.errors import BpError
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Exact
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits, array_bytes
from bpcli.problem.setup import open_setup
from bpcli.references import central, complex_step, ladder
from bpcli.references.base import Estimate, Reference
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.jumps import jumps
from bpcli.references.perturbation.kinks import find_kinks
from bpcli.runtime.evaluation import check_finite

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

LIMITS = Limits(max_memory=1 << 30)
REFERENCES = (complex_step.REFERENCE, central.REFERENCE)
DOUBLE = np.dtype(np.float64)
EXTRAS = ("jax", "ladder", "memory", "spoiled", "windows")
# Bookkeeping of Python that no prediction counts, in bytes: of a method, and of a check for each of its definitions.
OF_METHODS, OF_CHECKS = 20_000, 1 << 19
# Refusals that a well-shaped network may meet: numbers that leave the range of floats, a density of no entries.
LAWFUL = ("not-finite", "nothing-to-differentiate")
AT_KINK = CAUSES.index("kink")
# Relative to a tensor's largest entry, and to the largest of all; XLA's functions are not those of the C library.
JAX_TOLERANCE = {"float64": (1e-8, 1e-13), "float32": (5e-3, 1e-5)}


@dataclass(frozen=True)
class Failure:
    """A fault of the program: its kind, and in words that name no number, so that like ones can be counted."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Outcome:
    """`judged` gradients, of one method and tensor each; `open` are the causes of those that are inconclusive.

    `refused` is what a lawful refusal says.
    """

    judged: int = 0
    open: list[str] = field(default_factory=list)
    refused: str = ""
    failures: list[Failure] = field(default_factory=list)

    def fail(self, kind: str, what: str) -> None:
        """Note a failure, once."""
        if (failure := Failure(kind, what)) not in self.failures:
            self.failures.append(failure)


def methods(setup: Setup) -> list[str]:
    """Those that give the whole gradient."""
    if not setup.graph.recurrent:
        return ["backprop"]
    return ["bptt", "rtrl", f"tbptt:k1={setup.T},k2={setup.T + 1}", f"tbptt:k1=1,k2={setup.T}"]


def truncated(setup: Setup) -> list[str]:
    """Methods that are meant to compute something else."""
    return ["tbptt:k1=2,k2=3"] if setup.T > 3 else []


def examine(text: str, extras: Sequence[str] = (), judged: bool = True) -> Outcome:
    """All that can be said of a spec without knowing anything about it; `extras` of EXTRAS take longer.

    Where it is not to be `judged`, gradients are compared with each other and the twin's, and that is all.
    """
    outcome = Outcome()
    with _silence(outcome), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        problem = problem_of_text(text, outcome)
        if problem is not None:
            _examine(problem, extras, judged, outcome)
    for warning in heard:
        place = Path(warning.filename)
        outcome.fail("warning", f"{warning.category.__name__}: {warning.message} ({place.name}:{warning.lineno})")
    return outcome


@contextmanager
def _silence(outcome: Outcome) -> Iterator[None]:
    """What anything in this process writes to stdout or stderr, below Python's own, is a failure."""
    with tempfile.TemporaryFile() as written:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(written.fileno(), number)
            yield
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
            written.seek(0)
            for line in sorted(set(written.read().decode(errors="replace").splitlines())):
                outcome.fail("printed", line.strip())


def _attempt(outcome: Outcome, stage: str, work: Callable[[], Any]) -> Any:
    """The answer of some work, None where it was refused or failed."""
    try:
        return work()
    except BpError as error:
        first = error.diagnostics[0]
        if first.code in LAWFUL:
            outcome.refused = first.what
        else:
            outcome.fail("refused", f"{stage}: {first.code}: {first.what}")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = re.sub(r"\d+", "N", str(error))
        outcome.fail("internal", f"{stage}: {type(error).__name__}: {what} ({Path(frame.filename).name}:{frame.name})")
    return None


def problem_of_text(text: str, outcome: Outcome) -> Problem | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.toml"
        path.write_text(text, encoding="utf-8")
        setup: Setup | None = _attempt(outcome, "open", lambda: open_setup(path, {}, (), LIMITS))
    return setup and _attempt(outcome, "draw", lambda: draw(setup))


def _examine(problem: Problem, extras: Sequence[str], judged: bool, outcome: Outcome) -> None:
    setup, truth = problem.setup, None
    # References are computed for each set of windows: most of the time that a network takes.
    calls = [parse(m) for m in (methods(setup) + truncated(setup) if "windows" in extras else methods(setup)[:3])]
    if judged:
        truth = _check(problem, calls, outcome)
    else:
        _attempt(outcome, "finite", lambda: check_finite(problem))
    if outcome.refused:
        _vindicate(problem, outcome)
        return
    found = {}
    for method in methods(setup):
        answer = _attempt(outcome, method, lambda m=method: gradient(problem, m))
        if answer is not None:
            found[method] = answer.arrays
    # The twin computes in float64, where another branch may be taken at a kink of float32.
    kinked = (setup.dtype != DOUBLE and find_kinks(problem).any) or jumps(problem)
    twin = None if kinked else _twin(problem, methods(setup)[0])
    if twin is not None:
        found["the twin"] = twin
    unsure = _attempt(outcome, "rounding", lambda: rounding(problem, Exact().over(setup), setup.dtype))
    if unsure is not None:
        _compare(problem, found, unsure.gradient, outcome)
        for method in truncated(setup) if "windows" in extras else ():
            _truncation(problem, method, outcome)
    if truth is not None and unsure is not None:
        used = (*REFERENCES, *((ladder.REFERENCE,) if "ladder" in extras else ()))
        _references(truth, used, twin, outcome)
    if "jax" in extras:
        _jax(problem, found, unsure.gradient if unsure else {}, outcome)
    if "memory" in extras:
        _memory(problem, calls, outcome)
    if "spoiled" in extras and truth is not None and "bptt" in found:
        _spoiled(truth, found["bptt"], outcome)


def _check(problem: Problem, calls: Sequence[MethodCall], outcome: Outcome) -> ReferenceCache | None:
    """The whole check, its predictions and its document; returns what it compared with."""
    kept: list[ReferenceCache] = []

    def keep(*args: Any) -> ReferenceCache:
        kept.append(ReferenceCache(*args))
        return kept[-1]

    def check() -> list[Finding]:
        check_bytes(problem.setup, calls, CheckOptions())
        check_cost(problem.setup, calls, CheckOptions())
        findings = run.check_problem(problem, calls, CheckOptions())
        findings_document(findings, [], {}, [])
        return findings

    with mock.patch.object(run, "ReferenceCache", keep):
        findings = _attempt(outcome, "check", check) or []
    outcome.judged = len(findings)
    for finding in findings:
        if finding.verdict == "wrong":
            which = "loss" if finding.tensor == "loss" else _kind(problem.setup, finding.tensor)
            outcome.fail("accusation", f"{finding.method.split(':')[0]} {which} {finding.cause}".strip())
        elif finding.verdict == "inconclusive" and finding.cause != "nothing compared":
            outcome.open.append(finding.cause)
    return kept[0] if kept else None


def _kind(setup: Setup, name: str) -> str:
    return next(t.kind for t in setup.wrt if t.name == name)


def _twin(problem: Problem, method: str) -> Arrays | None:
    """The gradient by loops; None where Python's arithmetic refuses a number."""
    try:
        return expected(problem, method)
    except (ArithmeticError, ValueError):
        return None


def _vindicate(problem: Problem, outcome: Outcome) -> None:
    """A loss that is refused as not finite must not be finite by loops either; these are in float64."""
    try:
        loss = naive.loss(problem.setup.spec, loops(problem))
    except (ArithmeticError, ValueError):
        return
    if np.isfinite(loss) and problem.setup.dtype == DOUBLE:
        outcome.fail("refused", "a loss is not finite and is by loops")


def _compare(problem: Problem, found: Mapping[str, Arrays], unsure: Arrays, outcome: Outcome) -> None:
    """Gradients of several origins, to rounding; what is not finite in one is for the check to tell."""
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            apart = [
                t for t in problem.setup.wrt if _apart(t, *(found[n][t.name] for n in (one, other)), 2 * unsure[t.name])
            ]
            if apart and other == "the twin" and _on_other_sides(problem, one, found[one], found[other]):
                continue
            for tensor in apart:
                outcome.fail("disagreement", f"{one.split(':')[0]} and {other.split(':')[0]}, {tensor.kind}")


def _on_other_sides(problem: Problem, method: str, arrays: Arrays, twin: Arrays) -> bool:
    """Whether a gradient and the twin's are right on different sides of kinks: on the same sides they agree, and each
    is between the one-sided derivatives, or beyond those known where there are too many sides to try."""
    if not find_kinks(problem).any or not stands_elsewhere(problem, method):
        return False
    definition, truth = parse(method).definition(problem.setup), _cache_of(problem)
    for tensor in problem.setup.wrt:
        for each in (arrays, twin):
            entries = decide(truth, definition, tensor, np.asarray(each[tensor.name], np.float64))
            right = (entries.verdict == PASS) | ((entries.verdict == INCONCLUSIVE) & (entries.cause == AT_KINK))
            if not right[_existing(tensor)].all():
                return False
    return True


@functools.lru_cache(maxsize=1)
def _cache_of(problem: Problem) -> ReferenceCache:
    """Estimates that methods share."""
    return ReferenceCache(problem, REFERENCES)


def _existing(tensor: Tensor) -> Any:
    """An index of the entries of a tensor that exist."""
    return ... if tensor.pattern is None else np.unravel_index(tensor.pattern, tensor.shape)


def _apart(tensor: Tensor, one: Array, other: Array, tolerance: Array) -> bool:
    """Whether any entry that exists differs by more than it may, where both are finite."""
    left, right = (np.asarray(a, np.float64).ravel() for a in (one, other))
    with np.errstate(all="ignore"):
        far = np.isfinite(left) & np.isfinite(right) & (np.abs(left - right) > tolerance.ravel())
    return bool((far if tensor.pattern is None else far[tensor.pattern]).any())


def _truncation(problem: Problem, method: str, outcome: Outcome) -> None:
    twin, setup = _twin(problem, method), problem.setup
    answer = _attempt(outcome, "tbptt", lambda: gradient(problem, method))
    if twin is not None and answer is not None:
        unsure = rounding(problem, parse(method).definition(setup).over(setup), setup.dtype).gradient
        _compare(problem, {method: answer.arrays, "the twin": twin}, unsure, outcome)


def _references(truth: ReferenceCache, used: Sequence[Reference], twin: Arrays | None, outcome: Outcome) -> None:
    """Estimates within the bounds of each other, and the twin's gradient within each."""
    problem, setup = truth.problem, truth.problem.setup
    known: dict[str, Mapping[str, Estimate]] = {}
    for reference in used:
        kept = truth._estimates.get((reference.name, Exact()))
        known[reference.name] = kept or _attempt(
            outcome, reference.name, lambda r=reference: r.estimate(problem, Exact().over(setup), setup.wrt)
        )
    unsure = rounding(problem, Exact().over(setup), DOUBLE).gradient
    estimates = [(name, found) for name, found in known.items() if found]
    for tensor in setup.wrt:
        each = [(name, found[tensor.name]) for name, found in estimates]
        for i, (one, left) in enumerate(each):
            for other, right in each[i + 1 :]:
                with np.errstate(all="ignore"):
                    bound = left.bound + right.bound + left.kink + right.kink
                if _apart(tensor, left.value, right.value, bound):
                    outcome.fail("reference", f"{one} and {other}, {tensor.kind}")
            if twin is not None:
                with np.errstate(all="ignore"):
                    bound = left.bound + left.kink + left.beyond + unsure[tensor.name]
                if _apart(tensor, left.value, twin[tensor.name], bound):
                    outcome.fail("reference", f"{one} and the twin, {tensor.kind}")


def _jax(problem: Problem, found: Mapping[str, Arrays], unsure: Arrays, outcome: Outcome) -> None:
    """JAX, where it is installed, and no kink is met: there it has a choice of its own."""
    setup = problem.setup
    if find_kinks(problem).any or jumps(problem):
        return
    of_own, of_all = JAX_TOLERANCE[setup.dtype.name]
    for method in methods(setup)[:2]:
        if JAX.available() is not None or JAX.refusal(setup, method) is not None or method not in found:
            continue
        answer = _attempt(outcome, f"jax {method}", lambda m=method: JAX.gradient_function(problem, m)())
        if answer is None:
            continue
        sizes = {t.name: float(np.abs(found[method][t.name]).max(initial=0.0)) for t in setup.wrt}
        for tensor in setup.wrt:
            ours, theirs = found[method][tensor.name], np.asarray(answer.arrays[tensor.name])
            # XLA flushes subnormal numbers to zero.
            tolerance = of_own * sizes[tensor.name] + of_all * max(sizes.values()) + float(np.finfo(setup.dtype).tiny)
            of_rounding = 2 * unsure.get(tensor.name, np.zeros(ours.shape))
            if np.isfinite(tolerance) and _apart(tensor, ours, theirs, np.maximum(tolerance, of_rounding)):
                outcome.fail("disagreement", f"{method} and jax, {tensor.kind}")


def _memory(problem: Problem, calls: Sequence[MethodCall], outcome: Outcome) -> None:
    """Methods and the check hold what was predicted, the check perhaps less."""
    setup = problem.setup
    for call in calls:
        call.gradient(problem)  # may plan what is kept for the next
        held, cost = allocated_bytes(lambda c=call: c.gradient(problem)), call.cost(setup).bytes
        if not cost <= held <= 1.05 * cost + OF_METHODS:
            outcome.fail(
                "memory", f"{call.text.split(':')[0]} holds {'more' if held > cost else 'less'} than predicted"
            )
    predicted = check_bytes(setup, calls, CheckOptions()) + sum(array_bytes(setup).values())
    unseen = OF_CHECKS * len({call.definition(setup) for call in calls})
    for _ in range(2):  # the first may import something, or plan what is kept for the next
        held = _attempt(
            outcome, "check", lambda: allocated_bytes(lambda: run.check_problem(problem, calls, CheckOptions()))
        )
        if held is None or (predicted <= 2 * held + OF_CHECKS and held <= predicted + unseen):
            return
    outcome.fail("memory", f"the check holds {'more' if held > predicted else 'less'} than predicted")


def _spoiled(truth: ReferenceCache, arrays: Arrays, outcome: Outcome) -> None:
    """A gradient that is off by a quarter never passes in its largest entry, unless that is zero or at a kink."""
    setup = truth.problem.setup
    sizes = {t: float(np.abs(arrays[t.name]).max(initial=0.0)) for t in setup.wrt if t.entries}
    if not sizes or not 0 < (largest := max(sizes.values())) < np.inf:
        return
    tensor = next(t for t, size in sizes.items() if size == largest)
    value = np.asarray(arrays[tensor.name], np.float64)
    at = np.unravel_index(np.abs(value).argmax(), value.shape)

    with np.errstate(over="ignore"):
        spoiled = value * 1.25
    entries = _attempt(outcome, "spoiled", lambda: decide(truth, Exact(), tensor, spoiled))
    if entries is None or entries.verdict[at] != PASS or entries.high[at] > entries.low[at]:
        return
    beside = truth.estimates(Exact(), tensor).central
    if beside is not None and abs(beside.value[at]) > 2 * beside.bound[at]:  # else it may be zero
        outcome.fail("missed", f"a gradient that is off by a quarter passes, {tensor.kind}")
