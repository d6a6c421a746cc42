"""`bp report`: what it reads, what it refuses, what it draws and writes."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import RECURRENT, run, write
from report_cases import EVIL, bench, cell, check, finding, save, training

pytest.importorskip("matplotlib")

from bpcli.bench.analysis import family, slopes
from bpcli.bench.measurement import one_error
from bpcli.render.page.figure import _STYLE, Figure, at_line_ends, composed, place, short, ticks, tidy
from bpcli.render.page.plots import KINDS, Dot, errors_by_step, frontier, growths, trades


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
    growth = [f"{w} against {k}" for k in ("n", "T") for w in ("Time", "Memory")]
    growth += [f"{w} against k2" for w in ("Error", "Time", "Memory")]
    assert ["Error against time", "Error against memory"] * 6 + growth == titles
    assert "24 rows measured, all gradients checked first" in page
    assert "tbptt k2=2 2.00" in page and "bptt 2.00" in page


def test_page_of_a_training(tmp_path: Path) -> None:
    """A row for each method, losses of all, and along each trajectory the cosines and their matrix."""
    page = made(tmp_path, training())
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    along = [f"{what} along {m}" for m in ("bptt", "uoro") for what in ("Alignment", "Cosines")]
    assert ["Loss against step", *along] == titles and 3 == page.count("<tr>")
    assert "Training of net" in page and "fresh data of the task add at every step" in page
    told = "rflo compared with the true gradient while training with bptt"
    assert f"{told}: cosine 0.5, ratio 2, signs 0.75 (mean of 20 steps)" in page
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
    assert 2 == result.exit_code and 'pip install "bp-check[report]"' in result.stderr


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
    assert -1.0 == pytest.approx(power(found.steps[left], found.overall[left]), abs=0.25)
    assert 2.0 == pytest.approx(power(found.steps[right], found.overall[right]), abs=0.1)
    assert 1e-12 < np.min(found.overall) < 1e-9
    assert "the complex step" == found.judge


def test_frontier() -> None:
    """What another beats in one and does not lose in the other is not on it."""
    dots = [Dot("a", 1, 3), Dot("b", 2, 1), Dot("c", 2, 2), Dot("d", 3, 1), Dot("e", 4, 0), Dot("f", 1, 4)]
    assert ["a", "b", "e"] == [d.name for d in frontier(dots)]


def power(x: Any, y: Any) -> float:
    """The exponent of the best line in log-log."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a bench as the plots take them."""
    return [{**r, "error": one_error(r), "family": family(r)} for r in document["cells"]]


def test_slopes_are_those_of_the_rows() -> None:
    """The alternative text has the exponents that the rows were made with."""
    rows = rows_of(bench(steps=(10, 20, 40)))
    told = {f.title: f.alt for f in growths(rows, slopes(rows))}
    for title, exponent in {"Time against n": 2, "Memory against n": 1, "Time against T": 1}.items():
        assert f"bptt {exponent}.00" in told[title]


def test_slopes_are_those_of_the_sentences(tmp_path: Path) -> None:
    """One number for one thing: the fit over all cells, which is another one than that of the points of a figure."""
    document, rng = bench((8, 16, 32, 64), (10, 20, 40)), np.random.default_rng(5)
    for row in document["cells"]:
        factor = float(np.exp(0.1 * rng.standard_normal()))
        row |= {k: row[k] * factor for k in ("time_s", "time_low_s", "time_high_s")}
    page = made(tmp_path, document)
    (said,) = re.findall(r"n\^\((\d\.\d\d)[^,<]*\(rtrl\)", page)
    points = {r["settings"]["n"]: r["time_s"] for r in document["cells"] if r["method"] == "rtrl" and r["T"] == 40}
    assert f"rtrl {said}" in page.partition("Time against n on logarithmic axes")[2].partition("</title>")[0]
    assert f"{power(list(points), list(points.values())):.2f}" != said


def test_two_points_have_no_slope() -> None:
    """As any two lie on a line; the figure has them without a number."""
    rows = rows_of(bench((8, 16), (10,)))
    (time, _) = [f for f in growths(rows, slopes(rows)) if f.title.endswith("against n")]
    assert "bptt" in time.alt and "slope" not in time.alt + time.caption


