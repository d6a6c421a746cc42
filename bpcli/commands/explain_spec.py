"""`bp explain`: derive the gradients of a spec as on the board, and check every line on its data."""

from __future__ import annotations

import click

from bpcli.commands.shared_options import Common, Refused, shared
from bpcli.errors import fail, nearest

PAGES = ("text", "markdown", "latex", "html")


def _page(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A format of its own; one for tables in `[tool.bp]` or `BP_FORMAT` counts for other commands."""
    from click.core import ParameterSource

    if value in PAGES:
        return value
    if context.get_parameter_source(str(parameter.name)) is not ParameterSource.COMMANDLINE:
        return "text"
    raise Refused(f'unknown value "{value}"', nearest(value, PAGES))


@click.command()
@click.argument("spec")
@click.option("-m", "--method", multiple=True, metavar="METHOD",
              help="Method to derive, such as tbptt:k1=1,k2=4; repeatable. Default: bptt and rtrl.")  # fmt: skip
@click.option("--numbers", is_flag=True, help="Evaluate every line on the data, and check it.")
@click.option("--node", metavar="NAME", help="Derive only the derivative with respect to this equation.")
@click.option("--format", "page", default="text", metavar="FORMAT", callback=_page,
              help="Format of stdout: text, markdown, latex or html.")  # fmt: skip
@click.option("--dot", "drawing", flag_value="dot", help="Draw the network for Graphviz instead.")
@click.option("--mermaid", "drawing", flag_value="mermaid", help="Draw the network for Mermaid instead.")
@click.option("--svg", "drawing", flag_value="svg", help="Draw the unrolled network as SVG instead.")
@shared("set", "dtype", "seed", "wrt", "max_memory", "max_time", "allow_outside")
def explain(
    spec: str, method: tuple[str, ...], numbers: bool, node: str | None, page: str, drawing: str | None, common: Common
) -> int:
    """Derive the gradients of SPEC line by line: the chain rule, from the losses backwards.

    For a recurrent network, q, J and M̄ are derived, then backpropagation through time and real-time recurrent
    learning. With --numbers every line is evaluated, compared with differences of the network itself, and marked ✓ or
    ✗ with its error; the exit code is 1 if any line is wrong.
    """
    from bpcli.commands.specs import open_spec, single
    from bpcli.lecture.drawing import dot, mermaid, svg
    from bpcli.lecture.lesson import compose, cost_of, verify
    from bpcli.lecture.pages import PAGES as RENDERERS
    from bpcli.methods import parse

    calls = [parse(text) for text in method]
    problem = open_spec(single(spec), common)
    setup = problem.setup
    if len(names := [call.text for call in calls if "biased" in call.method.tags]) > 1:
        fail("usage", f"{' and '.join(names)} are two truncated methods", help="explain one of them at a time")
    if not calls:
        calls = [parse(name) for name in (("bptt", "rtrl") if setup.graph.recurrent else ("backprop",))]
    lesson = compose(setup, calls, node)
    if drawing:
        draw = {"dot": dot, "mermaid": mermaid}
        click.echo(svg(lesson.net, lesson.truncation) if drawing == "svg" else draw[drawing](lesson.net))
        return 0
    if numbers:
        from bpcli.problem.draw import draw as drawn
        from bpcli.problem.limits import check_cost

        held, work, steps = cost_of(lesson)
        check_cost(setup, "explain --numbers", held, work, common.limits(), steps)
        lesson = verify(lesson, drawn(setup))
    click.echo(RENDERERS[page](lesson), nl=False)
    return 1 if lesson.wrong else 0
