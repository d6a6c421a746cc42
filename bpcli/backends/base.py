"""The protocol of a peer, and what the programs of peers take from a library of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

Arrays = Mapping[str, Any]
Function = Callable[..., Any]
Program = Callable[[Arrays, Arrays], tuple[Any, Arrays]]
"""The loss and its gradient, from the arrays that are differentiated and from all others."""


class Peer(Protocol):
    """One file of `bpcli.backends` holds one of these, as `PEER`; importing it does not import the other program."""

    name: ClassVar[str]
    summary: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]

    def available(self) -> str | None:
        """Why the program can't run here; None when it can."""

    def prepare(self, threads: int) -> int | None:
        """Limit the program to so many threads; called before its first gradient.

        Returns the number of threads that it keeps to, None where it can't be limited and takes as many as it likes.
        """

    def refusal(self, setup: Setup, method: str) -> str | None:
        """Why the peer does not run this method on this setup; None when it does."""

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """A function that computes the gradient and waits for it; its first call compiles."""


def peer_refusal(peer: Peer, setup: Setup, method: str) -> str | None:
    """Why no peer runs this method on this setup: it has no such method, or RTRL is with respect to inputs."""
    if method not in peer.methods:
        return f"{peer.name} runs {', '.join(peer.methods)}"
    if method == "rtrl" and any(t.kind == "input" for t in setup.wrt):
        return "rtrl of a peer differentiates parameters and states, not inputs"
    return None


@dataclass(frozen=True)
class Library:
    """A library of arrays.

    `xp` is a module whose functions have NumPy's names and arguments where both do the same. `special` has the
    functions of operations that `xp` lacks or names otherwise; those of vectors work along the last axis.
    `product(M, v)` multiplies the rows `v` by the transpose of M, `product_sum(M, v, u)` adds `u` to that. `constant`
    makes a NumPy array one of the library's. `scan(step, first, fed, length)` calls `step(carry, now) -> (carry,
    kept)` for every step; `now` and `kept` are dicts of the slices, at that step, of `fed` and of the second result.
    `vjp(function, *arguments)` gives the result and its pullback; `vmap(function, axes)` maps over the leading axes of
    arguments whose entry in `axes` is 0.
    """

    xp: Any
    special: Mapping[str, Function]
    product: Function
    product_sum: Function
    constant: Function
    scan: Function
    vjp: Function
    vmap: Function
