"""A spec's text as read from disk: checked for size and encoding, with places for its characters.

TOML strings and keys decoded with the origin of every character, so that a token in one has a place in the file.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from bpcli.errors import Collector, Place

MAX_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


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
        """The place at a line and column, both from 1 and brought inside the text."""
        row = min(max(line, 1), len(self.lines)) - 1
        return self.place(self.starts[row] + min(max(column, 1), len(self.lines[row]) + 1) - 1, 0)

    def end(self) -> Place:
        """The place of the last character that is not white space."""
        last = len(self.content.rstrip())
        return self.place(max(0, last - 1), last)


def read(path: str | Path, collector: Collector) -> Text | None:
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
        collector.add(
            "file-too-large", f'"{name}" is larger than 1 MiB', Place(name, 1, 1), help="keep data in a data file"
        )
        return None
    return _decoded(name, data.removeprefix(_BOM), collector)


def _decoded(name: str, data: bytes, collector: Collector) -> Text | None:
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


_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}
_HEX = {"x": 2, "u": 4, "U": 8}


def decode(raw: str) -> tuple[str, list[int]]:
    """The content of a TOML string or key as written in `raw`, quotes included where it has them.

    Returns the content and one offset into `raw` per character, with one more for its end.
    """
    mark, start, end = _extent(raw)
    if mark != '"':
        return raw[start:end], list(range(start, end + 1))
    characters: list[str] = []
    offsets: list[int] = []
    at = start
    while at < end:
        offsets.append(at)
        if raw[at] != "\\":
            characters.append(raw[at])
            at += 1
            continue
        character, at = _escape(raw, at, end)
        if character:
            characters.append(character)
        else:
            offsets.pop()
    offsets.append(end)
    return "".join(characters), offsets


def _extent(raw: str) -> tuple[str, int, int]:
    """The quote mark of `raw` ("" for a bare key), and where its content starts and ends."""
    mark = raw[:1] if raw[:1] in ('"', "'") else ""
    if not mark:
        return "", 0, len(raw)
    if len(raw) >= 6 and raw.startswith(mark * 3):
        return mark, 4 if raw[3:4] == "\n" else 3, len(raw) - 3
    return mark, 1, max(1, len(raw) - 1)


def _escape(raw: str, at: int, end: int) -> tuple[str, int]:
    """The character that the escape at `at` stands for ("" for a line continuation), and where the text goes on."""
    letter = raw[at + 1 : at + 2]
    if letter in _HEX:
        stop = at + 2 + _HEX[letter]
        digits = raw[at + 2 : stop]
        code = int(digits, 16) if digits and all(c in "0123456789abcdefABCDEF" for c in digits) else 0xFFFD
        return chr(code) if code <= 0x10FFFF else "\ufffd", min(stop, end)
    if letter in _ESCAPES:
        return _ESCAPES[letter], at + 2
    at += 1
    while at < end and raw[at] in " \t\r\n":
        at += 1
    return "", at
