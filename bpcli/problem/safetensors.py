"""`.safetensors`: a length, a JSON header, and the arrays' bytes, little-endian and in C order.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import printable
from bpcli.problem.array_files import Decode, Layout, Report, checked_finite, pour
from bpcli.problem.definition import Array

HEADER_LIMIT = 100_000_000


def _plain(code: str) -> tuple[int, Decode]:
    dtype = np.dtype(code)
    return dtype.itemsize, lambda data: np.frombuffer(data, dtype=dtype)


def _bfloat16(data: bytes) -> NDArray[Any]:
    """The upper half of a float32."""
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


DTYPES: dict[str, tuple[int, Decode]] = {
    "BF16": (2, _bfloat16),
    **{
        f"{letter}{8 * size}": _plain(f"<{kind}{size}")
        for letter, kind in zip("FIU", "fiu", strict=True)
        for size in (1, 2, 4, 8)
        if (letter, size) != ("F", 1)
    },
}


class SafetensorsFile:
    """An `ArrayFile`; the header is read once, the data when it is asked for."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path = path
        self._report = report
        with report.guard("not a readable .safetensors file"):
            self._start, self._length, self._entries = _directory(path)

    def names(self) -> tuple[str, ...]:
        """What the file holds, in its order."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one array, from its header alone."""
        return self._layout(name)[0].shape

    def read(self, name: str, dtype: np.dtype[np.floating]) -> Array:
        """One array, C-contiguous, in `dtype`, every entry finite."""
        layout, offset = self._layout(name)
        with self._report.guard(f'array "{printable(name)}" is damaged'), self._path.open("rb") as stream:
            stream.seek(self._start + offset)
            array = pour(stream, layout, dtype)
        return checked_finite(array, name, self._report)

    def _layout(self, name: str) -> tuple[Layout, int]:
        """How one array lies in the file, and its offset in the data; both checked against the file's length."""
        if name not in self._entries:
            self._report.missing(name, self.names())
        shown = printable(name)
        with self._report.guard(f'array "{shown}" is damaged'):
            code, shape, (begin, end) = _fields(self._entries[name])
            if code not in DTYPES:
                self._report.bad(
                    f'"{shown}" holds numbers of type {printable(code, 80)}',
                    "write it as real floats or integers",
                    "bad-dtype",
                )
            layout = Layout(shape, *DTYPES[code])
            if end > self._length or begin + layout.nbytes != end:
                raise ValueError(f"{layout.nbytes} bytes at [{begin}, {end}] of {self._length} bytes of data")
        return layout, begin


def _directory(path: Path) -> tuple[int, int, dict[str, Any]]:
    """Where the data begins, its length in bytes, and the header's entries without the metadata."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        text = stream.read(length).decode("utf-8")
    try:
        entries = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("the header is nested too deep") from error
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    entries.pop("__metadata__", None)
    return 8 + length, size - 8 - length, entries


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the header names something twice")
    return entries


def _fields(entry: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """`dtype`, `shape` and `data_offsets` of a header's entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise ValueError("its header lacks a dtype")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or len(shape) > 32:
        raise ValueError("its header's shape is not a list of sizes")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError("its header's data_offsets are not [begin, end]")
    return entry["dtype"], shape, (offsets[0], offsets[1])


def _sizes(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(d) is int and d >= 0 for d in value):
        return tuple(value)
    return None
