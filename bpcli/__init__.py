"""A gradient checker and benchmarking suite for networks written as equations.

`load` opens a spec, to compute and check its gradients; `check_gradient` checks the gradient of a Python function;
`bench` measures a sweep. Invalid arguments raise `BpError`. Names are imported on first use.
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
    "StepGradients": "bpcli.methods.base",
    "Trained": "bpcli.api.train_runner",
    "check_gradient": "bpcli.api.check_functions",
    "load": "bpcli.api.loaded",
}
__all__ = ["__version__", "bench", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "bench":  # a callable package
        return importlib.import_module("bpcli.bench")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