def test_error_time_and_memory_against_an_option() -> None:
    """The errors that are left, and the exact method as a line to compare with; nothing of it against n."""
    rows = rows_of(bench((8,), (10,)))
    found = {f.title: f for f in growths(rows, {})}
    assert ["Error against k2", "Time against k2", "Memory against k2"] == list(found)
    assert "Dotted: bptt" in found["Time against k2"].caption and "Dotted" not in found["Error against k2"].caption


def many(count: int, seed: int, crowd: float) -> list[dict[str, Any]]:
    """Rows of different methods whose costs and errors are close where `crowd` is small."""
    rng, names = np.random.default_rng(seed), ["bptt", "rtrl", *(f"tbptt:k1=1,k2={k}" for k in range(1, 30))]
    rows = []
    for i in range(count):
        row = {**cell("bptt", 8, 10), "method": names[i], "kind": list(KINDS)[i % 4 if i > 1 else 0]}
        bias = 1e-16 if i < 2 else float(np.exp(crowd * rng.standard_normal()) * 0.05)
        random = row["kind"] == "unbiased"
        row |= {"bias": bias, "variance": 0.1 if random else None, "draws": 16 if random else None}
        rows.append({**row, "time_s": float(np.exp(crowd * rng.standard_normal()) * 1e-3), "family": names[i]})
    return [{**row, "error": one_error(row)} for row in rows]


