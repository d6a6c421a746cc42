"""Benchmarks: sweeps planned, cells measured in worker processes, runs compared. `bpcli.bench(…)` measures a sweep."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is a function too, as `bpcli.bench` is the name of both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `bpcli.api.benchmark.bench`, which says what it takes."""
        return importlib.import_module("bpcli.api.benchmark").bench(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
