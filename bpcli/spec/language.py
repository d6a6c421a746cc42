"""The words of the equation language: its functions with their arities, and the names that nothing may be given."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Arity:
    """How many arguments a function takes; `most` is None where there is no upper bound."""

    least: int
    most: int | None

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least} or more arguments"
        return f"{self.least} argument{'' if self.least == 1 else 's'}"


_ONE, _TWO = Arity(1, 1), Arity(2, 2)

ELEMENTWISE = ("tanh", "sigmoid", "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs")
FUNCTIONS: Mapping[str, Arity] = MappingProxyType(
    dict.fromkeys(ELEMENTWISE, _ONE)
    | dict.fromkeys(("sum", "mean", "logsumexp", "softmax", "log_softmax"), _ONE)
    | dict.fromkeys(("leaky_relu", "dot", "cross_entropy"), _TWO)
    | {"concat": Arity(2, None)}
)
TIME = "t"


def canonical(name: str) -> str:
    """`name` as Python's parser reads an identifier: in Unicode's normal form KC."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def reserved(name: str) -> str:
    """Why nothing may be called `name`, or "" where it may."""
    if name == TIME:
        return "the step index"
    if name in FUNCTIONS:
        return "a function of the language"
    if keyword.iskeyword(name):
        return "a keyword of Python"
    return ""
