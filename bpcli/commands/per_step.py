"""`bp grad --per-step`: the gradient of every step as a table of sizes, and all of its numbers in files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bpcli.commands.shared_options import Common
from bpcli.errors import BpError
from bpcli.render import Column, Document, digits

if TYPE_CHECKING:
    from bpcli.api.loaded import LoadedProblem
    from bpcli.methods import MethodCall
    from bpcli.methods.base import StepGradients

_SHOWN = 24
"""Steps in a table that is not verbose."""
_NUMBERS = "gradient"


def document(problem: LoadedProblem, call: MethodCall, common: Common) -> Document:
    """A row for each step, of which only JSON has all numbers."""
    from bpcli.commands.output import describe

    found = problem.step_gradients(call)
    exact, note = _exact(problem, call)
    rows = [_row(t, found, exact) for t in range(len(found.losses))]
    context = describe("grad", common, spec=problem.setup.spec.name, method=call.text, per_step=True)
    names = [f"d_{name}" for name in found.arrays]
    columns = [_column("step", "step", str), _column("loss", "loss", digits(6)), _column("norm", "|g|", digits(6))]
    columns += [_norm(name) for name in names]
    if exact is not None:
        columns += [_column("bias", "bias", digits(3)), _column("cosine", "cosine", digits(6))]
    sentence = f"loss = {found.losses.sum():.15g} over {len(rows)} steps"
    return Document("Gradient of each step", "steps", columns, rows, context, sentences=(sentence,), notes=note)


def _column(key: str, heading: str, show: Any) -> Column:
    return Column(key, heading, lambda row: row[key], show)


def _norm(name: str) -> Column:
    """The size of one array."""
    return Column(f"norm_{name}", f"|{name}|", lambda row: row["norms"][name], digits(6))


def _exact(problem: LoadedProblem, call: MethodCall) -> tuple[StepGradients | None, Sequence[str]]:
    """The exact gradient of each step, by the cheaper of two ways, to compare with; None where it is the method's."""
    from bpcli.methods import parse
    from bpcli.methods.base import Exact

    setup = problem.setup
    if call.definition(setup) == Exact():
        return None, ()
    cheapest = min((parse(text) for text in ("rtrl", f"fbptt:{setup.T}")), key=lambda c: c.cost(setup).flops)
    try:
        return problem.step_gradients(cheapest), ()
    except BpError as error:
        return None, (f"no bias and cosine: {error.diagnostics[0].what}",)


def errors(problem: LoadedProblem, call: MethodCall) -> dict[str, list[float]]:
    """Of every tensor the error of each step's gradient, relative to the exact gradient of all steps.

    Raises BpError for a method without a gradient of each step, and beyond the limits.
    """
    import numpy as np

    exact, found = problem.step_gradients(f"fbptt:{problem.setup.T}"), _of_steps(problem, call)
    told = {}
    for name, right in exact.arrays.items():
        size, T = float(np.linalg.norm(right.sum(axis=0))), len(right)
        apart = np.linalg.norm((np.asarray(found[name], np.float64) - right).reshape(T, -1), axis=1)
        if size > 0 and name in found:
            told[name] = (apart / size).tolist()
    return told


def _of_steps(problem: LoadedProblem, call: MethodCall) -> Mapping[str, Any]:
    """The gradient of the loss of every step; where a method takes several losses back together, they go one by one."""
    import numpy as np

    from bpcli.methods.base import Windows
    from bpcli.problem.draw import draw
    from bpcli.runtime.reverse_mode import Unrolled, Window

    setup, definition = problem.setup, call.definition(problem.setup)
    if not isinstance(definition, Windows):
        return problem.step_gradients(call).arrays
    parts = [Window(w.start, t, t + 1) for w in definition.windows for t in range(w.loss_from, w.stop)]
    each = [arrays for _, arrays in Unrolled(setup, tuple(parts), singly=True).gradients(draw(setup))]
    return {tensor.name: np.stack([arrays[tensor.name] for arrays in each]) for tensor in setup.wrt}


def _row(t: int, found: StepGradients, exact: StepGradients | None) -> Mapping[str, Any]:
    import numpy as np

    from bpcli.bench.precheck import distance

    def flat(steps: StepGradients) -> Any:
        return np.concatenate([np.asarray(a[t], np.float64).ravel() for a in steps.arrays.values()])

    arrays = {f"d_{name}": values[t] for name, values in found.arrays.items()}
    row: dict[str, Any] = {"step": t, "loss": float(found.losses[t]), "norm": float(np.linalg.norm(flat(found)))}
    row["norms"] = {name: float(np.linalg.norm(np.asarray(a, np.float64))) for name, a in arrays.items()}
    if exact is not None:
        row["bias"], row["cosine"] = distance(flat(found), flat(exact))
    return {**row, _NUMBERS: arrays}


def show(document: Document, out: str | None, common: Common) -> int:
    """Print the table, or the format asked for, and write all numbers to `out`; returns the exit code."""
    from bpcli.commands.output import emit
    from bpcli.problem.array_files import replace_file, write_npz

    if out is not None:
        if out.lower().endswith(".csv"):
            replace_file(out, lambda stream: stream.write("".join(_lines(document.rows)).encode()))
        else:
            write_npz(out, _stacked(document.rows))
        common.note(f"wrote {out}")
    left = len(document.rows) - _SHOWN
    half = _SHOWN // 2
    brief = document
    if left > 0:
        middle = f"steps {half} to {half + left - 1} are left out; -v shows them"
        shown = [*document.rows[:half], *document.rows[-half:]]
        brief = replace(document, rows=shown, notes=(*document.notes, middle))
    return emit(document, common, brief, silent=common.quiet)


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import numpy as np

    arrays = {name: np.stack([row[_NUMBERS][name] for row in rows]) for name in rows[0][_NUMBERS]}
    return {"loss": np.array([row["loss"] for row in rows]), **arrays}


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A line of names, `d_W[0 1]` for an entry, and a line for each step."""
    import numpy as np

    names = [f"{name}[{' '.join(map(str, at))}]" for name, a in rows[0][_NUMBERS].items() for at in np.ndindex(a.shape)]
    yield ",".join(["step", "loss", *names]) + "\n"
    for row in rows:
        numbers = itertools.chain.from_iterable(a.ravel().tolist() for a in row[_NUMBERS].values())
        yield ",".join([str(row["step"]), repr(row["loss"]), *map(repr, numbers)]) + "\n"
