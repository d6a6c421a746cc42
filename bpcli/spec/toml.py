"""TOML to plain tables, and the span of every key and value.

Tree-sitter's concrete syntax tree gives the spans, of a text with errors too; `tomllib` gives the values.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import tree_sitter_toml
from tree_sitter import Language, Parser

from bpcli.errors import Collector, Place
from bpcli.spec.language import canonical
from bpcli.spec.source import KeyPath, Outline, Span, Text, decode

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_DEPTH = 32
_PARSER = Parser(Language(tree_sitter_toml.language()))
_ENDLESS_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_DEPTH + 1},}}""")
_KEYS = ("bare_key", "quoted_key", "dotted_key")
_TIMED = re.compile(r"\s*(\w+)\s*[(\[]\s*t\s*[)\]]\s*=")
_NO_VALUES = ("comment", "ERROR")


def outline(content: str) -> Outline:
    """The outline of a TOML text; of the parts that can be read where it has syntax errors."""
    return _Reader(content).read()


class _Reader:
    """One walk over the syntax tree, with a stack of its own except inside arrays, whose depth is limited."""

    def __init__(self, content: str) -> None:
        self.content = content
        self.characters: list[int] | None = None
        if not content.isascii():  # tree-sitter counts bytes of UTF-8
            self.characters = [at for at, c in enumerate(content) for _ in c.encode("utf-8")] + [len(content)]
        self.found = Outline()
        self.defined: dict[KeyPath, Span] = {}

    def read(self) -> Outline:
        root = _PARSER.parse(self.content.encode("utf-8")).root_node
        if root.has_error and (endless := _ENDLESS_KEY.search(self.content)):
            # The tree lacks keys of lines in error, and tomllib takes quadratic time for such a key.
            self.found.deep = endless.span()
        stack: list[tuple[Node, KeyPath]] = [(root, ())]
        while stack:
            node, path = stack.pop()
            stack += reversed(self.children(node, path))
        for spans in (self.found.keys, self.found.values):
            _add_canonical_paths(spans)
        return self.found

    def children(self, node: Node, path: KeyPath) -> list[tuple[Node, KeyPath]]:
        """Record what `node` defines under `path`; returns the nodes in it that define more, with their paths."""
        if node.type in ("document", "ERROR"):
            return [(child, path) for child in node.children]
        if node.type in ("table", "table_array_element"):
            return self.table(node, single=node.type == "table")
        return self.pair(node, path) if node.type == "pair" else []

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
        span = self.span(node)
        self.found.values.setdefault(path, span)
        if len(path) > MAX_DEPTH:
            self.found.deep = self.found.deep or span
            return []
        if node.type == "inline_table":
            return [(child, path) for child in node.children if child.type == "pair"]
        if node.type == "array":
            items = (child for child in node.children if child.is_named and child.type not in _NO_VALUES)
            return [inner for i, item in enumerate(items) for inner in self.value(item, (*path, str(i)))]
        return []

    def define(self, parts: list[tuple[str, Span]], prefix: KeyPath, *, unique: bool) -> KeyPath:
        """Record the key `parts` below `prefix`, and where it was defined before if it may be defined only once."""
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
        """The names of a dotted key with their spans; the tree nests a dotted key to the left."""
        nodes: list[Node] = []
        while key.type == "dotted_key":
            nodes.append(key.children[-1])
            key = key.children[0]
        nodes.append(key)
        spans = [self.span(node) for node in reversed(nodes) if node.type in _KEYS]
        return [(decode(self.content[slice(*span)])[0], span) for span in spans]

    def span(self, node: Node) -> Span:
        return self.offset(node.start_byte), self.offset(node.end_byte)

    def offset(self, byte: int) -> int:
        return byte if self.characters is None else self.characters[byte]


