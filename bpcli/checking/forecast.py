"""What a check will hold in memory, told before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bpcli.checking.answers import Foreign
from bpcli.checking.options import CheckOptions, choose
from bpcli.checking.outside import Outside
from bpcli.checking.truth import Windows, whole
from bpcli.graph.model import Phase
from bpcli.kernels.plan import make_plan
from bpcli.kernels.tiles import packed_entries
from bpcli.methods import MethodCall
from bpcli.problem.limits import array_bytes
from bpcli.problem.model import Setup
from bpcli.problem.perturbed import BLOCK_ENTRIES
from bpcli.problem.preactivations import terms
from bpcli.problem.unrolled import unrolled
from bpcli.references import complex_step
from bpcli.references.base import Reference
from bpcli.references.central import Central

_COMPLEX, _DOUBLE, _SINGLE = 16, 8, 4
# Blocks of copies of which two are kept; what is known of preactivations, and of the tangent network, at every step.
_BLOCKS, _OF_VALUES = 2, 10
# A ladder shifts every entry six times at once, and has the losses of every sample, and the kinks that they met, twice:
# in blocks, and joined.
_LADDER, _JOINED = 6, 2
# An estimate's arrays; the bound on rounding, and the sums it is made of.
_OF_ESTIMATE, _OF_ROUNDING = 4, 4
# A change to a static matrix: row, column, copy and the number, once in parts and once joined.
_OF_FIX = 2 * (3 * 8 + _COMPLEX)


def check_bytes(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> int:
    """Bytes that `check` holds at its peak besides the problem's own arrays, at most: predicted from sizes alone.

    Estimates and bounds are kept for every set of windows; references, rounding and methods come one after the other.
    """
    chosen = choose(setup, calls, options)
    used = chosen.references
    windows = {tuple(call.windows(setup)) for call in calls} | {whole(setup)}
    results = sum(_size(t.shape) for t in setup.wrt)
    kept = _DOUBLE * results * len(windows) * (_OF_ESTIMATE * len(used) + _OF_ROUNDING)
    # Second ladders, where a gradient looks wrong, are one more estimate at a time.
    kept += _DOUBLE * results * _OF_ESTIMATE
    numbers = sum(array_bytes(setup).values()) // setup.dtype.itemsize
    passes = [_perturbed(setup, w, r, numbers) for w in windows for r in used]
    passes += [_rounding(setup, w, numbers) for w in windows]
    passes += [call.cost(setup).bytes + (numbers + 2 * results) * setup.dtype.itemsize for call in calls]
    return kept + max(passes)


def _perturbed(setup: Setup, windows: Windows, reference: Reference, numbers: int) -> int:
    """A trace of all steps, a block of copies beside it, and the losses of the copies; what another program holds."""
    if isinstance(reference, Outside):
        return reference.bytes(setup)
    exact = reference.name == complex_step.REFERENCE.name
    item = _COMPLEX if exact else _DOUBLE
    nodes = setup.graph.nodes
    trace = make_plan(setup.graph, [], setup.batch, setup.T, []).entries + numbers
    static = sum(n.size for n in nodes if n.phase is Phase.STATIC)
    before = sum(n.size for n in nodes if n.phase is Phase.INPUT)
    moving = sum(n.size for n in nodes if n.phase is not Phase.STATIC)
    entries = max(t.entries for t in setup.wrt)
    block = 0
    for length, count in Counter(w.stop - w.start for w in windows).items():
        rows = count * setup.batch
        # What all copies share is there for all steps, inputs twice; what differs, for one; the rest is sums of losses.
        # Losses are there for every step, and once more while they are added up.
        shared = 2 * length * rows * before + 2 * static
        each = rows * (moving + 4 + 2 * length) + static
        block = max(block, shared + max(each, min(2 * BLOCK_ENTRIES, entries * each)))
    block *= _BLOCKS
    fixes = _OF_FIX * min(BLOCK_ENTRIES, entries * static) if _computes_matrices(setup) else 0
    sample = entries if not isinstance(reference, Central) or reference.sample is None else reference.sample
    losses = 2 * _DOUBLE * _JOINED * (1 if exact else _LADDER) * min(entries, sample) * setup.batch
    matrices = [n.shape for n in nodes if n.phase is Phase.STATIC and len(n.shape) == 2]
    packed = sum(packed_entries(*shape) + packed_entries(*shape[::-1]) for shape in matrices)
    return item * (trace + block + packed) + _preactivations(setup) + fixes + losses


def _preactivations(setup: Setup) -> int:
    """Values, derivatives and bounds at every step, where parameters are differentiated through preactivations."""
    moving = sum(n.size for n in setup.graph.nodes if n.phase is not Phase.STATIC)
    return _DOUBLE * _OF_VALUES * setup.T * setup.batch * moving if terms(setup.graph) else 0


def _computes_matrices(setup: Setup) -> bool:
    nodes = setup.graph.nodes
    return any(n.phase is Phase.STATIC and n.args and len(n.shape) == 2 for n in nodes)


def _rounding(setup: Setup, windows: Windows, numbers: int) -> int:
    """The passes in float32 and float64, with the arrays in both, shifted and not."""
    entries = unrolled(setup, windows).bytes // setup.dtype.itemsize
    return (entries + 2 * numbers) * (_SINGLE + _DOUBLE)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
