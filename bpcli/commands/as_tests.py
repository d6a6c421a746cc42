"""Specs as tests: the options of `bp check` where there is no command line, and a check of each spec by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpcli.errors import BpError

if TYPE_CHECKING:
    from bpcli.api.check_report import Report
    from bpcli.api.loaded import LoadedProblem
    from bpcli.checking.check_options import CheckOptions
    from bpcli.commands.common import Common

_KERNEL = "kernel:"


@dataclass(frozen=True)
class Plan:
    """The methods and kernels that a spec is checked with, and why others are not; with what options."""

    problem: LoadedProblem
    methods: tuple[str, ...]
    skipped: Mapping[str, str]
    common: Common
    options: CheckOptions


def plan(path: Path, methods: Sequence[str]) -> Plan:
    """What to check of the spec at `path`: its own methods, `methods` where it names none, else what suits it.

    Raises `BpError` with everything that is wrong with the spec or the methods.
    """
    from bpcli.api.method_selection import applying, choose, read
    from bpcli.commands.specs import open_spec

    common, options = _project_options()
    problem = open_spec(path, common)
    chosen = choose(problem.setup, read(methods), weak=True)
    calls, skipped = applying(problem.setup, chosen, alone=False)
    kernels = (f"{_KERNEL}{name}" for name in problem.setup.spec.kernels)
    return Plan(problem, (*(c.text for c in calls), *kernels), skipped, common, options)


def check_spec(plan: Plan, methods: Sequence[str]) -> Mapping[str, Report | BpError]:
    """The report on each of `methods`, or why it is refused: a kernel may be refused alone."""
    from bpcli.commands.failures import translate

    try:
        report = _checked(plan, methods)
        return {method: report.of(method) for method in methods}
    except Exception as error:
        kernels = [m for m in methods if m.startswith(_KERNEL)]
        own = [m for m in methods if m not in kernels]
        if not kernels or len(methods) == 1:
            return dict.fromkeys(methods, translate(error))
        parts = (check_spec(plan, part) for part in (own, *([k] for k in kernels)) if part)
        return {method: found for part in parts for method, found in part.items()}


def _checked(plan: Plan, methods: Sequence[str]) -> Report:
    """All at once: they share the references, which cost most."""
    from contextlib import closing

    from bpcli.api.check_runner import Call
    from bpcli.api.loaded import report_on
    from bpcli.api.method_selection import read
    from bpcli.api.user_gradients import read as read_gradients
    from bpcli.api.user_gradients import user_process
    from bpcli.commands.check import hooked
    from bpcli.commands.cluster_option import opened

    common = plan.common
    kernels = [m.removeprefix(_KERNEL) for m in methods if m.startswith(_KERNEL)]
    own = [m for m in methods if not m.startswith(_KERNEL)]
    with closing(user_process(common.limits(), common.user_time)) as process, opened(common) as cluster:
        call = Call(read(own), read_gradients(kernels, (), process), plan.options)
        return report_on(plan.problem, hooked(call, common, cluster))


def _project_options() -> tuple[Common, CheckOptions]:
    """The options of `bp check` as `BP_*` variables and `[tool.bp]` give them; raises BpError for those it refuses."""
    import click

    from bpcli.api.method_selection import check_options
    from bpcli.cli import main
    from bpcli.commands.settings import defaults
    from bpcli.commands.shared_options import bundle

    assert isinstance(main, click.Group)
    command = main.get_command(click.Context(main), "check")
    assert command is not None
    with command.make_context("bp check", [], default_map=defaults(command)) as context:
        given = context.params
        return replace(bundle(given), quiet=True), check_options(given["reference"], given["mode"])
