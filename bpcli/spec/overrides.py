"""What options say over a spec: `--set KEY=VALUE`, `--dtype`, `--seed` and the cells of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpcli.errors import Collector, fail, nearest, printable
from bpcli.spec.language import canonical
from bpcli.spec.toml import KeyPath

SETTINGS: Mapping[str, KeyPath] = {
    "T": ("data", "T"),
    "batch": ("data", "batch"),
    "seed": ("data", "seed"),
    "dtype": ("dtype",),
}


def parse_assignment(text: str) -> tuple[str, int | float | str]:
    """The key and value of `KEY=VALUE`: an integer or a number where it reads as one, else text.

    Raises `BpError` where there is no key, value or equals sign.
    """
    key, sign, value = (part.strip() for part in text.partition("="))
    if not (key and sign and value):
        fail("usage", f'"{printable(text)}" is no KEY=VALUE', help="write --set n=64")
    return canonical(key), parse_value(value)


def parse_value(text: str) -> int | float | str:
    """`text` as an integer, else a number, else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def apply(raw: dict[str, Any], overrides: Mapping[str, object], collector: Collector) -> dict[KeyPath, str]:
    """Put `overrides` into the tables `raw`; the paths that they change, each with its option."""
    changed: dict[KeyPath, str] = {}
    for key, value in overrides.items():
        path = _find(raw, canonical(key))
        if path is None:
            known = [*SETTINGS, *_names(raw, "dims"), *_names(raw, "constants")]
            what = f'"{printable(key)}" is no dim, constant or setting of this spec'
            collector.add("unknown-name", what, None, help=nearest(key, known))
            continue
        table = raw
        for part in path[:-1]:
            table = table.setdefault(part, {})
        if not isinstance(table, dict):
            continue
        table[path[-1]] = value
        flag = f"--{key}, --set" if key in ("dtype", "seed") else f"--set {printable(key)}"
        changed[path] = f"{flag} or a sweep"
    return changed


def _find(raw: dict[str, Any], key: str) -> KeyPath | None:
    """The path of what `key` sets. A setting goes before a dim of that name, but for T where nothing has steps."""
    names = [(table, name) for table in ("dims", "constants") for name in _names(raw, table)]
    path = next((path for path in names if canonical(path[1]) == key), None)
    if key in SETTINGS and not (key == "T" and path and not raw.get("state")):
        return SETTINGS[key]
    return path


def _names(raw: dict[str, Any], table: str) -> list[str]:
    names = raw.get(table)
    return list(names) if isinstance(names, dict) else []
