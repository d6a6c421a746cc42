"""Every format carries the same rows, and nothing in a cell can break it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from bpcli.errors import Diagnostic, Place
from bpcli.render import FORMATS, Column, Document, Look, render

NASTY = ["plain", 'comma, quote"', "pipe | star *", "[red]markup[/red]", "line\nbreak", "\x1b[31mcontrol", "α", "=1+1"]
REFUSAL = Diagnostic(
    "unknown-name", 'unknown name "W_inn"', Place("a.toml", 12, 7, 'h = "W_inn @ x"', 5), help="did you mean W_in?"
)


def table_of(rows: list[dict[str, object]], **more: object) -> Document:
    """A document with a text, a number and a hidden column."""
    columns = (
        Column("name", "name", lambda row: row["name"], str, right=False),
        Column("z", "worst z", lambda row: row["z"], lambda z: "" if z is None else f"{z:.2g}"),
        Column("index", "index", lambda row: row["index"], str, wide=True),
    )
    return Document("Test", "findings", columns, rows, **more)  # type: ignore[arg-type]


ROWS = table_of([{"name": n, "z": 0.5, "index": [1, 2]} for n in NASTY], sentences=("All good.",), notes=("a note",))


@pytest.mark.parametrize("name", FORMATS)
def test_summary(name: str) -> None:
    """Every format says in a line what it is."""
    assert FORMATS[name].summary and "\n" not in FORMATS[name].summary


def test_csv_round_trip() -> None:
    """What goes into CSV comes out of it."""
    rows = list(csv.DictReader(io.StringIO(render(ROWS, "csv"))))
    assert NASTY == [row["name"] for row in rows]
    assert [1, 2] == json.loads(rows[0]["index"])


def test_json_round_trip() -> None:
    """What goes into JSON comes out of it, under the names of the documented schema."""
    document = json.loads(render(ROWS, "json"))
    assert ["schema_version", "context", "findings", "errors", "summary"] == list(document)
    assert NASTY == [row["name"] for row in document["findings"]]


def test_jsonl_is_a_row_a_line() -> None:
    """A row is a line, a refusal a line of its own."""
    document = table_of([{"name": n, "z": 1.0, "index": None} for n in NASTY], errors=(REFUSAL,))
    lines = [json.loads(line) for line in render(document, "jsonl").splitlines()]
    assert NASTY == [line["name"] for line in lines[:-1]]
    assert "unknown-name" == lines[-1]["error"]["code"]


@pytest.mark.parametrize("look", [Look(), Look(verbose=True)])
def test_table_has_a_line_a_row(look: Look) -> None:
    """No cell breaks a line, writes a control code or is taken for markup."""
    lines = render(ROWS, "table", look).splitlines()
    body = lines[4 : 4 + len(NASTY)]
    assert ["plain", "comma,", "pipe", "[red]markup[/red]", "line\\nbreak", "\\x1b[31mcontrol", "α", "=1+1"] == [
        line.split()[0] for line in body
    ]
    assert "a note" == lines[-1]
    assert ("index" in lines[2]) == look.verbose


def test_markdown_has_a_line_a_row() -> None:
    """Pipes and markup of a cell are escaped."""
    lines = [line for line in render(ROWS, "markdown").splitlines() if line.startswith("|")]
    assert 2 + len(NASTY) == len(lines)
    assert {4} == {line.replace("\\|", "").count("|") for line in lines}
    assert "\\[red\\]markup" in render(ROWS, "markdown")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf"), (0.5, 0.5), (None, None), ((1, 2), [1, 2])],
)
def test_numbers_json_lacks(value: object, expected: object) -> None:
    """Numbers that are not finite are strings, in JSON and JSON lines."""
    document = table_of([{"name": "a", "z": value, "index": None}])
    assert expected == json.loads(render(document, "json"))["findings"][0]["z"]
    assert expected == json.loads(render(document, "jsonl"))["z"]


def test_numpy_numbers() -> None:
    """NumPy's scalars and arrays are numbers and lists."""
    import numpy as np

    document = table_of([{"name": "a", "z": np.float32(0.5), "index": np.arange(2)}])
    row = json.loads(render(document, "json"))["findings"][0]
    assert {"name": "a", "z": 0.5, "index": [0, 1]} == row


def test_a_refusal_in_json() -> None:
    """A refusal has its place and its help."""
    errors = json.loads(render(table_of([], errors=(REFUSAL,)), "json"))["errors"]
    expected = {
        "code": "unknown-name",
        "message": 'unknown name "W_inn"',
        "file": "a.toml",
        "line": 12,
        "column": 7,
        "help": "did you mean W_in?",
    }
    assert [expected] == errors


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_a_refusal_for_people(name: str) -> None:
    """A refusal stands below with its quoted line."""
    text = render(table_of([], errors=(REFUSAL,)), name)
    assert "error[unknown-name]" in text and " --> a.toml:12:7" in text


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_at_all(name: str) -> None:
    """A document without rows is a document."""
    text = render(table_of([]), name)
    assert "csv" != name or "name,z,index\n" == text
    assert "json" != name or [] == json.loads(text)["findings"]


