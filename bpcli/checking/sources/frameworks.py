"""The framework of a user's function, and the function and its inputs in a file.

The process that runs user code imports this module. A framework is looked for among the modules that the user's file
has imported, and never imported for its own sake.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from bpcli.checking.sources.differentiable import (
    RULES,
    Differentiable,
    Given,
    UnusableError,
    is_module,
    parameters,
)
from bpcli.checking.sources.jax_function import JaxFunction
from bpcli.checking.sources.numpy_function import NumpyFunction
from bpcli.checking.sources.pytree import flatten
from bpcli.checking.sources.torch_function import TorchFunction


def open_function(given: Given) -> Differentiable:
    """The function behind the interface, after a first call. Raises UnusableError, or what the function raises."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    leaves = [leaf for tree in given.inputs for leaf in flatten(tree).values()]
    found: Differentiable | None = None
    if not given.rules and torch is not None and _is_torch(torch, given.function, leaves):
        found = TorchFunction(given)
    elif not given.rules and jax is not None and _is_jax(jax, given, leaves):
        found = JaxFunction(given)
    found = found or NumpyFunction(given)
    if not sum(point.size for point in found.points.values()):
        kinds = ", ".join(f"{name} ({kind})" for name, kind in found.fixed.items())
        raise UnusableError(f"has no input to differentiate{': ' if kinds else ''}{kinds}", "give it arrays of floats")
    found.prepare()
    return found


def is_function(target: Any) -> bool:
    """Whether an object of a file is judged as a function: it can be called, and is not a black box."""
    torch = sys.modules.get("torch")
    if isinstance(target, type):
        return torch is not None and issubclass(target, torch.autograd.Function | torch.nn.Module)
    box = all(getattr(target, part, None) is not None for part in ("params", "loss", "grad"))
    return callable(target) and not box


def _is_torch(torch: Any, function: Any, leaves: Sequence[Any]) -> bool:
    owner = function if isinstance(function, type) else getattr(function, "__self__", None)
    custom = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
    return custom or is_module(function) or any(isinstance(leaf, torch.Tensor) for leaf in leaves)


def _is_jax(jax: Any, given: Given, leaves: Sequence[Any]) -> bool:
    """Whether a function is one of JAX by its type, its inputs, or else by what it returns."""
    own = type(given.function).__module__.partition(".")[0] in ("jax", "jaxlib")
    if own or any(isinstance(leaf, jax.Array) for leaf in leaves):
        return True
    if any(callable(getattr(given.function, rule, None)) for rule in RULES):
        return False
    outputs = given.function(*copy.deepcopy(given.inputs))
    return any(isinstance(leaf, jax.Array) for leaf in flatten(outputs).values())


def function_in(names: Mapping[str, Any], name: str, target: Any) -> Given:
    """The function `target`, called `name` in a module with other `names`, with its inputs and derivatives.

    Raises UnusableError where there are no inputs.
    """
    torch = sys.modules.get("torch")
    inputs = getattr(target, "example_inputs", None)
    for other in (f"{name}_inputs", "example_inputs"):
        inputs = names.get(other) if inputs is None else inputs
    if inputs is None:
        raise UnusableError("has no inputs to judge it at", f"add to the file: {_inputs_for(names, name, target)}")
    if torch is not None and isinstance(target, type) and issubclass(target, torch.nn.Module):
        target = target()
    if callable(inputs):
        inputs = inputs()
    rules = {rule: names[f"{name}_{rule}"] for rule in RULES if callable(names.get(f"{name}_{rule}"))}
    return Given(target, inputs if isinstance(inputs, tuple) else (inputs,), rules)


def _inputs_for(names: Mapping[str, Any], name: str, target: Any) -> str:
    """Three lines that define inputs, as statements in one line."""
    used = [value.__name__ for value in names.values() if isinstance(value, ModuleType)]
    own = [p for p in parameters(target) if p != "self"] or ["x"]
    if is_module(target) or any(n.split(".")[0] == "torch" for n in used):
        lines, each = ["import torch", "torch.manual_seed(0)"], "torch.randn(4, 3)"
    else:
        lines, each = ["import numpy", "rng = numpy.random.default_rng(0)"], "rng.standard_normal((4, 3))"
    inputs = f"{name}_inputs = ({', '.join([each] * len(own))},)  # {', '.join(own)}"
    return "; ".join([*lines, inputs])
