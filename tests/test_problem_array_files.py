"""The readers of `.npz` and `.safetensors`: every real type is read; damage, lies and pickles are refused."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bpcli.errors import BpError, Place
from bpcli.problem.array_files import _npy_header, open_arrays

PLACE = Place("spec.toml", 7, 8, 'file = "w.npz"')
FLOAT64 = np.dtype(np.float64)
VALUES = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


def npy(array: np.ndarray, **options: object) -> bytes:
    """The bytes of an `.npy` member."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    """An `.npy` member with a header of any text."""
    raw = text.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + data


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive of raw members."""
    with zipfile.ZipFile(path, "w", compression) as stream:
        for name, data in members.items():
            stream.writestr(name, data)
    return path


def tensors(path: Path, entries: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of a header (an object, or raw text) and data."""
    text = entries.encode() if isinstance(entries, str) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refusal(path: Path, name: str = "W") -> tuple[str, str]:
    """The code and message with which reading `name` is refused; the place is the line that names the file."""
    with pytest.raises(BpError) as caught:
        open_arrays(path, PLACE).read(name, FLOAT64)
    (diagnostic,) = caught.value.diagnostics
    assert PLACE == diagnostic.place
    assert diagnostic.what.startswith(path.name)
    return diagnostic.code, diagnostic.what + " | " + diagnostic.help


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("code", ["<f8", ">f8", "<f4", ">f4", "<f2", ">i4", "<i8", "|u1", "|i1", ">u2", np.longdouble])
def test_npz_reads_every_real_layout(code, order, version, compression, tmp_path):
    """Any real type, byte order, memory order, header version and packing gives the same numbers."""
    data = npy(np.array(VALUES, dtype=code, order=order), version=version)
    file = open_arrays(archive(tmp_path / "w.npz", {"W.npy": data}, compression), PLACE)
    array = file.read("W", FLOAT64)
    assert (2, 3) == file.shape("W") == array.shape
    assert FLOAT64 == array.dtype
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(VALUES, array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_reads_large_arrays_in_pieces(order, tmp_path):
    """An array of several pieces is put together in order."""
    values = np.arange(450_001.0 * 1).reshape(1, 450_001)
    np.savez(tmp_path / "w.npz", W=np.asarray(values, order=order), s=np.float32(2.5))
    file = open_arrays(tmp_path / "w.npz", PLACE)
    np.testing.assert_array_equal(values, file.read("W", FLOAT64))
    assert () == file.shape("s") == file.read("s", FLOAT64).shape
    assert 2.5 == file.read("s", FLOAT64)


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("F64", VALUES.astype("<f8")),
        ("F32", VALUES.astype("<f4")),
        ("F16", VALUES.astype("<f2")),
        ("BF16", (VALUES.astype("<f4").view("<u4") >> 16).astype("<u2")),
        *(
            (f"{letter}{8 * size}", VALUES.astype(f"<{letter.lower()}{size}"))
            for letter in "IU"
            for size in (1, 2, 4, 8)
        ),
    ],
)
def test_safetensors_reads_every_real_type(code, raw, tmp_path):
    """Every real type gives the same numbers, wherever it lies; metadata is no array."""
    data = b"pad." + raw.tobytes()
    entries = {
        "__metadata__": {"format": "pt"},
        "first": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "W": {"dtype": code, "shape": [2, 3], "data_offsets": [4, len(data)]},
    }
    file = open_arrays(tensors(tmp_path / "w.safetensors", entries, data), PLACE)
    assert ("first", "W") == file.names()
    assert (2, 3) == file.shape("W")
    np.testing.assert_array_equal(VALUES, file.read("W", FLOAT64))


class Bomb:
    """Something whose unpickling would be seen."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


GOOD = npy(VALUES)
NPY = "{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


def fields(descr: str = "'<f8'", shape: str = "(2, 3)", fortran: str = "False") -> str:
    """The text of an `.npy` header."""
    return NPY.format(descr=descr, shape=shape, fortran=fortran)


@pytest.mark.parametrize(
    ("member", "code", "says"),
    [
        (npy(np.array([Bomb()], dtype=object), allow_pickle=True), "bad-dtype", "pickled objects"),
        (pickle.dumps(Bomb()), "bad-file", "not an .npy member"),
        (npy(np.array([True])), "bad-dtype", "|b1"),
        (npy(np.array([1j])), "bad-dtype", "<c16"),
        (npy(np.array(["text"])), "bad-dtype", "<U4"),
        (npy(np.zeros(2, dtype=[("a", "f8")])), "bad-dtype", "'a'"),
        (npy(np.array([1, 2], dtype="M8[s]")), "bad-dtype", "M8"),
        (npy(np.array([[0.0, 1.0], [np.nan, 0.0]])), "not-finite", "[1, 0]"),
        (npy(np.array(-np.inf)), "not-finite", '"W" is not finite in float64'),
        (b"", "bad-file", "not an .npy member"),
        (GOOD[:5], "bad-file", "not an .npy member"),
        (GOOD[:40], "bad-file", "ends too early"),
        (GOOD[:-1], "bad-file", "asks for 48 bytes of data, it has 47"),
        (GOOD + b"x", "bad-file", "asks for 48 bytes of data, it has 49"),
        (header(fields(shape="(2**40,)")), "bad-file", "damaged"),
        (header(fields(shape="(1099511627776, 1099511627776)")), "bad-file", "asks for"),
        (header(fields(shape="(-1,)")), "bad-file", "tuple of sizes"),
        (header(fields(shape="(True,)")), "bad-file", "tuple of sizes"),
        (header(fields(shape="[2]")), "bad-file", "tuple of sizes"),
        (header(fields(fortran="1")), "bad-file", "truth value"),
        (header(fields(descr="'<f3'"), b"123"), "bad-dtype", "<f3"),
        (header(fields(descr="[('a', '<f8')]")), "bad-dtype", "<f8"),
        (header("{'descr': '<f8'}"), "bad-file", "lacks"),
        (header("__import__('os').getcwd()"), "bad-file", "literal"),
        (header("(" * 5000), "bad-file", "literal"),
        (header("{" * 9000 + "}" * 900), "bad-file", "literal"),
        (header("x" * 20_000), "bad-file", "too long"),
        (header(fields(), version=9), "bad-file", "version 9"),
    ],
)
def test_npz_refuses_bad_members(member, code, says, tmp_path):
    """A member that is damaged, lies about its size, or holds anything but real numbers is refused, and not run."""
    found = refusal(archive(tmp_path / "w.npz", {"W.npy": member}))
    assert code == found[0]
    assert says in found[1]


def test_npz_header_is_data_alone():
    """A header is parsed as literals, never evaluated."""
    raw = header(fields())
    assert ("<f8", (2, 3), False, len(raw)) == _npy_header(io.BytesIO(raw))


def damaged(path: Path, **change: object) -> Path:
    """An archive with one kind of damage."""
    archive(path, {"W.npy": GOOD}, zipfile.ZIP_DEFLATED if change.get("deflate") else zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    if "cut" in change:
        raw = raw[: int(len(raw) * float(str(change["cut"])))]
    if "flip" in change:
        raw[raw.index(b"\x93NUMPY") + 130] ^= 0xFF
    if "declare" in change:
        at = raw.index(b"PK\x01\x02") + 24
        raw[at : at + 4] = struct.pack("<I", change["declare"])
    if "flag" in change:
        raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"cut": 0.0},
        {"cut": 0.3},
        {"cut": 0.9},
        {"flip": True},
        {"declare": 4_000_000_000},
        {"declare": 130},
        {"flag": True},
    ],
    ids=str,
)
def test_npz_refuses_damaged_archives(change, tmp_path):
    """A truncated or altered archive, a wrong checksum, a wrong size and encryption are refused."""
    assert "bad-file" == refusal(damaged(tmp_path / "w.npz", **change))[0]


