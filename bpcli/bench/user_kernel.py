"""A gradient function in a user's file, measured beside bp's like another program's.

It runs in the worker that measures it, and gets copies of its arguments at every call, as in a check: its time includes
these. It is measured wherever the exact reverse-mode method of the spec is, and has to agree with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import Function, UserFile
from bpcli.errors import fail, printable
from bpcli.methods import exact_method
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

_TEXT = re.compile(r"(?P<file>.+\.pyw?):(?P<name>[^:/\\]+)", re.DOTALL | re.IGNORECASE)


def is_user_kernel(backend: str) -> bool:
    """Whether a backend's name is `FILE.py:FUNC`."""
    return _TEXT.fullmatch(backend) is not None


class UserKernel:
    """`FILE.py:FUNC`, called as `FUNC(params, inputs, state)` or with the numbers of the spec as a fourth argument."""

    summary: ClassVar[str] = "a function in a user's file"
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt")

    def __init__(self, text: str) -> None:
        """Raises BpError where `text` is not of the form, or there is no such file."""
        match = _TEXT.fullmatch(text)
        if match is None:
            what = f'expected FILE.py:FUNC for --kernel, got "{printable(text)}"'
            fail("usage", what, help="for example --kernel mine.py:bptt")
        self.name, self.path, self._function = text, Path(match["file"]), match["name"]
        if not self.path.is_file():
            fail("no-such-file", f'no file "{printable(match["file"])}"', help="--kernel takes FILE.py:FUNC")

    @property
    def sha256(self) -> str:
        """The digest of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def available(self) -> str | None:
        """See `Peer`."""
        return None

    def prepare(self, threads: int) -> int | None:
        """See `Peer`; nothing limits what it does."""
        return None

    def refusal(self, setup: Setup, method: str) -> str | None:
        """See `Peer`."""
        exact = exact_method(setup.graph)
        return None if method == exact else f"a kernel is measured beside {exact}"

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """See `Peer`. Raises BpError where the file cannot be loaded, and at a call that fails."""
        file = UserFile(self.path.resolve(), str(self.path), self.path.read_bytes(), UserCodeRunner())
        answer, _ = file.ask("load")
        if "raised" in answer:
            what = f"{printable(file.shown)} cannot be loaded: {answer['raised']}"
            fail("user-code", what, file.place(answer["line"] or 1), help="run it with python first")
        if not file.seek(self._function)["callable"]:
            fail("usage", f'"{printable(self.name)}" is not a function', help="name a function")
        function = Function(file, self._function, file.line_of(self._function))
        setup, numbers = problem.setup, {**problem.setup.spec.constants, **problem.setup.spec.dims}

        def gradient() -> Gradient:
            found = function.gradient(problem.arrays, setup.wrt, [setup.dtype], numbers).returned
            if found.faults:
                fault = next(iter(found.faults.values()))
                fail("user-code", f"{self.name}: {fault}", help="`bp check SPEC --kernel` says more")
            return Gradient(float("nan") if found.loss is None else found.loss, found.arrays)

        return gradient
