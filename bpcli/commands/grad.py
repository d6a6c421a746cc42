"""`bp grad` and `bp export`: write the gradient of a spec, or the arrays that it runs on, to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, shared
from bpcli.errors import fail
from bpcli.render import Column, Document, digits, dims

if TYPE_CHECKING:
    from bpcli.methods.base import Gradient
    from bpcli.problem.definition import Setup


def arrays_document(
    title: str, arrays: Mapping[str, tuple[str, Any]], context: Mapping[str, Any], sentences: Sequence[str]
) -> Document:
    """A row for each array; `arrays` maps a name to a kind (param, input or state) and the array."""
    return Document(
        title=title,
        rows_key="arrays",
        columns=COLUMNS,
        rows=[_row(name, kind, array) for name, (kind, array) in arrays.items()],
        context=context,
        sentences=sentences,
    )


def _row(name: str, kind: str, array: Any) -> Mapping[str, Any]:
    """Statistics of an array, computed in float64; arrays are never empty."""
    import numpy as np

    wide = np.asarray(array, dtype=np.float64)
    largest = float(np.max(np.abs(wide)))
    # Scaled first, since the square of a large finite entry may overflow.
    scale = largest if 0.0 < largest < np.inf else 1.0
    return {
        "name": name,
        "kind": kind,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": float(np.sqrt(np.sum((wide / scale) ** 2))) * scale,
        "max_abs": largest,
        "mean": float(np.mean(wide)),
        "zeros": int(np.sum(wide == 0.0)),
    }


def _column(key: str, heading: str, show: Any, right: bool = True, wide: bool = False) -> Column:
    return Column(key, heading, lambda row: row[key], show, right, wide)


COLUMNS = (
    _column("name", "name", str, right=False),
    _column("kind", "kind", str, right=False),
    _column("shape", "shape", dims),
    _column("dtype", "dtype", str, right=False, wide=True),
    _column("norm", "norm", digits(6)),
    _column("max_abs", "max |.|", digits(6)),
    _column("mean", "mean", digits(6), wide=True),
    _column("zeros", "zeros", str, wide=True),
)


@click.command()
@click.argument("spec")
@click.option(
    "-m", "--method", required=True, metavar="METHOD",
    help="Method, such as bptt or tbptt:k1=1,k2=4, or FILE.py:RULE, your own online rule.",
)  # fmt: skip
@click.option("-o", "--out", metavar="OUT.npz", help="Output file; with --per-step also OUT.csv, one line per step.")
@click.option("--per-step", is_flag=True, help="Show the gradient that an online method assigns to each step.")
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "user_time", "allow_outside",
    "format", "output", "quiet", "verbose",
)  # fmt: skip
def grad(spec: str, method: str, out: str | None, per_step: bool, common: Common) -> int:
    """Compute the loss of SPEC and its gradient, and write them to OUT.npz, as loss and an array d_NAME for each NAME.

    The loss is that of all steps, for truncated methods too. Gradients of sparse arrays are dense, with zeros for
    entries that are not stored. With --per-step, loss and d_NAME have an axis of steps in front, and a table shows the
    size of each step's gradient, and for approximate methods its bias and its cosine with the exact one; --format json
    has all numbers.
    """
    from bpcli.api.user_gradients import opened_method
    from bpcli.commands import per_step as steps
    from bpcli.commands.output import announce, progress
    from bpcli.commands.specs import open_spec, single
    from bpcli.problem.array_files import write_npz

    path = single(spec)
    with opened_method(method, common.limits(), common.user_time) as call:
        if out is not None:
            check_out("-o", out, path, common, (".npz", ".csv") if per_step else (".npz",))
        problem = open_spec(path, common)
        announce(common)
        with progress(common) as say:
            say(f"{problem.setup.spec.name}: {call.text}")
            if per_step:
                document = steps.document(problem, call, common)
            else:
                gradient = problem.gradient(call)
    if per_step:
        return steps.show(document, out, common)
    if out is not None:
        write_npz(out, arrays(gradient))
        common.note(f"wrote {out}")
    return _show(problem.setup, gradient, call.text, common)


def arrays(gradient: Gradient) -> dict[str, Any]:
    """The arrays of the output file, `loss` and `d_NAME`."""
    import numpy as np

    return {"loss": np.asarray(gradient.loss, dtype=np.float64), **{f"d_{n}": a for n, a in gradient.arrays.items()}}


def _show(setup: Setup, gradient: Gradient, method: str, common: Common) -> int:
    from bpcli.commands.output import describe, emit

    context = describe("grad", common, spec=setup.spec.name, method=method, loss=gradient.loss)
    kinds = {t.name: t.kind for t in setup.wrt}
    rows = {f"d_{name}": (kinds[name], array) for name, array in gradient.arrays.items()}
    document = arrays_document("Gradient", rows, context, (f"loss = {gradient.loss:.15g}",))
    return emit(document, common, silent=common.quiet)


@click.command()
@click.argument("spec")
@click.option("-o", "--out", required=True, metavar="OUT.npz", help="Output file.")
@shared("set", "dtype", "seed", "max_memory", "allow_outside", "format", "output", "quiet", "verbose")
def export(spec: str, out: str, common: Common) -> int:
    """Write the parameters, inputs and initial states of SPEC to OUT.npz, so that any program can repeat the run."""
    from bpcli.commands.output import describe, emit
    from bpcli.commands.specs import open_spec, single
    from bpcli.problem.array_files import export_arrays, write_npz
    from bpcli.problem.draw import draw

    path = single(spec)
    check_out("-o", out, path, common)
    problem = draw(open_spec(path, common).setup)
    declared = problem.setup.spec
    found = export_arrays(problem)
    write_npz(out, found)
    common.note(f"wrote {out}")
    kinds = {d.name: d.kind for group in (declared.params, declared.inputs, declared.states) for d in group.values()}
    rows = {name: (kinds[name], array) for name, array in found.items()}
    context = describe("export", common, spec=declared.name)
    return emit(arrays_document("Arrays", rows, context, ()), common, silent=common.quiet)


def check_out(option: str, out: str, spec: Path, common: Common, suffixes: Sequence[str] = (".npz",)) -> None:
    """Raise BpError for the file of an option that has another suffix, cannot be written, or is the spec or an
    `--output`."""
    from bpcli.problem.array_files import check_writable

    target = os.path.realpath(out)
    if target == os.path.realpath(spec):
        fail("usage", f'{option} "{out}" is the spec itself', help="name another file")
    if target in {os.path.realpath(path) for _, path in common.outputs}:
        fail("usage", f'{option} and --output both go to "{out}"', help="give each a path of its own")
    if not out.lower().endswith(tuple(suffixes)) and (os.path.isfile(out) or not os.path.exists(out)):
        named = " or ".join(suffixes)
        fail("usage", f'{option} "{out}" does not end in {named}', help=f"name an {named} file")
    check_writable(out)
