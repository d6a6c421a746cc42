"""A lesson as text for the terminal, Markdown, LaTeX or HTML."""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bpcli.graph.operations import Shape
from bpcli.lecture.derivation import Cell, Step
from bpcli.lecture.drawing import svg, text_graph
from bpcli.lecture.lesson import Lesson
from bpcli.lecture.notation import Writer
from bpcli.lecture.styles import LATEX, MATH, TEXT

WIDTH = 100
_FORMULA = 66


def shape_text(shape: Shape) -> str:
    """`6`, `6×4`, `1` for a scalar."""
    return "×".join(map(str, shape)) if shape else "1"


def cost_text(cost: float) -> str:
    """`54 flops`, `15k flops`; nothing for none."""
    if not cost:
        return ""
    amount = f"{cost:.0f}" if cost < 1e4 else f"{cost / 1e3:.3g}k" if cost < 1e6 else f"{cost / 1e6:.3g}M"
    return f"{amount} flop{'s' if cost != 1 else ''}"


@dataclass(frozen=True)
class Check:
    """A line's mark and error in words."""

    mark: str
    error: str


def check_of(lesson: Lesson, step: Step) -> Check | None:
    """✓ or ✗ and the error; None where nothing was evaluated."""
    found = lesson.results.get(id(step))
    if found is None:
        return None
    error = "zero" if found.zero else "exact" if found.error == 0.0 else f"{found.error:.0e}"
    return Check("✓" if found.right else "✗", error)


def letters(lesson: Lesson) -> str:
    """Index letters that are no names of the network."""
    return "".join(letter for letter in "ijklmnpqrsuvw" if letter not in lesson.net.names.values())


def summary(lesson: Lesson) -> str:
    """A sentence with the number of lines that were checked and of those that are wrong."""
    if not lesson.results:
        return "Lines are not evaluated; --numbers checks every one on the data."
    wrong, count = len(lesson.wrong), len(lesson.results)
    zero = sum(one.zero for one in lesson.results.values())
    text = f"{count} lines on the data, each against differences of the network itself: "
    text += f"{wrong} wrong, marked ✗." if wrong else "all agree."
    if zero:
        text += f" {zero} are zero on both sides, which says little."
    if lesson.left_out:
        text += f" {lesson.left_out} more could not be measured, next to a kink, and are left out."
    return text


def wide(text: str) -> int:
    """Columns that a text takes: combining characters take none."""
    return sum(not unicodedata.combining(c) for c in text)


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * max(0, width - wide(text))
    return space + text if right else text + space


def folded(text: str, width: int, indent: int) -> list[str]:
    """A formula in lines of at most so many columns, broken before operators; later ones are indented."""
    lines, rest = list[str](), text
    while wide(rest) > width - (indent if lines else 0):
        room = width - (indent if lines else 0)
        cut = _break(rest, room)
        if not cut:
            break
        lines.append(rest[:cut])
        rest = rest[cut + 1 :]
    lines.append(rest)
    return [lines[0], *(" " * indent + line for line in lines[1:])]


def _break(text: str, room: int) -> int:
    """Where to break a line: before an operator outside of brackets, else anywhere at a space; 0 where nowhere."""
    best, depth = {"=+−": 0, "⊙": 0, "": 0}, 0
    for k, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if wide(text[:k]) > room:
            break
        if character == " " and k:
            best[""] = k
            for operators in ("=+−", "⊙"):
                if not depth and text[k + 1] in operators and text[k + 2 : k + 3] == " ":
                    best[operators] = k
    return best["=+−"] or best["⊙"] or best[""]


