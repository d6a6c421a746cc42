"""A figure: drawn on axes by matplotlib, put on the page as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.errors import fail, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SIZE = (4.6, 3.3)
"""Inches; on the page an inch has 100 pixels, so that text keeps its size in two columns and on a phone."""

# The roles of colour. The page redefines them in the dark; files have them as they stand here.
INK, MUTED, FAINT, ACCENT, PAPER = "#1c2126", "#5f6872", "#c9ced4", "#b3470f", "#fefefd"
ROLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", ACCENT: "--accent", PAPER: "--paper"}
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


@dataclass(frozen=True)
class Figure:
    """One figure: `alt` tells in words what it shows, `draw` puts it on axes.

    Artists whose gid starts with "tip:" get the rest of it as their tooltip.
    """

    title: str
    caption: str
    alt: str
    draw: Callable[[Axes], None]


def need_matplotlib() -> None:
    """Refuse where matplotlib is not installed."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        fail(
            "missing-extra", "bp report draws with matplotlib, which is not installed", help='pip install "bp[report]"'
        )


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
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks, a name too long for the layout: the page has the words elsewhere too.
        warnings.simplefilter("ignore", UserWarning)
        _save(_canvas(figures, titled), stream, kind, "none" if kind == "svg" and not titled else PAPER)
    return stream.getvalue()


def _canvas(figures: Sequence[Figure], titled: bool) -> Canvas:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    columns = min(2, len(figures))
    rows = -(-len(figures) // columns)
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(SIZE[0] * columns, (SIZE[1] + 0.3 * titled) * rows), layout="constrained")
        cells = canvas.subplots(rows, columns, squeeze=False).reshape(-1)
        for axes in cells[len(figures) :]:
            axes.remove()
        for figure, axes in zip(figures, cells, strict=False):
            if titled:
                axes.set_title(figure.title, loc="left", fontsize=9.5, color=INK)
            figure.draw(axes)
    return canvas


def _save(canvas: Canvas, stream: io.BytesIO, kind: str, ground: str) -> None:
    import matplotlib

    about: Mapping[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(_STYLE):
        canvas.savefig(stream, format=kind, metadata=dict(about), facecolor=ground, dpi=160)


def _tidy(root: ET.Element, number: int) -> None:
    """Leave out what a page must not have, and let it choose the colours."""
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
    """Colours by their roles, and the fonts of the page."""
    for color, role in ROLES.items():
        style = style.replace(color, f"var({role})")
    return ";".join(p for p in style.split(";") if not p.strip().startswith("font-family")).replace(
        "'DejaVu Sans', sans-serif", "inherit"
    )
