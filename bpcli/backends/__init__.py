"""Other programs that run the same Graph, for comparison: one module each, which holds a `PEER`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from bpcli.errors import fail, nearest

if TYPE_CHECKING:
    from bpcli.backends.base import Peer


# What belongs to a peer has its name and an underscore in front, what several share `array_`: `jax_programs`.
_NOT_PEERS = frozenset({"base", "oracle"})


def known_names() -> tuple[str, ...]:
    """The names of all peers, sorted; read off the file names, so that nothing is imported."""
    files = {m.name for m in pkgutil.iter_modules(__path__)} - _NOT_PEERS
    return tuple(sorted(f for f in files if "_" not in f))


def get(name: str) -> Peer:
    """The peer called `name`; raises BpError for an unknown one and for one that is not installed here."""
    if name not in known_names():
        fail("unknown-peer", f'unknown peer "{name}"', help=nearest(name, known_names()))
    peer = cast("Peer", importlib.import_module(f"{__name__}.{name}").PEER)
    if reason := peer.available():
        fail("peer-missing", f'peer "{name}" can\'t run: {reason}', help='pip install "bp[peers]"')
    return peer
