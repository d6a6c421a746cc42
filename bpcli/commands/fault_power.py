"""`bp check --power`: plant faults in each spec, and report which of them a check reveals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.render import Column, Document, digits, words

if TYPE_CHECKING:
    from bpcli.checking.check_options import CheckOptions
    from bpcli.checking.power import Planted
    from bpcli.commands.shared_options import Common
    from bpcli.errors import Diagnostic


_STYLES = {"caught": "green", "missed": "bold red", "void": "yellow"}


def plant(paths: Sequence[Path], refused: Sequence[Diagnostic], options: CheckOptions, common: Common) -> int:
    """Plant all faults in each spec, and show which were caught, missed or void.

    Returns 2 if a spec is refused, 1 if a fault is missed, 5 without specs, else 0.
    """
    from bpcli.commands.output import emit, progress

    found: list[Planted] = []
    errors = list(refused)
    with progress(common) as say:
        for number, path in enumerate(paths, start=1):
            say(f"{path} ({number} of {len(paths)})")
            planted, bad = _planted(path, options, common)
            found += planted
            errors += bad
    document = power_document(found, errors, paths, common)
    unwritten = emit(document, common, silent=common.quiet and not errors)
    if errors or unwritten:
        return 2
    return 1 if any(p.outcome == "missed" for p in found) else 0 if found else 5


def _planted(path: Path, options: CheckOptions, common: Common) -> tuple[list[Planted], list[Diagnostic]]:
    """The planted faults of one spec, and the refusals of it."""
    from bpcli.checking import check_options
    from bpcli.checking.faults.fault import as_method
    from bpcli.checking.interpreter import RIGHT
    from bpcli.checking.power import power, power_cost
    from bpcli.commands.failures import translate
    from bpcli.commands.output import prepare
    from bpcli.commands.specs import open_spec
    from bpcli.problem.limits import check_cost

    try:
        setup = open_spec(path, common).setup
        call = as_method("power", RIGHT)
        flops = check_options.check_cost(setup, [call], options) + power_cost(setup)
        check_cost(setup, "planting faults", check_options.check_bytes(setup, [call], options), flops, common.limits())
        prepare(common)
        return power(setup, options), []
    except Exception as error:
        return [], list(translate(error).diagnostics)


def power_document(
    found: Sequence[Planted], errors: Sequence[Diagnostic], paths: Sequence[Path], common: Common
) -> Document:
    """A row for each fault and spec."""
    from bpcli.commands.output import describe

    counts = Counter(p.outcome for p in found)
    summary = {outcome: counts[outcome] for outcome in ("caught", "void", "missed")}
    specs = len({p.spec for p in found})
    sentence = ", ".join(f"{n} {outcome}" for outcome, n in summary.items())
    return Document(
        title="Planted faults",
        rows_key="faults",
        columns=_COLUMNS,
        rows=[_row(p) for p in found],
        context=describe("check", common, power=True, specs=[str(p) for p in paths]),
        summary=summary,
        sentences=[f"{len(found)} planted faults in {specs} spec{'s' * (specs != 1)}: {sentence}."] if found else [],
        errors=errors,
        style=lambda row: _STYLES[row["outcome"]],
    )


def _row(planted: Planted) -> Mapping[str, Any]:
    fault = planted.fault
    return {
        "spec": planted.spec,
        "fault": fault.name,
        "outcome": planted.outcome,
        "what": fault.what,
        "factor": fault.factor or None,
        "tensors": list(planted.wrong),
        "changed": list(planted.changed),
        "z": planted.z,
        "advice": planted.advice,
    }


def _text(key: str, heading: str, wide: bool = False) -> Column:
    return Column(key, heading, itemgetter(key), words, right=False, wide=wide)


_COLUMNS = (
    _text("spec", "spec"),
    _text("fault", "fault"),
    _text("outcome", "outcome"),
    _text("what", "what", wide=True),
    _text("factor", "factor", wide=True),
    Column("tensors", "wrong in", itemgetter("tensors"), ", ".join, right=False),
    Column("changed", "changes", itemgetter("changed"), ", ".join, right=False, wide=True),
    Column("z", "worst z", itemgetter("z"), digits(2)),
    _text("advice", "to reveal it"),
)
