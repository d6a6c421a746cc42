"""Array files: one safe reader behind two formats. Nothing is executed, no size is believed before it is checked."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        from bpcli.problem.npz import NpzFile

        return NpzFile(path, report)
    if suffix == ".safetensors":
        from bpcli.problem.safetensors import SafetensorsFile

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
