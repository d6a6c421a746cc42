"""Where every key and value of a TOML text stands, from its concrete syntax tree.

TOML text to plain tables; what is wrong with the text becomes a diagnostic with its place.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import tree_sitter_toml
from tree_sitter import Language, Parser

from bpcli.errors import Collector, Place
from bpcli.spec.language import canonical
from bpcli.spec.text import Text, decode

if TYPE_CHECKING:
    from tree_sitter import Node


MAX_DEPTH = 32
KeyPath = tuple[str, ...]
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

    keys: dict[KeyPath, Span] = field(default_factory=dict)
    values: dict[KeyPath, Span] = field(default_factory=dict)
    headers: dict[KeyPath, Span] = field(default_factory=dict)
    strings: dict[KeyPath, str] = field(default_factory=dict)
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
        self.defined: dict[KeyPath, Span] = {}

    def read(self) -> Outline:
        root = _PARSER.parse(self.encoded).root_node
        if root.has_error and (endless := _ENDLESS_KEY.search(self.content)):
            # There is no key in the tree where its line is in error, and tomllib takes quadratic time for one.
            self.found.deep = endless.span()
        stack: list[tuple[Node, KeyPath]] = [(root, ())]
        while stack:
            node, path = stack.pop()
            children = self.children(node, path)
            stack += reversed(children)
        self.found.keys |= dict(_normalised(self.found.keys))
        self.found.values |= dict(_normalised(self.found.values))
        return self.found

    def children(self, node: Node, path: KeyPath) -> list[tuple[Node, KeyPath]]:
        """Note what `node` defines under `path`, and name what to look at inside it."""
        kind = node.type
        if kind in ("document", "ERROR"):
            return [(child, path) for child in node.children]
        if kind in ("table", "table_array_element"):
            return self.table(node, kind == "table")
        if kind == "pair":
            return self.pair(node, path)
        return []

    def table(self, node: Node, single: bool) -> list[tuple[Node, KeyPath]]:
        parts = next((self.parts(child) for child in node.children if child.type in _KEYS), [])
        if not parts:
            return []
        path = self.define(parts, (), unique=single)
        close = next((child for child in node.children if child.type in ("]", "]]")), node.children[0])
        self.found.headers.setdefault(path, (self.offset(node.start_byte), self.offset(close.end_byte)))
        return [(child, path) for child in node.children if child.type == "pair"]

    def pair(self, node: Node, prefix: KeyPath) -> list[tuple[Node, KeyPath]]:
        key, *rest = node.children
        value = next((child for child in rest if child.is_named and child.type not in _NO_VALUES), None)
        parts = self.parts(key)
        if not parts or value is None:
            return []
        return self.value(value, self.define(parts, prefix, unique=True))

    def value(self, node: Node, path: KeyPath) -> list[tuple[Node, KeyPath]]:
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

    def array(self, node: Node, path: KeyPath) -> list[tuple[Node, KeyPath]]:
        items = [child for child in node.children if child.is_named and child.type not in _NO_VALUES]
        inside: list[tuple[Node, KeyPath]] = []
        for index, child in enumerate(items):
            inside += self.value(child, (*path, str(index)))
        return inside

    def define(self, parts: list[tuple[str, Span]], prefix: KeyPath, *, unique: bool) -> KeyPath:
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


def _normalised(spans: dict[KeyPath, Span]) -> list[tuple[KeyPath, Span]]:
    """Paths in normal form KC where that differs, since names are looked up in it."""
    changed = [(tuple(canonical(part) for part in path), path) for path in spans]
    return [(new, spans[old]) for new, old in changed if new != old and new not in spans]


_POSITION = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)\s*$")
_KEY = re.compile(r"[\w-]+\s*=")
_DIGITS = 4300
_NESTING = 100
_MAX_REPEATS = 100


def tables(text: Text, found: Outline, collector: Collector) -> dict[str, Any] | None:
    """The tables of `text`, or None where it is no TOML or nested deeper than any spec is."""
    if found.deep:
        _too_deep(text.place(*found.deep), collector)
        return None
    repeats = sorted(found.repeated)
    for span in repeats[:_MAX_REPEATS]:
        first = text.place(*found.repeated[span])
        name = text.content[slice(*span)]
        what = f"{name} is defined twice, first in line {first.line}"
        collector.add("duplicate-key", what, text.place(*span), help="keep one of the two")
    try:
        return tomllib.loads(text.content)
    except RecursionError:
        _too_deep(_deepest(text), collector)
    except tomllib.TOMLDecodeError as error:
        _syntax(str(error), text, repeats, collector)
    except ValueError:
        _long_integer(text, found, collector)
    return None


def _too_deep(place: Place, collector: Collector) -> None:
    collector.add("too-deep", "arrays and tables are nested too deep", place, help="write it in three levels at most")


def _deepest(text: Text) -> Place:
    """Where more than `_NESTING` brackets are open, counted without regard to strings."""
    depth = 0
    for at, character in enumerate(text.content):
        depth += (character in "[{") - (character in "]}")
        if depth > _NESTING:
            return text.place(at, at + 1)
    return text.at(1, 1)


def _syntax(message: str, text: Text, repeats: list[tuple[int, int]], collector: Collector) -> None:
    match = _POSITION.search(message)
    what = message[: match.start()] if match else message
    if repeats and what.startswith("Cannot"):
        return
    place = text.at(int(match[1]), int(match[2])) if match and match[1] else text.end()
    if what.startswith("Unescaped") and place.quote[place.column - 3 : place.column - 2] == "\\":
        # The parser stands behind the escape by then.
        place = text.at(place.line, place.column - 2)
    what = what[:1].lower() + what[1:]
    collector.add("toml-syntax", f"not TOML: {what}", place, help=_syntax_help(what, place))


def _syntax_help(what: str, place: Place) -> str:
    token = re.match(r"[^\s=]*", place.quote[place.column - 1 :])
    if what.startswith("invalid statement") and token and not token[0].isascii():
        return f'TOML wants quotes around such a key: "{token[0]}"'
    if what.startswith(("unescaped", "illegal character")):
        return "write a text with backslashes or line breaks as a TOML literal or multi-line string"
    if what.startswith("cannot"):
        return "define each table and key once"
    before, after = place.quote[: place.column - 1], place.quote[place.column - 1 :]
    if what.startswith("invalid value") and before.count("[") > before.count("]") and _KEY.match(after):
        return "close the bracket of the list before this key"
    if what.startswith("invalid value"):
        return "text goes in quotes; numbers need a digit before and after the point"
    return "one key = value a line; tables start with [name]"


def _long_integer(text: Text, found: Outline, collector: Collector) -> None:
    for start, end in found.values.values():
        if end - start > _DIGITS and text.content[start] in "+-0123456789":
            place = text.place(start, end)
            break
    else:
        place = text.at(1, 1)
    collector.add("not-finite", "an integer of thousands of digits", place, help="write a number that float64 holds")
