"""The protocol between bp and the process that runs user code: JSON on a pipe, arrays in memory that both share.

A frame is a header (mark, length) and JSON, `[message, slots]`; a slot `[dtype, shape, offset]` is an array in the
shared file. bp asks and the process answers in turn, so that one region serves both directions. `user_child` lists the
messages. Names are imported one by one because user code may rebind what modules hold in its process.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from json import dumps, loads
from os import fstat, ftruncate, read, write
from struct import Struct
from typing import Any

from numpy import copyto, dtype, ndarray

Array = ndarray[Any, dtype[Any]]
Message = dict[str, Any]

_HEAD = Struct("<4sI")
_MARK = b"bp:1"
_LONGEST = 1 << 26
_CHUNK = 1 << 16
_FIRST = 1 << 20
"""Bytes shared at the start."""
_ALIGNED = 64
UNHEARD = 88
"""The exit code of a process that cannot answer because its pipe is closed."""


class Line:
    """One end of the pipe: frames are read from `source` and written to `sink`, arrays lie in the file `shared`."""

    def __init__(self, source: int, sink: int, shared: int) -> None:
        self._source, self._sink, self._shared = source, sink, shared
        self._map: Any = b""
        self._reach(_FIRST)

    def send(self, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        """Copy arrays into the shared memory and send a message. Raises OSError if the other end is closed."""
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

        `ready` is called before each read, and may wait or raise. Raises EOFError if the other end is closed,
        ValueError for a malformed frame.
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
        """Map at least `size` bytes of the shared file. An old map is freed with the last view of it."""
        if size <= len(self._map):
            return
        if fstat(self._shared).st_size < size:
            ftruncate(self._shared, 1 << (size - 1).bit_length())
        self._map = mmap.mmap(self._shared, 0)

    def _at(self, kind: str, shape: Sequence[int], offset: int) -> Array:
        return ndarray(tuple(shape), dtype(kind), self._map, offset)
