"""`bp reproduce`: what it lists, that quick results come out, and that one which does not is told as it is."""

from __future__ import annotations

import itertools
import json

import pytest
from cli_cases import run

from bpcli.commands.specs import packaged_spec
from bpcli.papers import find_paper, known_papers, near, revolve_advances, slope

QUICK = ("snap-ring", "revolve-advances", "uoro-draws")
"""Results that take a second or two."""


def test_every_paper_is_listed() -> None:
    """With its source and time, and a spec that ships with bp."""
    listed = json.loads(run("reproduce", "--format", "json").stdout)["papers"]
    assert list(known_papers()) == [row["name"] for row in listed]
    for row in listed:
        assert (
            row["source"] and row["seconds"] > 0 and packaged_spec(f"papers/{find_paper(row['name']).spec}").is_file()
        )


def test_quick_results_come_out() -> None:
    """Both figures, the error that is allowed, and the source, in every row."""
    result = run("reproduce", *QUICK, "--strict", "--format", "json")
    document = json.loads(result.stdout)
    assert (0, 0) == (result.exit_code, document["summary"]["differ"])
    assert set(QUICK) == {row["name"] for row in document["figures"]}
    assert all(
        {"published", "ours", "allowed", "source", "spec", "by_hand"} <= row.keys() for row in document["figures"]
    )


def test_influence_balancing_begins_as_published() -> None:
    """The steady derivative, and the longest window with the wrong sign."""
    paper = find_paper("influence-balancing")
    found = list(itertools.islice(paper.figures(packaged_spec(f"papers/{paper.spec}")), 2))
    assert [(-6, True), (40, True)] == [(f.published, f.agrees) for f in found]


def test_a_result_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit code 0, or 4 when strict, and in no format as a wrong gradient."""
    monkeypatch.setattr(revolve_advances, "PUBLISHED", {(14, 3): 28})
    result = run("reproduce", "revolve-advances")
    assert 0 == result.exit_code and "DIFFERS" in result.stdout and "1 of 2 figures agree" in result.stdout
    assert 4 == run("reproduce", "revolve-advances", "--strict", "-q").exit_code
    assert "<failure" not in run("reproduce", "revolve-advances", "--format", "junit").stdout


def test_errors_that_are_allowed() -> None:
    """Relative, absolute, or none; NaN never agrees."""
    cases = [((-6, -6.05), {"relative": 0.01}), ((-6, -6.07), {"relative": 0.01}), ((4, 4.5), {"absolute": 0.6}),
             ((27, 28), {}), ((27, 27), {}), ((1, float("nan")), {"absolute": 1.0})]  # fmt: skip
    assert [True, False, True, False, True, False] == [near("", *figures, **error).agrees for figures, error in cases]
    assert slope([1.0, 2.0, 4.0], [3.0, 24.0, 192.0]) == pytest.approx(3)
