"""`bp check`: targets, methods, exit codes and formats, with a check that finds what it is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_cases import FORWARD, RECURRENT, install_check, install_methods, run, write

from bpcli.api.check_runner import Results
from bpcli.checking.findings import Verdict


def verdict_of(name: str) -> Verdict:
    """Specs are named after what is to be found."""
    if "wrong" in name:
        return "wrong"
    return "inconclusive" if "unclear" in name else "pass"


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Toys for methods, a toy for the check, an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    install_methods(monkeypatch)
    return install_check(monkeypatch, verdict_of)


@pytest.mark.parametrize(
    ("names", "args", "expected"),
    [
        (["good"], [], 0),
        (["wrong"], [], 1),
        (["unclear"], [], 0),
        (["unclear"], ["--strict"], 4),
        (["good", "wrong", "unclear"], ["--strict"], 1),
        (["good", "wrong"], ["missing.toml"], 2),
        (["wrong", "unclear"], ["--strict", "missing.toml"], 2),
    ],
)
def test_exit_codes(names: list[str], args: list[str], expected: int) -> None:
    """The exit code is the first that applies of 2, 1, 4, 0."""
    paths = [write(Path(f"{n}.toml"), RECURRENT) for n in names]
    assert expected == run("check", *paths, *args).exit_code


def test_nothing_found_is_5() -> None:
    """An empty folder, or methods that apply nowhere, are exit code 5."""
    Path("specs").mkdir()
    found = run("check")
    assert (5, True) == (found.exit_code, 'no spec in "specs"' in found.stderr)
    write(Path("specs/a.toml"), RECURRENT)
    write(Path("specs/b.toml"), RECURRENT)
    result = run("check", "-m", "backprop")
    assert (5, "Nothing was checked.") == (result.exit_code, result.stdout.splitlines()[0])


def test_an_unknown_method_is_told_and_nothing_checked() -> None:
    """The refusal on stderr, what came of it on stdout; a document for programs holds both."""
    path = write(Path("a.toml"), RECURRENT)
    result = run("check", path, "-m", "bttp")
    assert (2, "Nothing was checked.") == (result.exit_code, result.stdout.splitlines()[0])
    assert 'unknown method "bttp"' in result.stderr
    document = json.loads(run("check", path, "-m", "bttp", "--format", "json").stdout)
    assert ["unknown-method"] == [error["code"] for error in document["errors"]]


def test_folders_are_searched() -> None:
    """Recursively, for TOML files with a top-level key `bp`; hidden folders and other files are left out."""
    for name in ("specs/b.toml", "specs/deep/a.toml"):
        write(Path(name), RECURRENT)
    write(Path("specs/other.toml"), "[tool]\nbp = 1\n")
    write(Path("specs/broken-other.toml"), "[tool\nbp = 1\n")
    write(Path("specs/notes.md"), "bp = 1")
    write(Path("specs/.hidden/c.toml"), RECURRENT)
    document = json.loads(run("check", "--format", "json").stdout)
    assert ["specs/b.toml", "specs/deep/a.toml"] == document["context"]["specs"]


def test_what_looks_like_a_spec_is_not_left_out_unsaid() -> None:
    """The key may be mistyped."""
    write(Path("specs/a.toml"), RECURRENT)
    write(Path("specs/b.toml"), RECURRENT.replace("bp = 1", "bpp = 1"))
    write(Path("specs/other.toml"), "[tool]\nbp = 1\n")
    said = run("check").stderr
    assert "skipped specs/b.toml: it has [equations] but no key bp" in said and "other.toml" not in said


def test_a_broken_spec_in_a_folder_is_told() -> None:
    """A file that is no TOML but means to be a spec is refused, not skipped; the others are judged."""
    write(Path("specs/a.toml"), "bp = 1\n[dims\n")
    write(Path("specs/b.toml"), RECURRENT)
    result = run("check", "--format", "json")
    document = json.loads(result.stdout)
    assert (2, ["b"]) == (result.exit_code, [f["spec"] for f in document["findings"]])
    assert ("specs/a.toml", 2) == (document["errors"][0]["file"], document["errors"][0]["line"])


def test_a_spec_named_twice_is_judged_once(calls: list[Any]) -> None:
    """Once as a file and once in its folder."""
    path = write(Path("specs/a.toml"), RECURRENT)
    assert 0 == run("check", path, "specs").exit_code
    assert 1 == len(calls)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/net.toml", "b/net.toml", "b/other.toml"], ["a/net", "b/net", "other"]),
        (["a/x/net.toml", "b/x/net.toml", "c/y/net.toml"], ["a/x/net", "b/x/net", "y/net"]),
        (["w/net.toml", "w/b/net.toml"], ["w/net", "b/net"]),
        (["w/net.toml", "w/net.txt"], ["net.toml", "net.txt"]),
    ],
)
def test_specs_of_one_file_name_are_told_apart(paths: list[str], expected: list[str]) -> None:
    """By the shortest end of the path that does, and only where names clash."""
    files = [write(Path(p), RECURRENT) for p in paths]
    document = json.loads(run("check", *files, "-m", "bptt", "--format", "json").stdout)
    assert expected == list(dict.fromkeys(f["spec"] for f in document["findings"]))


def test_no_specs_here() -> None:
    """Without a target and without `specs/` there is advice."""
    result = run("check")
    assert 2 == result.exit_code and "error[no-specs]" in result.stderr


def test_a_missing_target_has_a_neighbour() -> None:
    """A path that does not exist is answered with the nearest that does."""
    write(Path("vanilla.toml"), RECURRENT)
    assert 'did you mean "vanilla.toml"?' in run("check", "vanila.toml").stderr


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        (RECURRENT, [], ["bptt"]),
        (RECURRENT.replace('methods = ["bptt"]', ""), [], ["bptt", "rtrl"]),
        (FORWARD, [], ["backprop"]),
        (RECURRENT, ["-m", "rtrl", "--method", "bptt", "-m", " rtrl"], ["rtrl", "bptt"]),
    ],
)
def test_methods(text: str, args: list[str], expected: list[str], calls: list[Any]) -> None:
    """`-m` over `[check] methods` over the ones for the kind of graph; each once."""
    assert 0 == run("check", write(Path("a.toml"), text), *args).exit_code
    assert expected == calls[0][1]


def test_a_method_that_does_not_apply() -> None:
    """It is refused with its reason for one spec, skipped with a note among several."""
    path = write(Path("a.toml"), RECURRENT.replace('"bptt"', '"bptt", "backprop"'))
    alone = run("check", path)
    assert 2 == alone.exit_code and "backprop does not apply" in alone.stderr and "a.toml:17:20" in alone.stderr
    several = run("check", path, write(Path("b.toml"), FORWARD))
    assert 0 == several.exit_code and "skipped backprop for a: backprop does not apply" in several.stdout


def test_an_unknown_method_of_a_spec_has_its_place() -> None:
    """A typing error in `[check] methods` points there."""
    result = run("check", write(Path("a.toml"), RECURRENT.replace('"bptt"', '"bptr"')))
    assert 2 == result.exit_code and "a.toml:17:12" in result.stderr and 'did you mean "bptt"?' in result.stderr
    result = run("check", write(Path("a.toml"), RECURRENT.replace('"bptt"', '"bptr", "bptt", "rtrll"')))
    assert 2 == result.exit_code and '"bptr"' in result.stderr and "a.toml:17:28" in result.stderr


def test_a_reference_is_no_method() -> None:
    """Where `bp bench -m central` is one, there is the option that says it here."""
    result = run("check", write(Path("a.toml"), RECURRENT), "-m", "central")
    assert 2 == result.exit_code and "help: --reference central judges methods by it" in result.stderr.splitlines()


def test_options_reach_the_check(calls: list[Any]) -> None:
    """Sizes, precision, seed, what to differentiate, reference and mode."""
    path = write(Path("a.toml"), RECURRENT)
    options = ["--set", "n=5", "--set", "T=7", "--dtype", "float32", "--seed", "9", "--wrt", "inputs", "--wrt", "W"]
    assert 0 == run("check", path, *options, "--reference", "central", "--mode", "full").exit_code
    setup, _, settings = calls[0]
    assert (7, "float32", 9, ["W", "x"]) == (
        setup.T,
        str(setup.dtype),
        setup.spec.data.seed,
        [t.name for t in setup.wrt],
    )
    assert ((5, 5), "central", "full") == (setup.wrt[0].shape, settings.reference, settings.mode)


@pytest.mark.parametrize(
    ("option", "code"), [(["--max-memory", "10"], "too-large"), (["--max-time", "1e-30"], "too-long")]
)
def test_limits(option: list[str], code: str) -> None:
    """What is too large or too long is refused before it runs."""
    result = run("check", write(Path("a.toml"), RECURRENT), *option)
    assert 2 == result.exit_code and f"error[{code}]" in result.stderr


def test_many_tiny_steps_are_too_long() -> None:
    """Steps cost time, not only their arithmetic."""
    path = write(Path("a.toml"), RECURRENT)
    codes = [run("check", path, "--set", f"T={T}", "--max-time", "0.5").exit_code for T in (20, 20_000)]
    assert [0, 2] == codes


def test_json_schema() -> None:
    """The documented keys, all of them and no others."""
    document = json.loads(run("check", write(Path("wrong.toml"), RECURRENT), "--format", "json").stdout)
    assert {"schema_version", "context", "findings", "errors", "summary"} == set(document)
    (found,) = document["findings"]
    keys = "spec method tensor shape checked verdict cause worst kernel_error bias cosine blame kink"
    assert keys.split() == list(found)
    assert ["index", "value", "reference", "bound", "z", "direction"] == list(found["worst"])
    assert ([0, 1], [2, 2], "wrong", "W") == (
        found["worst"]["index"],
        found["shape"],
        found["verdict"],
        found["tensor"],
    )
    assert {"passed": 0, "wrong": 1, "inconclusive": 0} == document["summary"]


def test_numbers_that_json_lacks() -> None:
    """A z that is not a number is a string."""
    document = json.loads(run("check", write(Path("unclear.toml"), RECURRENT), "--format", "json").stdout)
    assert "nan" == document["findings"][0]["worst"]["z"]


def test_every_format_has_the_same_rows() -> None:
    """A row a finding, on stdout and in files, the wrong ones first."""
    names = ["good", "wrong", "unclear"]
    paths = [write(Path(f"{n}.toml"), RECURRENT) for n in names]
    files = [f"{f}={f}.out" for f in ("json", "jsonl", "csv", "markdown", "table")]
    outputs = [part for f in files for part in ("--output", f)]
    assert (
        1 == run("check", *paths, "-m", "bptt", "-m", "rtrl", "--wrt", "params", "--wrt", "inputs", *outputs).exit_code
    )
    rows = {f: Path(f"{f}.out").read_text() for f in ("json", "jsonl", "csv", "markdown", "table")}
    expected = [(n, m, t) for n in ("wrong", "unclear", "good") for m in ("bptt", "rtrl") for t in ("W", "x")]
    from_json = [(r["spec"], r["method"], r["tensor"]) for r in json.loads(rows["json"])["findings"]]
    from_csv = [(r["spec"], r["method"], r["tensor"]) for r in csv.DictReader(io.StringIO(rows["csv"]))]
    from_lines = [(r["spec"], r["method"], r["tensor"]) for r in map(json.loads, rows["jsonl"].splitlines())]
    assert expected == from_json == from_csv == from_lines
    assert len(expected) == sum(line.startswith("| ") for line in rows["markdown"].splitlines()) - 2
    assert (
        expected
        == [tuple(line.split()[:3]) for line in rows["table"].splitlines() if line.startswith(tuple(names))][
            : len(expected)
        ]
    )


def test_the_table_for_people() -> None:
    """Tensors that pass share a row; those that are wrong come first, and share one if they have a cause in common."""
    paths = [write(Path(f"{n}.toml"), RECURRENT) for n in ("good", "wrong")]
    lines = run("check", *paths, "--wrt", "params", "--wrt", "inputs").stdout.splitlines()
    assert "4 gradients of 2 specs: 2 pass, 2 wrong." == lines[0]
    assert ["wrong", "bptt", "all", "2", "wrong", "sign"] == lines[4].split()[:6]
    assert ["good", "bptt", "all", "2", "pass"] == lines[5].split()[:5]
    assert "wrong bptt W, x: the sign is wrong" in lines and "  reproduce: bp check wrong.toml" in lines


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["good"], "1 gradient of good (T = 3, batch = 2, float64): it passes."),
        (["wrong"], "1 gradient of wrong (T = 3, batch = 2, float64): it is wrong."),
        (["wrong", "wrong2"], "2 gradients of 2 specs: all are wrong."),
        (["good", "good2"], "2 gradients of 2 specs: all pass."),
        (["good", "unclear", "wrong"], "3 gradients of 3 specs: 1 passes, 1 wrong, 1 inconclusive."),
    ],
)
def test_the_sentence_on_top(names: list[str], expected: str) -> None:
    """One sentence says how it went."""
    result = run("check", *[write(Path(f"{n}.toml"), RECURRENT) for n in names])
    assert expected == result.stdout.splitlines()[0]


def test_the_sizes_of_several_specs_are_noted() -> None:
    """Those of a single one are in the first sentence; a feed-forward network has no T."""
    paths = [write(Path("a.toml"), RECURRENT), write(Path("b.toml"), RECURRENT), write(Path("flat.toml"), FORWARD)]
    found = run("check", *paths, "--set", "batch=4").stdout
    assert "Sizes: T = 3, batch = 4, float64 (a, b); batch = 4, float64 (flat)." in found.splitlines()
    assert "Sizes" not in run("check", paths[0]).stdout
    context = json.loads(run("check", paths[2], "--format", "json").stdout)["context"]
    assert {"T": None, "batch": 4, "dtype": "float64"} == context["sizes"]["flat"]


@pytest.mark.parametrize(
    ("count", "refused", "expected"),
    [(3, 0, ": s0, s1, s2"), (4, 0, ": all 4 specs"), (4, 1, ": all 4 specs"), (5, 0, ": all 5 specs")],
)
def test_many_specs_judged_alike_are_counted(count: int, refused: int, expected: str) -> None:
    """Few are named; what was refused is none of them."""
    paths = [write(Path(f"s{i}.toml"), RECURRENT) for i in range(count)]
    result = run("check", *paths, *[f"missing{i}.toml" for i in range(refused)])
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Every entry"))
    assert line.endswith(expected)


def test_specs_judged_in_two_ways_are_named() -> None:
    """Four alike and a fifth: a number would not tell which four."""
    names = [f"s{i}" for i in range(5)]
    findings: list[Any] = [SimpleNamespace(spec=name) for name in names]
    results = Results(findings=findings, chosen={"one way": names[:4], "another": names[4:]})
    assert ["One way: s0, s1, s2, s3", "Another: s4"] == results.notes()


def test_quiet_and_verbose() -> None:
    """Quiet says nothing when all pass, and else what does not; verbose has a row a tensor and every column."""
    good, wrong = (write(Path(f"{n}.toml"), RECURRENT) for n in ("good", "wrong"))
    assert ("", "") == (run("check", good, "-q").stdout, run("check", good, "-q").stderr)
    quiet = run("check", good, wrong, "-q").stdout
    assert "wrong  " in quiet and "good  " not in quiet
    verbose = run("check", good, "-v", "--wrt", "params", "--wrt", "inputs").stdout
    assert "kernel error" in verbose and "reference" in verbose and "all 2" not in verbose


def test_an_unforeseen_error_hides_no_other_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that shows on one spec is told, and the others are judged."""

    def verdict(name: str) -> Verdict:
        if name == "bad":
            raise RuntimeError("boom")
        return "pass"

    install_check(monkeypatch, verdict)
    paths = [write(Path(f"{n}.toml"), RECURRENT) for n in ("bad", "good")]
    result = run("check", *paths, "--format", "json")
    document = json.loads(result.stdout)
    assert (2, ["good"], ["internal"]) == (
        result.exit_code,
        [f["spec"] for f in document["findings"]],
        [e["code"] for e in document["errors"]],
    )


