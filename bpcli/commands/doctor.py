"""What `bp doctor` looks at: each probe yields lines of (what, ok | warn | fail, detail).

`bp doctor`: the health of the installation.
"""

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

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared

Lines = Iterator[tuple[str, str, str]]

_OLDEST_PYTHON = (3, 11)
_PACKAGES = ("numpy", "scipy", "numba", "pydantic", "tree-sitter", "tree-sitter-toml", "rich", "click", "threadpoolctl")
_LITTLE_MEMORY = 500_000_000
_SPEC = "vanilla_rnn"


def _python() -> Lines:
    version = ".".join(map(str, sys.version_info[:3]))
    yield "python", "ok" if sys.version_info >= _OLDEST_PYTHON else "fail", f"{version}, {sys.executable}"


def _packages() -> Lines:
    for package in _PACKAGES:
        try:
            yield package, "ok", metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "fail", f"not installed: pip install {package}"


def _processor() -> Lines:
    from bpcli.runtime.machine import describe

    machine = describe()
    yield "processor", "ok", f"{machine.cpu}, {machine.cores} cores, {machine.system}"


def _threads() -> Lines:
    kernels = os.environ.get("NUMBA_NUM_THREADS", "as many as cores")
    yield "kernel threads", "ok", kernels
    blas = os.environ.get("OPENBLAS_NUM_THREADS", "")
    advice = "" if blas == "1" else "; the kernels share work out themselves: unset OPENBLAS_NUM_THREADS"
    yield "BLAS threads", "warn" if advice else "ok", f"{blas}{advice}"


def _blas() -> Lines:
    from threadpoolctl import threadpool_info

    importlib.import_module("scipy.linalg")  # loads the library that is examined
    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    for library in libraries:
        where = (
            f"{library['internal_api']} {library['version']}, {library.get('architecture', '')}, {library['filepath']}"
        )
        yield "BLAS", "ok", where
    if not libraries:
        yield "BLAS", "warn", "SciPy's BLAS is none that is known"


def _cache() -> Lines:
    from bpcli.commands.progress import cache_folder, compiled
    from bpcli.problem.limits import format_bytes

    folder = cache_folder()
    existing = next(f for f in (folder, *folder.parents) if f.exists())
    writable = os.access(existing, os.W_OK)
    size = sum(f.stat().st_size for f in folder.rglob("*.*"))
    advice = "" if writable else ", not writable: kernels are compiled again in every run; set NUMBA_CACHE_DIR"
    yield "kernel cache", "ok" if writable else "warn", f"{folder}, {format_bytes(size)}{advice}"
    count = compiled()
    yield (
        "kernels",
        "ok",
        f"{count} compiled" if count else "none compiled yet: the first check takes about half a minute",
    )


def _memory() -> Lines:
    from bpcli.problem.limits import format_bytes, free_memory

    free = free_memory()
    yield "free memory", "ok" if free >= _LITTLE_MEMORY else "warn", format_bytes(free)


def _self_check() -> Lines:
    from bpcli.api.loaded import load
    from bpcli.commands.common import Common
    from bpcli.commands.progress import prepare
    from bpcli.commands.specs import packaged_spec

    prepare(Common())
    start = time.perf_counter()
    findings = load(packaged_spec(_SPEC)).check().findings
    passed = sum(f.verdict == "pass" for f in findings)
    good = passed == len(findings) > 0
    seconds = time.perf_counter() - start
    yield (
        "self-check",
        "ok" if good else "fail",
        f"{passed} of {len(findings)} gradients of {_SPEC} pass, {seconds:.2g} s",
    )


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


Probe = Callable[[], Iterator[tuple[str, str, str]]]
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@shared("format", "output")
def doctor(common: Common) -> int:
    """Examine the installation: packages, processor, BLAS, kernel cache, memory, and a small gradient check.

    Exits with 1 when a line says fail.
    """
    from bpcli.commands.output import emit
    from bpcli.render.document import Column, Document

    rows: list[Mapping[str, Any]] = []
    for name, probe in PROBES.items():
        rows += _examine(name, probe)
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


def _examine(name: str, probe: Probe) -> list[Mapping[str, Any]]:
    """The lines of one probe; one that stops is a finding like any other."""
    try:
        lines = [*probe()]
    except Exception as error:
        from bpcli.commands.failures import translate

        lines = [(name, "fail", "; ".join(d.what for d in translate(error).diagnostics))]
    return [{"check": check, "status": status, "detail": detail} for check, status, detail in lines]
