"""Array files: `.npz`, `.safetensors` and PyTorch's checkpoints read, `.npz` written; output files written whole.

Reading executes nothing, and allocates no more than the file holds, whatever its header claims. Headers are parsed as
literals and checked against the size of the file; nothing is unpickled. numpy's own reader of `.npy` headers would read
one of any length, and `safetensors` knows neither bfloat16 in numpy nor repeated names.

Formats: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html and
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import secrets
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import Place, fail, nearest, printable
from bpcli.problem.definition import Array, Problem
from bpcli.problem.torch_checkpoint import SUFFIXES, entry_type, stored_tensors, tensor_bytes

CHUNK_BYTES = 1 << 20
NPY_HEADER_LIMIT = 10_000
MOST_DENSE = 1 << 24
"""Bytes of a tensor that a checkpoint may hold in fewer: as a sparse one, or a view that repeats entries."""
SAFETENSORS_HEADER_LIMIT = 100_000_000
_KNOWN = ".npz, .safetensors, .pt, .pth"
Decode = Callable[[bytes], NDArray[Any]]
_MOST_AXES = 32
_MAGIC = b"\x93NUMPY"
_ENCRYPTED = 0x1
_REAL = re.compile(r"[<>|=]?(f(2|4|8|12|16)|[iu][1248])")
# Exceptions that zipfile, zlib, json and the parsers below raise on damaged bytes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, LookupError, RuntimeError, OverflowError)
# The earliest date that a zip archive can hold: equal arrays give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class FileErrors:
    """Refuses a file: messages begin with its name, the place is the line of the spec that names it."""

    file: str
    place: Place | None

    def bad(self, what: str, advice: str, code: str = "bad-file") -> NoReturn:
        """Raise `BpError`."""
        fail(code, f"{printable(self.file)}: {what}", self.place, help=advice)

    @contextmanager
    def guard(self, doing: str) -> Iterator[None]:
        """Turn the exceptions that damaged files cause in the standard library into a refusal."""
        try:
            yield
        except OSError as error:
            self.bad(f"cannot be read: {error.strerror or error}", "check its name and permissions", "unreadable-file")
        except _DAMAGE as error:
            self.bad(f"{doing}: {printable(str(error)) or type(error).__name__}", "write or copy the file again")


@dataclass(frozen=True)
class Layout:
    """The layout of one array in a file: shape, bytes of an entry, conversion of bytes to numbers, memory order."""

    shape: tuple[int, ...]
    itemsize: int
    decode: Decode
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Length of the array's data in bytes."""
        return self.itemsize * math.prod(self.shape)


