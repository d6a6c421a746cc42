"""`check_gradient`: check the gradient of a Python function by differences of the function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, Unpack

from pydantic import ConfigDict, InstanceOf, with_config
from typing_extensions import TypedDict  # of pydantic; that of Python 3.11 it cannot read

from bpcli.api.arguments import validated
from bpcli.api.check_report import Report, describe
from bpcli.api.check_runner import Results
from bpcli.api.loaded import Words, several
from bpcli.api.method_selection import check_options
from bpcli.checking.sources.black_box import BlackBox, check_box, open_box
from bpcli.checking.sources.differentiable import Given
from bpcli.checking.sources.functions import Contracted, Wanted, check_function, open_function
from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import file_of
from bpcli.errors import fail
from bpcli.problem.limits import Limits

Params = dict[str, Any]


@with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class DerivativeOptions(TypedDict, total=False):
    """The options of `check_gradient`."""

    vjp: Callable[..., Any] | None
    jvp: Callable[..., Any] | None
    hvp: Callable[..., Any] | None
    forward: bool
    order: Literal[1, 2]
    wrt: Words
    mode: str
    tolerance: float
    limits: InstanceOf[Limits] | None


@validated
def check_gradient(fn: Callable[..., Any], *inputs: Any, **options: Unpack[DerivativeOptions]) -> Report:
    """Check the gradient of `fn` at `inputs` against differences of its values, whose noise is measured.

    `fn` is a function of PyTorch tensors, `MyFunction.apply`, a PyTorch module, whose parameters are checked too, a
    function of JAX arrays, or a NumPy function with its `vjp`. Functions with several values are contracted with random
    cotangents. `check_gradient(loss, grad, params)` checks a gradient written by hand: `loss(params)` returns a
    number, and `grad(params)` arrays like those in the dict `params`, in a dict of the same keys or in their order.

    All run in this process, on copies of the arrays. A function that raises an exception, changes its arguments, or
    returns values for the same arguments that differ by more than rounding is a wrong finding.

    Parameters
    ----------
    fn
        The function. If it follows the type of float32 inputs, its values are computed in float64 at the same numbers.
    *inputs
        Its arguments: arrays or tensors, also in dicts, lists, tuples and dataclasses. Those of float64 and float32 are
        differentiated; if one is a tensor that requires gradients, only those that do are.
    vjp, jvp, hvp
        Derivatives of a NumPy function, by default its attributes. `vjp(*inputs, u)` returns u times the Jacobian, an
        array, or a tuple of one for each input; `jvp(*inputs, *tangents)` the Jacobian times the tangents.
        `hvp(*inputs, u, *tangents)` is the derivative of the vjp along the tangents; u is left out if `fn` returns a
        number.
    forward
        Also check forward mode, against differences and against reverse mode.
    order
        2 also checks the derivative of the gradient, if the gradient passes.
    wrt
        The names to check, as they are in the report; all by default.
    mode
        `full` checks every entry, `directional` eight directions per array, and entries where a direction fails;
        `auto` chooses `directional` if all entries would take more than half a minute.
    tolerance
        The error at which a gradient still passes, relative to the largest entry of its array: for implicit layers and
        adjoint solvers, which are right to the tolerance of a solver.
    limits
        The seconds that the check may take, predicted from calls of the function after the first, which may compile.

    Raises
    ------
    BpError
        If there is nothing to differentiate, an input is not finite, a name in `wrt` is unknown, a derivative that is
        asked for does not exist, or the check would take too long.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
    >>> check_gradient(np.sin, x, vjp=lambda x, u: u * np.cos(x)).verdict
    'pass'
    >>> check_gradient(lambda p: float(p["w"] @ p["w"]), lambda p: {"w": p["w"]}, {"w": np.ones(3)}).verdict
    'wrong'
    """
    return _report(fn, inputs, options)


def _report(fn: Callable[..., Any], inputs: tuple[Any, ...], options: DerivativeOptions) -> Report:
    """The report on a function, or on a loss if `inputs` are its gradient and its parameters."""
    given = {"vjp": options.get("vjp"), "jvp": options.get("jvp"), "hvp": options.get("hvp")}
    rules = {rule: function for rule, function in given.items() if function is not None}
    judged = check_options("auto", options.get("mode", "auto"), options.get("tolerance", 0.0))
    names = tuple(several(options.get("wrt", ())))
    wanted = Wanted(names, judged.mode, options.get("forward", False), options.get("order", 1), judged.tolerance)
    limits, results = options.get("limits") or Limits(), Results()
    if not rules and len(inputs) == 2 and callable(inputs[0]) and isinstance(inputs[1], Mapping):
        if wanted.also:
            what = "check_gradient: forward and order apply to functions of PyTorch, JAX or NumPy"
            fail("usage", what, help="leave them out when checking a loss and its gradient")
        box = _box_of(fn, inputs[0], inputs[1])
        found = check_box(box, names, limits, judged.mode, judged.tolerance)
    else:
        function = _function_of(Given(fn, inputs, rules), wanted)
        try:
            box, parts = function.box, check_function(function, wanted, limits)
        finally:
            function.close()
        found = parts.findings
        results.unused += parts.notes
    results.add_object(box.name, [(f, box.place(f.tensor) if box.file.source else None) for f in found])
    said = {"set": {}, "wrt": list(names), "specs": [], "objects": [box.name]}
    return results.report(judged, describe("check", threads=None, strict=False, **said))


def _function_of(given: Given, wanted: Wanted) -> Contracted:
    """The function with its inputs, as black boxes."""
    function = given.function
    owner = getattr(function, "__self__", None)
    named = owner if isinstance(owner, type) else function if hasattr(function, "__qualname__") else type(function)
    name = str(getattr(named, "__qualname__", type(named).__name__)).replace(".<locals>", "")
    runner = UserCodeRunner(passing=(KeyboardInterrupt,))
    file = file_of(named, runner)
    if "site-packages" in file.path.parts:  # a module of a library, whose lines are not the user's
        file = replace(file, shown=name, source=b"")
    runner.put(str(file.path), name, given)
    return open_function(file, name, wanted)


def _box_of(loss: Callable[[Params], Any], grad: Callable[[Params], Any], params: Mapping[str, Any]) -> BlackBox:
    """A black box with the three as attributes, named after the gradient."""
    name = getattr(grad, "__qualname__", type(grad).__name__).replace(".<locals>", "")
    # Both are part of the caller's program, so that Ctrl-C must interrupt them.
    runner = UserCodeRunner(passing=(KeyboardInterrupt,))
    file = file_of(grad, runner)
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
