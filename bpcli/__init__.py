"""A gradient checker and benchmarking suite for networks written as equations.

`load` opens a spec, whose gradients it computes and checks; `check_gradient` judges a gradient of any function; `bench`
measures. What is wrong with their arguments is raised as `BpError`. Names are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BpError": "bpcli.errors",
    "Finding": "bpcli.checking.findings",
    "Gradient": "bpcli.methods.base",
    "GradientError": "bpcli.api.check_report",
    "Limits": "bpcli.problem.limits",
    "LoadedProblem": "bpcli.api.loaded",
    "Report": "bpcli.api.check_report",
    "check_gradient": "bpcli.api.check_functions",
    "load": "bpcli.api.loaded",
}
__all__ = ["__version__", "bench", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "bench":  # a package that can be called
        return importlib.import_module("bpcli.bench")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
