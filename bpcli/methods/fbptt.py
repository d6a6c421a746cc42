"""Truncated BPTT with a fixed horizon (Williams & Zipser 1995): every loss goes back through tau steps."""

from dataclasses import dataclass

from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Windows
from bpcli.runtime.reverse_mode import staircase


@dataclass(frozen=True)
class Options:
    """Horizon in steps, `tau` >= 1."""

    tau: int

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise ValueError(f"tau must be at least 1, not {self.tau}")


PER_STEP = ("(1 + 2 tau) F", "tau V")
METHOD = Unrolling(
    name="fbptt",
    summary="every loss goes back through tau steps (tbptt with k1 = 1, k2 = tau)",
    tags=frozenset({"biased", "online", "recurrent", "reverse"}),
    Options=Options,
    defined=lambda T, options: Windows(staircase(T, 1, options.tau)),
)
