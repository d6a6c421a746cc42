"""The documents of a check: all findings for programs, a brief table for people, and findings as test cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from bpcli.checking.findings import Finding, kinked, position, worst_entry
from bpcli.errors import Diagnostic, Place
from bpcli.render import Case, Column, Document, digits, dims, words
from bpcli.render.columns import legend
from bpcli.spec.specification import Spec

Places = Mapping[tuple[str, str], Place]
"""Maps a spec, and one of its tensors or a user's function, to its place in a file; `(spec, "")` is the default."""


def places_of(spec: Spec) -> dict[tuple[str, str], Place]:
    """The places where a spec declares its tensors and its loss."""
    declared = {**spec.inputs, **spec.params, **spec.states}
    places = {name: array.place for name, array in declared.items()}
    loss = spec.objective.place
    return {(spec.name, tensor): place for tensor, place in {"loss": loss, "": loss, **places}.items()}


def case(row: Mapping[str, Any], places: Places) -> Case:
    """A row of `findings_document` as a test case, named by the method and the tensor."""
    spec, tensor, worst = row["spec"], row["tensor"], row["worst"]
    own = [row["method"]] if ":" in row["method"] else []  # not the name of a tensor
    why = f": {row['cause']}" if row["cause"] else ""
    at = "" if worst is None else f"{tensor}{position(worst['index'], worst.get('direction'))}"
    how = f"{why or ':'}{',' if why else ''} z = {_digits(worst['z'], 3)} at {at}" if worst else why
    return Case(
        suite=spec,
        name=f"{row['method']} {tensor}",
        verdict=row["verdict"],
        message=f"{row['verdict']}{how}",
        lines=_lines(row, at),
        badness=float(worst["z"]) if worst else float("inf"),  # nothing is worse than no array of numbers
        place=next((places[spec, n] for n in (*own, tensor, "") if (spec, n) in places), None),
    )


def _lines(row: Mapping[str, Any], at: str) -> list[str]:
    """The figures, the likely cause, and the command that reproduces the finding."""
    worst, blame = row["worst"], row["blame"] or {}
    lines = []
    if worst is not None:
        value, reference = (_digits(worst[key], 17) for key in ("value", "reference"))
        lines.append(f"{at}: value {value}, reference {reference}, bound {_digits(worst['bound'], 3)}")
    sizes = (("kernel error", "kernel_error", 2), ("bias", "bias", 2), ("cosine", "cosine", 6))
    figures = [f"{words} {_digits(row[key], digits)}" for words, key, digits in sizes if row[key] is not None]
    counted = f"{row['checked']} {'entry' if row['checked'] == 1 else 'entries'} compared"
    if row["checked"]:
        lines.append(", ".join([counted, *figures]))
    text = str(blame.get("text") or "")
    if text and not (row["cause"] and text.endswith(row["cause"])):  # unless the message says so already
        lines.append(text)
    if blame.get("reproduce"):
        lines.append(f"reproduce: {blame['reproduce']}")
    return lines


def _digits(value: Any, digits: int) -> str:
    """A number to `digits` significant digits; it may be a word, such as "nan", that replaces it in JSON."""
    return f"{float(value):.{digits}g}"


Row = Mapping[str, Any]
_WHY = {
    "noise": "the loss is too noisy: {at} is only known to ±{bound:.2g}",
    "no power": "no reference is accurate enough at {at} to tell right from wrong: its error may be {bound:.2g}",
    "kink": "many kinks meet at {at}: the value is right only if the program treats them differently",
    "underflow": "{at}, or an intermediate value, underflows and loses digits",
    "overflow": "computing {at} overflows, even in a correct program",
    "jump": "the argument of a step function is zero to within rounding, and {at} matches neither side of the jump",
    "edge of the domain": "{at} is at the edge of the loss's domain, where one-sided differences do not converge",
    "steps disagree": "small and large difference steps give different derivatives at {at}: the loss may oscillate",
    "references disagree": "two references disagree at {at}, so neither can reject the gradient",
}
_BLIND = "no reference is available at {at}: every step leaves the range of floats or the domain of the loss"
_STYLES = {"wrong": "bold red", "inconclusive": "yellow", "pass": "green"}
"""By verdict, the worst first."""
_RANKS = [*_STYLES]
_NAMED = 3
"""The tensors of a row that are named in a table; more are counted."""


