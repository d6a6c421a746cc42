"""Before the first test, the kernels, compiled side by side where this machine lacks them; and the slow marker."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bpcli import kernels
from bpcli.errors import Diagnostic

# Bytecode is kept even where the shell forbids it: pytest rewrites all of bpcli, and tests start many processes.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# JAX compiles a program for each network here, and runs it once or twice: its optimiser takes longer than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

kernels.compiling = not kernels.plain  # elementwise functions are tested as compiled functions of their own

pytest_plugins = ["pytester"]

NAMES = ("reverse", "influence", "forward", "products", "pack")
KERNELS = [(name, np.dtype(dtype)) for dtype in ("float64", "float32") for name in NAMES]
KERNELS += [("forward", np.dtype(np.complex128)), ("thread_pool", np.dtype(np.float64))]


@pytest.fixture
def free_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions take no time, so that the mode "directional" judges them in small networks too."""
    from bpcli.checking import check_options

    monkeypatch.setattr(check_options, "_OF_DIRECTION", -1e12)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of tests that compile kernels afresh."""
    config.addinivalue_line("markers", "slow: takes minutes; runs last, and only where BP_SLOW=1 is set")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core for the whole suite, after compiling what is missing; for single files none but this one."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.collectonly:
        return 0
    from bpcli.runtime import kernel_loader

    kernel_loader.prepare(KERNELS)
    return os.cpu_count() or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests last, and leave them out unless they are asked for."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if os.environ.get("BP_SLOW") != "1":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="set BP_SLOW=1 to run it"))


def pytest_collection_finish() -> None:
    """Modules and the tests themselves last to the end: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def kernels() -> None:
    """Compile what is missing, if any test of this run uses kernels at all."""
    library = sys.modules.get("bpcli.runtime.kernel_loader")
    if library is not None:
        library.prepare(KERNELS)


@pytest.fixture(scope="session", autouse=True)
def helpful() -> Iterator[None]:
    """No test comes by a refusal that does not say what to do."""
    make = Diagnostic.__init__

    def checked(self: Diagnostic, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        assert self.help.strip(), self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diagnostic, "__init__", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Blames look as long as it takes: what a busy machine leaves out is no failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpcli.checking.blame.explain._SECONDS", 1e9)
        patch.setattr("bpcli.checking.blame.explain._LATEST", 1e9)
        yield


@pytest.fixture
def threads() -> Iterator[object]:
    """A function that sets the number of threads; undone after the test."""
    from bpcli.runtime import kernel_loader as library

    before = library.threads()
    yield library.set_threads
    library.set_threads(before)
