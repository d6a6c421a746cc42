"""What every part of the loader needs: the text, where things stand in it, and where refusals go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bpcli.errors import Collector, Place
from bpcli.spec.specification import Source
from bpcli.spec.text import Text, decode
from bpcli.spec.toml import KeyPath, Outline

MAX_REFUSALS = 200


@dataclass(frozen=True)
class Context:
    """One load. `overridden` takes the path of a value that an option gives to that option's text."""

    text: Text
    outline: Outline
    source: Source
    collector: Collector
    overridden: dict[KeyPath, str]

    @property
    def full(self) -> bool:
        """Whether so much is refused that nobody would read on, and looking for more only takes time."""
        return len(self.collector.diagnostics) >= MAX_REFUSALS

    def refuse(self, code: str, what: str, path: KeyPath, remedy: str) -> None:
        """A refusal of the value at `path`; of the option where one gave the value."""
        option = self.overridden.get(path)
        if option is None:
            self.collector.add(code, what, self.source.value(*path), help=remedy)
        else:
            self.collector.add(code, what, None, help=f"{remedy + '; ' if remedy else ''}the value comes from {option}")

    def refuse_key(self, code: str, what: str, path: KeyPath, remedy: str) -> None:
        """A refusal of the key at `path`."""
        if path in self.overridden:
            self.refuse(code, what, path, remedy)
            return
        span = self.outline.keys.get(path)
        self.collector.add(code, what, self.text.place(*span) if span else self.source.key(*path), help=remedy)

    def where(self, path: KeyPath, content: str) -> Callable[[int, int], Place]:
        """The place of the characters start..end of the string at `path`, whose content is given."""
        span, raw = self.outline.values.get(path), self.outline.strings.get(path)
        read, offsets = decode(raw) if raw is not None else ("", [])
        if span is None or read != content or not content:
            whole = self.source.value(*path)
            return lambda start, end: whole
        first = span[0]

        def place(start: int, end: int) -> Place:
            last = max(start, min(end, len(content)) - 1)
            return self.text.place(first + offsets[start], first + offsets[min(last + 1, len(content))])

        return place


def make_source(text: Text, found: Outline) -> Source:
    """The places of keys and values; the key of a top-level table or of one without arrays' names is its header."""
    keys = {path: text.place(*span) for path, span in found.keys.items()}
    arrays = ("inputs", "params", "state")
    keys |= {path: text.place(*span) for path, span in found.headers.items() if len(path) < 2 or path[0] not in arrays}
    values = {path: text.place(*span) for path, span in found.values.items()}
    return Source(text.path, text.lines, keys, values)
