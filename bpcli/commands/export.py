"""`bp export`: write the arrays that a spec runs on."""

from __future__ import annotations

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import shared


@click.command()
@click.argument("spec")
@click.option("-o", "--out", required=True, metavar="OUT.npz", help="File to write.")
@shared("set", "dtype", "seed", "max_memory", "allow_outside", "format", "output", "quiet", "verbose")
def export(spec: str, out: str, common: Common) -> int:
    """Write the parameters, inputs and initial states that SPEC runs on to OUT.npz, for any program to repeat it."""
    from bpcli.commands.grad import arrays_document
    from bpcli.commands.output import describe, emit, note
    from bpcli.commands.specs import open_spec, single, test_out
    from bpcli.problem.array_writer import export_arrays, write_npz
    from bpcli.problem.draw import draw

    path = single(spec)
    test_out(out, path, common)
    problem = draw(open_spec(path, common).setup)
    declared = problem.setup.spec
    write_npz(out, export_arrays(problem))
    note(f"wrote {out}", common)
    kinds = {d.name: d.kind for group in (declared.params, declared.inputs, declared.states) for d in group.values()}
    rows = {name: (kinds[name], array) for name, array in export_arrays(problem).items()}
    context = describe("export", common, spec=declared.name)
    return emit(arrays_document("Arrays", rows, context, ()), common, silent=common.quiet)
