"""Array files: one safe reader behind two formats. Nothing is executed, no size is believed before it is checked.

`.npz`: a zip archive of `.npy` members. Headers are parsed as literals; nothing is ever unpickled.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

`.safetensors`: a length, a JSON header, and the arrays' bytes, little-endian and in C order.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import ast
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import Place, fail, nearest, printable
from bpcli.problem.definition import Array

PIECE = 1 << 20
_FINITE = "write the file again without nan and inf, or with smaller numbers"
_CHANGED = "the file changed while it was read: run it again"
Decode = Callable[[bytes], NDArray[Any]]
# What zipfile, zlib, json and the parsers beside this file raise on bytes that are not what they should be.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, LookupError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class Layout:
    """How one array lies in a file: shape, bytes of an entry, what turns bytes into numbers, Fortran or C order."""

    shape: tuple[int, ...]
    itemsize: int
    decode: Decode
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Length of the array's data in bytes."""
        return self.itemsize * math.prod(self.shape)


class ArrayFile(Protocol):
    """Arrays by name. Every method raises `BpError`, at the line of the spec that names the file."""

    def names(self) -> tuple[str, ...]:
        """What the file holds, in its order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one array, from its header alone."""

    def read(self, name: str, dtype: np.dtype[np.floating]) -> Array:
        """One array, C-contiguous, in `dtype`, every entry finite."""


@dataclass(frozen=True)
class Report:
    """Refuses a file: the messages begin with its name, the place is the line that names it."""

    file: str
    place: Place | None

    def bad(self, what: str, advice: str, code: str = "bad-file") -> NoReturn:
        """Raise `BpError`."""
        fail(code, f"{printable(self.file)}: {what}", self.place, help=advice)

    def missing(self, name: str, names: tuple[str, ...]) -> NoReturn:
        """Refuse a look-up; the help lists what the file holds."""
        held = nearest(name, names, "the file holds no arrays: write it anew").replace("known: ", "the file holds: ")
        self.bad(f'no array "{printable(name)}"', held, "missing-array")

    @contextmanager
    def guard(self, doing: str) -> Iterator[None]:
        """Turn what the readers of the standard library raise on a damaged file into a refusal."""
        try:
            yield
        except OSError as error:
            self.bad(f"cannot be read: {error.strerror or error}", "check its name and its rights", "unreadable-file")
        except DAMAGE as error:
            self.bad(f"{doing}: {printable(str(error)) or type(error).__name__}", "write or copy the file again")


