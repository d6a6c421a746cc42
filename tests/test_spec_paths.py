"""Files that a spec names: only regular files inside its folder."""

from __future__ import annotations

import os

import pytest

from bpcli.errors import Collector, Place
from bpcli.spec.paths import resolve

PLACE = Place("spec.toml", 4, 8)


@pytest.fixture
def folder(tmp_path):
    """A spec's folder with files, links, pipes and folders in it, and a file next to it."""
    home = tmp_path / "specs"
    (home / "sub").mkdir(parents=True)
    for path in (home / "a.npz", home / "sub" / "b.npz", tmp_path / "secret.npz"):
        path.write_bytes(b"x")
    (home / "inside.npz").symlink_to("a.npz")
    (home / "outside.npz").symlink_to(tmp_path / "secret.npz")
    (home / "out").symlink_to(tmp_path)
    (home / "loop.npz").symlink_to("loop.npz")
    os.mkfifo(home / "pipe.npz")
    return home


def found(folder, file, allow_outside=False):
    """The resolved path, relative to the folder above the spec's, and the codes of refusals."""
    collector = Collector()
    path = resolve(folder / "spec.toml", file, PLACE, allow_outside, collector)
    assert all(d.place == PLACE for d in collector.diagnostics)
    relative = None if path is None else os.path.relpath(path, folder.parent.resolve())
    return relative, [d.code for d in collector.diagnostics]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a.npz", "specs/a.npz"),
        ("./a.npz", "specs/a.npz"),
        ("sub/b.npz", "specs/sub/b.npz"),
        ("sub/../a.npz", "specs/a.npz"),
        ("inside.npz", "specs/a.npz"),
    ],
)
def test_files_inside(file, expected, folder):
    """Paths are relative to the spec, with links resolved."""
    assert (expected, []) == found(folder, file)


@pytest.mark.parametrize(
    "file", ["../secret.npz", "outside.npz", "out/secret.npz", "sub/../../secret.npz", "../missing"]
)
def test_files_outside(file, folder):
    """Neither dots nor links lead out, whether the file exists or not, but with --allow-outside."""
    assert (None, ["outside"]) == found(folder, file)
    if "missing" not in file:
        assert ("secret.npz", []) == found(folder, file, allow_outside=True)


def test_absolute_paths(folder):
    """An absolute path is outside, even one that leads back in."""
    assert (None, ["outside"]) == found(folder, str(folder / "a.npz"))
    assert (None, ["outside"]) == found(folder, "C:\\a.npz")
    assert (None, ["outside"]) == found(folder, "/dev/zero")
    assert ("specs/a.npz", []) == found(folder, str(folder / "a.npz"), allow_outside=True)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("missing.npz", "no-such-file"),
        ("missing/a.npz", "no-such-file"),
        ("sub", "unreadable-file"),
        (".", "unreadable-file"),
        ("pipe.npz", "unreadable-file"),
        ("loop.npz", "unreadable-file"),
        ("a.npz/b", "unreadable-file"),
        ("a\0b", "unreadable-file"),
        ("x" * 5000, "unreadable-file"),
    ],
)
def test_what_is_no_regular_file(file, code, folder):
    """Folders, pipes, loops of links and names that can't be are refused without being opened."""
    assert (None, [code]) == found(folder, file)


def test_devices_are_no_regular_files(folder):
    """A device is refused even where files outside are allowed."""
    assert (None, ["unreadable-file"]) == found(folder, "/dev/null", allow_outside=True)


def test_the_nearest_name_is_offered(folder):
    """A misspelt file is answered with its neighbour."""
    collector = Collector()
    resolve(folder / "spec.toml", "insde.npz", PLACE, False, collector)
    assert 'did you mean "inside.npz"?' in collector.diagnostics[0].help