def findings_document(
    findings: Sequence[Finding], errors: Sequence[Diagnostic], context: Mapping[str, Any], notes: Sequence[str]
) -> Document:
    """A row for each finding, the wrong ones first, then those that are inconclusive; one cause after the other.

    `context` may have the `sizes` of each spec, `T`, `batch` and `dtype`.
    """
    sizes = context.get("sizes") or {}
    return Document(
        title="Gradient check",
        rows_key="findings",
        columns=COLUMNS,
        rows=_ranked([asdict(f) for f in _grouped(findings)]),
        context=context,
        summary=summary(findings),
        sentences=_sentences(findings, errors, sizes),
        notes=[*_blames(findings), *_kinks(findings), *_vanishing(findings), *_open(findings), *notes],
        errors=errors,
        style=lambda row: _STYLES[row["verdict"]],
    )


def with_cases(document: Document, places: Places) -> Document:
    """`document` with its findings as test cases, for formats such as JUnit; `places` locates them in files."""
    return replace(document, case=lambda row: case(row, places))


def brief_document(findings: Sequence[Finding], full: Document, quiet: bool) -> Document:
    """One row for the passing tensors of each spec and method, and one for those that fail for the same cause.

    If `quiet`, only the latter, and no text at all if everything passes. The spec is in the table if there are several.
    """
    rows: list[Row] = []
    for _, group in groupby(findings, key=lambda f: (f.spec, f.method)):
        together = list(group)
        passing = [f for f in together if f.verdict == "pass"]
        if passing and not quiet:
            rows.append(_together(passing, whole=len(passing) == len(together)))
        rows += _failing([f for f in together if f.verdict != "pass"], len(together))
    several = len({f.spec for f in findings}) > 1
    hidden = {"spec": not several, "cause": not any(map(_cause, rows))}
    return Document(
        title=full.title,
        rows_key=full.rows_key,
        columns=[c for c in COLUMNS if not hidden.get(c.key)],
        rows=_ranked(rows),
        legend="" if quiet or not rows else legend({c.key: c.heading for c in COLUMNS}, _EXPLAINED),
        sentences=full.sentences if rows or not quiet else (),
        notes=_blames(findings) if quiet else full.notes,
        errors=full.errors,
        style=full.style,
    )


def summary(findings: Sequence[Finding]) -> dict[str, int]:
    """The number of findings with each verdict."""
    verdicts = [f.verdict for f in findings]
    return {
        "passed": verdicts.count("pass"),
        "wrong": verdicts.count("wrong"),
        "inconclusive": verdicts.count("inconclusive"),
    }


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The findings in their order, but with those of one spec, method and cause together."""
    groups: dict[Any, list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.spec, f.method, f.verdict, *_source(f)), []).append(f)
    return [f for group in groups.values() for f in group]


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows with the worst verdicts first, otherwise in their order."""
    return sorted(rows, key=lambda row: _RANKS.index(row["verdict"]))


def _together(alike: Sequence[Finding], whole: bool) -> Row:
    """Tensors of a method with the same verdict as one row, with the worst of their figures."""
    if len(alike) == 1:
        return asdict(alike[0])
    worst = max((f.worst for f in alike if f.worst), key=lambda w: (math.isnan(w.z), w.z), default=None)
    causes = sorted({f.cause for f in alike if f.cause})
    return {
        **asdict(alike[0]),
        "tensor": f"{'all' if whole else 'other'} {len(alike)}",
        "shape": None,
        "checked": sum(f.checked for f in alike),
        "cause": ", ".join(causes),
        "worst": asdict(worst) if worst else None,
        "kernel_error": _worst_of((f.kernel_error for f in alike), max),
        "bias": _worst_of((f.bias for f in alike), max),
        "cosine": _worst_of((f.cosine for f in alike), min),
    }


