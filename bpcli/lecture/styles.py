"""Formulas in three formats: the pieces that text, LaTeX and MathML are put together from."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
GREEK = tuple(_NAMES.split())
_LETTERS = dict(zip(GREEK, "αβγδεζηθικλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", strict=True))
_SPELLED = {letter: name for name, letter in _LETTERS.items()}


@dataclass(frozen=True)
class TextStyle:
    """Unicode on one line."""

    times: str = " ⊙ "
    dot: str = " "

    def plain(self, name: str, lag: str, entry: str) -> str:
        """`W_ik`, `(W_in)_ik`, `a_k[t-1]`."""
        base = name if not entry else f"({name})_{entry}" if "_" in name else f"{name}_{entry}"
        return f"{base}[{lag}]" if lag else base

    def marked(self, mark: str, below: str, entry: str) -> str:
        """`δh`, `(δh)_i`, `q_a`."""
        base = f"{mark}{below}" if mark == "δ" or not below else f"{mark}_{below}"
        return base if not entry else f"({base})_{entry}" if below else f"{base}_{entry}"

    def word(self, text: str) -> str:
        """As it is."""
        return text

    def sub(self, base: str, entry: str) -> str:
        """`base_i`."""
        return f"{base}_{entry}"

    def sup(self, base: str, exponent: str) -> str:
        """`a²`, `Wᵀ`, `v^3`."""
        known = {"2": "²", "3": "³", "T": "ᵀ"}
        return base + known.get(exponent, f"^{exponent}" if len(exponent) == 1 else f"^({exponent})")

    def fraction(self, above: str, below: str) -> str:
        """`∂h/∂a`."""
        return f"{above}/{below}"

    def sigma(self, index: str, body: str) -> str:
        """`Σ_k …`."""
        return f"Σ_{index} {body}" if index else f"Σ {body}"

    def bracket(self, body: str, pair: str = "()") -> str:
        """Plain brackets."""
        return f"{pair[0]}{body}{pair[1]}"

    def symbol(self, text: str) -> str:
        """As it is."""
        return text


def name_parts(name: str) -> tuple[str, str, str]:
    """A name as letter, subscript and superscript: `W_in` as W and in, `W1` as W and 1, `y_star` as y and *."""
    base, star = (name[:-5], "*") if name.endswith("_star") and len(name) > 5 else (name, "")
    head, _, tail = base.partition("_")
    if not tail and (match := re.fullmatch(r"(.*?[^0-9])([0-9]+)", head)):
        head, tail = match.groups()
    return head, tail, star


def _escaped(text: str) -> str:
    """A name in LaTeX; Greek letters in it are spelled, of others their numbers stand."""
    known = ("" if c.isascii() else _SPELLED.get(c, f"U{ord(c):04X}") for c in text)
    return "".join(other or (f"\\{c}" if c in "_#%&$" else c) for c, other in zip(text, known, strict=True))


@dataclass(frozen=True)
class LatexStyle:
    """LaTeX for amsmath."""

    times: str = r" \odot "
    dot: str = r"\,\allowbreak "

    def plain(self, name: str, lag: str, entry: str) -> str:
        """A step is a superscript in brackets, an entry a subscript after that of the name."""
        head, tail, star = name_parts(name)
        head = _SPELLED.get(head, head)
        plain = len(head) == 1 and head.isascii()
        letter = f"\\{head}" if head in GREEK else head if plain else f"\\mathrm{{{_escaped(head)}}}"
        below = ",".join(filter(None, (f"\\mathrm{{{_escaped(tail)}}}" if tail else "", entry)))
        above = star + (f"({lag})" if lag else "")
        return letter + (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")

    def marked(self, mark: str, below: str, entry: str) -> str:
        """A mark with a subscript."""
        sign, _, lag = mark.partition("[")
        sign = {"δ": r"\delta", "M̄": r"\bar{M}"}.get(sign, sign)
        above = f"^{{({lag.rstrip(']')})}}" if lag else ""
        if not below:
            return sign + (f"_{{{entry}}}" if entry else "") + above
        base = f"{sign}_{{{below}}}" + above
        return f"({base})_{{{entry}}}" if entry else base

    def word(self, text: str) -> str:
        """Upright, unless it is a single letter."""
        known = {"σ": r"\sigma", "ω": r"\omega", "δ": r"\delta"}
        return known.get(text, text if len(text) == 1 else f"\\operatorname{{{_escaped(text)}}}")

    def sub(self, base: str, entry: str) -> str:
        """A subscript."""
        return f"{base}_{{{entry}}}"

    def sup(self, base: str, exponent: str) -> str:
        """A superscript; braces keep it off another one, an empty pair even where TeX would drop the braces."""
        power = r"\top" if exponent == "T" else exponent
        return f"{base}^{{{power}}}" if base.isalnum() else f"{{{{}}{base}}}^{{{power}}}"

    def fraction(self, above: str, below: str) -> str:
        """A fraction."""
        return f"\\frac{{{above}}}{{{below}}}"

    def sigma(self, index: str, body: str) -> str:
        """A sum."""
        return f"\\sum_{{{index}}} {body}" if index else f"\\sum {body}"

    def bracket(self, body: str, pair: str = "()") -> str:
        """Brackets that lines can be broken inside of; larger ones around fractions."""
        left, right = (r"\bigl", r"\bigr") if "frac" in body else ("", "")
        return f"{left}{pair[0]}{body}{right}{pair[1]}"

    def symbol(self, text: str) -> str:
        """An operator."""
        return {"∂": r"\partial ", "−": "-", "⋯": r"\cdots ", "⊗": r"\otimes "}.get(text, text)


def _mi(text: str) -> str:
    upright = ' mathvariant="normal"' if len(text) == 1 and text in "∂" else ""
    return f"<mi{upright}>{html.escape(text)}</mi>"


@dataclass(frozen=True)
class MathStyle:
    """MathML, which browsers show without a script."""

    times: str = "<mo>⊙</mo>"
    dot: str = "<mspace width='0.2em'/>"

    def plain(self, name: str, lag: str, entry: str) -> str:
        """A step is a superscript in brackets, an entry a subscript."""
        head, tail, star = name_parts(name)
        below = ",".join(filter(None, (tail, entry)))
        above = star + (f"({lag})" if lag else "")
        letter = _mi(_LETTERS.get(head, head))
        if below and above:
            return f"<msubsup>{letter}<mtext>{html.escape(below)}</mtext><mtext>{above}</mtext></msubsup>"
        if below:
            return f"<msub>{letter}<mtext>{html.escape(below)}</mtext></msub>"
        return f"<msup>{letter}<mtext>{above}</mtext></msup>" if above else letter

    def marked(self, mark: str, below: str, entry: str) -> str:
        """A mark with a subscript."""
        sign, _, lag = mark.partition("[")
        letter = "<mover><mi>M</mi><mo>¯</mo></mover>" if sign == "M̄" else _mi(sign)
        above = f"<mtext>({lag.rstrip(']')})</mtext>" if lag else ""
        if not below:
            below, entry = f"<mtext>{entry}</mtext>" if entry else "", ""
        if above and below:
            base = f"<msubsup>{letter}<mrow>{below}</mrow>{above}</msubsup>"
        elif above:
            base = f"<msup>{letter}{above}</msup>"
        else:
            base = f"<msub>{letter}<mrow>{below}</mrow></msub>" if below else letter
        return f"<msub>{self.bracket(base)}<mtext>{entry}</mtext></msub>" if entry else base

    def word(self, text: str) -> str:
        """An identifier."""
        return _mi(text)

    def sub(self, base: str, entry: str) -> str:
        """A subscript."""
        return f"<msub><mrow>{base}</mrow><mtext>{entry}</mtext></msub>"

    def sup(self, base: str, exponent: str) -> str:
        """A superscript."""
        return f"<msup><mrow>{base}</mrow><mtext>{'⊤' if exponent == 'T' else exponent}</mtext></msup>"

    def fraction(self, above: str, below: str) -> str:
        """A fraction."""
        return f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"

    def sigma(self, index: str, body: str) -> str:
        """A sum."""
        sign = f"<munder><mo>∑</mo><mi>{index}</mi></munder>" if index else "<mo>∑</mo>"
        return f"{sign}{body}"

    def bracket(self, body: str, pair: str = "()") -> str:
        """Brackets as high as a line; around fractions they grow."""
        grow = "" if "<mfrac>" in body else ' stretchy="false"'
        return f"<mrow><mo{grow}>{pair[0]}</mo>{body}<mo{grow}>{pair[1]}</mo></mrow>"

    def symbol(self, text: str) -> str:
        """An operator."""
        return f"<mo>{html.escape(text)}</mo>" if text.strip() and text != "∂" else _mi(text) if text == "∂" else text


TEXT, LATEX, MATH = TextStyle(), LatexStyle(), MathStyle()
Style = TextStyle | LatexStyle | MathStyle
"""One of them; all have the same methods."""
