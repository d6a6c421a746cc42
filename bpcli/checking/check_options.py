"""Options of a check, the choice of references and mode that follows from them, and its predicted cost in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bpcli.backends import oracle as outside
from bpcli.backends.oracle import Outside
from bpcli.checking.reference_cache import AUTO, references_for
from bpcli.checking.sources.gradient_source import GradientSource
from bpcli.graph.nodes import Phase
from bpcli.methods import MethodCall
from bpcli.methods.base import Definition, Exact, Expectation, Recursion, of_one_draw
from bpcli.problem.definition import Setup, Tensor
from bpcli.problem.limits import array_bytes, predicted_seconds
from bpcli.references.base import ChainPlan, Reference, copy_count
from bpcli.references.central import EVALUATIONS, Central
from bpcli.references.complex_step import ComplexStep
from bpcli.references.numerics.adjoints import WindowSlots
from bpcli.references.numerics.chain_rule import AT_ONCE, SAMPLES, chain_steps
from bpcli.references.numerics.derivatives import COMPARED, SIGNED
from bpcli.references.numerics.differences import along_evaluations
from bpcli.references.numerics.expectation import DRAWS
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.probe import COUNT, ROWS
from bpcli.references.numerics.recursion import measured_bytes, recursion_flops
from bpcli.references.numerics.rounding import rounding_flops
from bpcli.references.perturbation.frozen import frozen_entries
from bpcli.references.perturbation.one_step import cut
from bpcli.references.perturbation.perturbed import BLOCK_ENTRIES
from bpcli.references.perturbation.preactivations import differentiated_nodes
from bpcli.references.perturbation.tangent import has_tangent
from bpcli.runtime.copies import layout_of, reach
from bpcli.runtime.reverse_mode import Window, merged, unrolled
from bpcli.tape.plan import make_plan

Mode = Literal["auto", "full", "directional"]

AFFORDABLE = 2e11
"""Predicted flops up to which "auto" judges every entry, about ten seconds' worth."""
# Time beside arithmetic as measured, in steps of `limits.SECONDS_PER_STEP`: sweeps over time for a tensor whose entries
# are perturbed, and for all that are differentiated through preactivations; for a tensor, whatever the number of steps;
# and for an evaluation along a direction, whatever the number of steps, and for each of them.
_SWEEPS, _BY_CHAIN, _ONCE = 16, 6, 400
_OF_DIRECTION, _OF_STEP = 25, 1 / 20
_CALLS = 2  # of every method


@dataclass(frozen=True)
class CheckOptions:
    """`reference` is the name of the reference or backend that judges; "auto" takes the complex step and differences.

    The mode "full" judges every entry and checks each by differences, "directional" judges directions first, or every
    entry where that takes less time, and "auto" judges every entry if that is affordable, and checks as many by
    differences as are. A gradient that is off by
    `tolerance` at most, relative to the largest entry of its tensor, passes.
    """

    reference: str = AUTO
    mode: Mode = "auto"
    tolerance: float = 0.0


_IN_WORDS = {"complex-step": "the complex step", "central": "central differences", "ladder": "a ladder of differences"}


@dataclass(frozen=True)
class Choice:
    """The references and mode chosen. `flops` are predicted for that mode, `full_flops` for every entry.

    `steps` stand for what takes time beside arithmetic, in all passes over time (see `limits.check_cost`). Where
    directions were asked for and every entry takes less time, they would take `spared` times as long; else 0.
    """

    mode: Literal["full", "directional"]
    references: tuple[Reference, ...]
    sampled: bool
    flops: float
    full_flops: float
    steps: int
    spared: float = 0.0

    def __str__(self) -> str:
        """The choice in words."""
        judge, *beside = (_IN_WORDS.get(r.name, r.name) for r in self.references)
        what = "every entry" if self.mode == "full" else f"{COUNT} random directions per tensor"
        seen = " at a sample of the entries" if self.sampled else ""
        words = f"{what} checked against {judge}" + (f", cross-checked by {beside[0]}{seen}" if beside else "")
        if self.mode == "directional":
            words += f" (every entry, with --mode full, would take {self.full_flops:.1g} operations)"
        if self.spared:
            words += f" ({COUNT} directions per tensor would take {self.spared:.1f} times as long)"
        return words


