"""`bp schema`: what the schema accepts, and what it refuses, as a validator of another make sees it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from kernel_cases import SPECS

from bpcli.cli import main

SHIPPED = SPECS / "bp.schema.json"
SMALL = 'bp = 1\n[params]\nw = [2]\n[equations]\nloss = "sum(w)"\n'


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """A validator of the schema that is printed."""
    schema = json.loads(CliRunner().invoke(main, ["schema"]).stdout)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def errors(validator: Draft202012Validator, text: str) -> list[Any]:
    """The errors that the schema finds in a spec."""
    return list(validator.iter_errors(tomllib.loads(text)))


def schema_of(spec: Path) -> Path:
    """The file that the first line of a spec names, as Taplo and the editors that use it read the line."""
    line = spec.read_text(encoding="utf-8").partition("\n")[0]
    assert line.startswith("#:schema ./") or line.startswith("#:schema ../")
    return (spec.parent / line.removeprefix("#:schema ")).resolve()


@pytest.mark.parametrize("path", sorted(SPECS.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_spec_that_ships_is_valid(validator: Draft202012Validator, path: Path) -> None:
    """Short forms of arrays, tables and grids included; its first line tells editors where the schema is."""
    text = path.read_text(encoding="utf-8")
    assert [] == errors(validator, text)
    assert SHIPPED == schema_of(path)


def test_the_schema_that_ships_is_current() -> None:
    """`bp schema -o specs/bp.schema.json` writes it anew."""
    assert CliRunner().invoke(main, ["schema"]).stdout == SHIPPED.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bp = 1", "bp = 2"),
        ("bp = 1", ""),
        ("w = [2]", "w = [0]"),
        ("w = [2]", "w = { shape = [2], int = 'zeros' }"),
        ("w = [2]", "w = { init = 'zeros' }"),
        ("[params]", "[parms]"),
        ('"sum(w)"', "3"),
        ("[params]", "[check]\nmethods = []\n[params]"),
        ("[params]", "[data]\nbatch = 1.5\n[params]"),
        ("[params]", "[kernel.mine]\nfunction = 'f'\n[params]"),
    ],
)
def test_what_no_spec_may_have_is_invalid(validator: Draft202012Validator, old: str, new: str) -> None:
    """Unknown keys and tables, wrong types, sizes out of range, keys that are missing."""
    assert [] == errors(validator, SMALL)
    assert [] != errors(validator, SMALL.replace(old, new))


def test_the_schema_as_a_file(tmp_path: Path) -> None:
    """`-o` writes what is printed, and refuses a place where no file can be."""
    out = tmp_path / "spec.json"
    assert 0 == CliRunner().invoke(main, ["schema", "-o", str(out)]).exit_code
    assert out.read_text() == CliRunner().invoke(main, ["schema"]).stdout
    refused = CliRunner().invoke(main, ["schema", "-o", str(tmp_path / "no" / "spec.json")])
    assert 2 == refused.exit_code and "its folder does not exist" in refused.stderr
