"""The process that runs user code, seen from bp: started when it is first asked, limited in time, told when it ends."""

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
"""Seconds that any call may take: on a busy machine a quick one takes as long now and then."""
_PATIENCE = 1.0
"""Seconds that a process has for its end."""
_LOOK = 0.5
"""Seconds after which to see whether a process that says nothing is still there."""
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ', re.MULTILINE)


class EndedError(Exception):
    """User code ended its process, or was ended: how, and in which lines of which files, innermost first."""

    def __init__(self, how: str, frames: Sequence[tuple[str, int]]) -> None:
        super().__init__(how)
        self.how, self.frames = how, frames

    def line(self, path: str) -> int | None:
        """The innermost line of a file, None where that is not known."""
        shown = path.encode("ascii", "backslashreplace").decode("ascii")
        return next((line for file, line in self.frames if file == shown), None)


class _TooLongError(Exception):
    """A limit of time was reached."""


class Process:
    """One process at a time, a fresh one after each that ended.

    A call may take as many seconds as the least of `limits` by option, the import of a file as many as that of
    `USER_TIME_OPTION`, since nobody has predicted it; `memory` says how many bytes may be allocated.
    """

    def __init__(self, limits: Mapping[str, float], memory: Callable[[], int]) -> None:
        self._limits, self._memory = limits, memory
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        self._ran: set[tuple[str, str]] = set()
        self._last = ("", "")
        self._busy = False

    def start(self) -> None:
        """Start the process where there is none; it gets ready while others do their work."""
        if self._child is not None:
            return
        if os.name != "posix":
            what = "functions and objects in Python files run in a process of their own, which takes Linux or macOS"
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
        """The answer to a message of `workshop`; its arrays are views until the next.

        Where the process is a fresh one, it loads the file first, and that may be the answer. Raises EndedError.
        """
        file, user = message["file"], (message["file"], message.get("name", ""))
        if self._child is not None and self._last != user and self._child.poll() is not None:
            self._end()  # by a thread of another function that had answered
        self._last = user
        self.start()
        self._ran.add(user)
        if message["do"] != "load" and file not in self._loaded:
            answer = self._asked({"do": "load", "file": file}, ())[0]
            if "raised" in answer:
                return answer, []
        return self._asked(message, arrays)

    def afresh(self, file: str, name: str = "") -> bool:
        """End the process if code of others ran in it, whose leavings may be to blame. Whether it did."""
        if not self._ran - {(file, ""), (file, name)}:
            return False
        self.close()
        self._ran = set()
        return True

    def close(self) -> None:
        """End the process, at once where it is at work, and everything that it started."""
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
        """Wait until the process is ready. Raises BpError where it never is."""
        try:
            self._line.receive(self._waiting(_STARTS_WITHIN))
        except (EOFError, OSError, ValueError, _TooLongError):
            self._end()
            advice = "functions and objects in Python files run in a process of their own; does this Python start?"
            fail("process-lost", f"{sys.executable} does not start to run user code", help=advice)
        self._fresh = False

    def _waiting(self, seconds: float) -> Callable[[], None]:
        """Wait for an answer so long; raises _TooLongError, or EOFError where the process is gone."""
        until = time.monotonic() + seconds

        def wait() -> None:
            while True:
                left = until - time.monotonic()
                if self._poll.poll(1000 * max(0.0, min(left, _LOOK))):
                    return
                if left <= 0:
                    raise _TooLongError
                # Something that it started may hold the pipe open.
                if self._child is not None and self._child.poll() is not None and not self._poll.poll(0):
                    raise EOFError

        return wait

    def _ended(self, how: str = "", by: signal.Signals | None = None) -> EndedError:
        """End what is left of the process, by a signal where it still runs; how it ended."""
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
    """The descriptor of a file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bp")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