def choose(setup: Setup, calls: Sequence[MethodCall | GradientSource], options: CheckOptions) -> Choice:
    """Choose references and mode by `options` and the sizes of the problem, and predict the cost."""
    used = references_for(setup, options.reference, options.mode)
    definitions = {of_one_draw(call.definition(setup)) for call in calls}
    recursions = {d for d in definitions if isinstance(d, Recursion)}
    asked = sum(_CALLS * call.cost(setup).flops for call in calls)
    asked += sum(DRAWS * call.cost(setup).flops for call in calls if has_mean(setup, call))
    asked += sum(rounding_flops(setup, d.over(setup)) for d in definitions)
    asked += sum(recursion_flops(d) for d in recursions)
    full = asked + sum(r.cost(setup, d.over(setup)) for r in used for d in definitions - recursions)
    # The judging reference estimates the true gradient too, for the bias.
    full += 0.0 if Exact() in definitions else used[0].cost(setup, Exact().over(setup))
    windowed = (definitions - recursions) | {Exact()}
    along = asked + sum(r.cost_along(setup, d.over(setup), COUNT) for r in used for d in windowed)
    steps, steps_along = _steps(setup, used, len(windowed)), _steps_along(setup)
    spared = predicted_seconds(along, steps_along) / predicted_seconds(full, steps)
    if full > max(AFFORDABLE, along) if options.mode == AUTO else options.mode == "directional" and spared < 1:
        used = references_for(setup, options.reference, "directional")
        return Choice("directional", used, False, along, full, steps_along)
    sampled = any(isinstance(r, Central) and copy_count(setup, r.sample) < copy_count(setup) for r in used)
    return Choice("full", used, sampled, full, full, steps, spared if options.mode == "directional" else 0.0)


def _steps(setup: Setup, used: Sequence[Reference], definitions: int) -> int:
    """The steps of a `Choice` of every entry, for so many definitions of windows."""
    perturbed = max(_perturbed_tensors(setup, r) for r in used)
    by_chain = _BY_CHAIN * definitions if perturbed < len(setup.wrt) else 0
    return setup.T * (_SWEEPS * perturbed + by_chain) + _ONCE * len(setup.wrt)


def _steps_along(setup: Setup) -> int:
    """The steps of a `Choice` of directions."""
    evaluations = along_evaluations(COUNT, EVALUATIONS) * len(setup.wrt)
    return int(evaluations * (_OF_DIRECTION + _OF_STEP * setup.T))


def _perturbed_tensors(setup: Setup, reference: Reference) -> int:
    """The number of tensors whose entries a reference perturbs one by one."""
    if isinstance(reference, ComplexStep) or (isinstance(reference, Central) and reference.uses_chain(setup)):
        return len(reference.chain_plan(setup, Exact().over(setup)).rest.wrt)
    return len(setup.wrt)


def has_mean(setup: Setup, call: MethodCall | GradientSource) -> bool:
    """Whether a method is judged in the mean too; a gradient from outside is one draw."""
    return isinstance(call, MethodCall) and isinstance(call.definition(setup), Expectation)


def unjudged(setup: Setup, calls: Sequence[MethodCall | GradientSource], options: CheckOptions) -> dict[str, str]:
    """The methods, by text, that the reference cannot judge, and why."""
    reasons = {call.text: _refusal(setup, options.reference, of_one_draw(call.definition(setup))) for call in calls}
    return {text: reason for text, reason in reasons.items() if reason}


def _refusal(setup: Setup, reference: str, definition: Definition) -> str | None:
    """Why a reference cannot judge by a definition; None if it can."""
    if reference in outside.known():
        return outside.refusal(reference, setup, definition)
    if isinstance(definition, Recursion) and reference not in (AUTO, ComplexStep.name):
        return f"the reference {reference} differentiates losses, not the steps that a recursion is made of"
    return None


