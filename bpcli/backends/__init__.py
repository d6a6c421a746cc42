"""Peers: other programs that run the same Graph, as rivals in a bench and as oracles in a check.

A peer is a module of this package that holds a `PEER`; importing it does not import the program.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from bpcli.errors import fail, nearest

if TYPE_CHECKING:
    from bpcli.backends.base import Peer

_SHARED = frozenset({"base", "array_graph", "oracle"})
"""Modules that are no peers."""


def known_names() -> tuple[str, ...]:
    """The names of all peers, sorted; read off the file names, so that nothing is imported."""
    return tuple(sorted({m.name for m in pkgutil.iter_modules(__path__)} - _SHARED))


def get(name: str) -> Peer:
    """The peer called `name`; raises BpError for an unknown one and for one that is not installed here."""
    if name not in known_names():
        fail("unknown-peer", f'unknown peer "{name}"', help=nearest(name, known_names()))
    peer = cast("Peer", importlib.import_module(f"{__name__}.{name}").PEER)
    if reason := peer.available():
        fail("peer-missing", f'peer "{name}" can\'t run: {reason}', help='pip install "bp[peers]"')
    return peer
