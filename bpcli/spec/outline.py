"""Where every key and value of a TOML text stands, from its concrete syntax tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import tree_sitter_toml
from tree_sitter import Language, Parser

from bpcli.spec.language import canonical
from bpcli.spec.strings import decode

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_DEPTH = 32
Path = tuple[str, ...]
Span = tuple[int, int]

_PARSER = Parser(Language(tree_sitter_toml.language()))
_ENDLESS_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_DEPTH + 1},}}""")
_KEYS = ("bare_key", "quoted_key", "dotted_key")
_NO_VALUES = ("comment", "ERROR")


@dataclass
class Outline:
    """Spans are offsets in characters, from the first to after the last.

    `keys` and `values` go by key path, an array's element by its index as text. `headers` are the spans of `[table]`
    lines. `strings` is the raw text of string values. `repeated` takes the span of a key that is defined again to the
    span of its first definition. `deep` is the span of the first value nested deeper than `MAX_DEPTH`.
    """

    keys: dict[Path, Span] = field(default_factory=dict)
    values: dict[Path, Span] = field(default_factory=dict)
    headers: dict[Path, Span] = field(default_factory=dict)
    strings: dict[Path, str] = field(default_factory=dict)
    repeated: dict[Span, Span] = field(default_factory=dict)
    deep: Span | None = None


def outline(content: str) -> Outline:
    """The outline of a TOML text; of the parts that can be read where the text is no TOML."""
    return _Reader(content).read()


class _Reader:
    """One walk over the tree, without recursion: the nesting of a file is not ours to trust."""

    def __init__(self, content: str) -> None:
        self.content = content
        self.encoded = content.encode("utf-8")
        self.characters: list[int] | None = None if content.isascii() else _character_offsets(content)
        self.found = Outline()
        self.defined: dict[Path, Span] = {}

    def read(self) -> Outline:
        root = _PARSER.parse(self.encoded).root_node
        if root.has_error and (endless := _ENDLESS_KEY.search(self.content)):
            # There is no key in the tree where its line is in error, and tomllib takes quadratic time for one.
            self.found.deep = endless.span()
        stack: list[tuple[Node, Path]] = [(root, ())]
        while stack:
            node, path = stack.pop()
            children = self.children(node, path)
            stack += reversed(children)
        self.found.keys |= dict(_normalised(self.found.keys))
        self.found.values |= dict(_normalised(self.found.values))
        return self.found

    def children(self, node: Node, path: Path) -> list[tuple[Node, Path]]:
        """Note what `node` defines under `path`, and name what to look at inside it."""
        kind = node.type
        if kind in ("document", "ERROR"):
            return [(child, path) for child in node.children]
        if kind in ("table", "table_array_element"):
            return self.table(node, kind == "table")
        if kind == "pair":
            return self.pair(node, path)
        return []

    def table(self, node: Node, single: bool) -> list[tuple[Node, Path]]:
        parts = next((self.parts(child) for child in node.children if child.type in _KEYS), [])
        if not parts:
            return []
        path = self.define(parts, (), unique=single)
        close = next((child for child in node.children if child.type in ("]", "]]")), node.children[0])
        self.found.headers.setdefault(path, (self.offset(node.start_byte), self.offset(close.end_byte)))
        return [(child, path) for child in node.children if child.type == "pair"]

    def pair(self, node: Node, prefix: Path) -> list[tuple[Node, Path]]:
        key, *rest = node.children
        value = next((child for child in rest if child.is_named and child.type not in _NO_VALUES), None)
        parts = self.parts(key)
        if not parts or value is None:
            return []
        return self.value(value, self.define(parts, prefix, unique=True))

    def value(self, node: Node, path: Path) -> list[tuple[Node, Path]]:
        span = (self.offset(node.start_byte), self.offset(node.end_byte))
        self.found.values.setdefault(path, span)
        if len(path) > MAX_DEPTH:
            self.found.deep = self.found.deep or span
            return []
        if node.type == "string":
            self.found.strings.setdefault(path, self.content[span[0] : span[1]])
        if node.type == "inline_table":
            return [(child, path) for child in node.children if child.type == "pair"]
        if node.type == "array":
            return self.array(node, path)
        return []

    def array(self, node: Node, path: Path) -> list[tuple[Node, Path]]:
        items = [child for child in node.children if child.is_named and child.type not in _NO_VALUES]
        inside: list[tuple[Node, Path]] = []
        for index, child in enumerate(items):
            inside += self.value(child, (*path, str(index)))
        return inside

    def define(self, parts: list[tuple[str, Span]], prefix: Path, *, unique: bool) -> Path:
        """Note the key `parts` below `prefix`, and whether it was defined before."""
        path = prefix
        if len(prefix) + len(parts) > MAX_DEPTH:
            self.found.deep = self.found.deep or parts[0][1]
            parts = parts[:MAX_DEPTH]
        for name, span in parts:
            path = (*path, name)
            self.found.keys.setdefault(path, span)
        span = parts[-1][1]
        if unique and path in self.defined:
            self.found.repeated[span] = self.defined[path]
        if unique:
            self.defined.setdefault(path, span)
        return path

    def parts(self, key: Node) -> list[tuple[str, Span]]:
        """The names of a dotted key with their spans; a dotted key is nested to the left."""
        nodes: list[Node] = []
        while key.type == "dotted_key":
            nodes.append(key.children[-1])
            key = key.children[0]
        nodes.append(key)
        spans = [(self.offset(n.start_byte), self.offset(n.end_byte)) for n in reversed(nodes) if n.type in _KEYS]
        return [(decode(self.content[start:end])[0], (start, end)) for start, end in spans]

    def offset(self, byte: int) -> int:
        return byte if self.characters is None else self.characters[byte]


def _character_offsets(content: str) -> list[int]:
    """The character's offset for every byte's, and for the end."""
    widths = [len(c.encode("utf-8")) for c in content]
    offsets = [0] * (sum(widths) + 1)
    for index, start in enumerate(accumulate(widths, initial=0)):
        offsets[start] = index
    return offsets


def _normalised(spans: dict[Path, Span]) -> list[tuple[Path, Span]]:
    """Paths in normal form KC where that differs, since names are looked up in it."""
    changed = [(tuple(canonical(part) for part in path), path) for path in spans]
    return [(new, spans[old]) for new, old in changed if new != old and new not in spans]
