"""The specs that ship with the project: all their methods pass, and the reports say what kind of method it is."""

from __future__ import annotations

import pytest
from checking_cases import LIMITS, SPECS

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.methods import parse
from bpcli.problem.setup import open_setup

NAMES = sorted(path.stem for path in SPECS.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_of_every_spec_pass(name: str) -> None:
    """Every tensor of every method passes; exact methods have no bias beyond rounding, truncated ones have."""
    setup = open_setup(SPECS / f"{name}.toml", {}, (), LIMITS)
    for text in setup.spec.check.methods:
        method = parse(text)
        findings = check(setup, [method], CheckOptions())
        assert {t.name: ("pass", "") for t in setup.wrt} == {f.tensor: (f.verdict, f.cause) for f in findings}
        biases = [f.bias for f in findings if f.bias is not None]
        if "exact" in method.method.tags:
            assert max(biases, default=0.0) < 1e-12
        else:
            assert max(biases) > 1e-6