def test_a_table_takes_the_width_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a terminal no column is folded, whatever the environment says about width."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "dumb")
    long = "x" * 300
    assert any(long in line for line in render(table_of([{"name": long, "z": 1.0, "index": 0}]), "table").splitlines())


def test_a_table_on_a_terminal_folds() -> None:
    """On a terminal no line is wider than it."""
    text = render(table_of([{"name": "x" * 300, "z": 1.0, "index": 0}]), "table", Look(width=40))
    assert 40 >= max(map(len, text.splitlines()))


def test_text_is_wrapped_to_a_terminal() -> None:
    """Sentences, legend and notes are, but not commands to copy; without a terminal sentences are a line each."""
    long, command = " ".join(["word"] * 60), f"  reproduce: bp check {'x' * 60}"
    document = table_of([{"name": "a", "z": 1.0, "index": 0}], notes=(long, command))
    document = replace(document, sentences=(long,), legend=long)
    assert [command] == [line for line in render(document, "table", Look(width=40)).splitlines() if len(line) > 40]
    assert 2 == render(document, "table").splitlines().count(long)


def cut(width: int, **more: object) -> list[list[str]]:
    """The parts that a table of a label, three numbers and a remark is cut into, in lines."""
    columns = (
        Column("method", "method", lambda row: row["method"], str, right=False, label=True),
        *(Column(k, f"figure {k}", lambda row, k=k: row[k], lambda x: f"{x:.6g}") for k in "abc"),  # type: ignore[misc]
        Column("cause", "cause", lambda row: row["cause"], str, right=False),
    )
    rows = [{"method": m, "a": 9.12345e-16, "b": 0.997089, "c": -1.5, **more} for m in ("bptt", "tbptt:k1=1,k2=16")]
    rows = [{"cause": "", **row} for row in rows]
    text = render(Document("Test", "findings", columns, rows), "table", Look(width=width))
    return [part.splitlines() for part in text.split("\n\n")]


@pytest.mark.parametrize(
    ("width", "cause", "count"),
    [
        *((120, "slope of another step", 1), (76, "slope of another step", 1), (70, "slope of another step", 2)),
        *((52, "", 1), (44, "", 2), (36, "", 2), (36, "slope of another step", 3)),
    ],
)
def test_a_table_that_is_too_wide_is_cut_between_columns(width: int, cause: str, count: int) -> None:
    """No number and no label is broken; every part says what its rows are about, and fits."""
    parts = cut(width, cause=cause)
    assert width >= max(len(line) for part in parts for line in part)
    words = [word for part in parts for line in part for word in line.split()]
    for figure in ("9.12345e-16", "0.997089", "-1.5"):
        assert 2 == words.count(figure)
    assert count == len(parts) == words.count("tbptt:k1=1,k2=16") == words.count("method")
    assert all(2 == words.count(word) for word in cause.split())


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80])
def test_labels_that_leave_no_room_are_cut_and_nothing_is_lost(width: int) -> None:
    """Every character of every cell is there, and numbers are whole."""
    columns = (
        *(Column(k, k, lambda row, k=k: row[k], str, right=False, label=True) for k in ("spec", "at")),  # type: ignore[misc]
        Column("ratio", "ratio", lambda row: row["ratio"], str),
        Column("verdict", "verdict", lambda row: row["verdict"], str, right=False),
    )
    row = {
        "spec": "a_network_with_a_long_name",
        "at": "n=64 T=200 batch=32 dtype=float64",
        "ratio": "1.8105",
        "verdict": "wrong",
    }
    text = render(Document("Test", "findings", columns, [row]), "table", Look(width=width))
    assert width >= max(map(len, text.splitlines()))
    assert "1.8105" in text
    for key in ("verdict", "spec"):
        letters = iter("".join(text.split()))
        assert all(letter in letters for letter in row[key])


def test_an_empty_column_goes_before_a_table_is_cut() -> None:
    """With room for it, its heading stays."""
    (wide,), (narrow,) = cut(80), cut(58)
    assert "cause" in wide[0] and "cause" not in narrow[0]


@pytest.mark.parametrize("color", [True, False])
def test_color(color: bool) -> None:
    """Escape codes are written when colour is wanted, never else."""
    document = table_of([{"name": "a", "z": 1.0, "index": 0}], style=lambda row: "red")
    assert color == ("\x1b[" in render(document, "table", Look(color=color)))
