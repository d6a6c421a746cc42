"""What a check is asked to do, and what it does about it: which references, every entry or directions.

What a check will hold in memory, told before anything runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bpcli.backends import oracle as outside
from bpcli.backends.oracle import Outside
from bpcli.checking.reference_cache import AUTO, references_for
from bpcli.checking.sources.gradient_source import Foreign
from bpcli.graph.nodes import Phase
from bpcli.methods import MethodCall
from bpcli.methods.base import Definition, Exact, Recursion
from bpcli.problem.definition import Setup, Tensor
from bpcli.problem.limits import array_bytes
from bpcli.references.base import ByChain, Reference, copies
from bpcli.references.central import Central
from bpcli.references.complex_step import ComplexStep
from bpcli.references.numerics.chain_rule import AT_ONCE
from bpcli.references.numerics.derivatives import COMPARED, SIGNED
from bpcli.references.numerics.noise import EVALUATIONS as NOISE_EVALUATIONS
from bpcli.references.numerics.noise import SAMPLES
from bpcli.references.numerics.probe import COUNT, ROWS
from bpcli.references.numerics.recursion import recursion_flops
from bpcli.references.numerics.rounding import rounding_flops
from bpcli.references.perturbation.measured_steps import measured_bytes
from bpcli.references.perturbation.one_step import cut
from bpcli.references.perturbation.perturbed import BLOCK_ENTRIES
from bpcli.references.perturbation.preactivations import step_by_step
from bpcli.references.perturbation.tangent import possible
from bpcli.runtime.copies import layout_of, reach
from bpcli.runtime.reverse_mode import Window, unrolled
from bpcli.tape.plan import make_plan

Mode = Literal["auto", "full", "directional"]

AFFORDABLE = 2e11
"""Predicted flops up to which "auto" judges every entry: some ten seconds' worth."""
_ASKED = 2


@dataclass(frozen=True)
class CheckOptions:
    """`reference` judges, or the peer of that name: "auto" takes the sharpest that applies, and differences beside it.

    The mode "full" judges every entry and puts differences beside each, "directional" judges directions first, and
    "auto" judges every entry where that is affordable, with differences beside as many as are.
    """

    reference: str = AUTO
    mode: Mode = "auto"


@dataclass(frozen=True)
class Choice:
    """What "auto" comes down to. `flops` are predicted for the mode taken, `full_flops` for every entry."""

    mode: Literal["full", "directional"]
    references: tuple[Reference, ...]
    sampled: bool
    flops: float
    full_flops: float

    def __str__(self) -> str:
        """In words."""
        judge, *beside = (r.name for r in self.references)
        what = "in every entry" if self.mode == "full" else f"along {COUNT} directions a tensor"
        seen = " at a sample of the entries" if self.sampled else ""
        words = f"{what} by {judge}" + (f", with {beside[0]} beside it{seen}" if beside else "")
        if self.mode == "directional":
            words += f" (every entry, --mode full, would take {self.full_flops:.1g} operations)"
        return words


