"""`bp list methods --for SPEC`: kinds, costs and sources of all methods at a spec's sizes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cli_cases import run
from kernel_cases import SPECS

import bpcli
from bpcli.methods import about, built_in, parse, typical


def rows(name: str, *args: str) -> dict[str, Any]:
    """The rows by method."""
    result = run("list", "methods", "--for", str(SPECS / f"{name}.toml"), *args, "--format", "json")
    assert 0 == result.exit_code
    return {row["method"]: row for row in json.loads(result.stdout)["methods"]}


@pytest.mark.parametrize("name", built_in())
def test_every_method_says_where_it_is_from(name: str) -> None:
    """A paper with its year in the docstring's first paragraph, and the cost of a step in symbols."""
    found = about(name)
    assert re.search(r"\b(19|20)\d\d\b", found.source), f"the docstring of {name} names no source (Author, year)"
    assert found.time, f"{name} has no PER_STEP"
    assert found.memory
    assert name == typical(name).method.name


def test_of_a_plug_in_nothing_is_known() -> None:
    """No source and no symbols."""
    assert ("", "", "") == tuple(vars(about("nowhere")).values())


def test_kinds_and_costs() -> None:
    """All methods, those of the spec too; costs are those of the sizes set."""
    found = rows("lstm", "--set", "n=8")
    assert set(built_in()) == {text.partition(":")[0] for text in found}
    assert "tbptt:k1=4,k2=8" in found
    kinds = {"bptt": "exact", "fbptt:tau=8": "windows", "snap:k=1": "recursion", "uoro": "expectation"}
    assert kinds == {method: found[method]["kind"] for method in kinds}
    setup = bpcli.load(SPECS / "lstm.toml", n=8).setup
    for method in kinds:
        cost = parse(method).cost(setup)
        assert (cost.flops, cost.bytes) == (found[method]["flops"], found[method]["bytes"])
    assert found["rtrl"]["flops"] < rows("lstm", "--set", "n=16")["rtrl"]["flops"] / 8


def test_what_does_not_apply() -> None:
    """The reason stands in the row; where all apply there is no such column."""
    found = rows("square")
    assert [None] == [row["reason"] for row in found.values() if row["kind"]]
    assert "has no state" in found["rtrl"]["reason"]
    assert "why not" in run("list", "methods", "--for", str(SPECS / "gru.toml")).stdout
