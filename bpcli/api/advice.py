"""Advice on a method: by predicted memory, time, and a bias that is measured on the spec or a smaller case of it.

Candidates are the built-in methods with options in powers of two. They are ordered by a time predicted from operations,
memory traffic and the measured rates of the machine. From the fastest on, those that fit are accepted until there are
enough; time and memory of an accepted method are measured where its gradient is quick.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bpcli.bench.precheck import distance, flat
from bpcli.bench.profiling import Rates, allocated_bytes, measure_rates
from bpcli.errors import BpError
from bpcli.methods import MethodCall, built_in, exact_method, load, parse
from bpcli.methods.base import Exact, Gradient
from bpcli.problem.definition import Setup
from bpcli.problem.draw import draw
from bpcli.problem.limits import PASSES, SECONDS_PER_STEP
from bpcli.problem.setup import SpecFile

RUNNERS_UP = 3
_RATE_SECONDS = 0.1
_LIST_SECONDS, _BIAS_SECONDS = 2.0, 2.0
"""Time for the predictions of all candidates, and for their biases; those that are left out are not considered."""
_SLOW_COST = 0.3
"""Seconds of a prediction from which larger values of an option are left out."""
_QUICK = 0.3
"""Predicted seconds of a gradient that is measured."""
_FLOPS, _BYTES = 3e8, 5e8
"""Operations of a gradient whose bias is measured, and bytes of the exact one."""
_MANY_FAILING = 8
"""Methods that are measured in vain before none is looked for any more."""
_ALIKE = 1.25
"""The ratio of two measured times from which they differ."""
_FEW_UNITS, _FEW_STEPS = 8, 32


@dataclass(frozen=True)
class Demand:
    """At most so many bytes beside the arrays, such a relative bias, and so many seconds for a step of all samples."""

    memory: int
    bias: float = 0.0
    step_seconds: float = math.inf


@dataclass(frozen=True)
class Candidate:
    """A method with its bytes and seconds a step, predicted or, where it is quick, `measured`.

    `least` are the predicted seconds without the overhead of a step, which the prediction overstates. The relative
    `bias` is None where it is not measured; `at` are the settings of the smaller case that it is of.
    """

    call: MethodCall
    bytes: int
    seconds: float
    least: float
    exact: bool
    measured: bool = False
    bias: float | None = None
    at: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def excess(self, demand: Demand) -> float:
        """The largest ratio of its bytes and seconds to what is allowed."""
        return max(self.bytes / demand.memory, self.seconds / demand.step_seconds)


@dataclass(frozen=True)
class Advice:
    """The methods that meet a demand, the fastest first; `nearest` is one that does not, where none does.

    `fitting` of the `considered` candidates fit in memory and, but for the overhead of a step, in time.
    """

    found: tuple[Candidate, ...]
    nearest: Candidate | None
    fitting: int
    considered: int


def advise(file: SpecFile, setup: Setup, demand: Demand, threads: int) -> Advice:
    """The methods for a spec, opened as `setup`, that meet a demand."""
    rates = measure_rates(setup.dtype.name, threads, _RATE_SECONDS)
    candidates = sorted(_candidates(setup, rates), key=lambda c: (c.seconds, c.bytes))
    fitting = [c for c in candidates if c.bytes <= demand.memory and c.least <= demand.step_seconds]
    biases = _Biases(file, setup)
    found, failing = _accepted(fitting, demand, biases, setup)
    nearest = None
    if not found:
        known = [c for c in map(biases.of, fitting) if c.bias is not None and c.bias > demand.bias]
        nearest = _nearest(failing, candidates, known, demand)
    fastest = min((c.seconds for c in found), default=0.0)
    # Of equally fast ones the one without options: `bptt` rather than a schedule with as many snapshots as steps.
    found.sort(key=lambda c: (max(c.seconds, _ALIKE * fastest), ":" in c.call.text))
    return Advice(tuple(found), nearest, len(fitting), len(candidates))


def _accepted(
    fitting: list[Candidate], demand: Demand, biases: _Biases, setup: Setup
) -> tuple[list[Candidate], list[Candidate]]:
    """The first that meet the demand, one of each name, measured where they are quick; and those that failed then."""
    found, failing = dict[str, Candidate](), list[Candidate]()
    for candidate in fitting:
        if len(found) > RUNNERS_UP or len(failing) > _MANY_FAILING:
            break
        if candidate.call.method.name in found or not (candidate.exact or demand.bias > 0):
            continue
        judged = candidate if candidate.exact else biases.of(candidate)
        if judged.bias is None or not judged.bias <= demand.bias:
            continue
        judged = _measured(judged, setup)
        if judged.excess(demand) <= 1:
            found[candidate.call.method.name] = judged
        else:
            failing.append(judged)
    return list(found.values()), failing


def _nearest(
    failing: list[Candidate], candidates: list[Candidate], biased: list[Candidate], demand: Demand
) -> Candidate | None:
    """Of those that failed when measured, of the least biased and of all, the one that exceeds the demand the least."""
    if failing:
        return min(failing, key=lambda c: c.excess(demand))
    if biased:
        return min(biased, key=lambda c: c.bias or 0.0)
    return min(candidates, key=lambda c: (demand.bias == 0 and not c.exact, c.excess(demand)), default=None)


def _candidates(setup: Setup, rates: Rates) -> Iterator[Candidate]:
    """The built-in methods that apply, reverse mode first, with their predictions."""
    end = time.monotonic() + _LIST_SECONDS
    for name in sorted(built_in(), key=lambda n: "reverse" not in load(n).tags):
        method = load(name)
        if method.refusal(setup.graph) is not None or "teaching" in method.tags:
            continue
        for text in _texts(name, method.Options, setup.T):
            began = time.monotonic()
            if began > end:
                return
            try:
                call = parse(text)
                cost, exact = call.cost(setup), call.definition(setup) == Exact()
            except BpError:  # options that contradict each other
                continue
            least = max(cost.flops / rates.gemm, cost.moved / rates.copy)
            seconds = least + PASSES * cost.forward_steps * SECONDS_PER_STEP
            bias = 0.0 if exact else None
            yield Candidate(call, int(cost.bytes), seconds / setup.T, least / setup.T, exact, bias=bias)
            if time.monotonic() - began > _SLOW_COST:
                break


def _texts(name: str, options: type[Any], T: int) -> Iterator[str]:
    """A method with powers of two, smaller than T, for the integers that it needs, and two values for numbers."""
    types = typing.get_type_hints(options)
    missing = dataclasses.MISSING
    needed = [f.name for f in dataclasses.fields(options) if f.default is missing and f.default_factory is missing]
    powers = [2**i for i in range(max(1, (T - 1).bit_length()))]
    values = [powers if types[option] is int else [0.1, 0.5] for option in needed]
    for chosen in itertools.product(*values):
        listed = ",".join(f"{option}={value}" for option, value in zip(needed, chosen, strict=True))
        yield f"{name}:{listed}" if listed else name


def _measured(candidate: Candidate, setup: Setup) -> Candidate:
    """With the seconds and bytes of a gradient as measured, where it is predicted to be quick."""
    if candidate.seconds * setup.T > _QUICK:
        return candidate
    problem, taken = draw(setup), []

    def gradient() -> Gradient:
        return candidate.call.gradient(problem)

    for _ in range(3):  # the first makes plans
        began = time.perf_counter()
        gradient()
        taken.append(time.perf_counter() - began)
    return replace(candidate, seconds=min(taken[1:]) / setup.T, bytes=allocated_bytes(gradient), measured=True)


class _Biases:
    """Biases on a spec, or where a gradient takes long on a case of fewer units, samples and steps."""

    def __init__(self, file: SpecFile, setup: Setup) -> None:
        self._file, self._cases = file, {"{}": setup}
        self._exact: dict[str, Gradient] = {}
        self._end = time.monotonic() + _BIAS_SECONDS + _LIST_SECONDS

    def of(self, candidate: Candidate) -> Candidate:
        """The candidate with its bias, if that can be measured in time."""
        if candidate.exact or candidate.bias is not None or time.monotonic() > self._end:
            return candidate
        try:
            settings = self._settings(candidate.call)
        except BpError:  # of sizes that cannot be changed, as those of a file
            return candidate
        setup = self._opened(settings)
        problem, key = draw(setup), repr(settings)
        if key not in self._exact:
            self._exact[key] = parse(exact_method(setup.graph)).gradient(problem)
        bias, _ = distance(flat(setup, candidate.call.gradient(problem)), flat(setup, self._exact[key]))
        return replace(candidate, bias=bias, at=settings)

    def _opened(self, settings: Mapping[str, Any]) -> Setup:
        key = repr(settings)
        if key not in self._cases:
            self._cases[key] = self._file.open(settings)
        return self._cases[key]

    def _settings(self, call: MethodCall) -> dict[str, Any]:
        """Settings of the largest case, by halves, whose gradient is quick."""
        settings: dict[str, Any] = {}
        longest = max((v for v in vars(call.options).values() if isinstance(v, int)), default=1)
        setup = self._opened(settings)
        exact = parse(exact_method(setup.graph))
        while call.cost(setup).flops > _FLOPS or exact.cost(setup).bytes > _BYTES:
            large = {k: v for k, v in setup.spec.dims.items() if v > _FEW_UNITS}
            if setup.batch > 1:
                settings["batch"] = 1
            elif large:
                settings |= {k: max(_FEW_UNITS, v // 2) for k, v in large.items()}
            elif max(_FEW_STEPS, 4 * longest) < setup.T:
                settings["T"] = max(_FEW_STEPS, 4 * longest, setup.T // 2)
            else:
                break
            setup = self._opened(dict(settings))
        return settings
