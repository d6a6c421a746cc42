"""The cells of one point of a sweep, measured: one row a method, and one more for each peer that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.benching import clock
from bpcli.benching.machine import gemm_rate
from bpcli.benching.memory import allocated_bytes, peak_bytes
from bpcli.benching.store import OURS, Row
from bpcli.benching.sweep import Cell
from bpcli.benching.truth import distance, exact_method, flat, true_gradient
from bpcli.benching.vouch import Vouch, tolerance, vouch
from bpcli.methods import MethodCall
from bpcli.methods.base import Gradient
from bpcli.peers.base import Peer
from bpcli.problem.limits import Limits
from bpcli.problem.model import Problem, Setup


@dataclass(frozen=True)
class Ask:
    """How to measure: `budget` seconds for the blocks of a row, peers to run beside.

    `threads` says how many each backend is held to; None is unknown, a peer's own choice.
    """

    budget: float
    threads: Mapping[str, int | None]
    peers: tuple[Peer, ...]
    limits: Limits

    @property
    def own_threads(self) -> int:
        """How many threads bp's kernels use."""
        return self.threads[OURS] or 1


@dataclass(frozen=True)
class Entrant:
    """One backend of a cell: its first call took `first` seconds and gave `gradient`."""

    backend: str
    run: Callable[[], Gradient]
    gradient: Gradient
    first: float
    vouch: Vouch


def measure_point(
    problem: Problem, cells: Sequence[tuple[Cell, MethodCall]], ask: Ask, settings: Mapping[str, Any]
) -> Iterator[list[Row]]:
    """The rows of each cell in turn, bp's own first. The gradients of all are judged before any is timed."""
    firsts = {call.text: _first(lambda call=call: call.gradient(problem)) for _, call in cells}  # type: ignore[misc]
    true = true_gradient(problem, ask.limits)  # after the first calls: it would compile for them
    verdicts = vouch(problem, [call for _, call in cells], {text: g for text, (g, _) in firsts.items()}, true)
    for cell, call in cells:
        gradient, first = firsts[call.text]
        own = Entrant(OURS, lambda call=call: call.gradient(problem), gradient, first, verdicts[call.text])  # type: ignore[misc]
        entrants = [own, *(_peer(problem, p, call, own, true) for p in _willing(ask.peers, problem.setup, call))]
        base = {"spec": problem.setup.spec.name, "method": call.text, "grid": cell.grid, "settings": dict(settings)}
        yield _rows(problem, call, entrants, ask, (base, true))


def _willing(peers: Sequence[Peer], setup: Setup, call: MethodCall) -> list[Peer]:
    """The peers that run the method; a peer knows methods by their names, without options."""
    return [p for p in peers if p.refusal(setup, call.text) is None]


def _first(run: Callable[[], Gradient]) -> tuple[Gradient, float]:
    start = time.perf_counter()
    gradient = run()
    return gradient, time.perf_counter() - start


def _peer(problem: Problem, peer: Peer, call: MethodCall, own: Entrant, true: Gradient | None) -> Entrant:
    """A peer's entrant; all methods that peers run are exact, so that the true gradient can stand in for a bad one."""
    run = peer.gradient_function(problem, call.text)
    gradient, first = _first(run)
    if own.vouch.verdict == "pass":
        judged = _against(problem.setup, gradient, own.gradient, "bp")
    elif true is not None and call.method.name != exact_method(problem.setup):
        judged = _against(problem.setup, gradient, true, "reverse mode")
    else:  # the true gradient is bp's own by this very method
        judged = Vouch("inconclusive", "nothing", "no right gradient to compare with")
    return Entrant(peer.name, run, gradient, first, judged)


def _against(setup: Setup, gradient: Gradient, right: Gradient, whose: str) -> Vouch:
    apart, _ = distance(flat(setup, gradient), flat(setup, right))
    how = f"all entries against {whose}"
    if apart is not None and apart <= tolerance(setup):
        return Vouch("pass", how, "")
    return Vouch("wrong", how, f"differs from {whose} by {'an undefined amount' if apart is None else f'{apart:.2g}'}")