def check_cost(setup: Setup, calls: Sequence[MethodCall | GradientSource], options: CheckOptions) -> float:
    """Predicted floating-point operations of a check of right gradients."""
    return choose(setup, calls, options).flops


_COMPLEX, _DOUBLE, _SINGLE = 16, 8, 4
# Shifts of an entry in one step ladder; arrays per copy, for its losses and kinks in blocks and joined, and their sums;
# and arrays per row of a block, with their sums over steps.
_LADDER, _OF_LOSSES, _OF_ROWS = 6, 5, 3
# Arrays per node and step: by differences the values and the shifts of four copies, twice; by tangents the factors and
# the complex passes that they come from.
_OF_SHIFTS, _OF_FACTORS = 10, 12
# Arrays for changes of states by numbers, per shift, and for their slopes; for one-step sensitivities, for the
# cotangents of states, and for gradients as they are assembled.
_OF_CHANGES, _OF_SLOPES, _OF_SENSITIVITIES, _OF_CREDIT, _OF_ASSEMBLED = 3, 3, 4, 2, 3
# Arrays of an estimate; arrays of the rounding bound and the sums it is made of.
_OF_ESTIMATE, _OF_ROUNDING = 4, 4
# Arrays of a value that stop_gradient holds constant: with the pass that it comes from, and as rows of copies.
_OF_FROZEN = 3
# Bytes of plans and layouts kept for the next pass, measured on small networks; large ones need no more.
_TABLES = 1 << 18
# A perturbed entry of a static matrix: row, column, copy and number, in parts and joined.
_OF_FIX = 2 * (3 * 8 + _COMPLEX)


def check_bytes(setup: Setup, calls: Sequence[MethodCall | GradientSource], options: CheckOptions) -> int:
    """Predict the peak memory of `check` in bytes, without the problem's own arrays, from sizes alone.

    Estimates and bounds are kept for every definition; references, rounding and methods run in sequence.
    """
    chosen = choose(setup, calls, options)
    used = chosen.references
    definitions = {of_one_draw(call.definition(setup)) for call in calls} | {Exact()}
    windows = [d.over(setup) for d in definitions]
    results = sum(math.prod(t.shape) for t in setup.wrt)
    kept = _DOUBLE * results * len(windows) * (_OF_ESTIMATE * len(used) + _OF_ROUNDING)
    # A second step ladder, where a gradient looks wrong, is one more estimate at a time.
    kept += _DOUBLE * results * _OF_ESTIMATE
    numbers = sum(array_bytes(setup).values()) // setup.dtype.itemsize
    passes = [_perturbed(setup, w, r, numbers) for w in windows for r in used]
    passes += [_rounding_bytes(setup, w, numbers) for w in windows]
    passes += [measured_bytes(d.setup) for d in definitions if isinstance(d, Recursion)]
    passes += [call.cost(setup).bytes + (numbers + 2 * results) * setup.dtype.itemsize for call in calls]
    return kept + max(passes) + _TABLES


def _perturbed(setup: Setup, windows: Sequence[Window], reference: Reference, numbers: int) -> int:
    """The bytes of a trace and of perturbed copies, of all steps or of single ones; or those of a backend."""
    if isinstance(reference, Outside):
        return reference.bytes(setup)
    exact = isinstance(reference, ComplexStep)
    item = _COMPLEX if exact else _DOUBLE
    trace = make_plan(setup.graph, [], setup.batch, setup.T, []).entries + numbers
    trace += 0 if exact else _OF_FROZEN * frozen_entries(setup)
    by, sample = ChainPlan((), (), 0.0, setup), None
    if isinstance(reference, ComplexStep) or (isinstance(reference, Central) and reference.uses_chain(setup)):
        by = reference.chain_plan(setup, windows)
    elif isinstance(reference, Central):
        sample = reference.sample
    # A few entries of all tensors that come by the chain rule, every entry of the others, and copies for the noise.
    each, noise = (1, 0) if exact else (_LADDER, NOISE_EVALUATIONS * ROWS)
    shifted = [(by.tensors, each * COMPARED * len(by.tensors)), *(((t,), noise) for t in by.tensors)]
    shifted += [
        ((t,), max(noise, each * (t.entries if sample is None else min(t.entries, sample)))) for t in by.rest.wrt
    ]
    copies = max(_copies(setup, windows, tensors, count, item) for tensors, count in shifted)
    return item * trace + max(copies, _chain(setup, windows, by, exact) if by.zs else 0)


