"""Chains of one precedence, `a + b - c + …` and `a * b / c * …`: read without recursion, and kept shallow.

A sum of a thousand terms is not deep to its reader, so it must not become a tree a thousand deep.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from bpcli.errors import Place
from bpcli.spec.model import Binary, Expr

MAX_NESTING = 100
MAX_DEPTH = 200
STRAIGHT = 16
_CHAINS = ((ast.Add, ast.Sub), (ast.Mult, ast.Div))
_INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


@dataclass(frozen=True)
class Term:
    """One operand of a chain, with the operator before it ("" for the first)."""

    op: str
    operand: Expr
    place: Place


def spine(node: ast.BinOp) -> list[ast.BinOp]:
    """The operations of the chain that ends in `node`, first to last; `node` alone where it is no chain."""
    kinds = next((kinds for kinds in _CHAINS if isinstance(node.op, kinds)), None)
    found = [node]
    while kinds and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, kinds):
        node = node.left
        found.append(node)
    return found[::-1]


def too_deep(tree: ast.expr) -> ast.expr | None:
    """The node where `tree` exceeds the limits; without one, recursion over it and what it becomes is safe.

    At most `MAX_NESTING` calls, subscripts, powers and signs stand in each other, and all expressions are at most
    `MAX_DEPTH` deep.
    """
    stack: list[tuple[ast.expr, int, int]] = [(tree, 0, 0)]
    while stack:
        node, level, nesting = stack.pop()
        if level > MAX_DEPTH or nesting > MAX_NESTING:
            return node
        if isinstance(node, ast.BinOp):
            operations = spine(node)
            power = isinstance(node.op, ast.Pow)
            operands = [operations[0].left, *(operation.right for operation in operations)]
            stack += [(o, level + _depth(len(operations), i), nesting + power) for i, o in enumerate(operands)]
        else:
            children = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
            stack += [(child, level + 1, nesting + 1) for child in children]
    return None


def _depth(count: int, index: int) -> int:
    """How deep operand `index` of a chain of `count` operations lies in what `joined` makes of it."""
    if count > STRAIGHT:
        return count.bit_length() + 1
    return count - max(index - 1, 0)


def joined(terms: list[Term]) -> Expr:
    """The chain as one expression: grouped from the left, or where it is long in halves (a - b + c = a - (b - c))."""
    if len(terms) - 1 > STRAIGHT:
        return _halved(terms)
    total = terms[0].operand
    for term in terms[1:]:
        total = Binary(term.op, total, term.operand, term.place)
    return total


def _halved(terms: list[Term]) -> Expr:
    if len(terms) == 1:
        return terms[0].operand
    middle = len(terms) // 2
    left, first, right = terms[:middle], terms[middle], terms[middle:]
    if first.op in "-/":
        right = [Term(_INVERSE[term.op], term.operand, term.place) for term in right]
    return Binary(first.op, _halved(left), _halved(right), first.place)
