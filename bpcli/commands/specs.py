"""The specs that a command line names: found in folders, given names, and opened under the shared options."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bpcli
from bpcli.commands.shared_options import Common
from bpcli.errors import Diagnostic, fail, nearest

if TYPE_CHECKING:
    from bpcli.api.loaded import LoadedProblem
    from bpcli.problem.setup import SpecFile

_HOME = "specs"
_MAX_BYTES = 1 << 20
_MARK = re.compile(r"^[ \t]*(?:bp|\"bp\"|'bp')[ \t]*=", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)
_EQUATIONS = re.compile(r"^[ \t]*\[equations\]", re.MULTILINE)

# Settings that both `[tool.bp]` and a spec can have, with their keys in the spec, which takes precedence.
_IN_SPEC = {"dtype": ("dtype",), "seed": ("data", "seed"), "wrt": ("check", "wrt")}


def find(targets: Sequence[str], common: Common) -> tuple[list[Path], list[Diagnostic]]:
    """The distinct specs among `targets`, folders searched recursively, and a refusal for each invalid target.

    Without targets, the specs in the folder specs/. A folder without specs is noted on stderr.
    """

    if not targets and not Path(_HOME).is_dir():
        advice = "name a spec or a folder of specs: bp check FILE.toml"
        return [], [Diagnostic("no-specs", f'no target given, and no folder "{_HOME}" here', help=advice)]
    found: dict[str, Path] = {}
    refused = []
    for target in targets or (_HOME,):
        path = Path(target)
        try:
            inside = list(_search(path, common)) if path.is_dir() else [path]
            if not os.path.lexists(path):
                refused.append(Diagnostic("no-such-file", f'no file or folder "{target}"', help=_alike(path)))
                continue
        except (OSError, ValueError) as error:
            advice = "name a spec or a folder that may be read"
            refused.append(Diagnostic("unreadable-file", f'cannot read "{target}": {error}', help=advice))
            continue
        if not inside:
            common.note(f'no spec in "{target}": no .toml file there has a key bp')
        for spec in inside:
            found.setdefault(os.path.realpath(spec), spec)
    return list(found.values()), refused


def find_or_packaged(targets: Sequence[str], common: Common) -> tuple[list[Path], list[Diagnostic]]:
    """As `find`, but without targets the vanilla RNN that ships with bp."""
    return find(targets, common) if targets else ([packaged_spec("vanilla_rnn")], [])


def packaged_spec(name: str) -> Path:
    """The path of a bundled spec such as `vanilla_rnn` or `tasks/copy`, in the installed package or its source tree."""
    package = Path(bpcli.__file__).resolve().parent
    folders = [f for f in (package / "specs", package.parent / "specs") if f.is_dir()]
    found = ((p.relative_to(f).with_suffix("").as_posix(), p) for f in reversed(folders) for p in f.rglob("*.toml"))
    paths = dict(found)
    if name not in paths:
        fail("no-such-file", f'bp ships no spec "{name}"', help=nearest(name, paths))
    return paths[name]


def names(paths: Sequence[Path]) -> Mapping[Path, str]:
    """A unique name for each spec: its stem or, where several share it, the shortest distinctive end of its path.

    Paths are in POSIX form, without their suffix unless only that distinguishes two specs.
    """
    return {path: _shortest(path, [p for p in paths if p != path and p.stem == path.stem]) for path in paths}


def spec_file(path: Path, common: Common, name: str = "") -> SpecFile:
    """A spec under the shared options; `name` defaults to its stem."""
    from bpcli.problem.setup import SpecFile

    fallbacks = {n: v for n, v in common.fallbacks.items() if not _has_key(path, _IN_SPEC[n])}
    wrt = common.wrt or tuple(fallbacks.pop("wrt", ()))
    return SpecFile(str(path), name or path.stem, {**fallbacks, **common.overrides}, wrt, common.limits())


def open_spec(path: Path, common: Common, name: str = "") -> LoadedProblem:
    """The problem of a spec under the shared options; raises BpError with every error in the spec."""
    from bpcli.api.loaded import open_file

    return open_file(spec_file(path, common, name))


def single(target: str) -> Path:
    """The path of the one spec that a command takes; raises BpError where it is a folder or does not exist."""
    path = Path(target)
    if not os.path.lexists(path):
        fail("no-such-file", f'no file "{target}"', help=_alike(path))
    if path.is_dir():
        fail("usage", f'"{target}" is a folder, not a spec', help="name a .toml file in it")
    return path


def _shortest(path: Path, others: Iterable[Path]) -> str:
    own, rest = Path(os.path.abspath(path)), [Path(os.path.abspath(p)) for p in others]
    for suffix in ("", own.suffix):
        parts = own.with_suffix(suffix).parts
        for count in range(1, len(parts) + 1):
            end = parts[-count:]
            if all(p.with_suffix(suffix and p.suffix).parts[-count:] != end for p in rest):
                return Path(*end).as_posix()
    return own.as_posix()


def _search(folder: Path, common: Common) -> Iterator[Path]:
    """The specs in a folder and its subfolders, hidden ones excepted, in order of their paths.

    A file that looks like a spec but lacks the key `bp` is noted on stderr.
    """

    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for path in (Path(here, name) for name in sorted(files) if name.endswith(".toml")):
            if _is_spec(path):
                yield path
            elif _EQUATIONS.search(_head(path)):
                common.note(f"skipped {path}: it has [equations] but no key bp")


def _is_spec(path: Path) -> bool:
    """Whether a file has a top-level key `bp`, by its syntax or, where that is invalid, by its look."""
    text = _head(path)
    try:
        return "bp" in tomllib.loads(text)
    except (ValueError, RecursionError):
        header = _HEADER.search(text)
        return bool(_MARK.search(text, 0, header.start() if header else len(text)))


def _head(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _has_key(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether a spec has the key; False for an unreadable file, which is refused when it is opened."""
    try:
        table: Any = tomllib.loads(_head(path))
    except (ValueError, RecursionError):
        return False
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


def _alike(path: Path) -> str:
    """Help for a path that does not exist: the same with slashes, or the nearest in its folder."""
    slashed = Path(str(path).replace("\\", "/"))
    if slashed.exists() and slashed != path:
        return f'folders are separated by slashes here: write "{slashed}"'
    folder = slashed.parent
    try:
        names = [str(p) for p in folder.iterdir() if p.is_dir() or p.suffix == ".toml"]
    except (OSError, ValueError):
        return f'there is no folder "{folder}"'
    return nearest(str(slashed), names, f'there is no spec in "{folder}"')
