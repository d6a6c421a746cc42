"""Figures: drawn on axes by matplotlib, put on a page as SVG that takes its colours from the page.

Shared by all plots: axes with ticks as people write them, and labels beside points and lines that do not overlap.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.errors import fail, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.6, 3.3)
"""Inches; on the page an inch has 100 pixels, so that text keeps its size in two columns and on a phone."""

INK, MUTED, FAINT, ACCENT, PAPER = "#1c2126", "#5f6872", "#c9ced4", "#b3470f", "#fefefd"
ROLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", ACCENT: "--accent", PAPER: "--paper"}
"""Colours by their roles. The page redefines these in its dark theme; image files have the colours as they are here."""
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False,
    "svg.hashsalt": "bp", "font.size": 9.0, "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.unicode_minus": True,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False, "ytick.minor.visible": False, "lines.linewidth": 1.3, "lines.markersize": 5.0,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
LABEL_AT_MOST = 32
_TICKS_AT_LEAST, _TICKS_AT_MOST = 3, 8
_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
"""Leading digits of ticks, from the roundest."""
Place = tuple[float, float, str, str]
Box = tuple[float, float, float, float]
"""Left, bottom, right and top in pixels."""


def _on_ring(radius: float, turn: int) -> Place:
    """A place at a distance, in one of 24 directions, where the label leads away from its point."""
    dx, dy = (radius * f(math.pi * turn / 12) for f in (math.cos, math.sin))
    ha = "left" if dx > 1 else "right" if dx < -1 else "center"
    return dx, dy, ha, "center" if abs(dx) > 1 else "bottom" if dy > 0 else "top"


_NEAR: tuple[Place, ...] = (
    (5, 4, "left", "bottom"), (7, 0, "left", "center"), (5, -5, "left", "top"), (-7, 0, "right", "center"),
    (-5, 5, "right", "bottom"), (-5, -5, "right", "top"), (0, 7, "center", "bottom"), (0, -7, "center", "top"),
)  # fmt: skip
_RINGS = (15, 22, 30, 40, 52, 66, 82, 100, 120, 142)
"""Distances in points of labels that a line ties to their points."""
_PLACES = (*_NEAR, *(_on_ring(radius, turn) for radius in _RINGS for turn in range(24)))
"""Where a label may stand: offset from its point in points, and its alignment there; beside it, then on rings."""
_MARK = 3.6
"""Half the width in points of a mark with its edge."""


@dataclass(frozen=True)
class Figure:
    """One figure: `alt` describes it in words, `draw` puts it on axes.

    An artist whose gid is "tip:TEXT:NUMBER" gets TEXT as its tooltip.
    """

    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]


def need_matplotlib() -> None:
    """Refuse where matplotlib is not installed."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        what = "bp report draws with matplotlib, which is not installed"
        fail("missing-extra", what, help='pip install "bp-check[report]"')


def svg(figure: Figure, number: int) -> str:
    """The figure as an `<svg>` element for a page, its ids made unique by `number`."""
    root = ET.fromstring(_drawn([figure], "svg", titled=False))
    _tidy(root, number)
    root.set("role", "img")
    root.set("aria-labelledby", f"alt{number}")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    alt = ET.Element(f"{{{_SVG}}}title", {"id": f"alt{number}"})
    alt.text = printable(figure.alt, 4000)
    root.insert(0, alt)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    return ET.tostring(root, encoding="unicode")


def picture(figures: Sequence[Figure], kind: str) -> bytes:
    """All figures in one image, two in a row; `kind` is "svg" or "png"."""
    return _drawn(figures, kind, titled=True)


def _drawn(figures: Sequence[Figure], kind: str, titled: bool) -> bytes:
    """All figures in one image, two in a row, free of dates and versions."""
    import matplotlib

    stream = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        # A letter that the font lacks, a name too long for the layout: the page has the words elsewhere too.
        warnings.simplefilter("ignore", UserWarning)
        canvas = composed(figures, titled)
        about, ground = ({"Date": None}, "none") if kind == "svg" else ({"Software": None}, PAPER)
        canvas.savefig(stream, format=kind, metadata=about, facecolor=PAPER if titled else ground, dpi=160)
    return stream.getvalue()


