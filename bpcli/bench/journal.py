"""The journal of a run: a JSON line on disk for each finished cell, so that an interrupted run can be resumed.

The first line identifies the run by a hash of everything that its rows depend on; the journal of another run is
refused. A last line that was cut off counts as not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bpcli.bench.measurement import Row
from bpcli.errors import fail

VERSION = 1


def run_hash(about: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a JSON mapping; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


class Journal:
    """A journal open for writing; `rows` maps the keys of finished cells to their rows.

    `kept` is the path of an earlier journal that was put aside, None where there was none.
    """

    def __init__(self, path: Path, run: str, resume: bool) -> None:
        """Continue the file at `path` where `resume`, else start it, keeping one with finished cells as `NAME.old`.

        Raises BpError where it cannot be written, is damaged, or belongs to another run.
        """
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        self.kept: Path | None = None
        try:
            self._file = self._reopened(run) if resume and path.exists() else self._fresh(run)
        except OSError as error:
            fail("unwritable", f'cannot write the journal "{path}": {error.strerror}', help="make its folder writable")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, key: str, rows: Sequence[Row]) -> None:
        """Record a finished cell; it is on disk when this returns."""
        self._write_line({"cell": key, "rows": rows})
        self.rows[key] = list(rows)

    def close(self, remove: bool) -> None:
        """Close the file, and remove it where the run is complete."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _fresh(self, run: str) -> IO[bytes]:
        if self.path.exists() and self.path.read_bytes().count(b"\n") > 1:
            self.kept = self.path.with_name(f"{self.path.name}.old")
            self.path.replace(self.kept)
        self.path.unlink(missing_ok=True)
        self._file = self.path.open("xb")
        self._write_line({"journal": VERSION, "run": run})
        _sync_folder(self.path.parent)
        return self._file

    def _reopened(self, run: str) -> IO[bytes]:
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        lines = complete.splitlines()
        if not lines:
            return self._fresh(run)
        if self._parsed(lines[0], 1) != {"journal": VERSION, "run": run}:
            fail("other-run", f'"{self.path}" is the journal of another run', help="remove it, or leave out --resume")
        for number, line in enumerate(lines[1:], start=2):
            entry = self._parsed(line, number, cell=str, rows=list)
            self.rows[entry["cell"]] = entry["rows"]
        file = self.path.open("r+b")
        file.truncate(len(complete))
        file.seek(0, os.SEEK_END)
        return file

    def _parsed(self, line: bytes, number: int, **types: type) -> dict[str, Any]:
        entry = None
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), t) for key, t in types.items()):
            fail("damaged", f'line {number} of the journal "{self.path}" is not an entry', help="leave out --resume")
        return entry

    def _write_line(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put the name of a new file on disk too, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
