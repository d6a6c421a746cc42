"""Every place in the sources that makes a refusal, and which of them something went through."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import bpcli
from bpcli import errors
from bpcli.graph import operations

PACKAGE = Path(bpcli.__file__).parent
MAKERS = frozenset({"Diagnostic", "Misfit", "Refused", "fail", "refuse", "refuse_key", "bad"})
"""Functions and classes that are given what is wrong; `add` of a collector is one too."""
HELPERS = frozenset(
    {"errors.fail", "errors.Collector.add", "spec.source.Context.refuse", "spec.language._Scanner.refuse"}
)
"""Functions that hand on what they are given: their callers are the places."""

Site = tuple[str, str]
"""The function, and the code of the refusal; a number where a function has several of one code."""


@cache
def sites() -> dict[Site, tuple[Path, int, int]]:
    """File, first and last line of every place."""
    found: dict[Site, tuple[Path, int, int]] = {}
    counts: Counter[Site] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for function, call in _calls(tree, module):
            if not _makes(call) or function in HELPERS:
                continue
            site = (function, _code(call))
            counts[site] += 1
            named = site if counts[site] == 1 else (function, f"{site[1]} {counts[site]}")
            found[named] = (path, call.lineno, call.end_lineno or call.lineno)
    return found


def _calls(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call):
            yield name, child
        yield from _calls(child, f"{name}.{child.name}" if inner else name)


def _makes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    added = name == "add" and ast.unparse(call.func).endswith("collector.add")
    return (name in MAKERS or added) and len(call.args) > 1


def _code(call: ast.Call) -> str:
    """The first argument that is written out and looks like a code; "" where it is computed."""
    words = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return next((w for w in words if w and w.replace("-", "").isalnum() and w.islower()), "")


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Site]]:
    """The places that refusals made in here came through."""
    hit: set[Site] = set()
    by_file: dict[str, list[tuple[int, int, Site]]] = {}
    for site, (path, first, last) in sites().items():
        by_file.setdefault(str(path), []).append((first, last, site))

    def note() -> None:
        frame = sys._getframe(2)
        while frame is not None:
            for first, last, site in by_file.get(frame.f_code.co_filename, ()):
                if first <= frame.f_lineno <= last:
                    hit.add(site)
            frame = frame.f_back  # type: ignore[assignment]

    def noted(make: Any) -> Any:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            note()
            make(self, *args, **kwargs)

        return made

    from bpcli.commands.shared_options import Refused

    with monkeypatch.context() as patch:
        for made in (errors.Diagnostic, operations.Misfit, Refused):
            patch.setattr(made, "__init__", noted(made.__init__))
        yield hit