def composed(figures: Sequence[Figure], titled: bool = False) -> Any:
    """All figures on one canvas of matplotlib, two in a row."""
    from matplotlib.figure import Figure as Canvas

    columns = min(2, len(figures))
    rows = -(-len(figures) // columns)
    canvas = Canvas(figsize=(SIZE[0] * columns, (SIZE[1] + 0.3 * titled) * rows), layout="constrained")
    cells = canvas.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in cells[len(figures) :]:
        axes.remove()
    for figure, axes in zip(figures, cells, strict=False):
        _draw_on(axes, figure, titled)
    # Drawn again where all of them have come to stand, so that labels keep clear of what they stand beside.
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    for figure, axes in zip(figures, cells, strict=False):
        _draw_on(axes, figure, titled)
    return canvas


def _draw_on(axes: Axes, figure: Figure, titled: bool) -> None:
    """Draw a figure on axes, in place of what was there."""
    axes.clear()
    figure.draw(axes)
    if titled:
        axes.set_title(figure.title, loc="left", fontsize=9.5, color=INK, pad=20 if axes.get_legend() else 6)


def _tidy(root: ET.Element, number: int) -> None:
    """Drop what a page must not have, make ids unique, and leave colours and fonts to the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = {value[1:] for element in root.iter() for value in _references(element)}
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.set("id", f"f{number}{name}")
        if name.startswith("tip:"):
            tip = ET.Element(f"{{{_SVG}}}title")
            tip.text = name.removeprefix("tip:").rpartition(":")[0]
            element.insert(0, tip)
        for key, value in list(element.attrib.items()):
            if value.startswith("#") and value[1:] in used:
                element.set(key, f"#f{number}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#f{number}"))
        if style := element.get("style"):
            element.set("style", _themed(style))


def _references(element: ET.Element) -> list[str]:
    links = [v for k, v in element.attrib.items() if k.endswith("href") and v.startswith("#")]
    return links + ["#" + v.partition("url(#")[2].partition(")")[0] for v in element.attrib.values() if "url(#" in v]


def _themed(style: str) -> str:
    """A style with colours by their roles and the fonts of the page."""
    for color, role in ROLES.items():
        style = style.replace(color, f"var({role})")
    parts = (p for p in style.split(";") if not p.strip().startswith("font-family"))
    return ";".join(parts).replace("'DejaVu Sans', sans-serif", "inherit")


def place(
    axes: Axes,
    spots: Sequence[tuple[float, float, str, bool]],
    curve: Sequence[tuple[float, float]] = (),
    bars: Sequence[Sequence[tuple[float, float]]] = (),
) -> None:
    """Label points `(x, y, text, first)`; labels keep clear of marks, `bars`, other labels and the lines to them.

    Labels that come `first` have the first choice of places. One that finds none, near or at the end of a line, is left
    out; its tip and the table have the name. Places are preferred that `curve` does not cross, and lines that cross no
    mark.
    """
    canvas: Any = axes.figure
    canvas.draw_without_rendering()
    scale, at = canvas.dpi / 72, axes.transData.transform
    points = at([spot[:2] for spot in spots])
    marks = [_box(x, y, 2 * _MARK * scale, 2 * _MARK * scale) for x, y in points]
    if legend := axes.get_legend():
        marks.append(legend.get_window_extent().extents)
    lines = [box for bar in bars for box in _along(at(bar), scale)]
    crossed = _along(at(curve), scale) if len(curve) > 1 else []
    for i in sorted(range(len(spots)), key=lambda i: not spots[i][3]):
        x, y, text, first = spots[i]
        size, found, fewest = _size(axes, text), None, len(crossed) + 1
        others = [*marks[:i], *marks[i + 1 :]]
        for where in _PLACES:
            box, tie = _label_box(points[i], where, size, scale), _tie(points[i], where, scale)
            if not _inside(box, axes) or _hits([box], [*others, *lines]):
                continue
            if _hits(tie, others):  # a line over a mark is better than no label
                found = found or (where, box, tie)
                continue
            if (crossings := _hits([box], crossed)) < fewest:
                found, fewest = (where, box, tie), crossings
            if tie or not crossings:
                break
        if found:
            where, box, tie = found
            _write(axes, (x, y), text, where, first, bool(tie))
            marks.append(box)
            lines += tie


def _label_box(point: Any, where: Place, size: tuple[float, float], scale: float) -> Box:
    """The box of a label of that size in pixels at a place."""
    dx, dy, ha, va = where
    across = {"left": 0.5, "center": 0.0, "right": -0.5}[ha] * size[0]
    up = {"bottom": 0.5, "center": 0.0, "top": -0.5}[va] * size[1]
    return _box(point[0] + dx * scale + across, point[1] + dy * scale + up, *size)


def _tie(point: Any, where: Place, scale: float) -> list[Box]:
    """The line from a mark to a label on a ring, as small boxes; none to a label beside the mark."""
    dx, dy = where[0] * scale, where[1] * scale
    length = math.hypot(dx, dy)
    if length < _RINGS[0] * scale * 0.99:
        return []
    start = (_MARK + 1) * scale / length
    ends = [(point[0] + f * dx, point[1] + f * dy) for f in (start, 1 - 2 * scale / length)]
    return _along(ends, scale)


def _along(line: Any, scale: float) -> list[Box]:
    """Small boxes along a line through points."""
    boxes = []
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        count = max(1, round(math.hypot(x1 - x0, y1 - y0) / (3 * scale)))
        steps = [(x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count) for k in range(count + 1)]
        boxes += [_box(x, y, 2 * scale, 2 * scale) for x, y in steps]
    return boxes


def _box(x: float, y: float, width: float, height: float) -> Box:
    """The box around a middle."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _hits(boxes: Sequence[Box], others: Sequence[Box]) -> int:
    """How many pairs overlap."""
    if not boxes or not others:
        return 0
    a, b = np.array(boxes)[:, None], np.array(others)[None]
    return int(((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=-1).sum())


def _size(axes: Axes, text: str) -> tuple[float, float]:
    """Width and height of a label in pixels, with a margin of one."""
    note = axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", fontsize=8.5)
    box = note.get_window_extent()
    note.remove()
    return box.width + 2, box.height + 2


def _write(axes: Axes, point: tuple[float, float], text: str, where: Place, first: bool, tied: bool) -> None:
    dx, dy, ha, va = where
    line: Any = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": _MARK + 1}
    note = axes.annotate(
        text, point, (dx, dy), textcoords="offset points", ha=ha, va=va, color=INK if first else MUTED, fontsize=8.5,
        arrowprops={**line, "relpos": _towards(ha, va)} if tied else None,
    )  # fmt: skip
    note.set_in_layout(False)


def _towards(ha: str, va: str) -> tuple[float, float]:
    """The point of a label's box at which its line ends."""
    return {"left": 0.0, "center": 0.5, "right": 1.0}[ha], {"bottom": 0.0, "center": 0.5, "top": 1.0}[va]


def _inside(box: Box, axes: Axes) -> bool:
    frame = axes.bbox
    return bool(frame.x0 <= box[0] and box[2] <= frame.x1 + 2 and frame.y0 + 2 <= box[1] and box[3] <= frame.y1 + 2)


def legend_above(axes: Axes, marks: Mapping[str, str]) -> None:
    """A legend over the axes: words and their marks."""
    from matplotlib.lines import Line2D

    style: Any = {"linestyle": "none", "markerfacecolor": PAPER, "markeredgecolor": MUTED, "markeredgewidth": 1.1}
    handles = [Line2D([], [], marker=mark, label=word, **style) for word, mark in marks.items()]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(handles), fontsize=8.5,
        handletextpad=0.1, handlelength=1.2, columnspacing=1.0, borderpad=0.2, labelcolor=MUTED,
    )  # fmt: skip


def at_line_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Label lines `(x, y, text, colour)` right of the axes, pushed apart where they would touch."""
    canvas: Any = axes.figure
    canvas.draw_without_rendering()
    height = 11.5 / 72 * canvas.dpi
    order = sorted(ends, key=lambda e: e[1])
    heights = [float(axes.transData.transform((e[0], e[1]))[1]) for e in order]
    low, high = axes.bbox.y0, axes.bbox.y1
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + height)
    if heights and heights[-1] > high:
        heights[-1] = high
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - height)
    for (_, _, text, color), y in zip(order, heights, strict=True):
        at = (y - low) / (high - low)
        axes.text(1.02, at, text, transform=axes.transAxes, va="center", color=color, fontsize=8.5)


def log_axes(axes: Axes, x: str, y: str) -> None:
    """Logarithmic axes with names."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def set_ticks(axis: Any, where: Sequence[float] | Any, show: Callable[[float], str]) -> None:
    """Major ticks at some values, or where a locator puts them, and no minor ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(where) if isinstance(where, Sequence) else where)
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_locator(NullLocator())


def round_ticks(axis: Any, unit: str) -> None:
    """Ticks of a logarithmic axis whose limits are set, at the roundest numbers of which there are enough."""
    from matplotlib.ticker import EngFormatter

    set_ticks(axis, ticks(*axis.get_view_interval()), EngFormatter(unit=unit))


def ticks(low: float, high: float) -> list[float]:
    """Three to eight numbers between two positive ones: powers of ten where they suffice, else finer steps."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        found = [float(f"{step}e{k}") for k in decades for step in steps if low <= float(f"{step}e{k}") <= high]
        if len(found) >= _TICKS_AT_LEAST:
            return found[:: math.ceil(len(found) / _TICKS_AT_MOST)]
    return [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]


def tidy(value: float) -> str:
    """A number on an axis: as it is down to a thousandth, with a power of ten below."""
    if 1e-3 <= abs(value) < 1e5 or value == 0:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def measured_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at the values that were measured, as far as there is room to read them."""
    found = sorted(set(values))
    shown: list[float] = []
    for value in found:
        if not shown or math.log(value / shown[-1]) > 0.09 * math.log(found[-1] / found[0]):
            shown.append(value)
    set_ticks(axis, shown, lambda v: f"{v:g}")


def grid(axes: Axes) -> None:
    """Faint lines at the ticks of y."""
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, width=0.8)


def brief(text: str) -> str:
    """A name from a document, short enough to be drawn."""
    return printable(text, LABEL_AT_MOST)


def short(methods: Sequence[str]) -> dict[str, str]:
    """Methods without the options that all of one name share: `tbptt:k1=1,k2=4` is `tbptt k2=4` beside `k1=1,k2=8`."""
    parts = {m: (m.partition(":")[0], [p for p in m.partition(":")[2].split(",") if p]) for m in methods}
    said = {}
    for method, (name, options) in parts.items():
        like = [set(o) for n, o in parts.values() if n == name]
        own = [o for o in options if len(like) > 1 and not all(o in other for other in like)]
        said[method] = brief(" ".join([name, *own]))
    return said
