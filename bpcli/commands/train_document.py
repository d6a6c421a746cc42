"""The document of a training, just run or saved: a row for each method, sentences on the data, and alignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpcli.render import Column, Document, digits

if TYPE_CHECKING:
    from bpcli.errors import Diagnostic
    from bpcli.training.watching import Curve


def column(key: str, heading: str, show: Callable[[Any], str], right: bool = True) -> Column:
    """A column of rows by their key."""
    return Column(key, heading, lambda row: row[key], show, right)


RUN_COLUMNS = (
    column("method", "method", str, right=False),
    column("steps", "steps", str),
    column("first", "first loss", digits(4)),
    column("last", "last loss", digits(4)),
    column("share", "relative to trivial", digits(3)),
    column("outcome", "outcome", str, right=False),
)


def sentences(context: Mapping[str, Any], trivial: float | None) -> tuple[str, ...]:
    """The data, the optimizer and the trivial loss of a run with this context."""
    task = context.get("task")
    source = (
        f"fresh data of the task {task} at every step" if context.get("fresh") else "the data of the spec at every step"
    )
    how = "online, " if context.get("online") else ""
    said = [f"{context['spec']}: {how}{context['optimizer']} with lr = {context['lr']:g}, {source}"]
    if trivial is not None:
        said.append(f"trivial loss {trivial:.4g}: the best loss of a predictor that ignores the input")
    return tuple(said)


def alignment(method: str, curve: Mapping[str, Curve]) -> Iterator[str]:
    """Notes on the gradients watched along a method's trajectory, in the mean over steps: against the true one, and
    the cosines between all of them as a matrix."""
    from bpcli.training.watching import FIGURES, column_of, mean_of_known, watched_in

    names = watched_in(curve)
    for name in names:
        found = {f: mean_of_known(curve[column_of(f, name)]) for f in FIGURES}
        count = sum(v == v for v in curve[column_of("cosine", name)])
        told = ", ".join(f"{f} {v:.3g}" for f, v in found.items() if v is not None)
        where = f"{name} compared with the true gradient while training with {method}"
        yield f"{where}: {told or 'nothing to compare'} (mean of {count} steps)"
    if len(names) > 1:
        yield from _matrix(method, names, curve)


def _matrix(method: str, names: Sequence[str], curve: Mapping[str, Curve]) -> Iterator[str]:
    """A line for each method, with its cosines with the others."""
    from bpcli.training.watching import between

    heads = ["true", *names]
    width = max(map(len, heads))
    yield f"mean cosines while training with {method}:"
    yield "  ".join([" " * width, *(h.rjust(max(6, len(h))) for h in heads)])
    for one in heads:
        cells = []
        for other in heads:
            value = between(curve, one, other)
            cells.append(("" if value is None else f"{value:.3f}").rjust(max(6, len(other))))
        yield "  ".join([one.ljust(width), *cells])


def saved_training(
    data: Mapping[str, Any], errors: Sequence[Diagnostic], context: Mapping[str, Any]
) -> tuple[Document, dict[str, dict[str, list[float]]]]:
    """The document of a saved training, with a row for each method, and the figures of every step by method.

    Raises the errors of Python for data of another form.
    """
    trivial, curves = _number(data["summary"]["trivial_loss"]), dict[str, dict[str, list[float]]]()
    rows = []
    for run in data["summary"]["runs"]:
        figures = {key: _number(run[key]) for key in ("first", "last", "share")}
        rows.append({"spec": str(context["spec"]), "trivial": trivial, "method": str(run["method"]), **figures})
        rows[-1] |= {"steps": int(run["steps"]), "outcome": str(run["outcome"])}
        curves[run["method"]] = {"loss": [], "norm": []}
    for step in data["steps"]:
        for name, value in step.items():
            if name not in ("step", "method"):
                known = _number(value)
                curves[step["method"]].setdefault(name, []).append(math.nan if known is None else known)
    notes = [note for method, curve in curves.items() for note in alignment(method, curve)]
    told = sentences({**context, "spec": str(context["spec"])}, trivial)
    lines = [note for note in notes if "compared with the true gradient" in note]
    document = Document(
        "Training", "runs", RUN_COLUMNS, rows, context=context, sentences=told, notes=lines, errors=errors
    )
    return document, curves


def _number(value: Any) -> float | None:
    """A figure of JSON, where what is not finite is a word."""
    return None if value is None else float(value)
