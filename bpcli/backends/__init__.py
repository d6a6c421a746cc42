"""Peers: other programs that run the same Graph, as rivals in a bench and as oracles in a check.

A peer is a module of this package that holds a `PEER`; importing it does not import the program.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from bpcli.errors import fail, nearest

if TYPE_CHECKING:
    from bpcli.methods.base import Gradient
    from bpcli.problem.definition import Problem, Setup

_SHARED = frozenset({"array_graph", "jax_rules", "oracle"})
"""Modules that are no peers."""
Arrays = Mapping[str, Any]
Function = Callable[..., Any]
Program = Callable[[Arrays, Arrays], tuple[Any, Arrays]]
"""The loss and its gradient, from the arrays that are differentiated and from all others."""


class Peer(Protocol):
    """The interface to another program."""

    summary: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        """Its name in rows and on the command line."""

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


def known_names() -> tuple[str, ...]:
    """The names of all peers, sorted; read off the file names, so that nothing is imported."""
    return tuple(sorted({m.name for m in pkgutil.iter_modules(__path__)} - _SHARED))


def get(name: str) -> Peer:
    """The peer called `name`; raises BpError for an unknown one and for one that is not installed here."""
    if name not in known_names():
        fail("unknown-peer", f'unknown peer "{name}"', help=nearest(name, known_names()))
    peer = cast("Peer", importlib.import_module(f"{__name__}.{name}").PEER)
    if reason := peer.available():
        fail("peer-missing", f'peer "{name}" can\'t run: {reason}', help='pip install "bp-check[peers]"')
    return peer


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
