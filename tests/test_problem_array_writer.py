"""Output files are written whole or not at all, with the same bytes for the same arrays."""

from __future__ import annotations

import stat

import numpy as np
import pytest
from problem_cases import assert_same, refusals

from bpcli.errors import BpError
from bpcli.problem.array_files import check_writable, replace_file, write_npz


def test_written_files_are_whole_and_reproducible(tmp_path):
    """The same arrays give the same bytes, readable by numpy; nothing else is left in the folder."""
    arrays = {"α": np.arange(6.0).reshape(2, 3), "loss": np.array(1.5)}
    for name in ("one.npz", "two"):
        write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two").read_bytes()
    with np.load(tmp_path / "one.npz") as stored:
        assert_same(arrays, dict(stored))
    assert ["one.npz", "two"] == sorted(p.name for p in tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """An error during the write leaves the old file and nothing else."""
    target = tmp_path / "out.npz"
    target.write_bytes(b"old")
    with pytest.raises(KeyError):
        replace_file(target, lambda stream: {}["missing"])
    assert b"old" == target.read_bytes()
    assert ["out.npz"] == [p.name for p in tmp_path.iterdir()]


def test_a_link_is_written_through_and_permissions_stay(tmp_path):
    """The file behind a link is replaced, not the link, and keeps its mode."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", lambda stream: stream.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert b"new" == (tmp_path / "real").read_bytes()
    assert 0o640 == stat.S_IMODE((tmp_path / "real").stat().st_mode)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none/out.npz", "its folder does not exist"),
        ("folder", "it is a folder"),
        ("file/out.npz", "its folder does not exist"),
        ("x" * 300, "File name too long"),
        ("nul\0", "null"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_unwritable_paths_are_refused(path, says, tmp_path):
    """An unwritable path is refused with the reason, by the early check and by the write."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (check_writable, lambda p: write_npz(p, {})):
        with pytest.raises(BpError) as caught:
            attempt(f"{tmp_path}/{path}")
        assert [("unwritable", 0)] == refusals(caught.value)
        assert says in caught.value.diagnostics[0].what


@pytest.mark.parametrize("path", ["out.npz", "old.npz"])
def test_writable_paths_pass_and_stay_as_they_are(path, tmp_path):
    """The test of a path changes nothing."""
    (tmp_path / "old.npz").write_bytes(b"old")
    check_writable(tmp_path / path)
    assert ["old.npz"] == [p.name for p in tmp_path.iterdir()]
    assert b"old" == (tmp_path / "old.npz").read_bytes()


def test_a_device_is_written_and_not_replaced():
    """`/dev/null` stays what it is."""
    check_writable("/dev/null")
    write_npz("/dev/null", {"a": np.zeros(3)})
    with open("/dev/null", "rb") as stream:
        assert b"" == stream.read()
