"""A handwritten gradient of any loss in Python, judged by differences of the loss."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bpcli.api.check_report import Report
from bpcli.api.check_runner import Results
from bpcli.api.loaded import Words, several
from bpcli.api.method_selection import check_options
from bpcli.api.provenance import describe
from bpcli.checking.sources.black_box import BlackBox, check_box, open_box
from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import Host, UserFile
from bpcli.problem.limits import Limits

Params = dict[str, Any]


def check_gradient(
    loss: Callable[[Params], Any],
    grad: Callable[[Params], Any],
    params: Mapping[str, Any],
    *,
    wrt: Words = (),
    mode: str = "auto",
    limits: Limits | None = None,
) -> Report:
    """Judge `grad(params)` by differences of `loss(params)`, whose noise is measured.

    Both run in this process, on copies, and are called several times with the same arguments: a loss or a gradient that
    differs between calls, or changes its arguments, is a wrong finding, and so is an exception.

    Parameters
    ----------
    loss
        Takes a dict of arrays like `params`, returns a number. In float64 differences see most.
    grad
        Takes the same, returns a dict of arrays of the same names and shapes, in float64 or float32; or the arrays
        alone, in the order of `params`.
    params
        Name to array, float64 or float32, where the gradient is judged.
    wrt
        The names to judge, all where it is empty.
    mode
        `full` judges every entry, `directional` eight directions a tensor, then entries of those that do not pass;
        `auto` does so where entries would take more than half a minute.
    limits
        What the check may cost: seconds, predicted from two calls of the loss.

    Raises
    ------
    BpError
        For params that are no arrays of finite floats, a name in `wrt` that is none, or a loss that takes too long.

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
    options, names = check_options("auto", mode), several(wrt)
    box = _box_of(loss, grad, params)
    findings = check_box(box, names, limits or Limits(), options.mode)
    results = Results()
    results.add_object(box.name, [(f, box.place(f.tensor) if box.file.source else None) for f in findings])
    said = {"set": {}, "wrt": list(names), "specs": [], "objects": [box.name]}
    return results.report(options, describe("check", threads=None, strict=False, **said))


def _box_of(loss: Callable[[Params], Any], grad: Callable[[Params], Any], params: Mapping[str, Any]) -> BlackBox:
    """The black box of the three, called as the gradient is in its file."""
    name = getattr(grad, "__qualname__", type(grad).__name__).replace(".<locals>", "")
    # They are part of the caller's program, and run where it does, which Ctrl-C interrupts.
    runner = UserCodeRunner(passing=(KeyboardInterrupt,))
    file = _file_of(grad, runner)
    runner.put(str(file.path), name, SimpleNamespace(loss=loss, grad=_by_name(grad, params), params=params))
    return open_box(file, name)


def _by_name(grad: Callable[[Params], Any], params: Mapping[str, Any]) -> Callable[[Params], Any]:
    """`grad`, which may return arrays in the order of `params` too; anything else it returns is as it is."""

    @functools.wraps(grad, updated=())
    def named(given: Params) -> Any:
        found = grad(given)
        if isinstance(found, tuple | list) and len(found) == len(params) and all(map(_is_array, found)):
            return dict(zip(params, found, strict=True))
        return {next(iter(params)): found} if len(params) == 1 and _is_array(found) else found

    return named


def _is_array(value: Any) -> bool:
    """Whether it is an array of any library, and no dict of such."""
    return hasattr(value, "__array__")


def _file_of(function: Callable[..., Any], host: Host) -> UserFile:
    """The file that a function is written in; without lines where there is none."""
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        source = path.read_bytes()
    except (TypeError, ValueError, OSError):
        path, source = Path.cwd() / "function", b""
    shown = path.relative_to(here) if path.is_relative_to(here := Path(os.getcwd())) else path
    return UserFile(path, str(shown), source, host)
