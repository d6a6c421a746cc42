"""The process that runs user code, from bp's side: started on demand, limited in time and memory, ended and reaped."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from bpcli.checking.sources.user_protocol import UNHEARD, Array, Line, Message
from bpcli.errors import fail

_START = "import sys; sys.path[:] = {path!r}; from bpcli.checking.sources.user_child import main; main({fds})"
_STARTS_WITHIN = 60.0
USER_TIME_OPTION = "--user-time"
_LEAST = 0.25
"""Seconds that any call may take: on a busy machine even a quick one may need them."""
_PATIENCE = 1.0
"""Seconds that a process has to exit."""
_LOOK = 0.5
"""Seconds between checks that a silent process is still alive."""
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ', re.MULTILINE)


class EndedError(Exception):
    """User code ended its process, or was stopped: how, and the stack `(file, line)` then, innermost first."""

    def __init__(self, how: str, frames: Sequence[tuple[str, int]]) -> None:
        super().__init__(how)
        self.how, self.frames = how, frames

    def line(self, path: str) -> int | None:
        """The innermost line of a file; None where it is unknown."""
        shown = path.encode("ascii", "backslashreplace").decode("ascii")
        return next((line for file, line in self.frames if file == shown), None)


class _TooLongError(Exception):
    """A time limit was reached."""


class Process:
    """One child process at a time, replaced by a fresh one when it ends.

    `limits` are seconds by option: the smallest limits a call, that of `USER_TIME_OPTION` alone the import of a file,
    whose time is not predicted. `memory()` is the number of bytes that the child may allocate.
    """

    def __init__(self, limits: Mapping[str, float], memory: Callable[[], int]) -> None:
        self._limits, self._memory = limits, memory
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        self._ran: set[tuple[str, str]] = set()
        self._last = ("", "")
        self._busy = False

    def start(self) -> None:
        """Start the process if there is none; it gets ready while bp goes on."""
        if self._child is not None:
            return
        if os.name != "posix":
            what = "functions and objects in Python files run in a process of their own, which needs Linux or macOS"
            fail("unsupported", what, help="run bp under WSL, or judge a saved gradient with --gradient FILE.npz")
        (source, answer), (question, sink) = os.pipe(), os.pipe()
        shared, self._trace = _memory_file(), _memory_file()
        given = (question, answer, shared, self._trace)
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = _START.format(path=path, fds=", ".join(map(str, given)))
        self._own = (source, sink, shared, self._trace)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=2, pass_fds=given, start_new_session=True
            )
        finally:
            os.close(question)
            os.close(answer)
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)
        self._line = Line(source, sink, shared)
        self._fresh, self._ran = True, set()

    def ask(self, message: Message, arrays: Sequence[Array] = ()) -> tuple[Message, list[Array]]:
        """The answer to a message of `user_child`, with arrays as views that are valid until the next message.

        A fresh process loads the file first, and a failure to do so is the answer. Raises EndedError.
        """
        file, user = message["file"], (message["file"], message.get("name", ""))
        if self._child is not None and self._last != user and self._child.poll() is not None:
            self._end()  # it was ended by a thread that another function left behind
        self._last = user
        self.start()
        self._ran.add(user)
        if message["do"] != "load" and file not in self._loaded:
            answer = self._asked({"do": "load", "file": file}, ())[0]
            if "raised" in answer:
                return answer, []
        return self._asked(message, arrays)

    def restart(self, file: str, name: str = "") -> bool:
        """End the process if other code than `name` of `file` ran in it and may have spoiled it; returns whether."""
        if not self._ran - {(file, ""), (file, name)}:
            return False
        self.close()
        self._ran = set()
        return True

    def close(self) -> None:
        """End the process and everything that it started, at once if it is busy."""
        if self._child is None:
            return
        try:
            if not self._busy and not self._fresh:
                with suppress(OSError, EOFError, ValueError, _TooLongError):
                    self._line.send({"do": "end"})
                    self._line.receive(self._waiting(_PATIENCE))
        finally:
            self._end()

    def _asked(self, message: Message, arrays: Sequence[Array]) -> tuple[Message, list[Array]]:
        self.start()
        if self._fresh:
            self._greet()
            message = {**message, "memory": self._memory()}
        self._busy = True
        options = self._limits if message["do"] == "call" else [USER_TIME_OPTION]
        option = min(options, key=lambda o: self._limits[o])
        try:
            self._line.send(message, arrays)
            answer = self._line.receive(self._waiting(max(_LEAST, self._limits[option])))
        except _TooLongError:
            from bpcli.problem.limits import format_duration

            limit = f"{format_duration(self._limits[option])}, the limit of {option}"
            raise self._ended(f"takes longer than {limit}", signal.SIGABRT) from None
        except ValueError:
            raise self._ended("writes into bp's own pipe", signal.SIGKILL) from None
        except (EOFError, OSError):
            raise self._ended() from None
        self._busy = False
        if message["do"] == "load" and "raised" not in answer[0]:
            self._loaded.add(message["file"])
        return answer

    def _greet(self) -> None:
        """Wait until the process is ready. Raises BpError if it does not start."""
        try:
            self._line.receive(self._waiting(_STARTS_WITHIN))
        except (EOFError, OSError, ValueError, _TooLongError):
            self._end()
            advice = "functions and objects in Python files run in a process of their own; does this Python start?"
            fail("process-lost", f"{sys.executable} does not start to run user code", help=advice)
        self._fresh = False

    def _waiting(self, seconds: float) -> Callable[[], None]:
        """A function that waits for an answer; it raises _TooLongError, or EOFError if the process is gone."""
        until = time.monotonic() + seconds

        def wait() -> None:
            while True:
                left = until - time.monotonic()
                if self._poll.poll(1000 * max(0.0, min(left, _LOOK))):
                    return
                if left <= 0:
                    raise _TooLongError
                # A process that the child started may hold the pipe open after the child is gone.
                if self._child is not None and self._child.poll() is not None and not self._poll.poll(0):
                    raise EOFError

        return wait

    def _ended(self, how: str = "", by: signal.Signals | None = None) -> EndedError:
        """End the process, by a signal if it still runs, and say how it ended and where."""
        assert self._child is not None
        if by is not None:
            self._child.send_signal(by)
        try:
            code = self._child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = UNHEARD
        text = os.pread(self._trace, 1 << 16, 0).decode("utf-8", errors="replace").rpartition("Fatal Python error")[2]
        self._end()
        return EndedError(how or _how(code), [(file, int(line)) for file, line in _FRAME.findall(text)])

    def _end(self) -> None:
        """Kill the process and its group, and forget it."""
        assert self._child is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for number in self._own:
            os.close(number)
        self._child, self._busy, self._loaded = None, False, set()


def _how(code: int) -> str:
    """How a process ended, from its exit code."""
    if code == UNHEARD:
        return "closes bp's own pipe"
    if code >= 0:
        return f"ends its process with exit code {code}"
    name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
    if name == "SIGKILL":
        return "is killed by SIGKILL, which is often the system, out of memory"
    return f"crashes with {name}"


def _memory_file() -> int:
    """The descriptor of an anonymous file, in memory where the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bp")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
