"""Registry of references, the estimators of true derivatives: one module each, found by its file name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import typing

from bpcli.errors import fail, nearest

if typing.TYPE_CHECKING:
    from bpcli.references.base import Reference


@functools.cache
def known() -> tuple[str, ...]:
    """The names of all references, sorted, from the file names; nothing is imported."""
    files = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name != "base")
    return tuple(sorted(f.replace("_", "-") for f in files))


def get(name: str) -> Reference:
    """Import the reference `name`. Raises BpError, with the nearest name, if there is none."""
    if name not in known():
        fail("unknown-reference", f'unknown reference "{name}"', help=nearest(name, known()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return typing.cast("Reference", module.REFERENCE)
