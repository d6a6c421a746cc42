"""`bp grad`: write a gradient to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.options import Common, shared

if TYPE_CHECKING:
    from bpcli.methods.base import Gradient
    from bpcli.problem.definition import Setup


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
    from bpcli.commands.choose import applying
    from bpcli.commands.kernels import announce
    from bpcli.commands.output import note
    from bpcli.commands.progress import progress
    from bpcli.commands.specs import open_spec, single, test_out
    from bpcli.methods import parse
    from bpcli.problem.array_writer import write_npz
    from bpcli.problem.draw import draw
    from bpcli.problem.limits import PASSES, check_cost

    call = parse(method)
    path = single(spec)
    test_out(out, path, common)
    setup = open_spec(path, common)
    applying(setup, (call,), alone=True)
    cost = call.cost(setup)
    check_cost(setup, call.text, cost.bytes, cost.flops, common.limits(), PASSES * cost.forward_steps)
    announce(common)
    with progress(common) as say:
        say(f"{setup.spec.name}: {call.text}")
        gradient = call.gradient(draw(setup))
    write_npz(out, arrays(gradient))
    note(f"wrote {out}", common)
    return _show(setup, gradient, call.text, common)


def arrays(gradient: Gradient) -> dict[str, Any]:
    """`loss` and `d_NAME`, as they are written."""
    import numpy as np

    return {"loss": np.asarray(gradient.loss, dtype=np.float64), **{f"d_{n}": a for n, a in gradient.arrays.items()}}


def _show(setup: Setup, gradient: Gradient, method: str, common: Common) -> int:
    from bpcli.commands.arrays_document import arrays_document
    from bpcli.commands.context import describe
    from bpcli.commands.output import emit

    context = describe("grad", common, spec=setup.spec.name, method=method, loss=gradient.loss)
    kinds = {t.name: t.kind for t in setup.wrt}
    rows = {f"d_{name}": (kinds[name], array) for name, array in gradient.arrays.items()}
    document = arrays_document("Gradient", rows, context, (f"loss = {gradient.loss:.15g}",))
    return emit(document, common, silent=common.quiet)
