"""Checkouts of this project with something injected into every gradient, to be found by what compares two of them."""

from __future__ import annotations

import shutil
from pathlib import Path

HOUSE = Path(__file__).parents[1]
TWICE = "    _gradient(self, problem)\n    return _gradient(self, problem)"
"""All work done twice: slower wherever it runs."""
WRONG = (
    "    found = _gradient(self, problem)\n"
    "    return type(found)(found.loss, {k: 1.01 * v for k, v in found.arrays.items()})"
)
"""Off by a hundredth."""
_INJECT = """

_gradient = MethodCall.gradient


def _injected(self, problem):
{body}


MethodCall.gradient = _injected
"""


def slower(share: float) -> str:
    """A gradient that keeps its core busy for `share` of its own time more."""
    return (
        "    import time\n"
        "    start = time.perf_counter()\n"
        "    found = _gradient(self, problem)\n"
        f"    end = start + {1 + share!r} * (time.perf_counter() - start)\n"
        "    while time.perf_counter() < end:\n"
        "        pass\n"
        "    return found"
    )


def checkout(folder: Path, body: str) -> str:
    """Make a checkout in `folder`: one room of its own, the others and their compiled kernels this one's."""
    package = folder / "bpcli"
    shutil.copytree(HOUSE / "bpcli" / "methods", package / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOUSE / "bpcli" / "__init__.py", package)
    for name, more in (("", f"\n__path__.append({str(HOUSE / 'bpcli')!r})\n"), ("methods", _INJECT)):
        with (package / name / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(more.format(body=body) if name else more)
    return str(folder)
