"""The protocol of a peer: another program that computes the gradients of a Problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup


class Peer(Protocol):
    """One file of `bpcli.peers` holds one of these, as `PEER`; importing it does not import the other program."""

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
