"""`bp doctor`: examine the installation by probes, each of which yields lines of (name, ok | warn | fail, detail)."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from operator import itemgetter
from typing import Any

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.render import Column, Document

Lines = Iterator[tuple[str, str, str]]

_OLDEST_PYTHON = (3, 11)
PACKAGES = (
    "click", "llvmlite", "numba", "numpy", "pandas", "pydantic", "rich", "scipy", "threadpoolctl", "tree-sitter",
    "tree-sitter-toml",
)  # fmt: skip
"""What bp depends on, as `pyproject.toml` has it."""
_LITTLE_MEMORY = 500_000_000
_SPEC = "vanilla_rnn"


def _python() -> Lines:
    version = ".".join(map(str, sys.version_info[:3]))
    yield "python", "ok" if sys.version_info >= _OLDEST_PYTHON else "fail", f"{version}, {sys.executable}"


def _packages() -> Lines:
    for package in PACKAGES:
        try:
            yield package, "ok", metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "fail", f"not installed: pip install {package}"


def _processor() -> Lines:
    from bpcli.kernels.simd import VECTORS_OF_HOST
    from bpcli.runtime.machine import describe

    machine = describe()
    yield "processor", "ok", f"{machine.cpu}, {machine.cores} cores, {machine.system}"
    yield "vectors", "ok", f"{machine.vectors} of {', '.join(VECTORS_OF_HOST)}; BP_VECTORS chooses"


def _threads() -> Lines:
    kernels = os.environ.get("NUMBA_NUM_THREADS", "as many as cores")
    yield "kernel threads", "ok", kernels
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "")
    advice = "" if blas == "1" else "; kernels run in parallel themselves: unset OPENBLAS_NUM_THREADS"
    yield "BLAS threads", "warn" if advice else "ok", f"{blas}{advice}"


def _blas() -> Lines:
    from threadpoolctl import threadpool_info

    importlib.import_module("scipy.linalg")  # loads the library that is examined
    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    for library in libraries:
        name = f"{library['internal_api']} {library['version']}"
        yield "BLAS", "ok", f"{name}, {library.get('architecture', '')}, {library['filepath']}"
    if not libraries:
        yield "BLAS", "warn", "the BLAS of SciPy is not recognised"


def _cache() -> Lines:
    from bpcli.problem.limits import format_bytes
    from bpcli.runtime.kernel_cache import cache_folder

    folder = cache_folder()
    existing = next(f for f in (folder, *folder.parents) if f.exists())
    writable = os.access(existing, os.W_OK)
    size = sum(f.stat().st_size for f in folder.rglob("*.*"))
    advice = "" if writable else ", not writable: every run compiles the kernels again; set NUMBA_CACHE_DIR"
    yield "kernel cache", "ok" if writable else "warn", f"{folder}, {format_bytes(size)}{advice}"
    count = len(list(folder.glob("*.o")))
    yield "kernels", "ok", f"{count} compiled" if count else "none compiled yet: the first check takes half a minute"


def _memory() -> Lines:
    from bpcli.problem.limits import format_bytes, free_memory

    free = free_memory()
    yield "free memory", "ok" if free >= _LITTLE_MEMORY else "warn", format_bytes(free)


def _self_check() -> Lines:
    from bpcli.api.loaded import load
    from bpcli.commands.output import prepare
    from bpcli.commands.specs import packaged_spec

    prepare(Common())
    start = time.perf_counter()
    findings = load(packaged_spec(_SPEC)).check().findings
    passed = sum(f.verdict == "pass" for f in findings)
    detail = f"{passed} of {len(findings)} gradients of {_SPEC} pass, {time.perf_counter() - start:.2g} s"
    yield "self-check", "ok" if passed == len(findings) > 0 else "fail", detail


PROBES: Mapping[str, Callable[[], Lines]] = {
    "python": _python,
    "packages": _packages,
    "processor": _processor,
    "threads": _threads,
    "BLAS": _blas,
    "kernel cache": _cache,
    "memory": _memory,
    "self-check": _self_check,
}

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@shared("format", "output")
def doctor(common: Common) -> int:
    """Examine the installation: packages, processor, BLAS, kernel cache, memory, and a small gradient check.

    Exits with 1 if any line says fail.
    """
    from bpcli.commands.output import emit

    rows = [row for name, probe in PROBES.items() for row in _examine(name, probe)]
    columns = [Column(key, key, itemgetter(key), str, right=False) for key in ("check", "status", "detail")]
    failed = any(row["status"] == "fail" for row in rows)
    summary = {status: sum(row["status"] == status for row in rows) for status in _STYLES}
    sentence = "Something is wrong with this installation." if failed else "bp is ready."
    document = Document(
        "Installation",
        "checks",
        columns,
        rows,
        context={"command": "doctor"},
        summary=summary,
        sentences=(sentence,),
        style=lambda row: _STYLES[row["status"]],
    )
    return emit(document, common) or int(failed)


def _examine(name: str, probe: Callable[[], Lines]) -> list[Mapping[str, Any]]:
    """The lines of one probe; an exception is a line that says fail."""
    try:
        lines = [*probe()]
    except Exception as error:
        from bpcli.commands.failures import translate

        lines = [(name, "fail", "; ".join(d.what for d in translate(error).diagnostics))]
    return [{"check": check, "status": status, "detail": detail} for check, status, detail in lines]
