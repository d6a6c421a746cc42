"""What a run has finished, on disk as it goes: a line of JSON a cell, so that a run that was stopped can go on.

The first line names the run by a hash of all that its rows depend on; a journal of another run is refused. The last
line may be cut off in the middle: it then counts as not written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from bpcli.bench.rows import Row
from bpcli.errors import fail

VERSION = 1


def run_hash(about: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a mapping that JSON can hold, whatever the order of its keys."""
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """A journal open for writing; `rows` are those of cells finished before, by their keys."""

    def __init__(self, path: Path, run: str, resume: bool) -> None:
        """Go on in the file at `path` when `resume`, else start it, keeping one with finished cells as `NAME.old`.

        Raises BpError where it can't be written, is damaged, or belongs to another run.
        """
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        self.kept: Path | None = None
        try:
            if resume and path.exists():
                self._file = self._reopened(run)
            else:
                self._file = self._fresh(run)
        except OSError as error:
            fail("unwritable", f'cannot write the journal "{path}": {error.strerror}', help="make its folder writable")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, key: str, rows: Sequence[Row]) -> None:
        """Note that a cell is finished; it is on the disk when this returns."""
        self._line({"cell": key, "rows": rows})
        self.rows[key] = list(rows)

    def close(self, remove: bool) -> None:
        """Close the file, and `remove` it where nothing of the run is left to do."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _fresh(self, run: str) -> IO[bytes]:
        if self.path.exists() and self.path.read_bytes().count(b"\n") > 1:
            self.kept = self.path.with_name(f"{self.path.name}.old")
            self.path.replace(self.kept)
        self.path.unlink(missing_ok=True)
        self._file = self.path.open("xb")
        self._line({"journal": VERSION, "run": run})
        _sync_folder(self.path.parent)
        return self._file

    def _reopened(self, run: str) -> IO[bytes]:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            return self._fresh(run)
        if self._parsed(lines[0], 1) != {"journal": VERSION, "run": run}:
            fail("other-run", f'"{self.path}" is the journal of another run', help="remove it, or leave out --resume")
        for number, line in enumerate(lines[1:], start=2):
            entry = self._parsed(line, number)
            if not isinstance(entry.get("cell"), str) or not isinstance(entry.get("rows"), list):
                self._damaged(number)
            self.rows[entry["cell"]] = entry["rows"]
        file = self.path.open("r+b")
        file.truncate(len(whole))
        file.seek(0, os.SEEK_END)
        return file

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:
            self._damaged(number)
        if not isinstance(entry, dict):
            self._damaged(number)
        return entry

    def _damaged(self, number: int) -> NoReturn:
        fail("damaged", f'line {number} of the journal "{self.path}" is none of its own', help="leave out --resume")

    def _line(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    """Have a new file's name on the disk too, where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
