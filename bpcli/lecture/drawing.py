"""The network as a graph: in the terminal, for Graphviz and Mermaid, and the unrolled picture as SVG."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping

from bpcli.graph.nodes import Phase
from bpcli.lecture.named_graph import NamedGraph
from bpcli.lecture.truncated_terms import Truncation

_PHASES = {
    Phase.STATIC: "once",
    Phase.INPUT: "for all steps, before the loop",
    Phase.RECURRENT: "in the loop over steps",
    Phase.OUTPUT: "for all steps, after the loop",
}


def arguments(net: NamedGraph, n: int) -> list[int]:
    """The named nodes that a named node is computed from directly."""
    found, todo = set[int](), list(net.nodes[n].args)
    while todo:
        m = todo.pop()
        if net.named(m):
            found.add(m)
        else:
            todo += net.nodes[m].args
    return sorted(found)


def shown(net: NamedGraph) -> list[int]:
    """The named nodes that the loss or a state depends on."""
    ends = net.reaches(frozenset({net.graph.loss, *net.graph.new.values()}))
    return [n for n in sorted(net.names) if n in ends]


def _label(net: NamedGraph, n: int) -> str:
    shape = "×".join(map(str, net.nodes[n].shape))
    return f"{net.names[n]} ({shape})" if shape else net.names[n]


def text_graph(net: NamedGraph, width: int) -> list[str]:
    """A line for each equation: its name and shape, the names it is computed from, phase by phase."""
    lines, nodes = list[str](), shown(net)
    leaves = ", ".join(_label(net, n) for n in nodes if net.leaf(n) and net.nodes[n].op != "previous")
    lines += textwrap.wrap(f"given: {leaves}", width, subsequent_indent="       ")
    for phase, words in _PHASES.items():
        own = [n for n in nodes if net.nodes[n].phase is phase and not net.leaf(n)]
        if own and net.graph.recurrent:
            lines.append(f"{words}:")
        for n in own:
            names = ", ".join(net.names[m] for m in arguments(net, n))
            lines += textwrap.wrap(f"  {names} → {_label(net, n)}", width, subsequent_indent="    ")
    return lines


def dot(net: NamedGraph) -> str:
    """For Graphviz; a box for each phase, states at t-1 dashed."""
    lines = ["digraph network {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    for phase, words in _PHASES.items():
        own = [n for n in shown(net) if net.nodes[n].phase is phase]
        if own:
            lines += [f"  subgraph cluster_{phase.value} {{", f'    label="{words}";']
            lines += [f'    n{n} [label="{_label(net, n)}"{_shape(net, n)}];' for n in own]
            lines.append("  }")
    for n in shown(net):
        lines += [f"  n{m} -> n{n};" for m in arguments(net, n)]
    for state, new in net.graph.new.items():
        if net.graph.previous[state] in shown(net):
            lines.append(f'  n{new} -> n{net.graph.previous[state]} [style=dashed, constraint=false, label="t-1"];')
    return "\n".join([*lines, "}", ""])


def _shape(net: NamedGraph, n: int) -> str:
    return ", style=dashed" if net.nodes[n].op == "previous" else ", shape=plain" if net.leaf(n) else ""


def mermaid(net: NamedGraph) -> str:
    """For Mermaid, as GitHub shows it."""
    lines = ["flowchart LR"]
    for phase, words in _PHASES.items():
        own = [n for n in shown(net) if net.nodes[n].phase is phase]
        if own:
            lines += [f'  subgraph p{phase.value}["{words}"]', *(f"    n{n}{_box(net, n)}" for n in own), "  end"]
    for n in shown(net):
        lines += [f"  n{m} --> n{n}" for m in arguments(net, n)]
    for state, new in net.graph.new.items():
        if net.graph.previous[state] in shown(net):
            lines.append(f"  n{new} -. next step .-> n{net.graph.previous[state]}")
    return "\n".join([*lines, ""])


def _box(net: NamedGraph, n: int) -> str:
    label = f'"{_label(net, n)}"'
    return f"({label})" if net.leaf(n) else f"[{label}]"


def svg(net: NamedGraph, truncation: Truncation | None = None) -> str:
    """The unrolled network with q, J and M̄ on its edges; of a feed-forward one, its equations in layers."""
    return _unrolled(net, truncation) if net.graph.recurrent else _layers(net)


_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
    'font-family="system-ui,sans-serif" font-size="14" fill="currentColor"><title>{title}</title><defs>'
    '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L10 5L0 10z"/></marker></defs>'
)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _arrow(x: float, y: float, to: tuple[float, float], struck: bool = False) -> str:
    style = ' stroke-dasharray="4 4" opacity="0.45"' if struck else ""
    return (
        f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{to[0]:.0f}" y2="{to[1]:.0f}" stroke="currentColor" '
        f'marker-end="url(#tip)"{style}/>'
    )


def _node(x: float, y: float, text: str) -> str:
    half = max(24, 5 * len(text) + 8)
    box = f'<rect x="{x - half:.0f}" y="{y - 17:.0f}" width="{2 * half:.0f}" height="34" rx="8" '
    return box + f'fill="none" stroke="currentColor"/>{_text(x, y + 5, text)}'


def _unrolled(net: NamedGraph, truncation: Truncation | None) -> str:
    """Up to four last steps: parameters below, states in the middle, losses above."""
    T = net.setup.T
    times = list(range(max(0, T - 4), T))
    width, left = 170.0, 110.0
    states = ", ".join(net.graph.previous)
    parts = [_HEAD.format(w=int(left + width * len(times)) + 20, h=290, title="the unrolled network")]
    parts.append(_node(left - 60, 145, f"{states}({times[0]})"))
    for k, t in enumerate(times):
        x = left + width * k + width / 2
        # A step is cut off where the last loss does not reach it.
        cut = truncation is not None and not truncation.keeps(T - 1, t)
        parts += [_node(x, 145, f"{states}({t + 1})"), _node(x, 45, f"l({t + 1})"), _node(x, 245, "w")]
        parts += [_arrow(x, 128, (x, 62)), _text(x + 8, 100, f"q({t + 1})", "start")]
        parts += [_arrow(x, 228, (x, 162), cut), _text(x + 8, 200, f"M̄({t + 1})", "start")]
        before = left - 60.0 if k == 0 else x - width
        reach = max(24, 5 * len(f"{states}({t})") + 8)
        crossing = truncation is not None and t > 0 and not truncation.keeps(T - 1, t - 1)
        parts += [_arrow(before + reach, 145, (x - reach, 145), crossing), _text((before + x) / 2, 136, f"J({t + 1})")]
        if crossing:
            parts.append(_text((before + x) / 2, 164, "cut"))
    return "".join([*parts, "</svg>"])


def _layers(net: NamedGraph) -> str:
    """Equations from left to right by the longest path to them, leaves below where they are used first."""
    depth, nodes = dict[int, int](), shown(net)
    for n in nodes:
        depth[n] = 0 if net.leaf(n) else 1 + max((depth[m] for m in arguments(net, n) if not net.leaf(m)), default=0)
    for n in nodes:
        if net.leaf(n):
            users = [depth[m] for m in nodes if n in arguments(net, m)]
            depth[n] = min(users, default=1)
    columns: Mapping[int, list[int]] = {d: [n for n in nodes if depth[n] == d] for d in sorted(set(depth.values()))}
    at = dict[int, tuple[float, float]]()
    for d, own in columns.items():
        for row, n in enumerate(sorted(own, key=lambda n: (net.leaf(n), n))):
            at[n] = (150.0 * d - 60, 50.0 + 60 * row)
    width, height = max(x for x, _ in at.values()) + 90, max(y for _, y in at.values()) + 50
    parts = [_HEAD.format(w=f"{width:.0f}", h=f"{height:.0f}", title="the network")]
    for n in nodes:
        x, y = at[n]
        parts.append(_text(x, y + 5, _label(net, n)) if net.leaf(n) else _node(x, y, _label(net, n)))
        for m in arguments(net, n):
            fx, fy = at[m]
            half = max(24, 5 * len(_label(net, n)) + 8)
            if net.leaf(m) and fx == x:
                below = (fy - y) / 60
                parts.append(f'<path d="M{fx + 50:.0f} {fy:.0f}C{x + 75:.0f} {fy:.0f} {x + 75:.0f} {y + 8:.0f} '
                             f'{x + half:.0f} {y + 4:.0f}" fill="none" stroke="currentColor" marker-end="url(#tip)"/>'
                             if below > 1 else _arrow(fx, fy - 12, (x, y + 17)))  # fmt: skip
            else:
                start = max(24, 5 * len(_label(net, m)) + 8)
                parts.append(_arrow(fx + start, fy, (x - half, y)))
    return "".join([*parts, "</svg>"])
