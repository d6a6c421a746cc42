"""From targets on the command line to Setups.

The specs that ship with the package.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bpcli
from bpcli.commands.common import Common
from bpcli.errors import Diagnostic, fail, nearest

if TYPE_CHECKING:
    from bpcli.api.loaded import LoadedProblem
    from bpcli.problem.spec_file import SpecFile


_HOME = "specs"
_READ = (".toml", ".py", ".pyw", ".npz", ".npy", ".safetensors")
_MAX_BYTES = 1 << 20
_MARK = re.compile(r"^[ \t]*(?:bp|\"bp\"|'bp')[ \t]*=", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)
_EQUATIONS = re.compile(r"^[ \t]*\[equations\]", re.MULTILINE)

# What `[tool.bp]` can say and a spec too; the spec's word counts.
_IN_SPEC = {"dtype": ("dtype",), "seed": ("data", "seed"), "wrt": ("check", "wrt")}


def find(targets: Sequence[str], common: Common) -> tuple[list[Path], list[Diagnostic]]:
    """The specs that `targets` name, each once: files as they are, folders searched; and a refusal for each bad target.

    Without a target, `specs/` of the current folder. A folder without specs gets a note.
    """
    from bpcli.commands.output import note

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
            note(f'no spec in "{target}": no .toml file there has a key bp', common)
        for spec in inside:
            found.setdefault(os.path.realpath(spec), spec)
    return list(found.values()), refused


def names(paths: Sequence[Path]) -> Mapping[Path, str]:
    """What to call each spec: its stem or, where several have that, the shortest end of its path that tells it apart.

    The path is without its suffix, unless that alone tells two apart, and has `/` between its parts.
    """
    return {path: _shortest(path, [p for p in paths if p != path and p.stem == path.stem]) for path in paths}


def spec_file(path: Path, common: Common, name: str = "") -> SpecFile:
    """A spec under the shared options, called `name`, or by its stem where that is empty."""
    from bpcli.problem.spec_file import SpecFile

    return SpecFile(str(path), name or path.stem, *_said_over(path, common), common.limits())


def open_spec(path: Path, common: Common, name: str = "") -> LoadedProblem:
    """The problem of a spec under the shared options; raises BpError with all that is wrong."""
    from bpcli.api.loaded import open_file

    return open_file(spec_file(path, common, name))


def _said_over(path: Path, common: Common) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the shared options say over a spec: settings, and what to differentiate (() where the spec decides)."""
    missing = {n: v for n, v in common.fallbacks.items() if not _says(path, _IN_SPEC[n])}
    wrt = common.wrt or tuple(missing.pop("wrt", ()))
    return {**missing, **common.overrides}, wrt


def single(target: str) -> Path:
    """The spec that a command for one spec is called with; raises BpError for a folder or nothing."""
    path = Path(target)
    if not os.path.lexists(path):
        fail("no-such-file", f'no file "{target}"', help=_alike(path))
    if path.is_dir():
        fail("usage", f'"{target}" is a folder, one spec is needed', help="name a .toml file in it")
    return path


def assignment(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of `--set`."""
    from bpcli.spec.load import parse_assignment

    return parse_assignment(text)


def test_writable(path: str) -> None:
    """Raise BpError where `path` can't be written."""
    from bpcli.problem.array_writer import check_writable

    check_writable(Path(path))


def test_spare(outputs: Sequence[str], values: Mapping[str, Any]) -> None:
    """Raise BpError for an output in the place of a file that `values` of the command line name, or of any program,
    settings or arrays, as specs read them too."""
    groups = [v if isinstance(v, tuple) else (v,) for name, v in values.items() if name not in ("out", "plot")]
    read = {os.path.realpath(text) for group in groups for text in group if isinstance(text, str)}
    for path in filter(os.path.isfile, outputs):
        if os.path.realpath(path) in read or path.lower().endswith(_READ):
            fail("usage", f'--output would replace "{path}", which is read', help="name another file")


def test_out(out: str, spec: Path, common: Common) -> None:
    """Raise BpError where `-o` can't be written, is no .npz, replaces the spec or shares a file with an `--output`."""
    target = os.path.realpath(out)
    if target == os.path.realpath(spec):
        fail("usage", f'-o "{out}" is the spec itself', help="name another file")
    if target in {os.path.realpath(path) for _, path in common.outputs}:
        fail("usage", f'-o and --output both go to "{out}"', help="give each a path of its own")
    if not out.lower().endswith(".npz") and (os.path.isfile(out) or not os.path.exists(out)):
        fail(
            "usage", f'-o "{out}" does not end in .npz, and arrays are written as .npz alone', help="name an .npz file"
        )
    test_writable(out)


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
    """The specs in a folder and below it, in order of their paths; hidden folders are left out.

    A note tells of files that look like specs and lack the key.
    """
    from bpcli.commands.output import note

    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for path in (Path(here, name) for name in sorted(files) if name.endswith(".toml")):
            if _is_spec(path):
                yield path
            elif _EQUATIONS.search(_head(path)):
                note(f"left out {path}: it has [equations], but no key bp", common)


def _is_spec(path: Path) -> bool:
    """Whether a TOML file has a top-level key `bp`; one that is no TOML counts when it looks like a spec."""
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


def _says(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether a spec has the key; False where it can't be read, which is told elsewhere."""
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
    """Help for a path that does not exist: the nearest name in its folder."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".toml"]
    except (OSError, ValueError):
        return f'there is no folder "{path.parent}"'
    return nearest(path.name, names, f'there is no spec in "{path.parent}"')


def find_or_packaged(targets: Sequence[str], common: Common) -> tuple[list[Path], list[Diagnostic]]:
    """As `specs.find`; without a target, the vanilla RNN that ships with the package."""
    return find(targets, common) if targets else ([packaged_spec("vanilla_rnn")], [])


def packaged_spec(name: str) -> Path:
    """The path of the spec called `name` (`vanilla_rnn`), inside an installed package or beside it in a source tree."""
    package = Path(bpcli.__file__).resolve().parent
    folders = [f for f in (package / "specs", package.parent / "specs") if f.is_dir()]
    paths = {p.stem: p for f in reversed(folders) for p in f.glob("*.toml")}
    if name not in paths:
        fail("no-such-file", f'the package holds no spec "{name}"', help=nearest(name, paths))
    return paths[name]
