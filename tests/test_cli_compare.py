"""`bp compare` on documents with something injected: the gate is green where nothing changed and red where it did."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cases import run

Document = dict[str, Any]
Change = Callable[[Document], object]

MACHINE = {
    "cpu": "A", "cores": 2, "system": "Linux", "python": "3.12.1", "versions": {"bp": "0.1.0", "numpy": "2.4.0"},
    "gemm_float64_flops_per_s": 5e10, "copy_bytes_per_s": 2e10,
}  # fmt: skip


def cell(method: str, n: int, seconds: float = 1e-3) -> Document:
    """A cell of `bp bench`, timed fifteen times with a scatter of 2%."""
    samples = [seconds * (1.0 + 0.02 * (((7 * i) % 15) / 7.0 - 1.0)) for i in range(15)]
    return {
        "spec": "net", "method": method, "grid": {"n": n}, "settings": {"n": n}, "backend": "bp", "threads": 1,
        "T": 20, "batch": 2, "dtype": "float64", "parameters": n * n, "time_s": seconds, "samples_s": samples,
        "predicted_bytes": 8000 * n, "allocated_bytes": 8100 * n, "peak_bytes": 0, "forward_steps": 20,
        "flops": 1000.0 * n, "bias": 0.25, "cosine": 0.9,
        "check": {"verdict": "pass", "how": "every entry", "detail": ""},
    }  # fmt: skip


def bench() -> Document:
    """A run of six cells."""
    cells = [cell(m, n, s) for m, s in (("bptt", 1e-3), ("rtrl", 5e-3), ("tbptt:k1=1,k2=4", 2e-3)) for n in (8, 16)]
    context = {"program": "bp", "command": "bench", "machine": copy.deepcopy(MACHINE)}
    return {"schema_version": 1, "context": context, "cells": cells, "errors": [], "summary": {}}


def check() -> Document:
    """A check of one method and two tensors."""
    worst = {"index": [0], "value": 1.0, "reference": 1.0, "bound": 1e-16, "z": 0.03}
    finding = {
        "spec": "net", "method": "bptt", "shape": [2], "checked": 2, "verdict": "pass", "cause": "", "worst": worst,
        "kernel_error": 2e-16, "bias": 2e-16, "cosine": 1.0, "blame": None,
    }  # fmt: skip
    findings = [{**copy.deepcopy(finding), "tensor": t} for t in ("W", "b")]
    return {"schema_version": 1, "context": {"machine": MACHINE}, "findings": findings, "errors": [], "summary": {}}


def slower(factor: float, only: int | None = None) -> Change:
    """Times of all cells, or of one, longer."""

    def change(document: Document) -> None:
        for index, row in enumerate(document["cells"]):
            if only in (None, index):
                row["samples_s"] = [factor * s for s in row["samples_s"]]
                row["time_s"] *= factor

    return change


def put(key: str, value: Any, index: int = 0) -> Change:
    """A figure of a cell."""
    return lambda document: document["cells"][index].update({key: value})


def wrong(document: Document) -> None:
    """A gradient that fails its check, which then has no time."""
    judged = {"verdict": "wrong", "how": "every entry", "detail": "W: sign, z = 1e+09"}
    document["cells"][0].update(check=judged, time_s=None, samples_s=[], allocated_bytes=None)


def find(key: str, value: Any) -> Change:
    """A figure of the first finding."""
    return lambda document: document["findings"][0].update({key: value})


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., tuple[int, Document]]:
    """`bp compare` of a run with itself changed: the exit code and the document."""

    def compare(change: Change, *options: str, make: Callable[[], Document] = bench) -> tuple[int, Document]:
        base, head = make(), make()
        for row in head.get("cells", []):
            row["samples_s"].reverse()  # measured another time, with the very same luck
        change(head)
        for name, document in (("base", base), ("head", head)):
            (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        found = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json"), "--format", "json", *options)
        return found.exit_code, json.loads(found.stdout)

    return compare


def changed(document: Document) -> list[tuple[str, str]]:
    """What is not the same: verdict and figure."""
    return [(r["verdict"], r["figure"]) for r in document["comparisons"] if r["verdict"] != "SAME"]


CASES: dict[str, tuple[Change, int, list[tuple[str, str]]]] = {
    "nothing": (lambda document: None, 0, []),
    "another bp": (lambda d: d["context"]["machine"]["versions"].update(bp="0.2.0"), 0, []),
    "a wrong gradient": (wrong, 1, [("WRONG", "gradient"), ("MISSING", "allocated_bytes")]),
    "more bytes held": (put("predicted_bytes", 64001), 3, [("MORE", "predicted_bytes")]),
    "fewer bytes held": (put("predicted_bytes", 63999), 0, [("LESS", "predicted_bytes")]),
    "more bytes allocated": (put("allocated_bytes", 80000), 3, [("MORE", "allocated_bytes")]),
    "small objects": (put("allocated_bytes", 8 * 8100 + 2000), 0, []),
    "more flops": (put("flops", 8100.0), 3, [("MORE", "flops")]),
    "flops added in another order": (put("flops", 8000.0 * (1 + 1e-15)), 0, []),
    "more steps": (put("forward_steps", 21), 3, [("MORE", "forward_steps")]),
    "more bias": (put("bias", 0.26), 3, [("MORE", "bias")]),
    "bias that is no number": (put("bias", "nan"), 3, [("MORE", "bias")]),
    "bias of rounding": (put("bias", 0.2500001), 0, []),
    "twice the time": (slower(2.0), 3, [("SLOWER", "time_s")] * 6),
    "twice the time of one": (slower(2.0, only=3), 3, [("SLOWER", "time_s")]),
    "half the time of one": (slower(0.5, only=3), 0, [("FASTER", "time_s")]),
    "a little more time": (slower(1.03), 0, []),
    "at the margin": (slower(1.10, only=0), 0, [("INCONCLUSIVE", "time_s")]),
    "a cell less": (lambda d: d["cells"].pop(), 0, [("MISSING", "cell")]),
    "a cell more": (lambda d: d["cells"].append(cell("ebptt:tau=2", 8)), 0, [("NEW", "cell")]),
    "another size": (put("batch", 3), 0, [("MISSING", "cell"), ("NEW", "cell")]),
    "an inconclusive gradient": (
        put("check", {"verdict": "inconclusive", "how": "", "detail": "noise"}), 0, [("INCONCLUSIVE", "gradient")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_injected_is_what_is_reported(name, compared):
    """The verdicts, and the exit code; with --strict what can't be told is 4."""
    change, code, expected = CASES[name]
    found, document = compared(change)
    assert (code, expected) == (found, changed(document))
    undecided = {"INCONCLUSIVE", "MISSING"} & {verdict for verdict, _ in expected}
    assert (4 if undecided and code == 0 else code) == compared(change, "--strict")[0]


