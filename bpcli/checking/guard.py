"""Room for code that is not ours: what it prints goes to stderr, and what it changes in the process is put back."""

from __future__ import annotations

import ctypes
import io
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

_STDOUT, _STDERR = 1, 2


@contextmanager
def guarded() -> Iterator[None]:
    """Run foreign code: stdout is stderr meanwhile, and the process is afterwards as it was before.

    That is: folder, environment, search path, warnings, random states, and NumPy's error and print settings.
    Exceptions pass.
    """
    with ExitStack() as stack:
        stack.enter_context(_stdout_to_stderr())
        stack.enter_context(_kept_process())
        stack.enter_context(_kept_numbers())
        stack.enter_context(_kept_alive())
        yield


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Both Python's stdout and the file descriptor below it, which compiled code and child processes write to."""
    before, errors = sys.stdout, sys.stderr
    _flush()
    kept = _divert()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if kept is not None:
            os.dup2(kept, _STDOUT)
            os.close(kept)
        sys.stdout, sys.stderr = before, errors
        if errors.closed:
            sys.stderr = io.TextIOWrapper(io.FileIO(_STDERR, "w", closefd=False), errors="backslashreplace")


def _divert() -> int | None:
    """Let descriptor 1 be what 2 is; a copy of what it was, or None where one of the two is closed."""
    try:
        kept = os.dup(_STDOUT)
    except OSError:
        return None
    try:
        os.dup2(_STDERR, _STDOUT)
    except OSError:
        os.close(kept)
        return None
    return kept


def _flush() -> None:
    """Write out what is buffered, by Python and by the C library, while the descriptor still is what it was for."""
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError, AttributeError):
            if stream is not None:
                stream.flush()
    with suppress(OSError, TypeError, AttributeError):  # platforms where the C library has no such handle
        ctypes.CDLL(None).fflush(None)


@contextmanager
def _kept_process() -> Iterator[None]:
    """Folder, environment, search path, arguments, depth of recursion and warnings."""
    folder, environment = _here(), dict(os.environ)
    path, arguments, depth = list(sys.path), list(sys.argv), sys.getrecursionlimit()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            sys.path[:], sys.argv[:] = path, arguments
            sys.setrecursionlimit(depth)
            if dict(os.environ) != environment:
                os.environ.clear()
                os.environ.update(environment)
            if folder is not None and _here() != folder:
                with suppress(OSError):  # a folder that was removed meanwhile
                    os.chdir(folder)


def _here() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


@contextmanager
def _kept_numbers() -> Iterator[None]:
    """Global random states, and what NumPy does about errors and printing."""
    python, numpy = random.getstate(), np.random.get_state()
    with np.errstate(), np.printoptions():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _kept_alive() -> Iterator[None]:
    """`os._exit` is an exception like `sys.exit`: it would end the check unsaid, with any exit code.

    Not in a process that was forked: that has to end there.
    """
    before, here = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != here:
            before(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = before