def _copies(setup: Setup, windows: Sequence[Window], tensors: Sequence[Tensor], count: int, item: int) -> int:
    """The bytes of `count` copies in which tensors are perturbed: a block of them, and the losses of all."""
    graph = setup.graph
    nodes = (graph.previous.get(t.name) if t.kind == "state" else graph.leaf.get(t.name) for t in tensors)
    leaves = frozenset(n for n in nodes if n is not None)
    own, block = reach(setup, leaves), 0
    for length, some in Counter(w.stop - w.start for w in windows).items():
        rows = some * setup.batch
        most = min(max(1, count), max(1, BLOCK_ENTRIES // max(1, own.entries(rows, length))))
        inputs = length * rows * sum(n.size for n in graph.nodes if n.op == "input")
        found = _OF_ROWS * most * rows
        block = max(block, layout_of(setup, leaves, most, rows, length).places.size + inputs + found)
    computed = sum(graph.nodes[n].size for n in own.crossing if n not in leaves and len(graph.nodes[n].shape) == 2)
    fixes = _OF_FIX * min(BLOCK_ENTRIES, count * max(1, computed))
    return item * (block + _OF_LOSSES * count * setup.batch) + fixes


def _chain(setup: Setup, windows: Sequence[Window], by: ChainPlan, exact: bool) -> int:
    """The bytes of single steps: their copies, values at every step, and cotangents passed from step to step."""
    nodes, size = differentiated_nodes(setup.graph, by.zs), {n.index: n.size for n in setup.graph.nodes}
    real = exact and has_tangent(setup.graph, by.zs)
    shifts, columns = (1, 1) if exact else (len(SIGNED), 2 + SAMPLES)
    stretch, blocks = cut(setup, dict.fromkeys(nodes, shifts))
    cuts = {(n, shifts * len(numbers)) for n, numbers in blocks}
    layouts = (layout_of(setup, frozenset({n}), copies, stretch * setup.batch, 1, True) for n, copies in cuts)
    entries = sum(layout.places.size for layout in layouts)
    held = (_DOUBLE if real or not exact else _COMPLEX) * entries
    every = setup.T * setup.batch
    moving = sum(n.size for n in setup.graph.nodes if n.phase is not Phase.STATIC)
    units = sum(size[n] for n in nodes)
    known = every * (2 * moving + (_OF_SHIFTS * units if not exact else _OF_FACTORS * moving if real else 0))
    open_ = WindowSlots(merged(windows)).count
    states = sum(size[n] for n in setup.graph.previous.values())
    rows = setup.batch * min(stretch, chain_steps(setup.batch, units, states, open_))
    along = rows * units * states * (_OF_CHANGES * shifts + _OF_SLOPES)
    along += rows * open_ * columns * (_OF_SENSITIVITIES * units + _OF_CREDIT * states)
    slopes = every * columns * sum(size[z] for z in by.zs)
    results = max(t.entries for t in by.tensors)
    made = _OF_ASSEMBLED * min(columns * results, max(results, AT_ONCE)) + _OF_ESTIMATE * sum(
        t.entries for t in by.tensors
    )
    return held + _DOUBLE * (known + along + slopes + made)


def _rounding_bytes(setup: Setup, windows: Sequence[Window], numbers: int) -> int:
    """The bytes of passes in float32 and float64, with the arrays in both, perturbed and not."""
    entries = unrolled(setup, tuple(windows)).bytes // setup.dtype.itemsize
    return (entries + 2 * numbers) * (_SINGLE + _DOUBLE)