def test_worst_comes_first(compared):
    """A wrong gradient, then what grew, then what can't be told, then wins."""

    def all_at_once(document: Document) -> None:
        put("predicted_bytes", 1, 1)(document)
        put("flops", 9e9, 2)(document)
        slower(1.10, 3)(document)
        wrong(document)

    verdicts = [r["verdict"] for r in compared(all_at_once)[1]["comparisons"]]
    assert ["WRONG", "MORE", "MISSING", "INCONCLUSIVE", "LESS"] == sorted(
        set(verdicts) - {"SAME"}, key=["WRONG", "MORE", "MISSING", "INCONCLUSIVE", "LESS"].index
    )
    assert ("WRONG", "MORE", "SAME") == (verdicts[0], verdicts[1], verdicts[-1])


def test_an_interval_stands_beside_every_time(compared):
    """With the ratio and the margin."""
    rows = [r for r in compared(slower(2.0, 3))[1]["comparisons"] if r["figure"] == "time_s"]
    assert 6 == len(rows)
    assert all(r["low"] <= r["ratio"] <= r["high"] and 0.1 == pytest.approx(r["margin"]) for r in rows)
    assert 2.0 == pytest.approx(rows[0]["ratio"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d["context"]["machine"].update(cpu="B"), "cpu: A and B"),
        (lambda d: d["context"]["machine"].update(cores=4), "cores: 2 and 4"),
        (lambda d: d["context"]["machine"]["versions"].update(numpy="2.5.0"), "numpy: 2.4.0 and 2.5.0"),
        (lambda d: d["context"]["machine"].update(python="3.13.0"), "python: 3.12.1 and 3.13.0"),
        (lambda d: [row.update(threads=2) for row in d["cells"]], "threads: 1 and 2"),
    ],
)
def test_other_machines_are_refused(change, word, compared):
    """Unless told; then times are left out and the rest is judged."""
    code, document = compared(change)
    assert (2, "incomparable") == (code, document["errors"][0]["code"])
    assert word in document["errors"][0]["message"]
    code, document = compared(change, "--across-machines")
    assert 0 == code
    assert "time_s" not in {r["figure"] for r in document["comparisons"]}

    def and_more(document: Document) -> None:
        change(document)
        put("flops", 9e9)(document)

    assert 3 == compared(and_more, "--across-machines")[0]