def _rows(
    problem: Problem, call: MethodCall, entrants: Sequence[Entrant], ask: Ask, about: tuple[Row, Gradient | None]
) -> list[Row]:
    """Time the entrants in turn and describe each; those whose gradient is wrong are not timed."""
    good = [e for e in entrants if e.vouch.verdict != "wrong"]
    timings = (
        dict(zip([e.backend for e in good], clock.measure([e.run for e in good], ask.budget), strict=True))
        if good
        else {}
    )
    base, true = about
    rows: list[Row] = []
    for entrant in entrants:
        timing = timings.get(entrant.backend)
        row = {**base, "backend": entrant.backend, "threads": ask.threads[entrant.backend]}
        row |= {**_sizes(problem.setup), **_time(timing, entrant)}
        row |= _cost(problem.setup, call, entrant, timing, ask) | _memory(entrant, timing)
        row |= _nearness(problem.setup, entrant.gradient, true)
        row["check"] = {"verdict": entrant.vouch.verdict, "how": entrant.vouch.how, "detail": entrant.vouch.detail}
        row["ratio"] = _ratio(timings, entrant.backend)
        rows.append(row)
    return rows


def _sizes(setup: Setup) -> dict[str, Any]:
    entries = sum(t.entries for t in setup.wrt)
    steps = setup.T if setup.graph.recurrent else None
    return {"T": steps, "batch": setup.batch, "dtype": setup.dtype.name, "parameters": entries}


def _time(timing: clock.Timing | None, entrant: Entrant) -> dict[str, Any]:
    return {
        "time_s": timing and timing.median,
        "time_low_s": timing and timing.low,
        "time_high_s": timing and timing.high,
        "time_min_s": timing and timing.minimum,
        "compile_s": timing and max(0.0, entrant.first - timing.median),
        "calls_per_block": timing and timing.calls_per_block,
        "samples_s": list(timing.samples) if timing else [],
    }


def _cost(setup: Setup, call: MethodCall, entrant: Entrant, timing: clock.Timing | None, ask: Ask) -> dict[str, Any]:
    """The predicted cost, and how much of the machine's GEMM rate was reached; nothing is known of a peer's."""
    if entrant.backend != OURS:
        return dict.fromkeys(("predicted_bytes", "forward_steps", "flops", "gemm_fraction"))
    cost = call.cost(setup)
    rate = gemm_rate(setup.dtype.name, ask.own_threads)
    return {
        "predicted_bytes": int(cost.bytes),
        "forward_steps": cost.forward_steps,
        "flops": float(cost.flops),
        "gemm_fraction": timing and cost.flops / timing.median / rate,
    }


def _memory(entrant: Entrant, timing: clock.Timing | None) -> dict[str, Any]:
    """Measured memory; Python's allocator does not see a peer's."""
    if timing is None:
        return {"allocated_bytes": None, "peak_bytes": None}
    return {
        "allocated_bytes": allocated_bytes(entrant.run) if entrant.backend == OURS else None,
        "peak_bytes": peak_bytes(entrant.run),
    }


def _nearness(setup: Setup, gradient: Gradient, true: Gradient | None) -> dict[str, Any]:
    bias, cosine = distance(flat(setup, gradient), flat(setup, true)) if true else (None, None)
    return {"bias": bias, "cosine": cosine}


def _ratio(timings: Mapping[str, clock.Timing], backend: str) -> dict[str, float] | None:
    """A peer's time over ours, from blocks taken in turn, with its interval."""
    if backend == OURS or not {OURS, backend} <= timings.keys():
        return None
    median, low, high = clock.ratio(timings[backend].samples, timings[OURS].samples)
    return {"median": median, "low": low, "high": high}