def open_arrays(path: Path, place: Place | None) -> ArrayFile:
    """The file behind `path`, its directory of arrays read; `BpError` at `place` when it is no array file."""
    report = Report(path.name, place)
    if not path.is_file():
        report.bad("not a regular file", "name an .npz or .safetensors file", "unreadable-file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return NpzFile(path, report)
    if suffix == ".safetensors":
        return SafetensorsFile(path, report)
    report.bad("not an array file", "known: .npz, .safetensors", "unknown-format")


def read_as(
    file: ArrayFile, name: str, shape: tuple[int, ...], dtype: np.dtype[np.floating], place: Place | None
) -> Array:
    """An array whose shape is known already; `BpError` when the file has another one by now."""
    found = file.shape(name)
    if found != shape:
        fail("shape-mismatch", f'"{printable(name)}" has the shape {found}, expected {shape}', place, help=_CHANGED)
    return file.read(name, dtype)


def pour(stream: IO[bytes], layout: Layout, dtype: np.dtype[np.floating]) -> Array:
    """Read `layout.nbytes` bytes, piece by piece, into an array of `dtype`; `EOFError` when they are not there."""
    flat = np.empty(math.prod(layout.shape), dtype=dtype)
    step = PIECE // layout.itemsize
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, step):
            stop = min(start + step, flat.size)
            flat[start:stop] = layout.decode(_exactly(stream, (stop - start) * layout.itemsize))
    if layout.fortran:
        return np.ascontiguousarray(flat.reshape(layout.shape[::-1]).T).reshape(layout.shape)
    return flat.reshape(layout.shape)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0:
        part = stream.read(count)
        if not part:
            raise EOFError("the data ends too early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def checked_finite(array: Array, name: str, report: Report) -> Array:
    """`array`, every entry of which is finite; else `BpError` that names the first one that is not."""
    finite = np.isfinite(array)
    if not finite.all():
        report.bad(f'"{printable(name)}" is not finite{where(~finite)} in {array.dtype}', _FINITE, "not-finite")
    return array


def where(mask: NDArray[np.bool_]) -> str:
    """ " at [i, j]" for the first true entry of a mask; nothing for a scalar."""
    if not mask.shape:
        return ""
    return " at [" + ", ".join(str(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape)) + "]"


MAGIC = b"\x93NUMPY"
NPZ_HEADER_LIMIT = 10_000
ENCRYPTED = 0x1
REAL = re.compile(r"[<>|=]?(f(2|4|8|12|16)|[iu][1248])")


class NpzFile:
    """An `ArrayFile`; the archive is opened anew for each look at it, so nothing is left open."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path = path
        self._report = report
        self._members: dict[str, zipfile.ZipInfo] = {}
        with report.guard("not a readable .npz archive"), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                self._note(info)

    def _note(self, info: zipfile.ZipInfo) -> None:
        if not info.filename.endswith(".npy"):
            return
        name = info.filename.removesuffix(".npy")
        if name in self._members:
            self._report.bad(
                f'holds "{printable(name)}" twice', "keep one of the two: numpy.savez writes each name once"
            )
        self._members[name] = info

    def names(self) -> tuple[str, ...]:
        """What the file holds, in its order."""
        return tuple(self._members)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one array, from its header alone."""
        info = self._member(name)
        with self._guard(name), zipfile.ZipFile(self._path) as archive, archive.open(info) as stream:
            return self._layout(stream, info).shape

    def read(self, name: str, dtype: np.dtype[np.floating]) -> Array:
        """One array, C-contiguous, in `dtype`, every entry finite."""
        info = self._member(name)
        with self._guard(name), zipfile.ZipFile(self._path) as archive, archive.open(info) as stream:
            array = pour(stream, self._layout(stream, info), dtype)
            # Reading past the end makes zipfile compare the checksum.
            if stream.read(1):
                raise ValueError("the data is longer than its header says")
        return checked_finite(array, name, self._report)

    def _guard(self, name: str) -> AbstractContextManager[None]:
        return self._report.guard(f'array "{printable(name)}" is damaged')

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            self._report.missing(name, self.names())
        info = self._members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & ENCRYPTED:
            what = f'"{printable(name)}" is packed in a way that is not read'
            self._report.bad(what, "numpy.savez and numpy.savez_compressed write what is read")
        return info

    def _layout(self, stream: IO[bytes], info: zipfile.ZipInfo) -> Layout:
        """The header of a member; its declared size must be that of the member before anything is allocated."""
        name = printable(info.filename.removesuffix(".npy"))
        header, offset = _header(stream)
        descr, shape, fortran = _npz_fields(header)
        if not isinstance(descr, str) or not REAL.fullmatch(descr):
            self._refuse(name, descr)
        try:
            dtype = np.dtype(descr)
        except TypeError:  # a long double of another platform
            self._refuse(name, descr)
        layout = Layout(shape, dtype.itemsize, lambda data: np.frombuffer(data, dtype=dtype), fortran)
        if offset + layout.nbytes != info.file_size:
            raise ValueError(f"its header asks for {layout.nbytes} bytes of data, it has {info.file_size - offset}")
        return layout

    def _refuse(self, name: str, descr: object) -> NoReturn:
        pickled = isinstance(descr, str) and descr.endswith("O")
        kind = "pickled objects" if pickled else f"numbers of type {printable(str(descr), 80)}"
        self._report.bad(
            f'"{name}" holds {kind}', "write it as real floats or integers: array.astype(float)", "bad-dtype"
        )


def _header(stream: IO[bytes]) -> tuple[str, int]:
    """The header's text and the offset at which the data begins."""
    start = stream.read(8)
    if len(start) != 8 or not start.startswith(MAGIC):
        raise ValueError("not an .npy member")
    major = start[6]
    if major not in (1, 2, 3):
        raise ValueError(f"unknown .npy version {major}")
    width = 2 if major == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > NPZ_HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes is too long")
    text = stream.read(length)
    if len(text) != length:
        raise EOFError("the header ends too early")
    return text.decode("utf-8" if major == 3 else "latin-1"), 8 + width + length


def _npz_fields(header: str) -> tuple[object, tuple[int, ...], bool]:
    """`descr`, `shape` and `fortran_order` of a header."""
    try:
        fields = ast.literal_eval(header.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("the header is not a dictionary of literals") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError("the header lacks descr, fortran_order or shape")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(d) is int and d >= 0 for d in shape) or len(shape) > 32:
        raise ValueError("the header's shape is not a tuple of sizes")
    if not isinstance(fortran, bool):
        raise ValueError("the header's fortran_order is not a truth value")
    return fields["descr"], shape, fortran


SAFETENSORS_HEADER_LIMIT = 100_000_000


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
            code, shape, (begin, end) = _safetensors_fields(self._entries[name])
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
        if size < 8 or length > min(SAFETENSORS_HEADER_LIMIT, size - 8):
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


def _safetensors_fields(entry: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
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
