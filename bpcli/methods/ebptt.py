"""Epochwise BPTT (Williams & Peng 1990): consecutive blocks of tau steps, each backpropagated to its own start.

No loss reaches back into an earlier epoch, so the last one is shorter where tau does not divide T.
"""

from dataclasses import dataclass

from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Windows
from bpcli.runtime.reverse_mode import Window


@dataclass(frozen=True)
class Options:
    """Epochs of `tau` steps, `tau` >= 1."""

    tau: int

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise ValueError(f"tau must be at least 1, not {self.tau}")


def epochs(T: int, tau: int) -> tuple[Window, ...]:
    """One window per epoch: steps k·tau to min((k + 1)·tau, T), with the losses of exactly these steps."""
    return tuple(Window(start, start, min(start + tau, T)) for start in range(0, T, tau))


PER_STEP = ("3 F", "tau V")
METHOD = Unrolling(
    name="ebptt",
    summary="consecutive blocks of tau steps, each backpropagated to its own start",
    tags=frozenset({"biased", "online", "recurrent", "reverse"}),
    Options=Options,
    defined=lambda T, options: Windows(epochs(T, options.tau)),
)