def test_a_machine_that_moved_judges_no_time(compared):
    """Where a product of matrices ran at half its rate, twice the time says nothing."""

    def moved(document: Document) -> None:
        slower(2.0)(document)
        document["context"]["machine"]["gemm_float64_flops_per_s"] = 2.5e10

    code, document = compared(moved)
    assert (0, {"INCONCLUSIVE"}) == (code, {v for v, _ in changed(document)})
    assert {"contaminated"} == {r["detail"] for r in document["comparisons"] if r["figure"] == "time_s"}


def test_a_cell_that_says_it_was_contaminated_judges_no_time(compared):
    """The others do."""

    def change(document: Document) -> None:
        slower(2.0)(document)
        document["cells"][2]["contaminated"] = True

    rows = [r for r in compared(change)[1]["comparisons"] if r["figure"] == "time_s"]
    assert ["SLOWER"] * 5 + ["INCONCLUSIVE"] == [r["verdict"] for r in rows]


def test_what_was_measured_once_has_not_changed(tmp_path):
    """A run beside itself is all the same, however loud the machine was; so are cells that --resume kept."""

    def shown(head: Document, *options: str) -> tuple[int, str]:
        (tmp_path / "head.json").write_text(json.dumps(head))
        found = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json"), "--strict", *options)
        return found.exit_code, found.stdout

    base = bench()
    for row in base["cells"]:
        row.update(contaminated=True, samples_s=[2.0**i * row["time_s"] for i in range(-4, 5)])
    (tmp_path / "base.json").write_text(json.dumps(base))
    code, text = shown(base)
    assert (0, True, True) == (code, "no differences" in text, "contain the same time measurements" in text)
    again = copy.deepcopy(base)
    again["cells"][2]["samples_s"].reverse()
    code, text = shown(again, "--format", "json")
    rows = [r for r in json.loads(text)["comparisons"] if r["figure"] == "time_s"]
    assert (4, ["INCONCLUSIVE"] + ["SAME"] * 5) == (code, [r["verdict"] for r in rows])
    assert {"one measurement"} == {r["detail"] for r in rows[1:]}


