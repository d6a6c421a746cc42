"""The text of a spec, the position of every key and value in it, and refusals at these positions.

Positions survive decoding: a token of an equation is found in the file, whatever escapes its TOML string has.
"""

from __future__ import annotations

import re
import stat
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bpcli.errors import Collector, Place

MAX_BYTES = 1 << 20
MAX_REFUSALS = 200
KeyPath = tuple[str, ...]
"""A key with the tables around it; an array's element has its index, as text, for a key."""
Span = tuple[int, int]
"""Offsets in characters of the first character and after the last."""
_BOM = b"\xef\xbb\xbf"
_ARRAY_TABLES = ("inputs", "params", "state")


@dataclass(frozen=True)
class Text:
    """`content` has no BOM and `\\n` alone at line ends; `lines` are without them."""

    path: str
    content: str
    lines: tuple[str, ...] = field(init=False)
    starts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        lines = tuple(self.content.split("\n"))
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "starts", tuple(starts[:-1]))

    def place(self, start: int, end: int) -> Place:
        """The place of the characters from offset `start` to before `end`; the width stops at the end of the line."""
        row = bisect_right(self.starts, start) - 1
        line = self.lines[row]
        column = start - self.starts[row]
        width = max(1, min(end - start, len(line) - column))
        return Place(self.path, row + 1, column + 1, line, width)

    def at(self, line: int, column: int) -> Place:
        """The place at a line and column, both counted from 1 and clipped to the text."""
        row = min(max(line, 1), len(self.lines)) - 1
        return self.place(self.starts[row] + min(max(column, 1), len(self.lines[row]) + 1) - 1, 0)

    def end(self) -> Place:
        """The place of the last character that is not white space."""
        last = len(self.content.rstrip())
        return self.place(max(0, last - 1), last)


def read_text(path: str | Path, collector: Collector) -> Text | None:
    """The text of the file at `path`, or None where it is no regular file, too large or not UTF-8."""
    name = str(path)
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            collector.add("unreadable-file", f'"{name}" is {kind}', help="name a spec, a .toml file")
            return None
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is not one that a file can have"
        collector.add("unreadable-file", f'cannot read "{name}": {reason}', help="check the path of the spec")
        return None
    if len(data) > MAX_BYTES:
        what = f'"{name}" is larger than 1 MiB'
        collector.add("file-too-large", what, Place(name, 1, 1), help="keep data in a data file")
        return None
    return _utf8(name, data.removeprefix(_BOM), collector)


def _utf8(name: str, data: bytes, collector: Collector) -> Text | None:
    try:
        return Text(name, data.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        stop = data.find(b"\n", error.start)
        quote = data[start : stop if stop >= 0 else len(data)].decode("utf-8", errors="replace").rstrip("\r")
        column = len(data[start : error.start].decode("utf-8")) + 1
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        collector.add("not-utf-8", what, Place(name, line, column, quote), help="save the file as UTF-8")
        return None


@dataclass
class Outline:
    """The spans of keys, of values and of the `[table]` lines (`headers`) of a TOML text.

    `repeated` takes the span of a key that is defined again to that of its first definition. `deep` is the span of the
    first value nested deeper than any spec is.
    """

    keys: dict[KeyPath, Span] = field(default_factory=dict)
    values: dict[KeyPath, Span] = field(default_factory=dict)
    headers: dict[KeyPath, Span] = field(default_factory=dict)
    repeated: dict[Span, Span] = field(default_factory=dict)
    deep: Span | None = None


@dataclass(frozen=True)
class Source:
    """The places of a spec's keys and values."""

    text: Text
    outline: Outline

    def key(self, *path: str) -> Place:
        """The place of a key, or of the nearest table around it that exists, or of line 1.

        A table stands at its header; a table of one array, at its name in the header.
        """
        while path:
            span = self.outline.keys.get(path)
            if len(path) < 2 or path[0] not in _ARRAY_TABLES:
                span = self.outline.headers.get(path, span)
            if span is not None:
                return self.text.place(*span)
            path = path[:-1]
        return self.text.at(1, 1)

    def value(self, *path: str) -> Place:
        """The place of a value, or of its key, as for `key`, where it is missing."""
        return self.written(*path) or self.key(*path)

    def written(self, *path: str) -> Place | None:
        """The place of a value, or None where it is missing."""
        span = self.outline.values.get(path)
        return self.text.place(*span) if span else None


@dataclass(frozen=True)
class Context:
    """One load of a spec: its source, and where its refusals go.

    `overridden` takes the path of a value that a command-line option replaces to that option's text.
    """

    source: Source
    collector: Collector
    overridden: dict[KeyPath, str]

    @property
    def full(self) -> bool:
        """Whether there are more refusals than anyone reads, so that the search for more can stop."""
        return len(self.collector.diagnostics) >= MAX_REFUSALS

    def refuse(self, code: str, what: str, path: KeyPath, remedy: str) -> None:
        """Refuse the value at `path`, or the option that gives it."""
        option = self.overridden.get(path)
        if option is None:
            self.collector.add(code, what, self.source.value(*path), help=remedy)
        else:
            self.collector.add(code, what, None, help=f"{remedy + '; ' if remedy else ''}the value comes from {option}")

    def refuse_key(self, code: str, what: str, path: KeyPath, remedy: str) -> None:
        """Refuse the key at `path`."""
        if path in self.overridden:
            self.refuse(code, what, path, remedy)
            return
        span = self.source.outline.keys.get(path)
        self.collector.add(code, what, self.source.text.place(*span) if span else self.source.key(*path), help=remedy)

    def token_places(self, path: KeyPath, content: str) -> Callable[[int, int], Place]:
        """A function that places the characters `start` to before `end` of `content`, the string at `path`.

        Every place is that of the whole value where the string does not stand in the file as it was read.
        """
        text, span = self.source.text, self.source.outline.values.get(path)
        read, offsets = decode(text.content[slice(*span)]) if span else ("", [])
        if span is None or read != content or not content:
            whole = self.source.value(*path)
            return lambda start, end: whole
        first = span[0]

        def place(start: int, end: int) -> Place:
            last = max(start, min(end, len(content)) - 1)
            return text.place(first + offsets[start], first + offsets[min(last + 1, len(content))])

        return place


_CHARACTER = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[ \t\r\n]+|.)|.", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


def decode(raw: str) -> tuple[str, list[int]]:
    """The content of a TOML string or key as written in `raw`, quotes included where it has them.

    Returns the content and the offset in `raw` of each character, and of the end.
    """
    mark = raw[:1] if raw[:1] in ('"', "'") else ""
    start, end = len(mark), max(len(mark), len(raw) - len(mark))
    if mark and len(raw) >= 6 and raw.startswith(mark * 3):
        start, end = 4 if raw[3:4] == "\n" else 3, len(raw) - 3
    if mark != '"':
        return raw[start:end], list(range(start, end + 1))
    found = [(_unescaped(match[0]), match.start()) for match in _CHARACTER.finditer(raw, start, end)]
    characters, offsets = zip(*(pair for pair in found if pair[0]), ("", end), strict=True)
    return "".join(characters), list(offsets)


def _unescaped(token: str) -> str:
    """The character that `token` stands for, "" for a line continuation."""
    if token[0] != "\\":
        return token
    if len(token) > 2 and token[1] in "xuU":
        code = int(token[2:], 16)
        return chr(code) if code <= 0x10FFFF else "\ufffd"
    return _ESCAPES.get(token[1:], "")
