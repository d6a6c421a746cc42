"""The protocol between bp and the process that runs user code: JSON on a pipe, arrays in memory that both share.

A frame is a header (mark, length) and JSON, `[message, slots]`; a slot `[dtype, shape, offset]` is an array in the
shared file. bp asks and the process answers, never both at once, so that one region serves both directions. `workshop`
lists the messages.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from json import dumps, loads
from os import fstat, ftruncate, read, write
from struct import Struct
from typing import Any

from numpy import copyto, dtype, ndarray

# Bound here: user code may rebind names of the modules in its process.


Array = ndarray[Any, dtype[Any]]
Message = dict[str, Any]

_HEAD = Struct("<4sI")
_MARK = b"bp:1"
_LONGEST = 1 << 26
_CHUNK = 1 << 16
_FIRST = 1 << 20
"""Bytes that are shared to begin with."""
_ALIGNED = 64
UNHEARD = 88
"""The exit code of a process that cannot answer: its pipe is closed."""


class Line:
    """One end of the pipe: frames are read from `source` and written to `sink`, arrays lie in the file `shared`."""

    def __init__(self, source: int, sink: int, shared: int) -> None:
        self._source, self._sink, self._shared = source, sink, shared
        self._map: Any = b""
        self._reach(_FIRST)

    def send(self, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        """Copy arrays into the shared memory and send a message. Raises OSError where nobody listens."""
        slots, end = [], 0
        for array in arrays:
            slots.append((array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        self._reach(end)
        for array, slot in zip(arrays, slots, strict=True):
            copyto(self._at(*slot), array)
        text = dumps((message, slots)).encode("ascii")
        data = _HEAD.pack(_MARK, len(text)) + text
        while data:
            data = data[write(self._sink, data) :]

    def receive(self, ready: Callable[[], None] = lambda: None) -> tuple[Message, list[Array]]:
        """The next message, and its arrays as views that are valid until another one is sent.

        `ready` is called before each read, and may wait or raise. Raises EOFError where the other end is closed,
        ValueError for a frame that is none.
        """
        data = b""
        while len(data) < _HEAD.size:
            data += self._more(ready)
        mark, size = _HEAD.unpack_from(data)
        if mark != _MARK or size > _LONGEST:
            raise ValueError("not a frame")
        while len(data) < _HEAD.size + size:
            data += self._more(ready)
        message, slots = loads(data[_HEAD.size :])
        self._reach(fstat(self._shared).st_size if slots else 0)
        return message, [self._at(*slot) for slot in slots]

    def _more(self, ready: Callable[[], None]) -> bytes:
        ready()
        data = read(self._source, _CHUNK)
        if not data:
            raise EOFError
        return data

    def _reach(self, size: int) -> None:
        """Map that many bytes of the shared file at least. An old map goes when the last view of it does."""
        if size <= len(self._map):
            return
        if fstat(self._shared).st_size < size:
            ftruncate(self._shared, 1 << (size - 1).bit_length())
        self._map = mmap.mmap(self._shared, 0)

    def _at(self, kind: str, shape: Sequence[int], offset: int) -> Array:
        return ndarray(tuple(shape), dtype(kind), self._map, offset)