def boxes(axes: Any) -> tuple[list[Any], list[Any]]:
    """The boxes of labels and of marks, in pixels."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # annotations know their places by now
    labels = [Text.get_window_extent(text) for text in axes.texts]  # that of an annotation has its line in it
    half = 2.9 * axes.figure.dpi / 72
    spots = [
        axes.transData.transform(line.get_xydata()) for line in axes.lines if str(line.get_gid()).startswith("tip:")
    ]
    marks = [Bbox.from_extents(x - half, y - half, x + half, y + half) for points in spots for x, y in points]
    return labels, marks


def overlaps(axes: Any) -> int:
    """Labels that lie on a mark, on another label or outside of the figure."""
    labels, marks = boxes(axes)
    pairs = sum(a.overlaps(b) for i, a in enumerate(labels) for b in [*labels[:i], *marks])
    frame = axes.figure.bbox
    return pairs + sum(b.x0 < frame.x0 or b.x1 > frame.x1 or b.y0 < frame.y0 or b.y1 > frame.y1 for b in labels)


@contextmanager
def canvas(figure: Figure | None = None) -> Iterator[Any]:
    """Axes as those of a page, empty or with a figure."""
    import matplotlib

    empty = Figure("", "", "", lambda axes: None)
    with matplotlib.rc_context(_STYLE):
        yield composed([figure or empty]).axes[0]


@pytest.mark.parametrize("crowd", [0.3, 1.5])
@pytest.mark.parametrize("count", [5, 8, 12, 16, 20])
def test_labels_overlap_nothing(count: int, crowd: float) -> None:
    """Of 5 to 20 points, spread or crowded: no label lies on another or on a mark, and the frontier has its names."""
    for seed in range(2):
        rows = many(count, seed, crowd)
        figure = trades(rows, "")[0]
        with canvas(figure) as axes:
            assert 0 == overlaps(axes)
            written = {text.get_text() for text in axes.texts}
            best = figure.alt.partition("from the cheapest: ")[2].partition(". ")[0]
            assert {name.strip() for name in re.findall(r"([\w= ]+) \((?:exact|error)", best)} <= written
            assert len(written) >= min(count, 12)


def test_twin_of_the_test_of_labels() -> None:
    """Labels at one fixed place beside their points do overlap."""
    with canvas() as axes:
        axes.set_xscale("log")
        for number, row in enumerate(many(20, 0, 0.3)):
            axes.plot(row["time_s"], row["error"] or 1e-3, "o", gid=f"tip:x:{number}")
            axes.annotate(row["method"], (row["time_s"], row["error"] or 1e-3), (4, 4), textcoords="offset points")
        axes.figure.draw_without_rendering()
        assert overlaps(axes) > 5


def test_a_label_without_a_place_is_left_out() -> None:
    """Rather than written over others: of 200 points in one place some have none."""
    with canvas() as axes:
        axes.plot([1, 2], [1, 2], "o", gid="tip:x:0")
        place(axes, [(1.0 + 0.001 * i, 1.0, f"a method of number {i}", i == 0) for i in range(200)])
        assert 0 == overlaps(axes) and 0 < len(axes.texts) < 200


def test_labels_at_line_ends_are_apart() -> None:
    """Lines that end in one point have their names one under the other."""

    def draw(axes: Any) -> None:
        axes.plot([1, 2], [1, 2], gid="tip:x:0")
        at_line_ends(axes, [(2.0, 2.0, f"method {i}", "#1c2126") for i in range(8)])

    with canvas(Figure("", "", "", draw)) as axes:
        assert 0 == overlaps(axes) and 8 == len(axes.texts)


def test_kinds_have_marks_of_their_own() -> None:
    """Each kind its mark and its word in the legend; a random method a line down to the error of its mean."""
    figure = trades(many(6, 1, 1.0), "")[0]
    with canvas(figure) as axes:
        assert [word for word, _ in KINDS.values()] == [text.get_text() for text in axes.get_legend().get_texts()]
        drawn = {line.get_marker() for line in axes.lines if str(line.get_gid()).startswith("tip:")}
        assert {mark for _, mark in KINDS.values()} == drawn
        assert any(len(line.get_xydata()) == 2 and not line.get_gid() for line in axes.lines)
    assert "rtrl exact" in figure.alt and "reaches to the error of the mean" in figure.caption


def test_runs_without_kinds_have_one_mark() -> None:
    """Those of earlier versions."""
    rows = [{k: v for k, v in row.items() if k != "kind"} for row in many(5, 1, 1.0)]
    with canvas(trades(rows, "")[0]) as axes:
        assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), "At n=32, T=20, within a bias of 0.05 (--bias), bptt is the quickest (20.5 ms, exact), "
             "tbptt:k1=1,k2=8 holds the least (10.2 kB, bias 0.01)."),
        (("--bias", "0.5"), "within a bias of 0.5 (--bias), bptt is the quickest (20.5 ms, exact), "
                            "tbptt:k1=1,k2=2 holds the least (5.12 kB, bias 0.2)."),
        (("--bias", "0"), "within a bias of 0 (--bias), bptt is the quickest and holds the least "
                          "(20.5 ms, 20.5 kB, exact)."),
    ],
)  # fmt: skip
def test_the_sentence_on_top_names_the_cheapest(given: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    """Within the bias of --bias, at the most expensive point of the sweep."""
    page = made(tmp_path, bench(), extra=given)
    assert expected in re.findall(r'<p class="lead">(.*?)</p>', page)[0]


def test_a_random_method_is_within_a_bias_by_its_draw(tmp_path: Path) -> None:
    """Its mean is of no use to somebody who takes one gradient."""
    document = bench((8,), (10,))
    cheap = {**cell("bptt", 8, 10), "method": "uoro", "time_s": 1e-9, "bias": 0.01, "variance": 4.0, "draws": 16}
    document["cells"].append(cheap)
    assert "uoro is the quickest" not in made(tmp_path, document)
    cheap["variance"] = None
    assert "uoro is the quickest (1 ns, bias 0.01)" in made(tmp_path, document)


def test_bias_by_step(tmp_path: Path) -> None:
    """A method that is right and biased has a map of where; one that is exact has none, nor one that is wrong."""
    spec = write(tmp_path / "net.toml", RECURRENT)
    found = [finding("W", method=m, bias=b, spec="net") for m, b in (("tbptt:k1=2,k2=2", 0.2), ("bptt", 1e-16))]
    wrong = finding("W", "wrong", method="snap:k=1", bias=0.2, spec="net")
    page = made(tmp_path, check(*found, wrong, specs=[spec], set={}))
    assert 1 == page.count("Where the gradient is biased") and "net, tbptt:k1=2,k2=2." in page


def test_the_bias_of_a_step_is_that_of_its_loss(tmp_path: Path) -> None:
    """Of windows of one loss, by the whole sum; the first k2 steps have none, exact methods none at all."""
    from bpcli.api.loaded import load
    from bpcli.commands.per_step import errors
    from bpcli.methods import parse

    net = load(write(tmp_path / "net.toml", RECURRENT), T=8)
    exact, biased = (errors(net, parse(m)) for m in ("fbptt:tau=1000", "tbptt:k1=2,k2=2"))
    assert all(max(values) < 1e-12 for values in exact.values())
    assert all(max(values[:2]) < 1e-12 for values in biased.values()) and max(map(max, biased.values())) > 1e-3


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