def _failing(failing: Sequence[Finding], count: int) -> list[Row]:
    """A row for each failing tensor; those that fail for the same cause share one row."""
    groups: dict[Any, list[Finding]] = {}
    for f in failing:
        groups.setdefault((f.verdict, *_source(f)) if _cause(asdict(f)) else f.tensor, []).append(f)
    return [{**_together(alike, False), **_named(alike, count)} for alike in groups.values()]


def _named(alike: Sequence[Finding], count: int) -> Row:
    """The names of tensors, or their number if they are many or all `count`."""
    if len(alike) == 1:
        return {}
    if len(alike) == count:
        return {"tensor": f"all {count}"}
    few = len(alike) <= _NAMED
    return {"tensor": ", ".join(f.tensor for f in alike) if few else f"{len(alike)} of {count}"}


def _source(found: Finding) -> tuple[str, str]:
    """The cause of an error and its place, which tensors with one cause have in common."""
    blame = found.blame or {}
    places = [f"{key} {blame[key]}" for key in ("node", "step", "sample", "factor") if blame.get(key) is not None]
    return _cause(asdict(found)), ", ".join(places)


def _worst_of(values: Iterable[float | None], worst: Callable[..., float]) -> float | None:
    """The worst of the figures that there are; NaN if one of them is."""
    known = [v for v in values if v is not None]
    return math.nan if any(map(math.isnan, known)) else worst(known, default=None)


