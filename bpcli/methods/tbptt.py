"""Truncated BPTT (Williams & Peng 1990): every k1 steps the losses of the last k1 steps go back through k2 steps.

Biased: dependencies longer than the window are left out. Memory grows with k2, not with T.
"""

from dataclasses import dataclass

from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Windows
from bpcli.runtime.reverse_mode import staircase


@dataclass(frozen=True)
class Options:
    """Every `k1` steps, back through `k2` steps; k2 >= k1 >= 1."""

    k1: int
    k2: int

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise ValueError(f"k1 must be at least 1, not {self.k1}")
        if self.k2 < self.k1:
            raise ValueError(f"k2 must be at least k1, got k1={self.k1}, k2={self.k2}")


PER_STEP = ("(1 + 2 k2/k1) F", "k2 V")
METHOD = Unrolling(
    name="tbptt",
    summary="every k1 steps, the last k1 losses go back through k2 steps",
    tags=frozenset({"biased", "online", "recurrent", "reverse"}),
    Options=Options,
    defined=lambda T, options: Windows(staircase(T, options.k1, options.k2)),
)