def _add_canonical_paths(spans: dict[KeyPath, Span]) -> None:
    """Enter paths under the normal form of their names too, by which names are looked up."""
    for path, span in list(spans.items()):
        spans.setdefault(tuple(canonical(part) for part in path), span)


_POSITION = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)\s*$")
_KEY = re.compile(r"[\w-]+\s*=")
_DIGITS = 4300
_NESTING = 100
_MAX_REPEATS = 100


def tables(text: Text, found: Outline, collector: Collector) -> dict[str, Any] | None:
    """The tables of `text`, or None where it is no TOML or nested deeper than any spec is."""
    if found.deep:
        _refuse_depth(text.place(*found.deep), collector)
        return None
    repeats, wrong = sorted(found.repeated), None
    try:
        return tomllib.loads(text.content)
    except RecursionError:
        _refuse_depth(_deepest(text), collector)
    except tomllib.TOMLDecodeError as error:
        if not (repeats and str(error).startswith("Cannot")):  # a repeated key, refused below
            wrong = _refuse_syntax(str(error), text, collector)
    except ValueError:
        _refuse_long_integer(text, found, collector)
    for span in repeats[:_MAX_REPEATS]:
        place, first = text.place(*span), text.place(*found.repeated[span])
        if wrong is None or place.line <= wrong.line:  # what follows an error of syntax means nothing
            what = f"{text.content[slice(*span)]} is defined twice, first in line {first.line}"
            collector.add("duplicate-key", what, place, help="keep one of the two")
    return None


def _refuse_depth(place: Place, collector: Collector) -> None:
    collector.add("too-deep", "arrays and tables are nested too deep", place, help="write it in three levels at most")


def _deepest(text: Text) -> Place:
    """Where more than `_NESTING` brackets are open, those in strings counted too."""
    depth = 0
    for at, character in enumerate(text.content):
        depth += (character in "[{") - (character in "]}")
        if depth > _NESTING:
            return text.place(at, at + 1)
    return text.at(1, 1)


def _refuse_syntax(message: str, text: Text, collector: Collector) -> Place:
    """Note an error of syntax; returns its place."""
    match = _POSITION.search(message)
    what = message[: match.start()] if match else message
    place = text.at(int(match[1]), int(match[2])) if match and match[1] else text.end()
    if what.startswith("Unescaped") and place.quote[place.column - 3 : place.column - 2] == "\\":
        # tomllib reports this error at the end of the escape.
        place = text.at(place.line, place.column - 2)
    what = what[:1].lower() + what[1:]
    collector.add("toml-syntax", f"not TOML: {what}", place, help=_syntax_help(what, place))
    return place


def _syntax_help(what: str, place: Place) -> str:
    before, after = place.quote[: place.column - 1], place.quote[place.column - 1 :]
    token = re.match(r"[^\s=]*", after)
    if what.startswith("invalid statement") and token and not token[0].isascii():
        return f'TOML wants quotes around such a key: "{token[0]}"'
    if timed := _TIMED.match(place.quote):
        return f"an equation gives the value of this step: write {timed[1]} = …"
    if what.startswith(("unescaped", "illegal character")):
        return "write a text with backslashes or line breaks as a TOML literal or multi-line string"
    if what.startswith("cannot"):
        return "define each table and key once"
    if what.startswith("invalid value") and before.count("[") > before.count("]") and _KEY.match(after):
        return "close the bracket of the list before this key"
    if what.startswith("invalid value"):
        return "text goes in quotes; numbers need a digit before and after the point"
    return "one key = value per line; tables start with [name]"


def _refuse_long_integer(text: Text, found: Outline, collector: Collector) -> None:
    """Refuse an integer with more digits than Python converts."""
    long = (s for s in found.values.values() if s[1] - s[0] > _DIGITS and text.content[s[0]] in "+-0123456789")
    place = next((text.place(*span) for span in long), text.at(1, 1))
    collector.add("not-finite", "an integer of thousands of digits", place, help="write a number that float64 holds")
