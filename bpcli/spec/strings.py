"""TOML strings and keys decoded with the origin of every character, so that a token in one has a place in the file."""

from __future__ import annotations

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
