"""The pytest plugin: specs collected as tests, and the fixture `bp_check`.

    [tool.pytest.ini_options]
    bp_specs = ["specs/*.toml"]

makes a test of each spec and method. `bp_check(fn, *inputs)` judges the gradient of any function. pytest imports this
module at every start, so that everything heavy is imported when a test needs it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bpcli

if TYPE_CHECKING:
    from bpcli.checking.check_options import CheckOptions
    from bpcli.commands.shared_options import Common

_KERNEL = "kernel:"
_SPECS = pytest.StashKey[frozenset[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of the plugin to the configuration of pytest."""
    parser.addini("bp_specs", "glob patterns of specs to check as tests, such as specs/*.toml", type="args", default=[])
    parser.addini("bp_methods", "methods for specs that name none, such as bptt rtrl", type="args", default=[])
    parser.addini("bp_strict", "fail inconclusive tests instead of skipping them", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings; where pytest collects `testpaths`, specs outside of these are added."""
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
    """The files that match, pyproject.toml excepted. A pattern without matches would silently test nothing: refused."""
    found = [root / match for match in sorted(glob.glob(pattern, root_dir=root, recursive=True))]
    files = [path for path in found if path.is_file() and path.name != "pyproject.toml"]
    if not files:
        hint = f"; for a folder write {found[0].name}/*.toml" if found and found[0].is_dir() else ""
        raise pytest.UsageError(f'bp_specs: no file matches "{pattern}" in {root} apart from pyproject.toml{hint}')
    return files


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the files that match `bp_specs`."""
    if file_path not in parent.config.stash[_SPECS]:
        return None
    spec: SpecFile = SpecFile.from_parent(parent, path=file_path)
    return spec


@dataclass(frozen=True)
class Plan:
    """The methods and kernels that a spec is checked with, the reasons why others are skipped, and the options."""

    problem: bpcli.LoadedProblem
    methods: tuple[str, ...]
    skipped: Mapping[str, str]
    common: Common
    options: CheckOptions


class SpecFile(pytest.File):
    """A spec: a test for each method, or a single failing test if the spec is refused."""

    def collect(self) -> Iterable[SpecItem]:
        """A test for each method. A refused spec is a failing test, so that it stops no others."""
        try:
            names = [*self.plan.methods, *self.plan.skipped]
        except Exception:  # raised again when the test runs
            names = ["spec"]
        for name in names:
            item: SpecItem = SpecItem.from_parent(self, name=name)
            yield item

    @cached_property
    def plan(self) -> Plan:
        """The methods and options to check the spec with; raises BpError for a refused spec."""
        return plan(self._shown, self.config.getini("bp_methods"))

    @cached_property
    def reports(self) -> Mapping[str, bpcli.Report | bpcli.BpError]:
        """The reports on all selected methods, from one check: they share the references, the costly part."""
        selected = {item.name for item in self.session.items if item.parent is self}
        return _check_all(self.plan, [m for m in self.plan.methods if m in selected])

    @property
    def _shown(self) -> Path:
        """The path as a user would write it."""
        here = self.config.invocation_params.dir
        return self.path.relative_to(here) if self.path.is_relative_to(here) and here == Path.cwd() else self.path


def plan(path: Path, methods: Sequence[str]) -> Plan:
    """The plan for the spec at `path`: its own methods, else `methods`, else the defaults for its kind of network.

    Raises BpError with every error in the spec, the methods, and the options of `bp check`, which are read from `BP_*`
    variables and `[tool.bp]`.
    """
    import click

    from bpcli.api import method_selection as selection
    from bpcli.cli import main
    from bpcli.commands.settings import defaults
    from bpcli.commands.shared_options import bundle
    from bpcli.commands.specs import open_spec

    assert isinstance(main, click.Group)
    command = main.get_command(click.Context(main), "check")
    assert command is not None
    with command.make_context("bp check", [], default_map=defaults(command)) as context:
        common = replace(bundle(context.params), quiet=True)
        options = selection.check_options(
            context.params["reference"], context.params["mode"], context.params["tolerance"]
        )
    problem = open_spec(path, common)
    chosen = selection.choose(problem.setup, selection.read(methods), weak=True)
    calls, skipped = selection.applying(problem.setup, chosen, alone=False)
    kernels = (f"{_KERNEL}{name}" for name in problem.setup.spec.kernels)
    return Plan(problem, (*(c.text for c in calls), *kernels), skipped, common, options)


def _check_all(plan: Plan, methods: Sequence[str]) -> Mapping[str, bpcli.Report | bpcli.BpError]:
    """The report on each method, or its refusal; where a kernel is refused, the others are checked without it."""
    from bpcli.commands.failures import translate

    try:
        report = _check(plan, methods)
        return {method: report.of(method) for method in methods}
    except Exception as error:
        kernels = [m for m in methods if m.startswith(_KERNEL)]
        own = [m for m in methods if m not in kernels]
        if not kernels or len(methods) == 1:
            return dict.fromkeys(methods, translate(error))
        parts = (_check_all(plan, part) for part in (own, *([k] for k in kernels)) if part)
        return {method: found for part in parts for method, found in part.items()}


def _check(plan: Plan, methods: Sequence[str]) -> bpcli.Report:
    """One check of all methods and kernels of a plan."""
    from bpcli.api import user_gradients
    from bpcli.api.check_runner import Call
    from bpcli.api.loaded import report_on
    from bpcli.api.method_selection import read
    from bpcli.commands.check import hooked
    from bpcli.commands.shared_options import opened_cluster

    common = plan.common
    kernels = [m.removeprefix(_KERNEL) for m in methods if m.startswith(_KERNEL)]
    own = [m for m in methods if not m.startswith(_KERNEL)]
    with (
        closing(user_gradients.user_process(common.limits(), common.user_time)) as process,
        opened_cluster(common) as cluster,
    ):
        call = Call(read(own), user_gradients.read(kernels, (), process), plan.options)
        return report_on(plan.problem, hooked(call, common, cluster))


class SpecItem(pytest.Item):
    """One method on one spec."""

    parent: SpecFile

    def runtest(self) -> None:
        """Report the verdict; the first test of a spec runs the check for all of its tests."""
        if self.name in self.parent.plan.skipped:
            pytest.skip(self.parent.plan.skipped[self.name])
        report = self.parent.reports[self.name]
        if isinstance(report, Exception):
            raise report
        _settle(report, self.config)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The finding or refusal, without a traceback through bp."""
        error = excinfo.value
        if isinstance(error, bpcli.GradientError):
            return str(error)
        if isinstance(error, Exception):
            from bpcli.commands.failures import translate

            return str(translate(error))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The spec and its method."""
        return self.path, None, f"{self.path.stem} {self.name}"


@pytest.fixture
def bp_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that checks a gradient, and fails the test if it is wrong.

    `bp_check(fn, *inputs)` and `bp_check(loss, grad, params)`, with the arguments of `bpcli.check_gradient`.
    """

    def judge(fn: Callable[..., Any], *inputs: Any, **options: Any) -> None:
        __tracebackhide__ = True
        try:
            report = bpcli.check_gradient(fn, *inputs, **options)
        except bpcli.BpError as error:
            raise bpcli.GradientError(str(error)) from None
        _settle(report, request.config)

    return judge


def _settle(report: bpcli.Report, config: pytest.Config) -> None:
    """Fail the test on a wrong finding, skip it on an inconclusive one."""
    __tracebackhide__ = True
    report.raise_for_wrong(strict=config.getini("bp_strict"))
    if unclear := report.explain("inconclusive"):
        pytest.skip(unclear)
    if not report.findings:
        raise bpcli.GradientError("nothing was judged")
