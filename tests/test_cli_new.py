"""`bp new`: every cell with every task passes its check, and so do the function and the test written with it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_cases import run
from jsonschema import Draft202012Validator
from test_cli_schema import errors, schema_of

import bpcli
from bpcli.commands.scaffold import PLAIN_TASK, known_cells, module_name, recurrent
from bpcli.tasks import known_tasks

PAIRS = [(c, t) for c in known_cells() for t in known_tasks() if t == PLAIN_TASK or recurrent(c)]
LIBRARIES = {"numpy-kernel": "numpy", "torch-kernel": "torch", "jax-kernel": "jax"}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def sizes_of(cell: str) -> dict[str, int]:
    """Small ones."""
    return {"n": 2, "batch": 2, **({"T": 10} if recurrent(cell) else {})}


def function(path: Path) -> Any:
    """The gradient function in a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gradient


@pytest.mark.parametrize(("cell", "task"), PAIRS)
def test_every_cell_with_every_task(cell: str, task: str) -> None:
    """`bp new net && bp check net`."""
    assert 0 == run("new", "net", "--cell", cell, "--task", task, "--output", "spec").exit_code
    sizes = [word for key, value in sizes_of(cell).items() for word in ("--set", f"{key}={value}")]
    checked = run("check", "net", *sizes, "--format", "json")
    assert 0 == checked.exit_code, checked.output
    found = json.loads(checked.stdout)["findings"]
    assert {"pass"} == {f["verdict"] for f in found} and {"W_out", "b_out"} < {f["tensor"] for f in found}


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("cell", known_cells())
def test_functions(kind: str, cell: str) -> None:
    """Every cell, with the squared loss and, where there is time, cross-entropy and one that counts the last step."""
    pytest.importorskip(LIBRARIES[kind])
    # JAX compiles each.
    tasks = ("random", "copy", "adding") if recurrent(cell) and kind != "jax-kernel" else ("random",)
    for task in tasks:
        assert 0 == run("new", "net", "--cell", cell, "--task", task, "--output", kind, "--force").exit_code
        report = bpcli.load("net/net.toml", **sizes_of(cell)).check(function(Path("net/net_kernel.py")))
        assert "pass" == report.verdict, report


@pytest.mark.parametrize(("cell", "kind"), [("leaky", "numpy-kernel"), ("gru", "spec")])
def test_the_test_that_is_written(cell: str, kind: str) -> None:
    """It passes, and fails once the function, or the spec, is wrong."""
    assert 0 == run("new", "my-net", "--cell", cell, "--output", kind).exit_code
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my-net"]
    assert 0 == subprocess.run(command, capture_output=True, check=False).returncode
    spoilt = Path("my-net/my_net_kernel.py" if kind == "numpy-kernel" else "my-net/my-net.toml")
    text = spoilt.read_text()
    wrong = text.replace("d_y.sum(axis=0)", "d_y.mean(axis=0)").replace("r * u", "r * v")
    assert wrong != text
    spoilt.write_text(wrong)
    assert 1 == subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.parametrize("cell", known_cells())
def test_the_schema_knows_the_spec(cell: str) -> None:
    """The schema beside the spec accepts it; its path is in the first line."""
    assert 0 == run("new", "net", "--cell", cell, "--output", "spec").exit_code
    path = Path("net/net.toml")
    validator = Draft202012Validator(json.loads(schema_of(path.resolve()).read_text()))
    assert [] == errors(validator, path.read_text())
    assert [] != errors(validator, path.read_text().replace("[data]", "[date]"))


def test_names() -> None:
    """A folder, a spec in a folder that need not exist, or neither: the cell's name and the task's."""
    for words, spec in (
        (["nets/a"], "nets/a/a.toml"),
        (["nets/b.toml"], "nets/b.toml"),
        ([], "vanilla/vanilla.toml"),
        (["--cell", "lru", "--task", "flip-flop"], "lru_flip_flop/lru_flip_flop.toml"),
    ):
        result = run("new", *words)
        assert 0 == result.exit_code and Path(spec).is_file() and f"wrote {spec}" in result.stderr
    assert Path("nets/bp.schema.json").is_file()
    assert ("net_3_layers", "my_net", "net_class") == tuple(map(module_name, ("3-layers", "my-net", "class")))


def test_nothing_is_replaced() -> None:
    """Unless --force says so; a file with the same content is no obstacle."""
    assert 0 == run("new", "net").exit_code
    assert 0 == run("new", "net").exit_code
    Path("net/net.toml").write_text("mine")
    refused = run("new", "net")
    assert 2 == refused.exit_code and '"net/net.toml" would be replaced' in refused.stderr
    assert "mine" == Path("net/net.toml").read_text()
    assert 0 == run("new", "net", "--force").exit_code
    assert "mine" != Path("net/net.toml").read_text()


def test_defaults_of_output_files_are_not_for_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """`output` of other commands names formats and paths."""
    monkeypatch.setenv("BP_OUTPUT", "json=run.json")
    Path("pyproject.toml").write_text('[tool.bp]\noutput = ["json=run.json"]\n')
    assert 0 == run("new", "net").exit_code