def test_a_rewritten_spec_is_noted(tmp_path):
    """A figure may differ because the network does."""
    base, head = bench(), bench()
    base["context"]["spec_sha256"], head["context"]["spec_sha256"] = {"net": "a", "b": "c"}, {"net": "b", "b": "c"}
    for name, document in (("base", base), ("head", head)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    found = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json"))
    assert "net differs between the two runs." in found.stdout.splitlines()


@pytest.mark.parametrize("option", ["set", "wrt"])
def test_other_settings_are_noted(option, tmp_path):
    """What is less for that is no win; without that reason it is one."""
    given = {"set": ({}, {"n": 9, "T": 3}), "wrt": ([], ["W", "V"])}[option]
    told = {"set": "none and T=3 n=9", "wrt": "none and V W"}[option]
    for same in (False, True):
        for name, value in zip(("base", "head"), given, strict=True):
            document = bench()
            document["context"][option] = given[0] if same else value
            document["cells"][0]["flops"] /= 2 if name == "head" else 1
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        lines = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json")).stdout.splitlines()
        assert same == any("update the baseline" in line for line in lines)
        assert same == (f"--{option} differs between the two runs: {told}." not in lines)


def test_annotations_and_test_reports(compared, tmp_path):
    """What is worse is an error, worst first; what can't be told is a warning, skipped in a test report."""

    def change(document: Document) -> None:
        put("flops", 9e9, 2)(document)
        slower(1.10, 3)(document)
        wrong(document)

    compared(change)
    pair = (str(tmp_path / "base.json"), str(tmp_path / "head.json"))
    lines = run("compare", *pair, "--format", "github").stdout.splitlines()
    errors = [line for line in lines if line.startswith("::error")]
    assert (2, True, True) == (len(errors), "gradient" in errors[0], "flops" in errors[1])
    assert any(line.startswith("::warning") and "time_s" in line for line in lines)
    assert "gradient is WRONG::" in errors[0] and "flops is MORE::" in errors[1]
    report = run("compare", *pair, "--format", "junit").stdout
    assert 2 == report.count("<failure")


CHECKS: dict[str, tuple[Change, int, list[tuple[str, str]]]] = {
    "nothing": (lambda document: None, 0, []),
    "wrong": (find("verdict", "wrong"), 1, [("WRONG", "gradient")]),
    "rounding of another machine": (find("kernel_error", 9e-16), 0, []),
    "an error that the bound allows by far": (find("kernel_error", 1e-13), 0, []),
    "a tensor less": (lambda d: d["findings"].pop(), 0, [("MISSING", "cell")]),
}


@pytest.mark.parametrize("name", CHECKS)
def test_checks_are_compared_too(name, compared):
    """Verdicts and kernel errors, tensor by tensor."""
    change, code, expected = CHECKS[name]
    found, document = compared(change, make=check)
    assert (code, expected) == (found, changed(document))


def test_a_kernel_error_that_grew_near_its_bound(compared):
    """Tenfold, with a z that is not small: more."""

    def change(document: Document) -> None:
        document["findings"][0].update(kernel_error=1e-13)
        document["findings"][0]["worst"]["z"] = 0.5

    assert (3, [("MORE", "kernel_error")]) == (lambda r: (r[0], changed(r[1])))(compared(change, make=check))


def test_the_baseline_is_what_is_deterministic(compared, tmp_path):
    """Written out on request; compared with the run it came from all is the same, on any machine, without a time."""
    path = tmp_path / "baseline.json"
    code, document = compared(put("flops", 7000.0), "--write-baseline", str(path))
    assert (0, [("LESS", "flops")]) == (code, changed(document))
    written = json.loads(path.read_text())
    assert 7000.0 == written["cells"][0]["flops"]
    assert not {"samples_s", "time_s", "peak_bytes"} & written["cells"][0].keys()
    assert not any(key.endswith("_per_s") for key in written["context"]["machine"])
    head = json.loads((tmp_path / "head.json").read_text())
    head["context"]["machine"]["cpu"] = "quite another"
    (tmp_path / "elsewhere.json").write_text(json.dumps(head))
    again = run("compare", str(path), str(tmp_path / "elsewhere.json"), "--format", "json")
    assert (0, []) == (again.exit_code, changed(json.loads(again.stdout)))


def test_no_baseline_of_a_wrong_gradient(compared, tmp_path):
    """It would make the fault the rule."""
    code, _ = compared(wrong, "--write-baseline", str(tmp_path / "baseline.json"))
    assert (1, False) == (code, (tmp_path / "baseline.json").exists())


def test_nothing_in_common(compared):
    """Exit 5, and so that a reader sees it."""

    def rename(document: Document) -> None:
        for row in document["cells"]:
            row["spec"] = "other"

    assert 5 == compared(rename)[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not-json"),
        ("{", "not-json"),
        ("[" * 100_000, "not-json"),
        ("[]", "not-a-run"),
        ("{}", "not-a-run"),
        ('{"schema_version": 2, "cells": []}', "not-a-run"),
        ('{"schema_version": 1, "cells": [3]}', "not-a-run"),
        ('{"schema_version": 1, "cells": [{"spec": "a"}]}', "not-a-run"),
        ('{"schema_version": 1, "cells": [{"spec": "a", "method": "b"}]}', "not-a-run"),
        ('{"schema_version": 1, "cells": [{"spec": "a", "method": "b", "check": {"verdict": "fine"}}]}', "not-a-run"),
        (
            '{"schema_version": 1, "findings": [{"spec": "a", "method": "b", "verdict": "pass", "grid": 3}]}',
            "not-a-run",
        ),
        ("\xff", "not-utf-8"),
    ],
)
def test_what_is_no_run_is_refused(text, code, tmp_path):
    """One located refusal, exit 2, whatever the file holds."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(bench()))
    bad.write_text(text, encoding="latin-1")
    for pair in ((good, bad), (bad, good)):
        found = run("compare", *map(str, pair), "--format", "json")
        assert (2, code) == (found.exit_code, json.loads(found.stdout)["errors"][0]["code"])


@pytest.mark.parametrize("change", [lambda d: d["cells"].append(d["cells"][0]), None])
def test_runs_that_cannot_be_paired(change, compared, tmp_path):
    """A cell that is there twice; a check beside a benchmark; a file that is not there."""
    if change:
        assert (2, "not-a-run") == (lambda r: (r[0], r[1]["errors"][0]["code"]))(compared(change))
        return
    for name, document in (("bench", bench()), ("check", check())):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    found = run("compare", str(tmp_path / "bench.json"), str(tmp_path / "check.json"))
    assert (2, True) == (found.exit_code, "incomparable" in found.stderr)
    assert 2 == run("compare", str(tmp_path / "bench.json"), str(tmp_path / "absent.json")).exit_code


def test_the_table_shows_what_changed_and_every_time(compared, tmp_path):
    """The rest of what is the same is only counted."""
    compared(put("flops", 9e9))
    found = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json"))
    lines = found.stdout.splitlines()
    assert 3 == found.exit_code
    assert "6 cells of net compared: 1 MORE" in lines[0]
    assert (1, 6) == (found.stdout.count(" flops "), found.stdout.count(" time_s "))
    quiet = run("compare", str(tmp_path / "base.json"), str(tmp_path / "head.json"), "-q")
    assert (1, 0) == (quiet.stdout.count(" flops "), quiet.stdout.count(" time_s "))
