"""Files that a spec names: regular files inside its own folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PureWindowsPath

from bpcli.errors import Collector, Place, nearest, printable

ARRAYS = (".npz", ".safetensors", ".pt", ".pth")


def resolve(
    spec_path: str | Path,
    file: str,
    place: Place,
    allow_outside: bool,
    collector: Collector,
    suffixes: tuple[str, ...] = ARRAYS,
) -> Path | None:
    """The file that a spec names, links resolved; None where it is refused, at `place`.

    The name is relative to the spec's folder and may not lead out of it unless `allow_outside`. Advice suggests files
    that end in one of `suffixes`.
    """
    shown = printable(file)
    try:
        folder = Path(os.path.realpath(Path(spec_path).parent))
        target = Path(os.path.realpath(folder / file))
        if not allow_outside and not _inside(file, target, folder):
            what = f'"{shown}" leads outside the folder of the spec'
            collector.add("outside", what, place, help="move the file next to the spec, or give --allow-outside")
            return None
        status = target.stat()
    except FileNotFoundError:
        collector.add("no-such-file", f'there is no file "{shown}"', place, help=_similar(folder / file, suffixes))
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "this can't be the name of a file"
        collector.add("unreadable-file", f'cannot read "{shown}": {reason}', place, help="check the name of the file")
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        what = f'"{shown}" is {kind}, not a regular file'
        collector.add("unreadable-file", what, place, help=f"name one of: {', '.join(suffixes)}")
        return None
    return target


def _inside(file: str, target: Path, folder: Path) -> bool:
    """Whether neither the name nor what it resolves to leads out of `folder`."""
    foreign = PureWindowsPath(file)
    return not (foreign.is_absolute() or foreign.drive or Path(file).is_absolute()) and target.is_relative_to(folder)


def _similar(path: Path, suffixes: tuple[str, ...]) -> str:
    if Path(str(path).replace("\\", "/")).exists():
        return "folders are separated by slashes in a spec, on every system"
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in suffixes]
    except (OSError, ValueError):
        return "paths are relative to the spec"
    return nearest(path.name, names, "paths are relative to the spec")
