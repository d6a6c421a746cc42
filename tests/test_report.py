"""`bp report`: what it reads, what it refuses, what it draws and writes."""

from __future__ import annotations

import importlib.util
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import RECURRENT, run, write
from report_cases import EVIL, bench, cell, check, finding, save, training

pytest.importorskip("matplotlib")

from bpcli.render.page.figure import short, ticks, tidy
from bpcli.render.page.plots import Dot, errors_by_step, frontier, growths, slope


class Elements(HTMLParser):
    """The names of all elements, all ids and every attribute that refers to something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), (tag, key)
            self.ids += [str(value)] if key == "id" else []
            self.links += [str(value)] if key in ("href", "src", "xlink:href") else []


def made(tmp_path: Path, *documents: Any, extra: tuple[str, ...] = ()) -> str:
    """The page of these documents."""
    files = [save(tmp_path / f"run{i}.json", d) for i, d in enumerate(documents)]
    result = run("report", *files, *extra, "-o", str(tmp_path / "page.html"))
    assert (0, "") == (result.exit_code, result.stdout), result.stderr
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_of_a_bench(tmp_path: Path) -> None:
    """Sentences, a row a cell, the trade-off of each point and the growth over n, T and k2."""
    page = made(tmp_path, bench())
    assert 24 == page.count("<tr>") + page.count("<tr ") - 1
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    growth = [f"{w} against {k}" for k in ("n", "T", "k2") for w in ("Time", "Memory")]
    assert ["Error against time", "Error against memory"] * 6 + growth == titles
    assert "24 rows measured, all gradients checked first." in page
    assert "tbptt k2=2 2.00" in page and "bptt 2.00" in page


def test_page_of_a_training(tmp_path: Path) -> None:
    """A row for each method, losses of all, and along each trajectory the cosines and their matrix."""
    page = made(tmp_path, training())
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    along = [f"{what} along {m}" for m in ("bptt", "uoro") for what in ("Alignment", "Cosines")]
    assert ["Loss against step", *along] == titles and 3 == page.count("<tr>")
    assert "Training of net" in page and "fresh data of add at every step" in page
    assert "along bptt, rflo against the true gradient: cosine 0.5, ratio 2, signs 0.75 (20 steps)" in page
    assert ">0.25</text>" in re.sub(r"<text[^>]*>", "<text>", page)


def test_page_of_a_training_without_comparisons(tmp_path: Path) -> None:
    """Losses alone, also where some are infinite; one watched method has no matrix."""
    plain = training(watched=())
    plain["steps"][-1]["loss"] = "inf"
    assert ["Loss against step"] == re.findall(r"<h3>(.*?)</h3>", made(tmp_path, plain))
    one = re.findall(r"<h3>(.*?)</h3>", made(tmp_path, training(("bptt",), ("uoro",))))
    assert ["Loss against step", "Alignment along bptt"] == one


@pytest.mark.parametrize("harm", ["summary", "method", "cosine"])
def test_a_training_of_another_form_is_refused(tmp_path: Path, harm: str) -> None:
    """Without its summary, with a step of an unknown method, with a cosine that is a word."""
    document = training()
    if harm == "summary":
        del document["summary"]["runs"]
    else:
        document["steps"][0]["method" if harm == "method" else "cosine[rflo]"] = "?"
    result = run("report", save(tmp_path / "run.json", document), "-o", str(tmp_path / "page.html"))
    assert (2, True) == (result.exit_code, "not-a-run" in result.stderr)


def test_page_stands_alone(tmp_path: Path) -> None:
    """No element loads anything, ids are unique, links stay on the page, every figure has its words."""
    page = made(tmp_path, bench((8, 16)), check(finding("W", "wrong", {"step": 3, "text": "x"})))
    found = Elements(page)
    assert set() == {"link", "img", "iframe", "object", "embed", "base", "image"} & set(found.names)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert page.count('role="img"') == page.count("<svg") == page.count('<title id="alt')


def test_every_string_is_escaped(tmp_path: Path) -> None:
    """Whatever stands in a document is text on the page."""
    rows = bench((8,), (10, 20), spec=EVIL)
    rows["cells"].append(
        cell("rtrl", 8, 10, spec=EVIL, backend=EVIL, check={"verdict": EVIL, "how": EVIL, "detail": EVIL})
    )
    rows["context"]["machine"][EVIL] = EVIL
    rows["errors"] = [{"code": EVIL, "message": EVIL, "file": EVIL, "line": 1, "column": 1, "help": EVIL}]
    rows["cells"][-1]["check"]["verdict"] = "wrong"
    bad = finding(EVIL, "wrong", {"step": 1, "text": EVIL, "reproduce": EVIL}, spec=EVIL, method=EVIL, cause=EVIL)
    page = made(tmp_path, rows, check(bad, notes=[EVIL]), training((EVIL,), (EVIL, "uoro"), task=EVIL))
    names = Elements(page).names
    assert (1, 0) == (names.count("script"), names.count("img"))
    assert "evil" in page and "<img src=x" not in page


def test_twin_of_the_escape_test() -> None:
    """The parser would see what was not escaped."""
    with pytest.raises(AssertionError):
        Elements(f"<p>{EVIL}</p>")


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    """Words for infinity and NaN are numbers in the table, and break no plot."""
    rows = bench((8,), (10, 20))
    rows["cells"][1] |= {"bias": "inf", "cosine": "nan"}
    rows["cells"][2] |= {"time_s": None, "time_low_s": None, "time_high_s": None, "allocated_bytes": None}
    page = made(tmp_path, rows, check(finding("W", "wrong"), finding("loss", "inconclusive", worst=None)))
    assert 'data-v="Infinity"' in page and 'class="unsure"' in page


BAD = {
    "no JSON": ('{"cells": [1,\n }', ":2:", "not JSON"),
    "not a run": ('{"rows": []}', "not a saved run", "--output json"),
    "a list": ("[]", "not a saved run", "--output json"),
    "of the future": ('{"schema_version": 2, "cells": []}', "schema version 2", "this version of bp"),
    "a bad row": ('{"schema_version": 1, "cells": [{"spec": 3}]}', "cells.0.spec", "--output json"),
    "no row": ('{"schema_version": 1, "findings": [3]}', "findings.0", "--output json"),
    "deep": ("[" * 100_000, "cannot be read as JSON", "--output json"),
    "bytes": ("\udcff", "is not UTF-8", "saved as JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_documents(name: str, tmp_path: Path) -> None:
    """A file that is no run is refused with its name and what is wrong; nothing is written."""
    text, what, advice = BAD[name]
    file = tmp_path / "run.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    result = run("report", str(file), "-o", str(tmp_path / "page.html"))
    assert 2 == result.exit_code and "run.json" in result.stderr
    assert what in result.stderr and advice in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ([], "needs RUN"),
        (["RUN"], "needs -o/--out or --plot"),
        (["RUN", "--plot", "a.pdf"], "neither .svg nor .png"),
        (["RUN", "-o", "RUN"], "is both an input and an output"),
        (["RUN", "-o", "page.pdf"], "the page is HTML"),
        (["RUN", "-o", "same.svg", "--plot", "same.svg"], "two outputs go to"),
        (["RUN", "-o", "/no/such/folder/page.html"], "its folder does not exist"),
        (["nowhere.json", "-o", "page.html"], 'cannot read "nowhere.json"'),
        (["nowhere.toml", "-o", "page.html"], 'no file "nowhere.toml"'),
    ],
)
def test_usage(args: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that can't work is refused."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "run.json", bench((8,), (10,)))
    result = run("report", *("run.json" if a == "RUN" else a for a in args))
    assert 2 == result.exit_code and what in result.stderr


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, with the command that installs it."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else real(name, *more)
    )
    result = run("report", save(tmp_path / "run.json", bench()), "-o", str(tmp_path / "page.html"))
    assert 2 == result.exit_code and 'pip install "bp[report]"' in result.stderr


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.SVG", b"<?xml")])
def test_plots(name: str, start: bytes, tmp_path: Path) -> None:
    """`--plot` writes the figures as an image, the same bytes each time."""
    file = save(tmp_path / "run.json", bench((8,), (10,)))
    images = []
    for _ in range(2):
        assert 0 == run("report", file, "--plot", str(tmp_path / name)).exit_code
        images.append((tmp_path / name).read_bytes())
    assert images[0].startswith(start) and images[0] == images[1]


def test_nothing_to_plot(tmp_path: Path) -> None:
    """A plot of nothing is refused; a page of it is a page."""
    file = save(tmp_path / "run.json", check(finding("W")))
    assert "nothing to plot" in run("report", file, "--plot", str(tmp_path / "a.png")).stderr
    assert 0 == run("report", file, "-o", str(tmp_path / "page.html")).exit_code


def test_v_curve_of_a_spec(tmp_path: Path) -> None:
    """A spec among the runs, and the specs of a check, get a V-curve; a spec that is gone gets a note."""
    spec = write(tmp_path / "net.toml", RECURRENT)
    page = made(tmp_path, check(finding("W"), specs=[spec, str(tmp_path / "gone.toml")], set={}), extra=(spec,))
    assert 2 == page.count("Central difference: error against step")
    result = run("report", str(tmp_path / "run0.json"), "-o", str(tmp_path / "page.html"))
    assert f"no V-curve of {tmp_path / 'gone.toml'}" in result.stderr


def test_v_curve_is_a_v(tmp_path: Path) -> None:
    """Rounding grows as 1/h, truncation as h²; in between it is near eps^(2/3)."""
    from bpcli.checking.v_curve import v_curve
    from bpcli.problem.draw import draw
    from bpcli.problem.limits import Limits
    from bpcli.problem.setup import open_setup

    found = v_curve(draw(open_setup(Path(write(tmp_path / "net.toml", RECURRENT)), {}, (), Limits())))
    left = (found.steps > 1e-13) & (found.steps < 1e-7)
    right = (found.steps > 1e-3) & (found.steps < 0.1)
    assert -1.0 == pytest.approx(slope(found.steps[left], found.overall[left]), abs=0.25)
    assert 2.0 == pytest.approx(slope(found.steps[right], found.overall[right]), abs=0.1)
    assert 1e-12 < np.min(found.overall) < 1e-9
    assert "the complex step" == found.judge


def test_frontier() -> None:
    """What another beats in one and does not lose in the other is not on it."""
    dots = [Dot("a", 1, 3), Dot("b", 2, 1), Dot("c", 2, 2), Dot("d", 3, 1), Dot("e", 4, 0), Dot("f", 1, 4)]
    assert ["a", "b", "e"] == [d.name for d in frontier(dots)]


def test_slopes_are_those_of_the_rows() -> None:
    """The alternative text has the exponents that the rows were made with."""
    told = {f.title: f.alt for f in growths(bench()["cells"])}
    for title, power in {"Time against n": 2, "Memory against n": 1, "Time against T": 1}.items():
        assert f"bptt {power}.00" in told[title]
    assert math.isclose(3.0, slope([1, 2, 4], [1, 8, 64]))


@pytest.mark.parametrize(
    ("blame", "expected"),
    [
        (None, {}),
        ({"step": 4}, {4: 0.5}),
        ({"step": -1}, {}),
        ({"step": "four"}, {}),
        ({"step": 10**9}, {}),
        ({"step": 4, "errors": [0, 0.25, "inf"]}, {1: 0.0, 2: 0.25, 3: math.inf}),
        ({"errors": [None, "x", -1]}, {3: 1.0}),
    ],
)
def test_errors_by_step(blame: dict[str, Any] | None, expected: dict[int, float]) -> None:
    """Errors at each step where they are known, else the whole error at the step that is blamed."""
    assert expected == errors_by_step(finding("W", "wrong", blame))


def test_heat_map(tmp_path: Path) -> None:
    """Wrong findings that know their steps make a map; those that pass make none."""
    errors = {"step": 0, "errors": ["inf", 0.5, 0.0]}
    assert "Where the gradient is wrong" in made(tmp_path, check(finding("W", "wrong", errors)))
    assert "Where the gradient is wrong" not in made(tmp_path, check(finding("W", "pass", errors)))


def test_words() -> None:
    """Options that all agree on are left out; small numbers are powers of ten."""
    expected = {"bptt": "bptt", "tbptt:k1=1,k2=2": "tbptt k2=2", "tbptt:k1=1,k2=8": "tbptt k2=8"}
    assert expected == short(list(expected))
    assert ["0.01", "10⁻⁵", "2·10⁻⁵", "100"] == [tidy(v) for v in (0.01, 1e-5, 2e-5, 100.0)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (5.2, 17.0, [7.0, 10.0, 15.0]),
        (4.2e-3, 0.12, [0.01, 0.03, 0.1]),
        (4.2e-3, 0.09, [5e-3, 0.01, 0.02, 0.05]),
        (0.7, 400.0, [1.0, 10.0, 100.0]),
        (0.7, 80.0, [1.0, 3.0, 10.0, 30.0]),
        (1.0, 1e16, [10.0**k for k in range(0, 17, 3)]),
        (101.0, 102.9, [101.0, 101.5, 102.0, 102.5]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    """Round numbers, three at least and eight at most, whatever the range."""
    assert expected == pytest.approx(ticks(low, high))
