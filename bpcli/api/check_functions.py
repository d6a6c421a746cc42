"""`check_gradient`: check the gradient of a Python function by differences of the function."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import InstanceOf

from bpcli.api.arguments import validated
from bpcli.api.check_report import Report, describe
from bpcli.api.check_runner import Results
from bpcli.api.loaded import Words, several
from bpcli.api.method_selection import check_options
from bpcli.checking.sources.black_box import BlackBox, check_box, open_box
from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import Host, UserFile
from bpcli.problem.limits import Limits

Params = dict[str, Any]


@validated
def check_gradient(
    loss: Callable[[Params], Any],
    grad: Callable[[Params], Any],
    params: Mapping[str, Any],
    *,
    wrt: Words = (),
    mode: str = "auto",
    tolerance: float = 0.0,
    limits: InstanceOf[Limits] | None = None,
) -> Report:
    """Check the gradient `grad(params)` against differences of `loss(params)`, whose noise is measured.

    Both run in this process, on copies of the arrays. A function that raises an exception, changes its arguments, or
    returns values for the same arguments that differ by more than rounding is a wrong finding.

    Parameters
    ----------
    loss
        Takes a dict of arrays like `params` and returns a number, preferably in float64.
    grad
        Takes the same dict and returns a dict of arrays with the same names and shapes, in float64 or float32, or
        a sequence of arrays in the order of `params`.
    params
        Maps names to arrays, float64 or float32, at which the gradient is checked.
    wrt
        The names to check; all by default.
    mode
        `full` checks every entry, `directional` eight directions per array, and entries where a direction fails;
        `auto` chooses `directional` if all entries would take more than half a minute.
    tolerance
        The error at which a gradient still passes, relative to the largest entry of its array: for implicit layers and
        adjoint solvers, which are right to the tolerance of a solver.
    limits
        The seconds that the check may take, predicted from two calls of the loss after the first, which may compile.

    Raises
    ------
    BpError
        If `params` are not arrays of finite floats, a name in `wrt` is unknown, or the check would take too long.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
    >>> report = check_gradient(
    ...     lambda p: float(np.sum(np.tanh(x @ p["w"]))),
    ...     lambda p: {"w": x.T @ (1 - np.tanh(x @ p["w"]) ** 2)},
    ...     {"w": np.full(3, 0.5)},
    ... )
    >>> report.verdict
    'pass'
    """
    options, names = check_options("auto", mode, tolerance), several(wrt)
    box = _box_of(loss, grad, params)
    findings = check_box(box, names, limits or Limits(), options.mode, tolerance)
    results = Results()
    results.add_object(box.name, [(f, box.place(f.tensor) if box.file.source else None) for f in findings])
    said = {"set": {}, "wrt": list(names), "specs": [], "objects": [box.name]}
    return results.report(options, describe("check", threads=None, strict=False, **said))


def _box_of(loss: Callable[[Params], Any], grad: Callable[[Params], Any], params: Mapping[str, Any]) -> BlackBox:
    """A black box with the three as attributes, named after the gradient."""
    name = getattr(grad, "__qualname__", type(grad).__name__).replace(".<locals>", "")
    # Both are part of the caller's program, so that Ctrl-C must interrupt them.
    runner = UserCodeRunner(passing=(KeyboardInterrupt,))
    file = _file_of(grad, runner)
    runner.put(str(file.path), name, SimpleNamespace(loss=loss, grad=_by_name(grad, params), params=params))
    return open_box(file, name)


def _by_name(grad: Callable[[Params], Any], params: Mapping[str, Any]) -> Callable[[Params], Any]:
    """`grad`, with arrays in the order of `params` turned into a dict; other results are returned unchanged."""

    @functools.wraps(grad, updated=())
    def named(given: Params) -> Any:
        found = grad(given)
        if isinstance(found, tuple | list) and len(found) == len(params) and all(map(_is_array, found)):
            return dict(zip(params, found, strict=True))
        return {next(iter(params)): found} if len(params) == 1 and _is_array(found) else found

    return named


def _is_array(value: Any) -> bool:
    """Whether `value` is an array of any library."""
    return hasattr(value, "__array__")


def _file_of(function: Callable[..., Any], host: Host) -> UserFile:
    """The source file of a function, empty if there is none."""
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        source = path.read_bytes()
    except (TypeError, ValueError, OSError):
        path, source = Path.cwd() / "function", b""
    shown = path.relative_to(here) if path.is_relative_to(here := Path(os.getcwd())) else path
    return UserFile(path, str(shown), source, host)
