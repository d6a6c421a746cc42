"""Arrays out: what a spec runs on, under its names, and files that are whole or not there."""

from __future__ import annotations

import io
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import fail, printable
from bpcli.problem.definition import Array, Problem

# The earliest date a zip archive can hold: equal arrays give equal bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


def export_arrays(problem: Problem) -> dict[str, Array]:
    """Parameters, inputs and initial states under their names; read back, they give the same bits."""
    return {**problem.params, **problem.inputs, **problem.state}


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Write arrays as an `.npz` of that very name, the same bytes for the same arrays; `BpError` when it cannot be."""
    replace_file(path, lambda stream: _pack(stream, arrays))


def replace_file(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a new file which then takes the place of `path`, whole; a device is written as it is."""
    target = _target(path)
    try:
        if target.exists() and not target.is_file():
            # A device says that it can seek and does not, which confuses zipfile.
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
        _unwritable(path, error.strerror or str(error))


def check_writable(path: str | Path) -> None:
    """Refuse an output path that cannot be written, before anything is computed; leaves nothing behind."""
    target = _target(path)
    try:
        if not target.exists() or target.is_file():
            _temporary(target).unlink()
    except OSError as error:
        _unwritable(path, error.strerror or str(error))


def _target(path: str | Path) -> Path:
    """What `path` stands for, links followed; refused where no file can be."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode  # not `exists`, which keeps more errors to itself in every new Python
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        _unwritable(path, getattr(error, "strerror", None) or str(error))
    if mode is not None and stat.S_ISDIR(mode):
        _unwritable(path, "it is a folder")
    if mode is not None and not os.access(target, os.W_OK):
        _unwritable(path, "permission denied")
    if not target.parent.is_dir():
        _unwritable(path, "its folder does not exist")
    return target


def _temporary(target: Path) -> Path:
    """A new empty file beside `target`, with the permissions of one that the user makes, or of the file it replaces."""
    temporary = target.parent / f".bp-{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if target.exists():
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    return temporary


def _pack(stream: IO[bytes], arrays: Mapping[str, NDArray[np.floating]]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _unwritable(path: str | Path, why: str) -> NoReturn:
    fail("unwritable", f"cannot write {printable(str(path))}: {why}", help="choose another output path")
