"""The process that runs user code: it answers what `process` asks, until it is told to end or whoever asked is gone.

It is started in a session of its own, so that Ctrl-C is for bp to answer, with the stderr of bp as its stdout too.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from bpcli.checking.sources.user_protocol import UNHEARD, Array, Line, Message
from bpcli.checking.sources.user_workshop import Workshop, failure

# Bound here: user code may rebind names of the modules in its process.
_exit, _getpid = os._exit, os.getpid
_READY = {"ready": True}


def main(source: int, sink: int, shared: int, trace: int) -> None:
    """Answer messages from `source` on `sink`, with arrays in `shared`; where a crash happens goes to `trace`."""
    here = _getpid()
    for number in (source, sink, shared, trace):
        os.set_inheritable(number, False)
    faulthandler.enable(trace, all_threads=False)
    os.register_at_fork(after_in_child=lambda: _leave_to_parent((source, sink)))
    os._exit = _raising(here)
    threading.Thread(target=_watch, args=(source,), daemon=True).start()
    line, shop, fflush = Line(source, sink, shared), Workshop(), _c_flush()
    line.send(_READY)
    while True:
        try:
            message, arrays = line.receive()
        except (EOFError, OSError):
            _exit(UNHEARD)
        if "memory" in message:
            _limit(message["memory"])
        if message["do"] == "end":
            break
        answer, found = shop.ask(message, arrays)
        if _getpid() != here:  # a copy that user code made and let return
            _exit(0)
        _flush(fflush)
        _send(line, answer, found, message["file"])
    with suppress(BaseException):
        atexit._run_exitfuncs()
    _flush(fflush)
    _exit(0)


def _send(line: Line, answer: Message, found: list[Array], file: str) -> None:
    """Send an answer; or that there is no memory for it."""
    try:
        line.send(answer, found)
    except MemoryError as error:
        line.send(failure(error, file))
    except OSError:
        _exit(UNHEARD)


def _watch(source: int) -> None:
    """End this process, and all that it started, when whoever asks is gone: user code may never come back to look."""
    poll = select.poll()
    poll.register(source, 0)
    while not any(event & select.POLLHUP for _, event in poll.poll()):
        pass
    os.killpg(0, signal.SIGKILL)


def _leave_to_parent(numbers: tuple[int, ...]) -> None:
    """In a forked copy: its crashes are no news, and it has nothing to say to bp."""
    faulthandler.disable()
    for number in numbers:
        with suppress(OSError):
            os.close(number)


def _raising(here: int) -> Any:
    """An `os._exit` that raises as `sys.exit` does, so that the line is known; in a forked copy the real one."""

    def leave(status: int) -> NoReturn:
        if _getpid() != here:
            _exit(status)
        raise SystemExit(status)

    return leave


def _limit(memory: int) -> None:
    """Let allocations beyond so many bytes fail, where the system can; and a crash leave no core file.

    Data, not address space: frameworks reserve much of the latter and never touch it.
    """
    try:
        import resource
    except ImportError:
        return
    for which, value in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _c_flush() -> Any:
    """The C library's `fflush`, or nothing that does anything."""
    try:
        return ctypes.CDLL(None).fflush
    except (OSError, TypeError, AttributeError):
        return lambda _: None


def _flush(fflush: Any) -> None:
    """Write out what user code printed, by Python and by the C library."""
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr] # user code may have put None there
    with suppress(Exception):
        fflush(None)
