"""The plugin for pytest: specs as tests, and a fixture that judges a gradient.

    [tool.pytest.ini_options]
    bp_specs = ["specs/*.toml"]

makes a test of each spec and method. `bp_check(loss, grad, params)` judges any two functions. pytest loads this module
at every start, wanted or not, so that at module level it imports next to nothing.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bpcli

if TYPE_CHECKING:
    from bpcli.commands.as_tests import Plan

_SPECS = pytest.StashKey[frozenset[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of pytest's configuration file."""
    parser.addini("bp_specs", "specs to check as tests, as patterns: specs/*.toml", type="args", default=[])
    parser.addini("bp_methods", "methods for specs that name none: bptt rtrl", type="args", default=[])
    parser.addini("bp_strict", "fail, not skip, where a gradient's verdict is inconclusive", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings; where pytest goes by `testpaths`, specs outside of these are collected as well."""
    try:
        config.getini("bp_strict")
    except (ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"bp_strict: {error}") from None
    specs = [path for pattern in config.getini("bp_specs") for path in _matching(pattern, config.rootpath)]
    config.stash[_SPECS] = frozenset(specs)
    if specs and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        within = [config.rootpath / argument for argument in config.args]
        config.args += [str(p) for p in dict.fromkeys(specs) if not any(p.is_relative_to(w) for w in within)]


def _matching(pattern: str, root: Path) -> list[Path]:
    """The files that match, but for projects' settings; a pattern that matches none would test nothing, unnoticed."""
    found = [root / match for match in sorted(glob.glob(pattern, root_dir=root, recursive=True))]
    files = [path for path in found if path.is_file() and path.name != "pyproject.toml"]
    if not files:
        hint = f"; for a folder write {found[0].name}/*.toml" if found and found[0].is_dir() else ""
        raise pytest.UsageError(f'bp_specs: no file matches "{pattern}" in {root}, pyproject.toml aside{hint}')
    return files


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A file that `bp_specs` names holds tests."""
    if file_path not in parent.config.stash[_SPECS]:
        return None
    spec: SpecFile = SpecFile.from_parent(parent, path=file_path)
    return spec


class SpecFile(pytest.File):
    """A spec: a test for each method, or one that fails where the spec is refused."""

    def collect(self) -> Iterable[SpecItem]:
        """A test for each method; a refusal is the outcome of a test too, so that it stops no others."""
        try:
            names = [*self.plan.methods, *self.plan.skipped]
        except Exception:  # said when the test runs
            names = ["spec"]
        for name in names:
            item: SpecItem = SpecItem.from_parent(self, name=name)
            yield item

    @cached_property
    def plan(self) -> Plan:
        """What to check; raises BpError for a refused spec."""
        from bpcli.commands.as_tests import plan

        return plan(self._shown, self.config.getini("bp_methods"))

    @cached_property
    def reports(self) -> Mapping[str, bpcli.Report | bpcli.BpError]:
        """What a check of all selected methods at once says: they share the references, which cost most."""
        from bpcli.commands.as_tests import check_spec

        selected = {item.name for item in self.session.items if item.parent is self}
        return check_spec(self.plan, [m for m in self.plan.methods if m in selected])

    @property
    def _shown(self) -> Path:
        """The path as a user would write it."""
        here = self.config.invocation_params.dir
        return self.path.relative_to(here) if self.path.is_relative_to(here) and here == Path.cwd() else self.path


class SpecItem(pytest.Item):
    """One method on one spec."""

    parent: SpecFile

    def runtest(self) -> None:
        """Judge; the first test of a spec does so for all."""
        if self.name in self.parent.plan.skipped:
            pytest.skip(self.parent.plan.skipped[self.name])
        report = self.parent.reports[self.name]
        if isinstance(report, Exception):
            raise report
        _settle(report, self.config)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The finding or the refusal, without a traceback: none of it is the reader's code."""
        error = excinfo.value
        if isinstance(error, bpcli.GradientError):
            return str(error)
        if isinstance(error, Exception):
            from bpcli.commands.failures import translate

            return str(translate(error))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The spec, and the method on it."""
        return self.path, None, f"{self.path.stem} {self.name}"


@pytest.fixture
def bp_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that judges the gradient of a loss, and fails the test where it is wrong.

    `bp_check(loss, grad, params)`: `params` is a dict of arrays, `loss(params)` a number, `grad(params)` a dict of
    arrays under the same names.
    """

    def judge(
        loss: Callable[[dict[str, Any]], Any], grad: Callable[[dict[str, Any]], Any], params: Mapping[str, Any]
    ) -> None:
        __tracebackhide__ = True
        try:
            report = bpcli.check_gradient(loss, grad, params)
        except bpcli.BpError as error:
            raise bpcli.GradientError(str(error)) from None
        _settle(report, request.config)

    return judge


def _settle(report: bpcli.Report, config: pytest.Config) -> None:
    """Fail where something is wrong, skip where that could not be told; nothing inconclusive passes."""
    __tracebackhide__ = True
    report.raise_for_wrong(strict=config.getini("bp_strict"))
    if unclear := report.explain("inconclusive"):
        pytest.skip(unclear)
    if not report.findings:
        raise bpcli.GradientError("nothing was judged")