def test_npz_refuses_a_bomb_by_its_header(tmp_path):
    """A member that unpacks to more than its header declares is refused before it is unpacked."""
    path = archive(tmp_path / "w.npz", {"W.npy": GOOD + bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "bad-file" == refusal(path)[0]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_refuses_rare_packings(compression, tmp_path):
    """Packings that numpy never writes are refused."""
    assert "unsupported compression" in refusal(archive(tmp_path / "w.npz", {"W.npy": GOOD}, compression))[1]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_refuses_a_name_that_occurs_twice(tmp_path):
    """Two members of one name are ambiguous."""
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as stream:
        stream.writestr("W.npy", GOOD)
        stream.writestr("W.npy", GOOD)
    assert "twice" in refusal(tmp_path / "w.npz")[1]


def test_npz_ignores_what_is_not_asked_for(tmp_path):
    """Members beside the one that is read may be anything."""
    others = {"pickle.npy": pickle.dumps(Bomb()), "readme.txt": b"hello", "W.npy": GOOD}
    file = open_arrays(archive(tmp_path / "w.npz", others), PLACE)
    assert ("pickle", "W") == file.names()
    np.testing.assert_array_equal(VALUES, file.read("W", FLOAT64))


def entry(**change: object) -> dict[str, object]:
    """A header's entry for VALUES in float64."""
    return {"W": {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48], **change}}


@pytest.mark.parametrize(
    ("entries", "code", "says"),
    [
        (entry(dtype="BOOL"), "bad-dtype", "BOOL"),
        (entry(dtype="F8_E4M3"), "bad-dtype", "F8_E4M3"),
        (entry(dtype=3), "bad-file", "dtype"),
        (entry(shape=[2, 4]), "bad-file", "64 bytes"),
        (entry(shape=[2, -3]), "bad-file", "list of sizes"),
        (entry(shape=[2, True]), "bad-file", "list of sizes"),
        (entry(shape=[1 << 40, 1 << 40]), "bad-file", "bytes at"),
        (entry(data_offsets=[0, 47]), "bad-file", "[0, 47]"),
        (entry(data_offsets=[8, 56]), "bad-file", "of 48 bytes"),
        (entry(data_offsets=[48, 0]), "bad-file", "[begin, end]"),
        (entry(data_offsets=[0]), "bad-file", "[begin, end]"),
        ({"W": 3}, "bad-file", "dtype"),
        ([1], "bad-file", "JSON object"),
        ("{", "bad-file", "not a readable"),
        ("[" * 100_000, "bad-file", "nested too deep"),
        ('{"W": 1, "W": 2}', "bad-file", "twice"),
        (
            '{"W": {"dtype": "F64", "shape": [' + "1" * 5000 + '], "data_offsets": [0, 8]}}',
            "bad-file",
            "not a readable",
        ),
        ("\udcff", "bad-file", "not a readable"),
    ],
)
def test_safetensors_refuses_bad_headers(entries, code, says, tmp_path):
    """A header whose types, shapes or offsets don't fit the file is refused."""
    if isinstance(entries, str):
        entries = entries.replace("\udcff", "?")
    path = tensors(tmp_path / "w.safetensors", entries, VALUES.tobytes())
    if entries == "?":
        path.write_bytes(path.read_bytes().replace(b"?", b"\xff"))
    found = refusal(path)
    assert code == found[0]
    assert says in found[1]


@pytest.mark.parametrize("raw", [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_safetensors_refuses_bad_lengths(raw, tmp_path):
    """A file shorter than its header claims is refused."""
    (tmp_path / "w.safetensors").write_bytes(raw)
    assert "bad-file" == refusal(tmp_path / "w.safetensors")[0]


def test_a_missing_array_is_answered_with_what_the_file_holds(tmp_path):
    """The help lists the names in the file, the nearest first."""
    np.savez(tmp_path / "w.npz", W_in=VALUES, other=VALUES)
    found = refusal(tmp_path / "w.npz", "W_inn")
    assert ("missing-array", 'w.npz: no array "W_inn" | did you mean "W_in"? the file holds: W_in, other') == found


def test_other_formats_and_folders_are_refused(tmp_path):
    """Only formats that are known are read, and only regular files."""
    (tmp_path / "w.h5").write_bytes(b"x")
    (tmp_path / "w.npz").mkdir()
    assert "unknown-format" == refusal(tmp_path / "w.h5")[0]
    assert "unreadable-file" == refusal(tmp_path / "w.npz")[0]
    assert "unreadable-file" == refusal(tmp_path / "none.npz")[0]


def test_float32_overflow_is_refused(tmp_path):
    """A number that float32 can't hold is not quietly infinite."""
    np.savez(tmp_path / "w.npz", W=np.array([1.0, 1e300]))
    with pytest.raises(BpError, match=r"not finite at \[1\] in float32"):
        open_arrays(tmp_path / "w.npz", PLACE).read("W", np.dtype(np.float32))