def _sentences(
    findings: Sequence[Finding], errors: Sequence[Diagnostic], sizes: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    specs = list(dict.fromkeys(f.spec for f in findings))
    sentences = []
    if findings:
        of = f"{len(specs)} specs" if len(specs) > 1 else specs[0]
        own = f" ({_size(sizes[specs[0]])})" if len(specs) == 1 and specs[0] in sizes else ""
        sentences.append(f"{_count(len(findings), 'gradient')} of {of}{own}: {_verdicts(findings)}.")
    elif not errors:
        sentences.append("Nothing was checked.")
    if errors:
        refused = f"{_count(len(errors), 'error')} reported on stderr."
        sentences.append(refused if findings else "Nothing was checked.")
    return sentences


def sizes_note(sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sizes of several specs in one sentence; none for a single spec, whose sizes are in the first sentence."""
    alike: dict[str, list[str]] = {}
    for spec, size in sizes.items():
        alike.setdefault(_size(size), []).append(spec)
    told = "; ".join(f"{size} ({', '.join(specs)})" for size, specs in alike.items())
    return [f"Sizes: {told}."] if len(sizes) > 1 else []


def _size(size: Mapping[str, Any]) -> str:
    """`T = 12, batch = 3, float64`, without T for a feed-forward network."""
    steps = f"T = {size['T']}, " if size.get("T") is not None else ""
    return f"{steps}batch = {size.get('batch')}, {size.get('dtype')}"


def _verdicts(findings: Sequence[Finding]) -> str:
    counts = summary(findings)
    alike = next((k for k, n in counts.items() if n == len(findings)), "")
    if alike:
        one, many = {"passed": ("it passes", "all pass")}.get(alike, (f"it is {alike}", f"all are {alike}"))
        return many if len(findings) > 1 else one
    words = {"passed": "pass" if counts["passed"] > 1 else "passes", "wrong": "wrong", "inconclusive": "inconclusive"}
    return ", ".join(f"{n} {words[k]}" for k, n in counts.items() if n)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _blames(findings: Sequence[Finding]) -> list[str]:
    """The likely causes of wrong findings, each once, and the commands that reproduce them."""
    notes: list[str] = []
    blamed = [f for f in findings if f.blame]
    for (spec, method, again), group in groupby(blamed, key=lambda f: (f.spec, f.method, _told(f, "reproduce"))):
        together = list(group)
        for cause in dict.fromkeys(map(_source, together)):
            notes += _blamed(f"{spec} {method}", [f for f in together if _source(f) == cause])
        notes += [f"  reproduce: {again}"] if again else []
    return notes


def _blamed(where: str, alike: Sequence[Finding]) -> list[str]:
    """The cause that tensors have in common, with the worst entry of each below it where there are several."""
    cause, place = _source(alike[0])
    texts = list(dict.fromkeys(_told(f, "text") for f in alike))
    head = f"{where} {', '.join(f.tensor for f in alike)}"
    if len(texts) == 1:
        return [f"{head}: {texts[0]}"] if texts[0] else []
    lines = []
    for found in alike:
        entry, text = worst_entry(found), _told(found, "text")
        usual = "; ".join(part for part in (entry, place, cause) if part)
        lines.append(entry + text.removeprefix(usual) if text.startswith(usual) else text)
    return [f"{head}: {cause}{place and f' ({place})'}", *(f"  {line}" for line in lines if line)]


def _told(found: Finding, key: str) -> str:
    return str((found.blame or {}).get(key) or "")


def _kinks(findings: Sequence[Finding]) -> list[str]:
    """The correct interval of gradients that pass at a kink."""
    passing = ((f, f.kink) for f in findings if f.kink and f.verdict == "pass")
    return [f"{f.spec} {f.method} {f.tensor}: {kinked(f.tensor, kink)}" for f, kink in passing]


def _vanishing(findings: Sequence[Finding]) -> list[str]:
    """The gradients that are zero up to rounding, so that passing means little; once for all methods."""
    gone = [f for f in findings if f.vanishes]
    named = {
        spec: dict.fromkeys(f.tensor for f in gone if f.spec == spec) for spec in dict.fromkeys(f.spec for f in gone)
    }
    return [
        f"{spec}: the gradient of {', '.join(n)} is zero up to rounding, so checking it reveals little"
        for spec, n in named.items()
    ]


def _open(findings: Sequence[Finding]) -> list[str]:
    """The reasons of inconclusive verdicts, a sentence for each."""
    notes = []
    left = [f for f in findings if f.verdict == "inconclusive" and f.worst and f.cause in _WHY]
    for (spec, method, cause), group in groupby(left, key=lambda f: (f.spec, f.method, f.cause)):
        together = list(group)
        worst, name = together[0].worst, together[0].tensor
        assert worst is not None
        at = f"{name}{position(worst.index, worst.direction)}"
        blind = cause in ("no power", "noise") and worst.bound == float("inf")
        why = _BLIND if blind else _WHY[cause]
        notes.append(f"{spec} {method} {', '.join(f.tensor for f in together)}: {why.format(at=at, bound=worst.bound)}")
    return notes


def _of_worst(key: str) -> Callable[[Row], Any]:
    return lambda row: row["worst"][key] if row["worst"] else None


def _at(row: Row) -> Any:
    worst = row["worst"] or {}
    return worst.get("index") if worst.get("direction") is None else f"direction {worst['direction']}"


def _index(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else f"[{', '.join(map(str, value))}]"


def _cause(row: Row) -> str:
    """The likely cause of an error, or else the word for it."""
    return str((row["blame"] or {}).get("cause") or row["cause"])


def _blame(value: Any) -> str:
    return str(value.get("text") or value.get("cause") or "") if value else ""


_EXPLAINED = ("z", "kernel_error", "bias")
COLUMNS = (
    Column("spec", "spec", itemgetter("spec"), words, right=False, label=True),
    Column("method", "method", itemgetter("method"), words, right=False, label=True),
    Column("tensor", "tensor", itemgetter("tensor"), words, right=False, label=True),
    Column("verdict", "verdict", itemgetter("verdict"), words, right=False),
    Column("cause", "cause", _cause, words, right=False),
    Column("shape", "shape", itemgetter("shape"), dims, wide=True),
    Column("checked", "entries", itemgetter("checked"), words),
    Column("index", "worst at", _at, _index, right=False, wide=True),
    Column("value", "value", _of_worst("value"), digits(12), wide=True),
    Column("reference", "reference", _of_worst("reference"), digits(12), wide=True),
    Column("bound", "bound", _of_worst("bound"), digits(2), wide=True),
    Column("z", "worst z", _of_worst("z"), digits(2)),
    Column("kernel_error", "kernel error", itemgetter("kernel_error"), digits(2)),
    Column("bias", "bias", itemgetter("bias"), digits(2)),
    Column("cosine", "cosine", itemgetter("cosine"), digits(6)),
    Column("blame", "blame", itemgetter("blame"), _blame, right=False, wide=True),
)
"""Of a check; the verdict comes first, as a narrow terminal shows the last columns in tables of their own."""
