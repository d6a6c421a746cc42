"""The protocol of a peer: another program that computes the gradients of a Problem.

What the programs of peers take from a library of arrays: the same equations run with JAX's and with PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup


class Peer(Protocol):
    """One file of `bpcli.backends` holds one of these, as `PEER`; importing it does not import the other program."""

    name: ClassVar[str]
    summary: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]

    def available(self) -> str | None:
        """Why the program can't run here; None when it can."""

    def prepare(self, threads: int) -> int | None:
        """Let the program use that many threads; called before its first gradient.

        Returns how many it is held to; None where it can't be told and takes what it likes.
        """

    def refusal(self, setup: Setup, method: str) -> str | None:
        """Why the peer does not run this method on this setup; None when it does."""

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """A function that computes the gradient and waits for it; its first call compiles."""


Arrays = Mapping[str, Any]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Library:
    """A library of arrays.

    `xp` is a module whose functions have NumPy's names and arguments where both do the same. `special` takes an
    operation of the graph to a function; those of vectors work along the last axis. `product(M, v)` are the rows `v`
    times the transpose of M, `product_sum(M, v, u)` the same and `u`. `constant` makes a number (in NumPy's dtype) one
    of the library's. `scan(step, first, fed, length)` calls `step(carry, now) -> (carry, kept)` for every step, `now`
    and `kept` being dicts of what `fed` and the second result hold for all steps. `vjp(function, *arguments)` gives the
    result and its pullback, and `vmap(function, axes)` runs over leading axes where `axes` says 0.
    """

    xp: Any
    special: Mapping[str, Function]
    product: Function
    product_sum: Function
    constant: Function
    scan: Function
    vjp: Function
    vmap: Function
