"""The page in a browser: no complaint, no request, and its controls do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from cli_cases import run
from report_cases import EVIL, bench, check, finding, save

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

VISIBLE = '[...document.querySelectorAll("#t1 tbody tr")].filter((r) => r.offsetParent !== null)'
COLUMN = '(name) => [...document.querySelectorAll("#t1 th")].findIndex((h) => h.textContent === name)'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a bench and of a failed check, with hostile strings."""
    folder = tmp_path_factory.mktemp("page")
    wrong = finding("W", "wrong", {"step": 3, "text": EVIL, "errors": [0.1, 0.2, "inf", 0.3]}, cause=EVIL, cosine=0.9)
    runs = [save(folder / "bench.json", bench()), save(folder / "check.json", check(wrong, finding("b")))]
    assert 0 == run("report", *runs, "-o", str(folder / "page.html")).exit_code
    return folder / "page.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def tab(chromium: Browser, page: Path) -> Browser:
    """The page, freshly loaded."""
    chromium.session = ""
    chromium.open(page)
    chromium.width(1100)
    return chromium


def click(tab: Browser, selector: str) -> None:
    """Click the first element."""
    tab.js(f"document.querySelector({selector!r}).click()")


def test_silent(tab: Browser) -> None:
    """No console message, no exception, no request, however it is looked at."""
    for media in (("light", "screen"), ("dark", "screen"), ("light", "print")):
        tab.media(*media)
        tab.js("new Promise((done) => setTimeout(done, 50))")
    assert [] == tab.complaints()


def test_complaints_are_heard(chromium: Browser, page: Path) -> None:
    """The twin: an error and a request that the policy stops are seen."""
    bad = page.with_name("bad.html")
    text = page.read_text(encoding="utf-8")
    bad.write_text(text.replace("<main>", '<main><script>alert(1)</script><img src="x.png">'), encoding="utf-8")
    chromium.session = ""
    chromium.open(bad)
    said = " ".join(chromium.complaints())
    assert "script-src" in said and "img-src" in said


def test_sort(tab: Browser) -> None:
    """A click sorts by value, not by text; another turns it round; the heading says so."""
    column = tab.js(f'({COLUMN})("time")')
    raw = f"{VISIBLE}.map((r) => Number(r.cells[{column}].dataset.v))"
    click(tab, f"#t1 th:nth-child({column + 1}) button")
    up = tab.js(raw)
    assert sorted(up) == up and "ascending" == tab.js(f'document.querySelectorAll("#t1 th")[{column}].ariaSort')
    click(tab, f"#t1 th:nth-child({column + 1}) button")
    assert up[::-1] == tab.js(raw) and 1 == tab.js('document.querySelectorAll("#t1 th[aria-sort=descending]").length')


def test_filter(tab: Browser) -> None:
    """Words and menus narrow the rows, together; the count is told."""
    tab.js(
        '{const s = document.querySelector("[data-filter]"); s.value = "TBPTT k2=8";'
        's.dispatchEvent(new Event("input"))}'
    )
    assert (6, "6 of 24 rows") == (tab.js(f"{VISIBLE}.length"), tab.js('document.querySelector("output").textContent'))
    tab.js(
        '{const m = document.querySelector("[data-column]"); m.value = "rtrl"; m.dispatchEvent(new Event("change"))}'
    )
    assert 0 == tab.js(f"{VISIBLE}.length")
    tab.js('{const s = document.querySelector("[data-filter]"); s.value = ""; s.dispatchEvent(new Event("input"))}')
    assert 6 == tab.js(f"{VISIBLE}.length")


def test_all_columns(tab: Browser) -> None:
    """The box shows the columns that the page leaves out at first."""
    shown = '[...document.querySelectorAll("#t1 th")].filter((h) => h.offsetParent !== null).length'
    before = tab.js(shown)
    click(tab, "[data-more]")
    assert before < tab.js(shown) == tab.js('document.querySelectorAll("#t1 th").length')