class ArrayFile(ABC):
    """Arrays by name. The file is opened for each access; every method raises `BpError` at the place of the file."""

    def __init__(self, path: Path, errors: FileErrors, entries: Mapping[str, Any]) -> None:
        self._path = path
        self._errors = errors
        self._entries = entries

    @abstractmethod
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        """Yield a stream at the start of the data of an array, and the layout, checked against the file's size."""

    def names(self) -> tuple[str, ...]:
        """The names of the arrays, in the file's order."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one array, from its header alone."""
        with self._data(name) as (_, layout):
            return layout.shape

    def read(self, name: str, dtype: np.dtype[np.floating]) -> Array:
        """One array, C-contiguous, in `dtype`, every entry finite."""
        with self._data(name) as (stream, layout):
            array = _read_data(stream, layout, dtype)
        finite = np.isfinite(array)
        if not finite.all():
            what = f'"{printable(name)}" is not finite{first_index(~finite)} in {array.dtype}'
            self._errors.bad(what, "write the file again without nan and inf, or with smaller numbers", "not-finite")
        return array

    @contextmanager
    def _data(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        if name not in self._entries:
            held = nearest(name, self._entries, "the file contains no arrays: write it again")
            advice = held.replace("known: ", "the file holds: ")
            self._errors.bad(f'no array "{printable(name)}"', advice, "missing-array")
        with self._errors.guard(f'array "{printable(name)}" is damaged'):
            yield from self._open(name)


def open_arrays(path: Path, place: Place | None) -> ArrayFile:
    """The file behind `path`, its directory of arrays read; `BpError` at `place` when it is no array file."""
    errors = FileErrors(path.name, place)
    if not path.is_file():
        errors.bad("not a regular file", f"name one of: {_KNOWN}", "unreadable-file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _NpzFile(path, errors, _npz_members(path, errors))
    if suffix == ".safetensors":
        with errors.guard("not a readable .safetensors file"):
            return _SafetensorsFile(path, errors, *_safetensors_header(path))
    if suffix in SUFFIXES:
        with errors.guard("not a readable checkpoint"):
            return _TorchFile(path, errors, stored_tensors(path, errors.bad))
    errors.bad("not an array file", f"known: {_KNOWN}", "unknown-format")


def read_as(
    file: ArrayFile, name: str, shape: tuple[int, ...], dtype: np.dtype[np.floating], place: Place | None
) -> Array:
    """An array whose shape was read before; `BpError` when the file has another one by now."""
    found = file.shape(name)
    if found != shape:
        what = f'"{printable(name)}" has the shape {found}, expected {shape}'
        fail("shape-mismatch", what, place, help="the file changed while it was read: run it again")
    return file.read(name, dtype)


def first_index(mask: NDArray[np.bool_]) -> str:
    """ " at [i, j]" for the first true entry of a mask; nothing for a scalar."""
    if not mask.shape:
        return ""
    return " at [" + ", ".join(str(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape)) + "]"


def _read_data(stream: IO[bytes], layout: Layout, dtype: np.dtype[np.floating]) -> Array:
    """Read `layout.nbytes` bytes in chunks into an array of `dtype`; `EOFError` when the data ends before."""
    flat = np.empty(math.prod(layout.shape), dtype=dtype)
    step = CHUNK_BYTES // layout.itemsize
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, step):
            stop = min(start + step, flat.size)
            flat[start:stop] = layout.decode(_read_exactly(stream, (stop - start) * layout.itemsize))
    if layout.fortran:
        return np.ascontiguousarray(flat.reshape(layout.shape[::-1]).T).reshape(layout.shape)
    return flat.reshape(layout.shape)


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0:
        part = stream.read(count)
        if not part:
            raise EOFError("the data ends too early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _npz_members(path: Path, errors: FileErrors) -> dict[str, zipfile.ZipInfo]:
    """The `.npy` members of a zip archive by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    with errors.guard("not a readable .npz archive"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, suffix = info.filename[:-4], info.filename[-4:]
            if suffix == ".npy" and name in members:
                advice = "keep one of the two: numpy.savez writes each name once"
                errors.bad(f'holds "{printable(name)}" twice', advice)
            if suffix == ".npy":
                members[name] = info
    return members


class _NpzFile(ArrayFile):
    """A zip archive of `.npy` members; the entries are their records in its directory."""

    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        info: zipfile.ZipInfo = self._entries[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
            advice = "numpy.savez and numpy.savez_compressed write arrays that can be read"
            self._errors.bad(f'"{printable(name)}" has an unsupported compression or encryption', advice)
        with zipfile.ZipFile(self._path) as archive, archive.open(info) as stream:
            yield stream, self._layout(name, stream, info.file_size)

    def _layout(self, name: str, stream: IO[bytes], size: int) -> Layout:
        """The layout in a header, whose data must fill the rest of the member's `size` bytes."""
        descr, shape, fortran, length = _npy_header(stream)
        dtype = None
        if isinstance(descr, str) and _REAL.fullmatch(descr):
            try:
                dtype = np.dtype(descr)
            except TypeError:  # a long double of another platform
                dtype = None
        if dtype is None:
            pickled = isinstance(descr, str) and descr.endswith("O")
            kind = "pickled objects" if pickled else f"numbers of type {printable(str(descr), 80)}"
            advice = "write it as real floats or integers: array.astype(float)"
            self._errors.bad(f'"{printable(name)}" holds {kind}', advice, "bad-dtype")
        layout = Layout(shape, dtype.itemsize, lambda data: np.frombuffer(data, dtype=dtype), fortran)
        if length + layout.nbytes != size:
            raise ValueError(f"its header asks for {layout.nbytes} bytes of data, it has {size - length}")
        return layout


def _npy_header(stream: IO[bytes]) -> tuple[object, tuple[int, ...], bool, int]:
    """`descr`, `shape` and `fortran_order` of a header, and its length in bytes."""
    start = stream.read(8)
    if len(start) != 8 or not start.startswith(_MAGIC):
        raise ValueError("not an .npy member")
    major = start[6]
    if major not in (1, 2, 3):
        raise ValueError(f"unknown .npy version {major}")
    width = 2 if major == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > NPY_HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes is too long")
    raw = stream.read(length)
    if len(raw) != length:
        raise EOFError("the header ends too early")
    text = raw.decode("utf-8" if major == 3 else "latin-1")
    try:
        fields = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("the header is not a dictionary of literals") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError("the header lacks descr, fortran_order or shape")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise ValueError("the header's shape is not a tuple of sizes")
    if not isinstance(fortran, bool):
        raise ValueError("the header's fortran_order is not a truth value")
    return fields["descr"], shape, fortran, 8 + width + length


def _are_sizes(values: tuple[object, ...] | list[object]) -> bool:
    return all(type(d) is int and d >= 0 for d in values)


def _bfloat16(data: bytes) -> NDArray[Any]:
    """The upper half of a float32."""
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def _decoder(code: str) -> tuple[int, Decode]:
    dtype = np.dtype(code)
    return dtype.itemsize, lambda data: np.frombuffer(data, dtype=dtype)


_INTEGERS = {f"{kind}{8 * size}": _decoder(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)}
_FLOATS = {f"F{8 * size}": _decoder(f"<f{size}") for size in (2, 4, 8)}
_SAFETENSORS_DTYPES = {"BF16": (2, _bfloat16), **_FLOATS, **_INTEGERS}


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's entries without the metadata, and the offset and length of the data in bytes."""
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
    return entries, 8 + length, size - 8 - length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("the header names something twice")
    return entries


class _SafetensorsFile(ArrayFile):
    """A length, a JSON header, and the arrays' bytes, little-endian and in C order; the entries are the header's."""

    def __init__(self, path: Path, errors: FileErrors, entries: Mapping[str, Any], start: int, length: int) -> None:
        super().__init__(path, errors, entries)
        self._start = start
        self._length = length

    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        entry = self._entries[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise ValueError("its header lacks a dtype")
        code, shape, offsets = entry["dtype"], entry.get("shape"), entry.get("data_offsets")
        if not isinstance(shape, list) or not _are_sizes(shape) or len(shape) > _MOST_AXES:
            raise ValueError("its header's shape is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not _are_sizes(offsets) or offsets[0] > offsets[1]:
            raise ValueError("its header's data_offsets are not [begin, end]")
        if code not in _SAFETENSORS_DTYPES:
            what = f'"{printable(name)}" holds numbers of type {printable(code, 80)}'
            self._errors.bad(what, "write it as real floats or integers", "bad-dtype")
        layout, (begin, end) = Layout(tuple(shape), *_SAFETENSORS_DTYPES[code]), offsets
        if end > self._length or begin + layout.nbytes != end:
            raise ValueError(f"{layout.nbytes} bytes at [{begin}, {end}] of {self._length} bytes of data")
        with self._path.open("rb") as stream:
            stream.seek(self._start + begin)
            yield stream, layout


_TORCH_DTYPES = {
    "bfloat16": "BF16",
    **{f"float{8 * size}": f"F{8 * size}" for size in (2, 4, 8)},
    **{f"{word}{8 * size}": f"{word[0].upper()}{8 * size}" for word in ("int", "uint") for size in (1, 2, 4, 8)},
}


class _TorchFile(ArrayFile):
    """A checkpoint of PyTorch; the entries are its tensors."""

    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        tensor = self._entries[name]
        code = entry_type(tensor)
        if tensor.numel() * tensor.element_size() > max(self._path.stat().st_size, MOST_DENSE):
            what = f'"{printable(name)}" repeats entries of a smaller tensor'
            self._errors.bad(what, "save it with .contiguous(), and a sparse one with .to_dense()")
        if code not in _TORCH_DTYPES:
            what = f'"{printable(name)}" holds numbers of type {code}'
            self._errors.bad(what, "save it as real floats or integers: tensor.float()", "bad-dtype")
        yield io.BytesIO(tensor_bytes(tensor)), Layout(tuple(tensor.shape), *_SAFETENSORS_DTYPES[_TORCH_DTYPES[code]])


def export_arrays(problem: Problem) -> dict[str, Array]:
    """Parameters, inputs and initial states under their names; read back, they give the same bits."""
    return {**problem.params, **problem.inputs, **problem.state}


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Write an `.npz` at `path` exactly, the same bytes for the same arrays; `BpError` where it can't be written."""

    def pack(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    replace_file(path, pack)


def replace_file(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a new file that then replaces `path`; a device is written directly."""
    target = _target(path)
    try:
        if target.exists() and not target.is_file():
            # A device claims that it can seek, on which zipfile relies.
            buffer = io.BytesIO()
            write(buffer)
            target.write_bytes(buffer.getvalue())
            return
        temporary = _temporary(target)
        try:
            with temporary.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        _refuse(path, error.strerror or str(error))


def check_writable(path: str | Path) -> None:
    """Refuse an output path that can't be written, before anything is computed; leaves nothing behind."""
    target = _target(path)
    try:
        if not target.exists() or target.is_file():
            _temporary(target).unlink()
    except OSError as error:
        _refuse(path, error.strerror or str(error))


def _target(path: str | Path) -> Path:
    """The file behind `path`, links followed; refused where no file can be."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode  # `exists` ignores other errors in every version of Python
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        _refuse(path, getattr(error, "strerror", None) or str(error))
    if mode is not None and stat.S_ISDIR(mode):
        _refuse(path, "it is a folder")
    if mode is not None and not os.access(target, os.W_OK):
        _refuse(path, "permission denied")
    if not target.parent.is_dir():
        _refuse(path, "its folder does not exist")
    return target


def _temporary(target: Path) -> Path:
    """A new empty file beside `target`, with the permissions of the file that it replaces, or the user's default."""
    temporary = target.parent / f".bp-{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if target.exists():
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    return temporary


def _refuse(path: str | Path, why: str) -> NoReturn:
    fail("unwritable", f"cannot write {printable(str(path))}: {why}", help="choose another output path")
