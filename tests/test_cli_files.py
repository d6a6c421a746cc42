"""`bp grad` and `bp export`: what is written, what is printed, what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from cli_cases import FORWARD, RECURRENT, install_methods, run, write


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Toys for methods, an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    install_methods(monkeypatch)


def test_grad_writes_the_gradient() -> None:
    """`loss`, and `d_NAME` for every name of `--wrt`."""
    path = write(Path("a.toml"), RECURRENT)
    result = run("grad", path, "-m", "bptt", "-o", "out.npz", "--wrt", "params", "--wrt", "inputs")
    assert 0 == result.exit_code
    with np.load("out.npz") as file:
        assert {"loss": (), "d_W": (2, 2), "d_x": (3, 2, 2)} == {k: file[k].shape for k in file}
        assert 2.5 == file["loss"]
    assert "loss = 2.5" in result.stdout and "d_W" in result.stdout and "wrote out.npz" in result.stderr


def test_grad_in_csv() -> None:
    """The table is a document like any other."""
    result = run("grad", write(Path("a.toml"), RECURRENT), "-m", "bptt", "-o", "out.npz", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert ("d_W", "param", "[2, 2]", "2.0", "1.0") == (
        row["name"],
        row["kind"],
        row["shape"],
        row["norm"],
        row["max_abs"],
    )


@pytest.mark.parametrize("command", [["grad", "-m", "bptt"], ["export"]])
def test_quiet(command: list[str]) -> None:
    """Nothing is printed, the file is written."""
    result = run(*command, write(Path("a.toml"), RECURRENT), "-o", "out.npz", "-q")
    assert (0, "", "") == (result.exit_code, result.stdout, result.stderr)
    assert Path("out.npz").is_file()


def test_export_writes_the_arrays() -> None:
    """Parameters, inputs and initial states, under their names."""
    assert 0 == run("export", write(Path("a.toml"), RECURRENT), "-o", "out.npz", "--set", "n=3").exit_code
    with np.load("out.npz") as file:
        assert {"W": (3, 3), "x": (3, 2, 3), "a": (3,)} == {k: file[k].shape for k in file}


def test_export_depends_on_the_seed() -> None:
    """The same seed gives the same file, another seed another."""
    path = write(Path("a.toml"), RECURRENT)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("export", path, "-o", f"{name}.npz", "--seed", seed)
    a, b, c = (Path(f"{n}.npz").read_bytes() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["grad", "b.toml", "-m", "bptt", "-o", "out.npz"], "bptt does not apply"),
        (["grad", "a.toml", "-m", "bptr", "-o", "out.npz"], 'did you mean "bptt"?'),
        (["grad", "a.toml", "-m", "bptt", "-o", "no/such/out.npz"], "its folder does not exist"),
        (["grad", ".", "-m", "bptt", "-o", "out.npz"], "is a folder"),
        (["grad", "c.toml", "-m", "bptt", "-o", "out.npz"], 'no file "c.toml"'),
        (["grad", "a.toml", "-m", "bptt", "-o", "out.npz", "--wrt", "V"], "V"),
        (["grad", "a.toml", "-m", "bptt", "-o", "out.npz", "--max-time", "1e-30"], "too-long"),
        (["export", "a.toml", "-o", "out.npz", "--max-memory", "8"], "too-large"),
        (["export", "a.toml", "-o", "out.npz", "--set", "m=8"], "known: "),
        (["export", "a.toml", "-o", "out.txt"], "does not end in .npz"),
        (["grad", "a.toml", "-m", "bptt", "-o", "out"], "does not end in .npz"),
        (["export", "a.toml", "-o", "./a.toml"], "is the spec itself"),
        (["grad", "a.toml", "-m", "bptt", "-o", "a.toml"], "is the spec itself"),
        (["grad", "a.toml", "-m", "bptt", "-o", "out.npz", "--output", "csv=./out.npz"], "-o and --output both go to"),
    ],
)
def test_refusals(args: list[str], part: str) -> None:
    """A refusal leaves no file behind."""
    write(Path("a.toml"), RECURRENT)
    write(Path("b.toml"), FORWARD)
    result = run(*args)
    assert (2, "") == (result.exit_code, result.stdout)
    assert part in result.stderr and not Path("out.npz").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["check", "a.toml", "--output", "json=./a.toml"],
        ["check", "a.toml", "--kernel", "mine.py:grad", "--output", "json=mine.py"],
        ["check", "mine.py:box", "--output", "json=mine.py"],
        ["check", "a.toml", "--gradient", "g.npz", "--output", "csv=g.npz"],
        ["check", ".", "--output", "json=b.toml"],
        ["bench", "a.toml", "--output", "csv=a.toml"],
        ["compare", "a.json", "b.json", "--output", "csv=b.json"],
        ["list", "--output", "csv=a.toml"],
        ["check", "a.toml", "--output", "json=mine.py"],  # which a spec may declare
    ],
)
def test_no_output_takes_the_place_of_what_is_read(args: list[str]) -> None:
    """Nor of any spec: that is a slip of the pen."""
    files = {"a.toml": RECURRENT, "b.toml": FORWARD, **dict.fromkeys(("mine.py", "g.npz", "a.json", "b.json"), "x")}
    for name, text in files.items():
        write(Path(name), text)
    result = run(*args)
    assert 2 == result.exit_code and "--output would replace" in result.stderr
    assert files == {name: Path(name).read_text() for name in files}


def test_a_refusal_in_json() -> None:
    """The document of a refused command has its rows, empty, and the refusal."""
    document = json.loads(run("export", "c.toml", "-o", "out.npz", "--format", "json").stdout)
    assert ([], ["no-such-file"]) == (document["arrays"], [e["code"] for e in document["errors"]])


def test_packaged_specs() -> None:
    """The specs that ship with the package are found by name, and an unknown name is answered."""
    from bpcli.commands.specs import packaged_spec
    from bpcli.errors import BpError

    assert packaged_spec("vanilla_rnn").is_file()
    with pytest.raises(BpError, match="vanilla_rnn"):
        packaged_spec("vanila_rnn")