def test_colours(tab: Browser) -> None:
    """The page follows the system until the button says otherwise; figures follow the page."""
    paper = "getComputedStyle(document.body).backgroundColor"
    tab.media("light")
    light, ink = tab.js(paper), 'getComputedStyle(document.querySelector("figure svg text")).fill'
    light_ink = tab.js(ink)
    tab.media("dark")
    dark, dark_ink = tab.js(paper), tab.js(ink)
    assert light != dark and light_ink != dark_ink
    click(tab, "#theme")
    assert (light, light_ink) == (tab.js(paper), tab.js(ink))
    tab.media("light")
    click(tab, "#theme")
    assert (dark, dark_ink) == (tab.js(paper), tab.js(ink))
    tab.media("light", "print")
    assert "rgb(255, 255, 255)" == tab.js(paper)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(tab: Browser, scheme: str) -> None:
    """Ink, muted words and the accent stand out from the paper at 4.5 to 1 at least (WCAG AA)."""
    tab.media(scheme)
    ratio = """(role) => {
      const of = (r) => { const v = getComputedStyle(document.documentElement).getPropertyValue(r).trim();
        const c = [1, 3, 5].map((i) => parseInt(v.slice(i, i + 2), 16) / 255)
          .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
      const [a, b] = [of(role), of("--paper")].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); }"""
    for role in ("--ink", "--muted", "--accent"):
        assert tab.js(f"({ratio})({role!r})") >= 4.5, role


def test_choice_of_point(tab: Browser) -> None:
    """The menu swaps the figures of one point of the sweep for those of another."""
    seen = '[...document.querySelectorAll(".group")][0].innerText'
    before = tab.js(seen)
    tab.js('{const c = document.querySelector("[data-choose]"); c.value = "5"; c.dispatchEvent(new Event("change"))}')
    assert "n=32, T=20" in before and "n=8, T=10" in tab.js(seen).partition("Error against")[2]


def test_phone(tab: Browser) -> None:
    """At 360 pixels nothing is wider than the window but the table, which scrolls in its own frame."""
    tab.width(360)
    assert 360 == tab.js("document.documentElement.scrollWidth")
    tab.width(1100)


@pytest.mark.parametrize("table", ["t1", "t2"])
def test_phone_shows_what_counts(tab: Browser, table: str) -> None:
    """At 390 pixels names, verdict or time, and the cosine are on the screen; all other columns come with the box."""
    shown = f'[...document.querySelectorAll("#{table} th")].filter((h) => h.offsetParent !== null)'
    tab.js(f'document.querySelector("[data-for={table}]").scrollIntoView()')
    wide = tab.js(f"{shown}.length")
    tab.width(390)
    headings = tab.js(f"{shown}.map((h) => h.textContent)")
    right = tab.js(f"Math.max(...{shown}.map((h) => h.getBoundingClientRect().right))")
    assert {*(("method", "time") if table == "t1" else ("tensor", "verdict")), "cosine"} <= set(headings)
    assert right <= 390
    assert len(headings) < wide
    tab.js(f'document.querySelector("[data-for={table}] [data-more]").click()')
    assert len(headings) < tab.js(f"{shown}.length")
    tab.width(1100)


def test_keyboard(tab: Browser) -> None:
    """Everything that can be used can be reached, and says what it is."""
    named = "e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()"
    wanted = '[...document.querySelectorAll("button, select, input, summary, [tabindex]")]'
    assert [] == tab.js(f"{wanted}.filter((e) => e.tabIndex < 0 || !({named})).map((e) => e.outerHTML)")


def test_a_thousand_rows(chromium: Browser, tmp_path: Path) -> None:
    """A page of a thousand rows stays below 3 MB and opens in a second; the bound leaves room for a busy machine."""
    sizes, steps = tuple(range(8, 58)), (10, 20, 40, 80, 160)
    file = save(tmp_path / "run.json", bench(sizes, steps))
    assert 0 == run("report", file, "-o", str(tmp_path / "page.html")).exit_code
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
    chromium.session = ""
    chromium.open(tmp_path / "page.html")
    assert 1000 == chromium.js('document.querySelectorAll("#t1 tbody tr").length')
    load = chromium.js(
        "(() => { const n = performance.getEntriesByType('navigation')[0]; return n.loadEventStart; })()"
    )
    assert 0 < load < 3000, load
