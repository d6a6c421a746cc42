"""Plans of passes forwards and layouts of copies, kept as long as a setup is worked on."""

from __future__ import annotations

from functools import lru_cache

from bpcli.kernels.copies import Layout
from bpcli.problem.model import Setup
from bpcli.tape.dependency import Reach
from bpcli.tape.instructions import Forward
from bpcli.tape.lowering import fuse, lower_forward
from bpcli.tape.plan import Plan, make_plan


@lru_cache(maxsize=16)
def plan_of(setup: Setup, steps: int, reads: tuple[int, ...] = ()) -> Plan:
    """Of a pass forwards over so many steps, which holds the values of `reads`."""
    return make_plan(setup.graph, [], setup.batch, steps, [], reads=reads)


@lru_cache(maxsize=4)
def _forward(setup: Setup) -> Forward:
    return lower_forward(setup.graph, fuse(setup.graph))


@lru_cache(maxsize=64)
def reach(setup: Setup, changed: frozenset[int], single: bool = False) -> Reach:
    """What a change of some nodes reaches, in a `single` step or all that follow."""
    return Reach(setup.graph, _forward(setup), changed, single)


@lru_cache(maxsize=64)
def layout_of(
    setup: Setup, changed: frozenset[int], copies: int, rows: int, steps: int, single: bool = False
) -> Layout:
    """Places for copies that differ in some nodes."""
    return Layout(reach(setup, changed, single), copies, rows, steps)
