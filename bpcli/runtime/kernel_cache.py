"""Where compiled kernels are kept on disk.

The folder's name carries a hash of what compiled code depends on: the sources, the compiler and the processor.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from bpcli import __version__
from bpcli.errors import printable

Request = tuple[str, np.dtype]
"""A kernel by its name, and the dtype that it is compiled for."""
MOST_LINKS = 40
"""Links on the way to a file, as many as Linux follows."""


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: under NUMBA_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache, else for this run.

    A folder that others may write to is none of these: machine code that is loaded from there may be theirs. The folder
    for this run is removed at its end.
    """
    name, refused = f"bp/{_digest()}", list[str]()
    for root in (os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"), "~/.cache"):
        folder = Path(root or "").expanduser() / name
        try:
            if not root or not folder.is_absolute():
                continue
            if reason := exposed(folder):
                refused.append(f"{folder.parents[1]}: {reason}")
                continue
            _make(folder)
            if os.access(folder, os.W_OK) and not exposed(folder):  # not replaced meanwhile
                if refused:
                    _tell(refused, folder)
                return folder
        except OSError:
            continue
    home = Path(tempfile.mkdtemp(prefix="bp-kernels-"))
    atexit.register(_remove, home, os.getpid())
    folder = home / name
    _make(folder)
    if refused:
        _tell(refused, folder)
    os.environ["NUMBA_CACHE_DIR"] = str(home)  # for processes that compile for this one
    return folder


def sources(package: Path) -> list[Path]:
    """The files that compiled code is made of: the kernels, the modules that they import, and the compiling process."""
    others = ("errors.py", "graph/operations.py", "tape/instructions.py", "runtime/compiling.py")
    return [*sorted((package / "kernels").glob("*.py")), *(package / name for name in others)]


def _digest() -> str:
    from bpcli.kernels.simd import VECTOR_PATH  # once it is known whether this process compiles

    machine = (sys.platform, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), VECTOR_PATH)
    settings = [os.environ.get(f"NUMBA_{name}") for name in ("OPT", "CPU_NAME", "CPU_FEATURES")]
    versions = (__version__, version("numba"), version("llvmlite"), sys.version_info[:2])
    digest = hashlib.sha256(repr((versions, machine, settings)).encode())
    for source in sources(Path(__file__).resolve().parents[1]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _make(folder: Path) -> None:
    """Make a folder, and those above it, for this user alone whatever the umask."""
    for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _tell(refused: list[str], folder: Path) -> None:
    """Say on stderr why kernels are kept elsewhere; processes that this one starts find the place without a word."""
    os.environ["NUMBA_CACHE_DIR"] = str(folder.parents[1])
    for reason in refused:
        print(f"bp: compiled kernels are not kept in {printable(reason, 500)}", file=sys.stderr)
    print(f"bp: they are kept in {folder.parents[1]}; NUMBA_CACHE_DIR names another folder", file=sys.stderr)


def _remove(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked off
        shutil.rmtree(home, ignore_errors=True)


def exposed(path: Path) -> str:
    """Why another user could change what is read at `path`, "" if only this user and root can.

    The path, every folder above it and every link on the way must be owned by one of the two and be writable by no one
    else; in a sticky folder, such as /tmp, users cannot replace each other's files. A missing path is no reason.
    """
    if not hasattr(os, "geteuid"):
        return ""  # Windows: rights are lists, and a user's folders are the user's own
    try:
        for step, found in _way(path):
            if found.st_uid not in (0, os.geteuid()):
                return f"{step} belongs to another user"
            sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and step != path
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky and not stat.S_ISLNK(found.st_mode):
                return f"others may write to {step} (chmod go-w closes it)"
    except FileNotFoundError:
        return ""
    return ""


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything that the system looks at to find a path, links and what they lead to included."""
    here, parts, links = Path(path.anchor), list(path.parts[1:]), 0
    yield here, here.lstat()
    while parts:
        part = parts.pop(0)
        step = here.parent if part == ".." else here / part
        found = step.lstat()
        yield step, found
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, "too many links")
            target = step.readlink()
            here = Path(target.anchor) if target.is_absolute() else here
            parts = [*(target.parts[1:] if target.is_absolute() else target.parts), *parts]
        else:
            here = step


def object_file(request: Request) -> Path:
    """Where a kernel is kept: a digest of its object code, and the code."""
    return cache_folder() / f"{request[0]}-{request[1]}.o"


def write_object(request: Request, code: bytes) -> None:
    """Keep the object code of a kernel; the file appears when it is whole."""
    path = object_file(request)
    passing = path.with_name(f"{path.name}.{os.getpid()}")
    passing.write_bytes(hashlib.sha256(code).digest() + code)
    passing.chmod(0o600)  # whatever the umask: what others can write to is not read
    try:
        passing.replace(path)
    except PermissionError:  # some systems don't replace what another process reads: it has the same code
        passing.unlink()


def read_object(request: Request) -> bytes | None:
    """The object code of a kernel, None where there is none, it is damaged, or others may have written it."""
    path = object_file(request)
    try:
        if exposed(path):
            return None
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
