"""Findings as tests: what a test report says of each, and where in the spec to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpcli.checking.blame.wording import place
from bpcli.errors import Place
from bpcli.render.document import Case

if TYPE_CHECKING:
    from bpcli.spec.specification import Spec

# By spec, and a tensor or a user's function: where it is written; under "" what to show where there is neither. Of a
# finding on a user's function that is the place to mend.
Places = Mapping[tuple[str, str], Place]


def places_of(spec: Spec) -> dict[tuple[str, str], Place]:
    """Where `spec` declares its tensors and its loss."""
    declared = {**spec.inputs, **spec.params, **spec.states}
    places = {name: array.place for name, array in declared.items()}
    loss = spec.objective.place
    return {(spec.name, tensor): place for tensor, place in {"loss": loss, "": loss, **places}.items()}


def case(row: Mapping[str, Any], places: Places) -> Case:
    """A finding, as it stands in JSON, as a test: the method and the tensor on the spec."""
    spec, tensor, worst = row["spec"], row["tensor"], row["worst"]
    own = [row["method"]] if ":" in row["method"] else []  # no tensor's name
    why = f": {row['cause']}" if row["cause"] else ""
    at = "" if worst is None else f"{tensor}{place(worst['index'], worst.get('direction'))}"
    how = f"{why or ':'}{',' if why else ''} {at} has z {_figure(worst['z'], 3)}" if worst else why
    return Case(
        suite=spec,
        name=f"{row['method']} {tensor}",
        verdict=row["verdict"],
        message=f"{row['verdict']}{how}",
        lines=_lines(row, at),
        badness=float(worst["z"]) if worst else float("inf"),  # what is no array of numbers is as bad as can be
        place=next((places[spec, n] for n in (*own, tensor, "") if (spec, n) in places), None),
    )


def _lines(row: Mapping[str, Any], at: str) -> list[str]:
    """The figures, what is to blame, and how to see it again."""
    worst, blame = row["worst"], row["blame"] or {}
    lines = []
    if worst is not None:
        value, reference = (_figure(worst[key], 17) for key in ("value", "reference"))
        lines.append(f"{at}: value {value}, reference {reference}, bound {_figure(worst['bound'], 3)}")
    sizes = (("kernel error", "kernel_error", 2), ("bias", "bias", 2), ("cosine", "cosine", 6))
    figures = [f"{words} {_figure(row[key], digits)}" for words, key, digits in sizes if row[key] is not None]
    counted = f"{row['checked']} {'entry' if row['checked'] == 1 else 'entries'} compared"
    if row["checked"]:
        lines.append(", ".join([counted, *figures]))
    text = str(blame.get("text") or "")
    if text and not (row["cause"] and text.endswith(row["cause"])):  # what the message and the lines above say
        lines.append(text)
    if blame.get("reproduce"):
        lines.append(f"again: {blame['reproduce']}")
    return lines


def _figure(value: Any, digits: int) -> str:
    """`digits` of a number, or one of the words that JSON has for those it lacks."""
    return f"{float(value):.{digits}g}"
