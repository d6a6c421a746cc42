"""The lexical level of the equation language: names, functions and tokens.

The scan precedes Python's parser and leaves nothing that it could fail on: brackets are balanced and at most
`MAX_BRACKETS` deep, numbers are finite, operands and operators alternate, and there is no keyword, string or comment.
"""

from __future__ import annotations

import keyword
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bpcli.errors import Collector, Place

FUNCTIONS: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("tanh", "sigmoid", "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs", "erf"), 1)
    | dict.fromkeys(("sum", "mean", "logsumexp", "softmax", "log_softmax", "stop_gradient", "step"), 1)
    | dict.fromkeys(("leaky_relu", "dot", "cross_entropy", "concat", "max", "min"), 2)
    | {"clip": 3}
)
"""The functions of the language with their numbers of arguments."""
VARIADIC = ("concat",)
"""Functions that take more arguments too."""
OPTIONAL: Mapping[str, int] = MappingProxyType({"step": 2})
"""Functions with arguments that may be left out, with the most that they take."""
_MASK = "a mask is an input, or a parameter with trainable = false, that multiplies: `m * v`"
_ONE_HOT = "for a row chosen by data, write `E.T @ onehot` with the one-hot vector as an input"
IDIOMS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("silu", "swish"), "write `v * sigmoid(v)`")
    | dict.fromkeys(("detach", "stop_grad", "stopgrad", "no_grad"), "write `stop_gradient(v)`")
    | dict.fromkeys(("maximum", "minimum"), "write `max(u, v)` or `min(u, v)`")
    | dict.fromkeys(("embedding", "embed", "lookup", "gather", "take", "onehot", "one_hot"), _ONE_HOT)
    | dict.fromkeys(("mask", "dropout"), _MASK)
    | dict.fromkeys(("logistic", "expit"), "write `sigmoid(v)`")
    | dict.fromkeys(("layernorm", "layer_norm"), "write `(v - mean(v)) / sqrt(mean((v - mean(v))**2) + 1e-5)`")
    | {
        "gelu": "write `0.5 * v * (1 + erf(v / sqrt(2)))`",
        "elu": "write `relu(v) + exp(min(v, 0)) - 1`",
        "mish": "write `v * tanh(softplus(v))`",
        "softsign": "write `v / (1 + abs(v))`",
        "hardtanh": "write `clip(v, -1, 1)`",
        "relu6": "write `clip(v, 0, 6)`",
        "clamp": "write `clip(v, lo, hi)`",
        **dict.fromkeys(("heaviside", "spike", "sign"), "write `step(v)`, or `step(v, k)` with a surrogate slope"),
        "where": f"there are no conditions; {_MASK}, as in `m * u + (1 - m) * v`",
        "norm": "write `sqrt(dot(v, v))`",
        "square": "write `v**2`",
        "pow": "write `v**2`",
        "ln": "write `log(v)`",
        "log1p": "write `log(1 + v)`",
        "expm1": "write `exp(v) - 1`",
        "matmul": "write `W @ v`",
        "transpose": "write `W.T`",
        "mse": "write `mean((y - y_star)**2)`",
    }
)
"""For names of functions that other languages have, how to write them in this one."""
TIME = "t"
"""The step index."""