def as_text(lesson: Lesson) -> str:
    """For the terminal, at most 100 columns."""
    writer, lines = Writer(TEXT, letters(lesson)), [lesson.title, "=" * wide(lesson.title), ""]
    for sentence in lesson.sentences:
        lines += textwrap.wrap(sentence, WIDTH)
    lines += ["", *text_graph(lesson.net, WIDTH)]
    for section in lesson.sections:
        lines += ["", section.title, "-" * wide(section.title)]
        for sentence in section.sentences:
            lines += textwrap.wrap(sentence, WIDTH)
        before = ""
        for step in section.steps:
            lines += _text_step(lesson, writer, step, before)
            before = step.because
        lines += _text_rows(section.rows)
    lines += ["", *textwrap.wrap(summary(lesson), WIDTH)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _text_step(lesson: Lesson, writer: Writer, step: Step, before: str) -> list[str]:
    claim, check = step.claim, check_of(lesson, step)
    formula = " = ".join(writer.claim(claim.left, claim.right, claim.middle))
    wide_one = wide(formula) > _FORMULA
    lines = ["  " + line for line in folded(formula, WIDTH - 2 if wide_one else _FORMULA, 6)]
    notes = _padded(shape_text(step.shapes), 9, right=True) + _padded(cost_text(step.cost), 12, right=True)
    notes += f"  {check.mark} {check.error}" if check else ""
    if wide_one and wide(lines[-1]) > _FORMULA + 2:
        lines.append("")
    lines[-1] = _padded(lines[-1], _FORMULA + 2) + notes
    if claim.entries:
        entries = " = ".join(writer.entries(claim.left, claim.right, claim.entries))
        if entries != formula:
            lines += ["      " + line for line in folded(entries, WIDTH - 6, 4)]
    if step.because and step.because != before:
        lines += textwrap.wrap(step.because, WIDTH, initial_indent="      · ", subsequent_indent="        ")
    return lines


def _text_rows(rows: Sequence[Sequence[Cell]]) -> list[str]:
    if not rows:
        return []
    struck = [[Cell(_struck(cell.text) if cell.struck else cell.text) for cell in row] for row in rows]
    widths = [max(wide(row[k].text) for row in struck) for k in range(len(rows[0]))]
    lines = ["  ".join(_padded(c.text, w) for c, w in zip(row, widths, strict=True)) for row in struck]
    return ["", *("  " + line for line in lines), "  A term that is struck out, [-so-], is left out."]


def _struck(text: str) -> str:
    return f"[-{text}-]"


def as_markdown(lesson: Lesson) -> str:
    """For pages that show LaTeX between dollar signs."""
    writer, lines = Writer(LATEX, letters(lesson)), [f"# {lesson.title}", "", *lesson.sentences]
    lines += ["", "```text", *text_graph(lesson.net, WIDTH), "```"]
    for section in lesson.sections:
        lines += ["", f"## {section.title}", "", *section.sentences, ""]
        head = ["line", "entry by entry", "rule", "shape", "flops", *(["check"] if lesson.results else [])]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for step in section.steps:
            matrix, entries = _formulas(writer, step)
            cells = [f"${matrix}$", f"${entries}$" if entries else "", _bar(step.because), shape_text(step.shapes)]
            cells.append(f"{step.cost:.0f}")
            check = check_of(lesson, step)
            cells += [f"{check.mark} {check.error}"] if check else []
            lines.append("| " + " | ".join(cells) + " |")
        if section.rows:
            first, *rest = section.rows
            lines += ["", "| " + " | ".join(_bar(c.text) for c in first) + " |", "|" + "---|" * len(first)]
            lines += ["| " + " | ".join(f"~~{c.text}~~" if c.struck else c.text for c in r) + " |" for r in rest]
    return "\n".join([*lines, "", summary(lesson), ""])


def _bar(text: str) -> str:
    return text.replace("|", r"\|")


def _formulas(writer: Writer, step: Step) -> tuple[str, str]:
    """Matrix and index notation; the latter is empty where it adds nothing."""
    claim = step.claim
    matrix = writer.claim(claim.left, claim.right, claim.middle)
    entries = writer.entries(claim.left, claim.right, claim.entries) if claim.entries else []
    equals = " = " if writer.style is not MATH else "</math> <math><mo>=</mo>"  # a line may break there
    return equals.join(matrix), equals.join(entries)


_PREAMBLE = r"""\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage{amsmath,amssymb}
\usepackage[margin=2cm]{geometry}
\newcommand{\struck}[1]{\setbox0\hbox{#1}\rlap{\rule[.6ex]{\wd0}{.5pt}}\box0}
\setlength{\parindent}{0pt}
\raggedright
\binoppenalty=0
\relpenalty=0
\lineskiplimit=3pt
\lineskip=3pt
\begin{document}
"""
_IN_TEXT = {
    "·": r"$\cdot$", "→": r"$\to$", "Σ": r"$\Sigma$", "σ": r"$\sigma$", "δ": r"$\delta$", "ω": r"$\omega$",
    "≤": r"$\le$", "∂": r"$\partial$", "²": r"$^2$", "√": r"$\sqrt{}$", "π": r"$\pi$", "ᵀ": r"$^\top$",
    "M̄": r"$\bar M$", "⋯": r"$\cdots$", "−": "$-$", "✓": r"$\checkmark$", "✗": r"$\times$", "×": r"$\times$",
    "ᵖ": "$^p$", "⁻¹": "$^{-1}$", "…": r"\ldots ", "_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$",
    "^": r"\^{}", "{": r"\{", "}": r"\}", "<": "$<$", ">": "$>$", "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}", "|": r"$|$",
}  # fmt: skip
_CHARACTERS = re.compile("|".join(map(re.escape, sorted(_IN_TEXT, key=len, reverse=True))))


def latex_text(text: str) -> str:
    """Prose in LaTeX; a character that it has no sign for is left as it is, or written as its number."""
    found = _CHARACTERS.sub(lambda match: _IN_TEXT[match[0]], unicodedata.normalize("NFC", text))
    return "".join(c if ord(c) < 256 else f"[U+{ord(c):04X}]" for c in found)


def as_latex(lesson: Lesson) -> str:
    """A document for pdflatex."""
    writer, lines = Writer(LATEX, letters(lesson)), [_PREAMBLE + f"\\section*{{{latex_text(lesson.title)}}}", ""]
    lines += [latex_text(sentence) for sentence in lesson.sentences]
    for section in lesson.sections:
        lines += ["", f"\\subsection*{{{latex_text(section.title)}}}"]
        lines += [latex_text(sentence) for sentence in section.sentences]
        before = ""
        for step in section.steps:
            matrix = writer.claim(step.claim.left, step.claim.right, step.claim.middle)
            entries = _formulas(writer, step)[1]
            check = check_of(lesson, step)
            notes = [shape_text(step.shapes), cost_text(step.cost), f"{check.mark} {check.error}" if check else ""]
            lines += ["", r"\medskip", f"$\\displaystyle {' = '.join(matrix)}$",
                      r"\quad{\small " + latex_text(", ".join(filter(None, notes))) + "}"]  # fmt: skip
            if entries:
                lines += ["", f"\\quad ${entries}$"]
            if step.because and step.because != before:
                lines += ["", r"\quad{\small\itshape " + latex_text(step.because) + "}"]
            before = step.because
        lines += _latex_rows(section.rows)
    return "\n".join([*lines, "", r"\bigskip", latex_text(summary(lesson)), r"\end{document}", ""])


def _latex_rows(rows: Sequence[Sequence[Cell]]) -> list[str]:
    if not rows:
        return []
    body = [
        " & ".join(f"\\struck{{{latex_text(c.text)}}}" if c.struck else latex_text(c.text) for c in r) for r in rows
    ]
    return ["", r"\medskip", f"\\begin{{tabular}}{{{'l' * len(rows[0])}}}", " \\\\\n".join(body), r"\end{tabular}"]


_STYLE = """
:root{color-scheme:light dark;--soft:#667;--line:#8884;--good:#187a3d;--bad:#c0262d}
@media (prefers-color-scheme:dark){:root{--soft:#99a;--good:#5fd38a;--bad:#ff7b80}}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
.step{padding:.5rem 0;border-bottom:1px solid var(--line);display:grid;grid-template-columns:1fr auto;gap:.1rem 1rem}
.formula,.entries,.figure,.table{overflow-x:auto;overflow-y:hidden;min-width:0}
.formula{font-size:1.15rem}.entries{grid-column:1;color:var(--soft)}
.because{grid-column:1;color:var(--soft);font-size:.9rem}
.notes{grid-column:2;grid-row:1;color:var(--soft);font-size:.85rem;text-align:right;white-space:nowrap}
.right{color:var(--good)}.wrong{color:var(--bad);font-weight:bold}
math{white-space:nowrap}mtext{font-family:math,serif}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:left}
del{color:var(--bad)}svg{max-width:none}
@media (max-width:600px){.step{grid-template-columns:1fr}.notes{grid-column:1;grid-row:auto;text-align:left}}
"""


def as_html(lesson: Lesson) -> str:
    """A page by itself, without scripts: formulas in MathML, the picture in SVG."""
    writer, e = Writer(MATH, letters(lesson)), html.escape
    parts = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
             '<meta name="viewport" content="width=device-width, initial-scale=1">',
             f"<title>{e(lesson.title)}</title><style>{_STYLE}</style></head><body>", f"<h1>{e(lesson.title)}</h1>",
             *(f"<p>{e(sentence)}</p>" for sentence in lesson.sentences),
             f"<p><strong>{e(summary(lesson))}</strong></p>",
             f'<div class="figure">{svg(lesson.net, lesson.truncation)}</div>']  # fmt: skip
    for section in lesson.sections:
        parts += [f"<h2>{e(section.title)}</h2>", *(f"<p>{e(sentence)}</p>" for sentence in section.sentences)]
        before = ""
        for step in section.steps:
            matrix, entries = _formulas(writer, step)
            parts += ['<div class="step">', f'<div class="formula"><math>{matrix}</math></div>']
            if entries:
                parts.append(f'<div class="entries"><math>{entries}</math></div>')
            if step.because and step.because != before:
                parts.append(f'<div class="because">{e(step.because)}</div>')
            before, check = step.because, check_of(lesson, step)
            notes = e(", ".join(filter(None, (shape_text(step.shapes), cost_text(step.cost)))))
            if check:
                kind = "right" if check.mark == "✓" else "wrong"
                notes += f' <span class="{kind}">{check.mark} {e(check.error)}</span>'
            parts += [f'<div class="notes">{notes}</div>', "</div>"]
        parts += _html_rows(section.rows)
    return "\n".join([*parts, "</body></html>", ""])


def _html_rows(rows: Sequence[Sequence[Cell]]) -> list[str]:
    if not rows:
        return []
    first, *rest = rows
    head = "".join(f"<th>{html.escape(c.text)}</th>" for c in first)
    body = ["<tr>" + "".join(f"<td>{f'<del>{html.escape(c.text)}</del>' if c.struck else html.escape(c.text)}</td>"
                             for c in row) + "</tr>" for row in rest]  # fmt: skip
    return [f'<div class="table"><table><tr>{head}</tr>', *body, "</table></div>"]


PAGES: Mapping[str, Callable[[Lesson], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_html,
}
"""The formats of a lesson."""
