"""The distribution `bp-check`: its metadata, its files, and every place that names it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from bpcli import __version__
from bpcli.commands.doctor import PACKAGES

HOME = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
METADATA = PROJECT["project"]
ADVICE = re.compile(r"""pip install ["']?(bp(?:-check)?)\[(\w+)\]""")


def test_names():
    """The index has other people's bp and bpcli; the command and the module keep their names."""
    assert "bp-check" == METADATA["name"]
    assert {"bp": "bpcli.cli:main"} == METADATA["scripts"]
    assert ["bpcli"] == PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_files_that_it_names_are_there():
    """The licence, the readme, and all that the source distribution holds."""
    named = [METADATA["readme"], *METADATA["license-files"]]
    named += PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    named += PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert [] == [name for name in named if not (HOME / name).exists()]
    assert {"CITATION.cff", "LICENSE", "bpcli", "specs", "tests"} <= set(named)


def test_advice_names_the_distribution():
    """Messages that say how to install an extra: the name of the distribution, and an extra that there is."""
    texts = [path.read_text(encoding="utf-8") for path in (HOME / "bpcli").rglob("*.py")]
    advised = {found.groups() for text in texts for found in ADVICE.finditer(text)}
    assert {("bp-check", "torch"), ("bp-check", "peers"), ("bp-check", "report")} <= advised
    assert [] == [(name, extra) for name, extra in advised if name != METADATA["name"] or extra not in extras()]
    assert ("bp", "report") == ADVICE.search('pip install "bp[report]"').groups(), "the twin that must be found"


def extras() -> set[str]:
    """The extras of the distribution."""
    return set(METADATA["optional-dependencies"])


def test_doctor_asks_for_what_is_needed():
    """The packages that bp depends on, no more and no fewer."""
    assert sorted(PACKAGES) == sorted(re.split(r"[<>=!~]", package)[0] for package in METADATA["dependencies"])


def test_citation_has_the_version():
    """And the licence and the keywords of the distribution."""
    text = (HOME / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"(?m)^([a-z-]+): (.+)$", text))
    assert (__version__, METADATA["license"]) == (fields["version"], fields["license"])
    assert METADATA["keywords"] == fields["keywords"].strip("[]").split(", ")


def test_action_runs_commands_that_exist():
    """The action of GitHub checks with options of `bp check`, and the workflows use it."""
    from bpcli.commands.check import check

    action = (HOME / ".github/actions/bp-check/action.yml").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?m)run: (bp check .*)$", action)
    known = {option for parameter in check.params for option in parameter.opts}
    assert [] == [word for word in re.findall(r"--[a-z-]+", command) if word not in known]
    asked = set(re.findall(r"inputs\.(\w+)", action))
    assert asked == set(re.findall(r"(?m)^  (\w+):$", action.partition("runs:")[0]))
    for workflow, path in (("ci", "./"), ("regression", "./head/")):
        text = (HOME / f".github/workflows/{workflow}.yml").read_text(encoding="utf-8")
        assert f"uses: {path}.github/actions/bp-check" in text
    page = (HOME / "bpcli/help/ci.md").read_text(encoding="utf-8")
    assert [] == [name for name in asked if f"`{name}`" not in page]
