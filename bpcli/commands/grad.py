"""Arrays as rows: what each is called, how large it is and what its values are like.

`bp grad`: write a gradient to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared
from bpcli.render.document import Column, Document

if TYPE_CHECKING:
    from bpcli.methods.base import Gradient
    from bpcli.problem.definition import Setup


def arrays_document(
    title: str, arrays: Mapping[str, tuple[str, Any]], context: Mapping[str, Any], sentences: Sequence[str]
) -> Document:
    """A row for each array of `arrays`, which takes a name to a kind (param, input, state) and the array."""
    return Document(
        title=title,
        rows_key="arrays",
        columns=COLUMNS,
        rows=[_row(name, kind, array) for name, (kind, array) in arrays.items()],
        context=context,
        sentences=sentences,
    )


def _row(name: str, kind: str, array: Any) -> Mapping[str, Any]:
    """Figures in float64; an array is never empty."""
    import numpy as np

    wide = np.asarray(array, dtype=np.float64)
    largest = float(np.max(np.abs(wide)))
    # Scaled first: the square of a large finite entry may not be finite.
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


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _figure(value: float) -> str:
    return f"{value:.6g}"


COLUMNS = (
    _column("name", "name", str, right=False),
    _column("kind", "kind", str, right=False),
    _column("shape", "shape", _shape),
    _column("dtype", "dtype", str, right=False, wide=True),
    _column("norm", "norm", _figure),
    _column("max_abs", "max |.|", _figure),
    _column("mean", "mean", _figure, wide=True),
    _column("zeros", "zeros", str, wide=True),
)


@click.command()
@click.argument("spec")
@click.option("-m", "--method", required=True, metavar="METHOD", help="What computes the gradient, as tbptt:k1=1,k2=4.")
@click.option("-o", "--out", required=True, metavar="OUT.npz", help="File to write.")
@shared(
    "set", "dtype", "seed", "wrt", "threads", "max_memory", "max_time", "allow_outside",
    "format", "output", "quiet", "verbose",
)  # fmt: skip
def grad(spec: str, method: str, out: str, common: Common) -> int:
    """Write the loss of SPEC and its gradient to OUT.npz: loss, and d_NAME for every name differentiated.

    The loss is the whole loss, for truncated methods too. Gradients are dense, zero where a density leaves entries out.
    """
    from bpcli.commands.output import note
    from bpcli.commands.progress import announce, progress
    from bpcli.commands.specs import open_spec, single, test_out
    from bpcli.methods import parse
    from bpcli.problem.array_writer import write_npz

    call = parse(method)
    path = single(spec)
    test_out(out, path, common)
    problem = open_spec(path, common)
    announce(common)
    with progress(common) as say:
        say(f"{problem.setup.spec.name}: {call.text}")
        gradient = problem.gradient(call)
    write_npz(out, arrays(gradient))
    note(f"wrote {out}", common)
    return _show(problem.setup, gradient, call.text, common)


def arrays(gradient: Gradient) -> dict[str, Any]:
    """`loss` and `d_NAME`, as they are written."""
    import numpy as np

    return {"loss": np.asarray(gradient.loss, dtype=np.float64), **{f"d_{n}": a for n, a in gradient.arrays.items()}}


def _show(setup: Setup, gradient: Gradient, method: str, common: Common) -> int:
    from bpcli.commands.output import describe, emit

    context = describe("grad", common, spec=setup.spec.name, method=method, loss=gradient.loss)
    kinds = {t.name: t.kind for t in setup.wrt}
    rows = {f"d_{name}": (kinds[name], array) for name, array in gradient.arrays.items()}
    document = arrays_document("Gradient", rows, context, (f"loss = {gradient.loss:.15g}",))
    return emit(document, common, silent=common.quiet)
