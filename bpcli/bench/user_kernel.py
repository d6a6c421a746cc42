"""A gradient function in a user's file, measured beside bp's like another program's.

It runs in the worker that measures it, and gets copies of its arguments at every call, as in a check: its time includes
these. It is measured wherever the exact reverse-mode method of the spec is, and has to agree with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import IN_FILE, function_of, load, read_source
from bpcli.errors import fail, printable
from bpcli.methods import exact_method
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup


def is_user_kernel(backend: str) -> bool:
    """Whether a backend's name is `FILE.py:FUNC`."""
    return IN_FILE.fullmatch(backend) is not None


class UserKernel:
    """`FILE.py:FUNC`, called as `FUNC(params, inputs, state)` or with the numbers of the spec as a fourth argument."""

    summary: ClassVar[str] = "a function in a user's file"
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt")

    def __init__(self, text: str) -> None:
        """Raises BpError where `text` is not of the form, or there is no such file; its code does not run yet."""
        match = IN_FILE.fullmatch(text)
        if match is None or not match["name"]:
            what = f'expected FILE.py:FUNC for --kernel, got "{printable(text)}"'
            fail("usage", what, help="for example --kernel mine.py:bptt")
        self.name, self._shown, self._function = text, match["file"], match["name"]
        self.path = Path(self._shown).absolute()
        read_source(self.path, self._shown)

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
        return None if method == exact else f"a kernel is measured next to {exact}"

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """See `Peer`. Raises BpError where the file cannot be loaded, and at a call that fails."""
        function = function_of(load(self.path, self._shown, UserCodeRunner()), self._function)
        setup, numbers = problem.setup, {**problem.setup.spec.constants, **problem.setup.spec.dims}

        def gradient() -> Gradient:
            found = function.gradient(problem.arrays, setup.wrt, [setup.dtype], numbers).returned
            if found.faults:
                fault = next(iter(found.faults.values()))
                fail("user-code", f"{self.name}: {fault}", help="`bp check SPEC --kernel` says more")
            return Gradient(float("nan") if found.loss is None else found.loss, found.arrays)

        return gradient
