"""Output files that are written whole or not at all, and the arrays of a problem as an `.npz`."""

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

# The earliest date that a zip archive can hold: equal arrays give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


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
