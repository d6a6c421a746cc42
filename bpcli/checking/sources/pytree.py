"""Pytrees: nested dicts, lists, tuples, named tuples and dataclasses, flattened to leaves with names.

A name is the path to a leaf as a user would write it, `layers[0].weight`: items of dicts under keys that are
identifiers count as attributes. The process that runs user code imports this module, so it imports the standard
library alone.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_Parts = tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]


def flatten(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a tree by name, in order; a tree that is a leaf itself has the name given."""
    found: dict[str, Any] = {}
    for path, leaf in _leaves(tree, name):
        found[unused(path, found)] = leaf
    return found


def rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    """A tree of the structure of `tree` with other leaves, in the order of `flatten`."""
    parts = _parts(tree)
    if parts is None:
        return next(leaves)
    children, build = parts
    return build([rebuild(child, leaves) for _, child in children])


def unused(name: str, used: Mapping[str, Any]) -> str:
    """`name`, with a number if it is used already."""
    found, number = name, 2
    while found in used:
        found, number = f"{name} ({number})", number + 1
    return found


def joined(name: str, step: str) -> str:
    """A name and a step from it: `.weight`, `[0]`."""
    return f"{name}{step}" if name else step.removeprefix(".")


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    parts = _parts(tree)
    if parts is None:
        yield name, tree
        return
    for step, child in parts[0]:
        yield from _leaves(child, joined(name, step))


def _parts(tree: Any) -> _Parts | None:
    """The steps to the children and these, and a function that makes the tree of others; None for a leaf."""
    if isinstance(tree, Mapping):
        keys = list(tree)
        return [(_key(k), tree[k]) for k in keys], lambda items: _with_items(tree, keys, items)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return [(f".{f}", v) for f, v in zip(tree._fields, tree, strict=True)], lambda items: type(tree)(*items)
    if isinstance(tree, list | tuple):
        kind = list if isinstance(tree, list) else tuple
        return [(f"[{i}]", v) for i, v in enumerate(tree)], kind
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
        return [(f".{n}", getattr(tree, n)) for n in names], lambda items: _with_fields(tree, names, items)
    return _registered(tree)


def _registered(tree: Any) -> _Parts | None:
    """The parts of an object that is registered as a pytree with JAX, if that is in use."""
    util = getattr(sys.modules.get("jax"), "tree_util", None)
    if util is None or tree is None:
        return None
    paths, structure = util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if util.treedef_is_leaf(structure):
        return None
    return [(util.keystr(path), child) for path, child in paths], structure.unflatten


def _key(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def _with_items(tree: Any, keys: list[Any], items: list[Any]) -> Any:
    if type(tree) is dict:
        return dict(zip(keys, items, strict=True))
    made = copy.copy(tree)
    for key, item in zip(keys, items, strict=True):
        made[key] = item
    return made


def _with_fields(tree: Any, names: list[str], items: list[Any]) -> Any:
    made = copy.copy(tree)
    for name, item in zip(names, items, strict=True):
        object.__setattr__(made, name, item)
    return made
