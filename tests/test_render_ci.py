"""The formats for continuous integration: nothing in a name can break them, and what is wrong comes first."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_cases import RECURRENT, finding, install_check, install_methods, run, write

from bpcli.api.check_document import findings_document, places_of, with_cases
from bpcli.bench.measurement import TAIL
from bpcli.checking.findings import Finding, Verdict
from bpcli.commands.bench_document import full_document
from bpcli.errors import Diagnostic, Place
from bpcli.render import Case, Column, Document, render

NASTY = "<a b=\"c\" & 'd'>]]>\x00\x1b[31m\ud800\ufffe,:%\r\n::error::α##[error]"
REFUSAL = Diagnostic(
    "unknown-name", f"unknown {NASTY}", Place("specs/a,b.toml", 12, 7, 'h = "W_inn"', 5), help="look there"
)
ROOT = Path(__file__).parents[1]


def document_of(*cases: Case, errors: tuple[Diagnostic, ...] = (), strict: bool = False) -> Document:
    """A document with a row and a column for each case."""
    columns = (Column("name", "name", lambda row: row["case"].name, str, right=False),)
    rows = [{"case": case} for case in cases]
    context = {"strict": strict}
    return Document(
        "Test", "findings", columns, rows, context, sentences=("a 100%",), errors=errors, case=lambda row: row["case"]
    )


def outcomes(text: str) -> dict[str, Any]:
    """Name to the element of what became of each test of a JUnit report, None for one that passed."""
    found = ElementTree.fromstring(text).iter("testcase")
    return {t.attrib["name"]: next((e for e in t if e.tag != "system-out"), None) for t in found}


@pytest.mark.parametrize(
    ("verdict", "strict", "tag"),
    [
        ("pass", False, None),
        ("pass", True, None),
        ("wrong", False, "failure"),
        ("inconclusive", False, "skipped"),
        ("inconclusive", True, "failure"),
    ],
)
def test_junit_verdicts(verdict: str, strict: bool, tag: str | None) -> None:
    """Wrong is a failure, inconclusive skipped and under --strict a failure; the counts say the same."""
    text = render(document_of(Case("s", "m W", verdict, "why", ("how",)), strict=strict), "junit")
    found = outcomes(text)["m W"]
    assert tag == (None if found is None else found.tag)
    assert found is None or (verdict, "why", "\nwhy\nhow\n") == (found.get("type"), found.get("message"), found.text)
    counts = {"failure": "failures", "skipped": "skipped", None: "tests"}
    suite = ElementTree.fromstring(text)[0]
    expected = {"tests": "1", "failures": "0", "errors": "0", "skipped": "0", counts[tag]: "1"}
    assert expected == {name: suite.attrib[name] for name in expected}


def test_junit_of_any_text() -> None:
    """No character of a name, a message or a refusal makes the report something else than ASCII and XML."""
    case = Case(NASTY, NASTY, "wrong", NASTY, (NASTY,))
    text = render(document_of(case, errors=(REFUSAL,)), "junit")
    assert text.isascii() and 2 == len(outcomes(text))
    tests = list(ElementTree.fromstring(text).iter("testcase"))
    assert "α##[error]" in tests[0].attrib["name"] and "\\x00\\x1b[31m\\ud800\\ufffe" in tests[0].attrib["name"]
    assert ("unknown-name", "error") == (tests[1].attrib["name"], tests[1][0].tag)
    assert " --> specs/a,b.toml:12:7" in str(tests[1][0].text)


def test_junit_keeps_to_the_schema() -> None:
    """Elements and attributes are those of Jenkins' junit-10.xsd, and what it requires is there."""
    case = Case("s", "m", "wrong", "why", ("how",), seconds=1e-7)
    known = {
        "testsuites": {"name", "tests", "failures", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped"},
        "testcase": {"name", "classname", "time"},
        "failure": {"type", "message"},
        "error": {"type", "message"},
        "system-out": set(),
    }
    root = ElementTree.fromstring(render(document_of(case, errors=(REFUSAL,)), "junit"))
    assert known == {e.tag: known[e.tag] for e in root.iter()}
    assert [] == [e.tag for e in root.iter() if set(e.attrib) ^ known[e.tag] not in (set(), {"time"})]
    assert "0.000000100" == root[0][0].attrib["time"]


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """The workflow commands of a text as the runner reads them: name, properties and message."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*::([a-z]+)(?: ([^:]*))?::(.*)", line)
        assert "##[" not in line or match
        if match:
            pairs = dict(p.split("=", 1) for p in (match[2] or "").split(",") if p)
            found.append((match[1], {k: _undo(v) for k, v in pairs.items()}, _undo(match[3])))
    return found


def _undo(text: str) -> str:
    for escape, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(escape, character)
    return text


def test_github_worst_first() -> None:
    """The worst ten are annotations, the rest a number; what is not finite is worst of all."""
    cases = [Case("s", f"m {n}", "wrong", "why", badness=z) for n, z in enumerate([*range(20), float("nan")])]
    cases += [Case("s", f"i {n}", "inconclusive", badness=1.0) for n in range(11)]
    found = commands(render(document_of(*cases, Case("s", "fine")), "github"))
    assert ["s m 20 is wrong", *(f"s m {n} is wrong" for n in range(19, 10, -1))] == [
        properties["title"] for name, properties, _ in found if name == "error"
    ]
    assert 10 == sum(name == "warning" for name, _, _ in found)
    assert ["11 more errors and 1 more warnings, in the log of this step"] == [m for n, _, m in found if n == "notice"]


def test_github_counts_nothing_where_all_is_shown() -> None:
    """Ten are shown without a word about others, and a good run has no annotation at all."""
    ten = [Case("s", f"m {n}", "wrong") for n in range(10)]
    assert "notice" not in [name for name, _, _ in commands(render(document_of(*ten), "github"))]
    assert [("group", {}, "a 100%"), ("endgroup", {}, "")] == commands(render(document_of(Case("s", "m")), "github"))


def test_github_of_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """No character of a name or a message ends a command, begins another, or adds a property."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    place = Place("specs/a,b:c%.toml", 3, 1)
    document = document_of(Case(NASTY, NASTY, "wrong", NASTY, (NASTY, "second"), place=place), errors=(REFUSAL,))
    found = commands(render(document, "github"))
    assert ["error", "error", "group", "endgroup"] == [name for name, _, _ in found]
    assert {"file": "specs/a,b.toml", "line": "12", "col": "7", "title": "error[unknown-name]"} == found[0][1]
    assert {"file", "line", "col", "title"} == set(found[1][1])
    assert ("specs/a,b:c%.toml", "3") == (found[1][1]["file"], found[1][1]["line"])
    assert found[1][2].endswith("\nsecond") and 2 == found[1][2].count("\n")


def test_github_paths_are_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is relative to the root of the checkout, wherever in it the command runs, and however it was written."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    for written in ("net.toml", str(tmp_path / "sub" / "net.toml"), "./net.toml"):
        found = commands(render(document_of(Case("s", "m", "wrong", place=Place(written, 1, 1))), "github"))
        assert "sub/net.toml" == found[0][1]["file"]
    monkeypatch.delenv("GITHUB_WORKSPACE")
    found = commands(render(document_of(Case("s", "m", "wrong", place=Place("net.toml", 1, 1))), "github"))
    assert "net.toml" == found[0][1]["file"]


@pytest.mark.parametrize("name", ["junit", "github"])
def test_a_finding_is_told_in_full(name: str) -> None:
    """Value, reference, bound, z, index, cause, blame and the way to see it again are there."""
    found: list[Finding] = [finding("net", "bptt", "W", "wrong"), finding("net", "rtrl", "W", "pass")]
    text = _undo(render(with_cases(findings_document(found, (), {}, ()), {}), name))
    for part in ("wrong: sign, z = 1e+09 at W[0, 1]", "value 1, reference 1.00", "bound 1e-12", "the sign is wrong"):
        assert part in text
    assert "reproduce: bp check net.toml" in text


def test_a_finding_without_figures() -> None:
    """What is no array of numbers has no worst entry, and a direction no index."""
    from dataclasses import replace

    none = replace(finding("net", "bptt", "W", "wrong"), worst=None, cause="missing", blame=None, checked=0)
    along = replace(finding("net", "bptt", "V", "wrong"), cause="", blame=None)
    assert along.worst is not None
    along = replace(along, worst=replace(along.worst, index=None))
    found = outcomes(render(with_cases(findings_document([none, along], (), {}, ()), {}), "junit"))
    assert "wrong: missing" == found["bptt W"].get("message")
    assert "wrong: z = 1e+09 at V along a direction" == found["bptt V"].get("message")


def test_a_measured_cell_is_a_test() -> None:
    """A cell of a bench is a test with its time, and fails where its gradient is wrong."""
    cell = {"spec": "net", "method": "bptt", "backend": "jax", "settings": {"n": 4}, "grid": {"n": 4}}
    blank = dict.fromkeys(TAIL)
    check = {"verdict": "wrong", "detail": "W is off", "how": "26 entries"}
    row = {**blank, **cell, "time_s": 0.5, "check": check, "samples": []}
    document = full_document([row | {"time_s": None, "settings": {}}])
    text = render(document, "junit")
    assert "time" not in next(ElementTree.fromstring(text).iter("testcase")).attrib
    found = outcomes(text)["bptt by jax"]
    assert ("failure", "wrong: W is off", "\nwrong: W is off\n26 entries\n") == (
        found.tag,
        found.get("message"),
        found.text,
    )
    assert "::error title=net bptt by jax is wrong::wrong: W is off%0A26 entries" in render(document, "github")


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, toy methods, and a check whose verdict is the spec's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    install_methods(monkeypatch)
    verdicts: dict[str, Verdict] = {"wrong": "wrong", "unclear": "inconclusive"}
    install_check(monkeypatch, lambda name: verdicts.get(name, "pass"))


@pytest.mark.usefixtures("judged")
def test_same_rows_as_json() -> None:
    """Both formats have a row a finding, with the place of the tensor's declaration, and an error a refusal."""
    paths = [write(Path("specs", f"{n}.toml"), RECURRENT) for n in ("good", "wrong", "unclear")]
    broken = write(Path("specs", "broken.toml"), RECURRENT.replace("a[t-1]", "b[t-1]"))
    wanted = [p for f in ("json", "junit", "github") for p in ("--output", f"{f}={f}.out")]
    assert 2 == run("check", *paths, broken, "--wrt", "params", "--wrt", "inputs", *wanted).exit_code
    rows = json.loads(Path("json.out").read_text())["findings"]
    report = Path("junit.out").read_text()
    expected = [(r["spec"], f"{r['method']} {r['tensor']}") for r in rows]
    cases = [(t.get("classname"), t.get("name")) for t in ElementTree.fromstring(report).iter("testcase")]
    assert [*expected, ("specs/broken.toml", "unknown-name")] == cases
    annotations = Path("github.out").read_text()
    assert len(rows) == sum(line.startswith("| ") for line in annotations.splitlines()) - 2
    where = [(n, p.get("file"), p.get("line")) for n, p, _ in commands(annotations) if n in ("error", "warning")]
    assert [
        ("error", "specs/broken.toml", "11"),
        ("error", "specs/wrong.toml", "3"),
        ("error", "specs/wrong.toml", "7"),
        ("warning", "specs/unclear.toml", "3"),
        ("warning", "specs/unclear.toml", "7"),
    ] == where


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize(("strict", "tag", "code"), [((), "skipped", 0), (("--strict",), "failure", 4)])
def test_strict_reaches_the_report(strict: tuple[str, ...], tag: str, code: int) -> None:
    """What --strict makes of the exit code, the report says too."""
    result = run("check", write(Path("unclear.toml"), RECURRENT), "--format", "junit", *strict)
    assert (code, {tag}) == (result.exit_code, {e.tag for e in outcomes(result.stdout).values()})


@pytest.mark.parametrize(("name", "expected"), [("junit", "error"), ("github", "::error title=error[usage]::")])
def test_usage_errors(name: str, expected: str) -> None:
    """A call that is refused leaves a document too."""
    result = run("check", "--nonsense", "--format", name)
    assert 2 == result.exit_code and expected in result.stdout


def test_the_loss_has_a_place(tmp_path: Path) -> None:
    """A finding on the loss, or on a name that the spec lacks, points to where the loss is declared."""
    from bpcli.errors import Collector
    from bpcli.spec.load import load

    spec = load(write(tmp_path / "net.toml", RECURRENT), {}, Collector())
    assert spec is not None
    places = places_of(spec)
    assert (3, 7, 9) == (places["net", "W"].line, places["net", "x"].line, places["net", "a"].line)
    assert places["net", "loss"] == places["net", ""]


@pytest.mark.usefixtures("judged")
def test_the_action_has_both_formats() -> None:
    """The command of the action for GitHub runs as it stands, and leaves annotations and a report."""
    action = (ROOT / ".github" / "actions" / "bp-check" / "action.yml").read_text(encoding="utf-8")
    step = re.search(r"run: (bp check .*--format github.*)", action)
    assert step
    given = {"$TARGETS": "specs", "$ARGS": "", "$REPORT": "check.xml", "$RUNNER_TEMP": "."}
    command = re.sub(r"\$[A-Z_]+", lambda name: given[name[0]], step[1])
    write(Path("specs", "wrong.toml"), RECURRENT)
    result = run(*shlex.split(command)[1:])
    assert 1 == result.exit_code and result.stdout.startswith("::error file=specs/wrong.toml,line=3,")
    assert "failure" == outcomes(Path("check.xml").read_text())["bptt W"].tag