def test_outputs_are_tested_first(calls: list[Any]) -> None:
    """A path that can't be written stops the command before anything is computed."""
    result = run("check", write(Path("a.toml"), RECURRENT), "--output", "csv=no/such/a.csv")
    assert (2, []) == (result.exit_code, calls)


def test_a_file_that_fails_late_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while the results are written costs the file, not the results on stdout."""
    import bpcli.problem.array_files as export
    from bpcli.errors import fail

    monkeypatch.setattr(
        export, "replace_file", lambda path, write: fail("unwritable", f"cannot write {path}", help="-")
    )
    result = run("check", write(Path("a.toml"), RECURRENT), "--output", "csv=a.csv", "--format", "json")
    document = json.loads(result.stdout)
    assert (2, 1, ["unwritable"]) == (
        result.exit_code,
        len(document["findings"]),
        [e["code"] for e in document["errors"]],
    )


def test_a_refusal_names_its_spec() -> None:
    """Among several specs a refusal without a place says which spec it is about."""
    paths = [write(Path(name), text) for name, text in (("a.toml", RECURRENT), ("b.toml", FORWARD))]
    assert 'b.toml: "n" is not a dim' in run("check", *paths, "--set", "n=3").stderr


def test_what_the_loss_does_not_use_is_noted() -> None:
    """An unused parameter is lawful, and a note says so."""
    spec = RECURRENT.replace('W = ["n", "n"]', 'W = ["n", "n"]\nidle = ["n"]')
    result = run("check", write(Path("a.toml"), spec))
    assert 0 == result.exit_code and "a: the loss does not depend on idle" in result.stdout


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130, and JSON is JSON."""

    def verdict(name: str) -> Verdict:
        raise KeyboardInterrupt

    install_check(monkeypatch, verdict)
    result = run("check", write(Path("a.toml"), RECURRENT), "--format", "json")
    assert (130, ["interrupted"]) == (result.exit_code, [e["code"] for e in json.loads(result.stdout)["errors"]])
