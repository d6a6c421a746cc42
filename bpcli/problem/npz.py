"""`.npz`: a zip archive of `.npy` members. Headers are parsed as literals; nothing is ever unpickled.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import re
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from bpcli.errors import printable
from bpcli.problem.array_files import Layout, Report, checked_finite, pour
from bpcli.problem.definition import Array

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 10_000
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
        descr, shape, fortran = _fields(header)
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
    if length > HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes is too long")
    text = stream.read(length)
    if len(text) != length:
        raise EOFError("the header ends too early")
    return text.decode("utf-8" if major == 3 else "latin-1"), 8 + width + length


def _fields(header: str) -> tuple[object, tuple[int, ...], bool]:
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