def canonical(name: str) -> str:
    """`name` as Python's parser reads an identifier: in Unicode's normal form KC."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def reserved(name: str) -> str:
    """The meaning that `name` has in the language already, or "" where it is free."""
    if name == TIME:
        return "the step index"
    if name in FUNCTIONS:
        return "a function of the language"
    return "a keyword of Python" if keyword.iskeyword(name) else ""


MAX_CHARACTERS = 10_000
MAX_BRACKETS = 100
CONTENTS = "an equation has numbers, names, + - * / ** @ .T, calls, slices and parentheses"
Locate = Callable[[int, int], Place]
"""The place of the characters `start` to before `end` of an equation."""

_NUMBER = re.compile(r"(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?")
_OPERATOR = re.compile(r"\*\*|//|[-+*/@()\[\],:.]")
_COMPOUND = re.compile(r"[-+*/@%&|^]=|//=|\*\*=|<<=?|>>=?|[=!<>:]=|->|&&|\|\|")
_NO_BRANCHES = "there are no {}; max, min, clip, relu, leaky_relu and abs have kinks"
_ALIEN_HELP = {
    "^": "a power is written with **, a transpose W.T",
    "²": "a power is written with **2",
    "³": "a power is written with **3",
    "×": "a product is written with *",
    "·": "a product is written with * or dot(u, v)",
    "−": "write the ASCII minus sign, -",
    "%": "the operators are + - * / ** @",
    "=": "write only what is to the right of the equals sign; arguments have no names",
    "#": "a comment goes after the closing quote of the equation",
    "\\": "a line may break anywhere in a multi-line string, without a backslash",
    ";": "one equation a line",
    "{": "group with parentheses; the value one step earlier is written a[t-1]",
    "⊙": "a product entry by entry is written with *",
    "∘": "a product entry by entry is written with *",
    **dict.fromkeys(("==", "!=", "<=", ">=", "<", ">"), _NO_BRANCHES.format("comparisons")),
}
_KEYWORD_HELP = {
    **dict.fromkeys(("if", "else"), _NO_BRANCHES.format("conditions")),
    "for": "there are no loops; the network's own loop is over t",
    "import": "a spec can't run code",
}


@dataclass(frozen=True)
class Token:
    """`text` is as written; `start` and `end` are offsets in the equation."""

    kind: Literal["number", "name", "operator"]
    text: str
    start: int
    end: int


def scan(text: str, locate: Locate, collector: Collector) -> list[Token] | None:
    """The tokens of an equation, or None where something was refused."""
    if len(text) > MAX_CHARACTERS:
        what = f"an equation of {len(text)} characters; the limit is {MAX_CHARACTERS}"
        collector.add("equation-too-long", what, locate(0, 1), help="split it into several equations")
        return None
    scanner = _Scanner(text, locate, collector)
    scanner.run()
    if not scanner.refused:
        _Alternation(scanner).run()
    return None if scanner.refused else scanner.tokens


class _Scanner:
    """The tokens found so far; a character outside the language is refused, and the scan goes on after it."""

    def __init__(self, text: str, locate: Locate, collector: Collector) -> None:
        self.text = text
        self.locate = locate
        self.collector = collector
        self.tokens: list[Token] = []
        self.refused = False

    def refuse(self, code: str, what: str, start: int, end: int, remedy: str) -> None:
        self.refused = True
        self.collector.add(code, what, self.locate(start, end), help=remedy)

    def run(self) -> None:
        at = 0
        while at < len(self.text):
            character = self.text[at]
            if character in " \t\n\r\f\v":
                at += 1
            elif match := _NUMBER.match(self.text, at):
                at = self.number(match[0], at)
            elif character.isidentifier():
                at = self.name(at)
            elif not _COMPOUND.match(self.text, at) and (match := _OPERATOR.match(self.text, at)):
                self.tokens.append(Token("operator", match[0], at, match.end()))
                at = match.end()
            else:
                at = self.alien(at)

    def number(self, digits: str, at: int) -> int:
        end = at + len(digits)
        plain = digits.replace("_", "")
        if re.fullmatch("0[0-9]+", plain) and plain.strip("0"):
            self.refuse("bad-number", f"{digits} has a leading zero", at, end, "numbers are decimal: leave it out")
        elif "__" in digits or re.search(r"_(?![0-9])|(?<![0-9])_", digits):
            self.refuse("bad-number", f"{digits} is not a number", at, end, "leave out the underscores")
        elif not math.isfinite(float(plain)):
            what = f"{digits if len(digits) < 20 else 'this number'} is not finite in float64"
            self.refuse("not-finite", what, at, end, "write a finite number")
        self.tokens.append(Token("number", digits, at, end))
        return end

    def name(self, at: int) -> int:
        end = at + 1
        while end < len(self.text) and ("a" + self.text[end]).isidentifier():
            end += 1
        word = self.text[at:end]
        if keyword.iskeyword(word):
            remedy = _KEYWORD_HELP.get(word, f'use another name, such as "{word}_"')
            self.refuse("not-in-language", f'"{word}" is a keyword of Python and no name', at, end, remedy)
        self.tokens.append(Token("name", word, at, end))
        return end

    def alien(self, at: int) -> int:
        match = _COMPOUND.match(self.text, at)
        token = match[0] if match else self.text[at]
        if token in ("'", '"'):
            remedy = "write names without quotes, and a transpose as W.T"
            self.refuse("not-in-language", "an equation has no strings", at, at + 1, remedy)
            return len(self.text)
        what = f'"{token}" is not part of the equation language'
        self.refuse("not-in-language", what, at, at + len(token), _ALIEN_HELP.get(token, CONTENTS))
        return len(self.text) if token in "#{" else at + len(token)


class _Alternation:
    """Checks that operands and operators alternate and that brackets match."""

    def __init__(self, scanner: _Scanner) -> None:
        self.scanner = scanner
        self.open: list[Token] = []
        self.before: Token | None = None
        self.operand_due = True

    def run(self) -> None:
        tokens = self.scanner.tokens
        for token in tokens:
            self.step(token)
            if self.scanner.refused:
                return
            self.before = token
        if not tokens:
            self.scanner.refuse("empty-equation", "an equation is empty", 0, 1, "write an expression")
        elif self.open:
            self.refuse(self.open[-1], f'"{self.open[-1].text}" is never closed', "close it")
        elif self.operand_due:
            self.refuse(tokens[-1], f'nothing follows "{tokens[-1].text}"', "write an operand after it")

    def refuse(self, token: Token, what: str, remedy: str, code: str = "equation-syntax") -> None:
        self.scanner.refuse(code, what, token.start, token.end, remedy)

    def step(self, token: Token) -> None:
        if token.kind != "operator":
            if not self.operand_due:
                what = f'an operator is missing before "{token.text[:40]}"'
                self.refuse(token, what, "a product is written W @ v, or u * v entry by entry")
            self.operand_due = False
        elif token.text in "([":
            self.opening(token)
        elif token.text in ")]":
            self.closing(token)
        else:
            self.operator(token)

    def opening(self, token: Token) -> None:
        if token.text == "[" and self.operand_due:
            remedy = 'give the numbers as a param with "value"'
            self.refuse(token, "an equation has no lists", remedy, "not-in-language")
        self.open.append(token)
        self.operand_due = True
        if len(self.open) > MAX_BRACKETS:
            what = f"brackets are nested more than {MAX_BRACKETS} deep"
            self.refuse(token, what, "split it into several equations", "too-deep")

    def closing(self, token: Token) -> None:
        partner = {")": "(", "]": "["}[token.text]
        if not self.open or self.open[-1].text != partner:
            self.refuse(token, f'"{token.text}" closes nothing', f'leave it out, or open it with "{partner}"')
            return
        if self.operand_due and self.before and self.before.text not in "(:":
            self.refuse(token, f'there is nothing between "{self.before.text}" and "{token.text}"', "write an operand")
        self.open.pop()
        self.operand_due = False

    def operator(self, token: Token) -> None:
        in_brackets = bool(self.open) and self.open[-1].text == "["
        if token.text == ":" and not in_brackets:
            self.refuse(token, '":" outside a slice', "slices are written v[start:stop]", "not-in-language")
        elif self.operand_due and token.text == "," and in_brackets:
            self.refuse(token, "a slice has one range", "slices are of vectors, v[start:stop]", "not-in-language")
        elif self.operand_due and token.text == "+":
            self.refuse(token, "there is no unary plus", "leave it out", "not-in-language")
        elif self.operand_due and token.text in ("*", "**") and self.before and self.before.text in "(,":
            self.refuse(token, "arguments are not unpacked", "write them one by one", "not-in-language")
        elif self.operand_due and token.text not in "-:":
            self.refuse(token, f'there is nothing before "{token.text}"', "write an operand before it")
        self.operand_due = True