def choose(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> Choice:
    """The references and the mode that `options` come to for these sizes, and what that costs."""
    used = references_for(setup, options.reference, options.mode)
    definitions = {call.definition(setup) for call in calls}
    recursions = {d for d in definitions if isinstance(d, Recursion)}
    asked = sum(_ASKED * call.cost(setup).flops for call in calls) + _rounding(setup, definitions)
    asked += sum(recursion_flops(d) for d in recursions)
    full = asked + _cost(setup, definitions - recursions, used)
    windowed = (definitions - recursions) | {Exact()}
    along = asked + sum(r.cost_along(setup, d.over(setup), COUNT) for r in used for d in windowed)
    dear = options.mode == AUTO and full > max(AFFORDABLE, along)
    if dear or options.mode == "directional":
        return Choice("directional", references_for(setup, options.reference, "directional"), False, along, full)
    sampled = any(isinstance(r, Central) and copies(setup, r.sample) < copies(setup) for r in used)
    return Choice("full", used, sampled, full, full)


def unjudged(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> dict[str, str]:
    """The methods, by text, that the reference can't judge, and why."""
    reasons = {call.text: _refusal(options.reference, call.definition(setup)) for call in calls}
    return {text: reason for text, reason in reasons.items() if reason}


def _refusal(reference: str, definition: Definition) -> str | None:
    """Why a reference can't judge by a definition; None when it can."""
    if reference in outside.known():
        return outside.refusal(reference, definition)
    if isinstance(definition, Recursion) and reference not in (AUTO, ComplexStep.name):
        return f"the reference {reference} differentiates losses, not the steps that a recursion is made of"
    return None


def check_cost(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> float:
    """Predicted floating-point operations of a check, without what wrong gradients cause."""
    return choose(setup, calls, options).flops


def _cost(setup: Setup, definitions: set[Definition], used: tuple[Reference, ...]) -> float:
    """Of all estimates: for every definition, and of the true gradient by the reference that judges."""
    each = sum(r.cost(setup, d.over(setup)) for r in used for d in definitions)
    return each + (0.0 if Exact() in definitions else used[0].cost(setup, Exact().over(setup)))


def _rounding(setup: Setup, definitions: set[Definition]) -> float:
    return sum(rounding_flops(setup, d.over(setup)) for d in definitions)


_COMPLEX, _DOUBLE, _SINGLE = 16, 8, 4
# A ladder shifts every entry six times at once. Of copies the losses of every sample and the kinks that they met are
# there, once in blocks and once joined, and sums; of a block those of its rows too, and their sums over steps.
_LADDER, _OF_LOSSES, _OF_ROWS = 6, 5, 3
# What is known of nodes at every step: values and, by differences, the shifts of four copies, twice; by tangents the
# factors, and complex values with the passes that they are from.
_OF_SHIFTS, _OF_FACTORS = 10, 12
# What a step's changes come to, what states are worth, and gradients that are put together, in copies of what they are.
_OF_WORTH, _OF_CREDIT, _OF_MADE = 3, 6, 3
# An estimate's arrays; the bound on rounding, and the sums it is made of.
_OF_ESTIMATE, _OF_ROUNDING = 4, 4
# Plans and layouts that are kept for the next pass, in bytes, whatever a network's size: as measured of small ones.
_TABLES = 1 << 18
# A change to a static matrix: row, column, copy and the number, once in parts and once joined.
_OF_FIX = 2 * (3 * 8 + _COMPLEX)


def check_bytes(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> int:
    """About the bytes that `check` holds at its peak besides the problem's own arrays: predicted from sizes alone.

    Estimates and bounds are kept for every definition; references, rounding and methods come one after the other.
    """
    chosen = choose(setup, calls, options)
    used = chosen.references
    definitions = {call.definition(setup) for call in calls} | {Exact()}
    windows = [d.over(setup) for d in definitions]
    results = sum(_size(t.shape) for t in setup.wrt)
    kept = _DOUBLE * results * len(windows) * (_OF_ESTIMATE * len(used) + _OF_ROUNDING)
    # Second ladders, where a gradient looks wrong, are one more estimate at a time.
    kept += _DOUBLE * results * _OF_ESTIMATE
    numbers = sum(array_bytes(setup).values()) // setup.dtype.itemsize
    passes = [_perturbed(setup, w, r, numbers) for w in windows for r in used]
    passes += [_rounding_bytes(setup, w, numbers) for w in windows]
    passes += [measured_bytes(d.setup) for d in definitions if isinstance(d, Recursion)]
    passes += [call.cost(setup).bytes + (numbers + 2 * results) * setup.dtype.itemsize for call in calls]
    return kept + max(passes) + _TABLES


def _perturbed(setup: Setup, windows: Sequence[Window], reference: Reference, numbers: int) -> int:
    """A trace of all steps, and the larger of what the two kinds of copies take; what another program holds."""
    if isinstance(reference, Outside):
        return reference.bytes(setup)
    exact = isinstance(reference, ComplexStep)
    item = _COMPLEX if exact else _DOUBLE
    trace = make_plan(setup.graph, [], setup.batch, setup.T, []).entries + numbers
    by, sample = ByChain((), (), 0.0, setup), None
    if isinstance(reference, ComplexStep) or (isinstance(reference, Central) and reference.through(setup)):
        by = reference.by_chain(setup, windows)
    elif isinstance(reference, Central):
        sample = reference.sample
    # A few entries of all that comes by the chain rule together, all of the others; and what tells the noise.
    each, noise = (1, 0) if exact else (_LADDER, NOISE_EVALUATIONS * ROWS)
    shifted = [(by.tensors, each * COMPARED * len(by.tensors)), *(((t,), noise) for t in by.tensors)]
    shifted += [
        ((t,), max(noise, each * (t.entries if sample is None else min(t.entries, sample)))) for t in by.rest.wrt
    ]
    copies = max(_copies(setup, windows, tensors, count, item) for tensors, count in shifted)
    return item * trace + max(copies, _chain(setup, windows, by, exact) if by.zs else 0)


def _copies(setup: Setup, windows: Sequence[Window], tensors: Sequence[Tensor], count: int, item: int) -> int:
    """So many copies with changes of tensors: a block of them, and the losses of all."""
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


def _chain(setup: Setup, windows: Sequence[Window], by: ByChain, exact: bool) -> int:
    """Steps by themselves: their copies, what is known at every step, and what goes along from step to step."""
    nodes, size = step_by_step(setup.graph, by.zs), {n.index: n.size for n in setup.graph.nodes}
    real = exact and possible(setup.graph, by.zs)
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
    open_ = max(sum(1 for w in windows if w.start <= t < w.stop) for t in range(setup.T))
    states = sum(size[n] for n in setup.graph.previous.values())
    along = setup.batch * open_ * columns * (_OF_WORTH * (shifts + 1) * units + _OF_CREDIT * states)
    slopes = every * columns * sum(size[z] for z in by.zs)
    results = max(t.entries for t in by.tensors)
    made = _OF_MADE * min(columns * results, max(results, AT_ONCE)) + _OF_ESTIMATE * sum(t.entries for t in by.tensors)
    return held + _DOUBLE * (known + along + slopes + made)


def _rounding_bytes(setup: Setup, windows: Sequence[Window], numbers: int) -> int:
    """The passes in float32 and float64, with the arrays in both, shifted and not."""
    entries = unrolled(setup, tuple(windows)).bytes // setup.dtype.itemsize
    return (entries + 2 * numbers) * (_SINGLE + _DOUBLE)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
