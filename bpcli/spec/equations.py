"""Equation text to `Expr`, by Python's `ast` and a whitelist of its nodes; nothing is ever evaluated as Python.

A chain of one precedence, such as a sum of a thousand terms, is read without recursion and grouped into a shallow tree,
so that the depth of an expression is that which its reader sees. Integer expressions over dims, as in shapes and the
bounds of slices, have a value at once.
"""

from __future__ import annotations

import ast
import sys
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from bpcli.errors import Collector, Place, nearest
from bpcli.spec.language import (
    CONTENTS,
    FUNCTIONS,
    IDIOMS,
    MAX_CHARACTERS,
    OPTIONAL,
    TIME,
    VARIADIC,
    Locate,
    Token,
    canonical,
    scan,
)
from bpcli.spec.specification import Binary, Call, Expr, Item, Negate, Number, Ref, Slice, Transpose

MAX_NESTING = 100
MAX_DEPTH = 200
STRAIGHT = 16
"""Operations of the longest chain that is grouped from the left."""
_MAX_INTEGER = 1 << 62
_INTEGER_OPERATORS = ("+", "-", "*", "//")
_CONVOLUTIONS = ("conv", "conv1d", "conv2d", "convolve", "convolution")
_CHAINS = ((ast.Add, ast.Sub), (ast.Mult, ast.Div))
_INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


def parse(text: str, locate: Locate, collector: Collector, grammar: Literal["real", "integer"] = "real") -> Expr | None:
    """The expression that `text` writes, or None where something was refused.

    `locate(start, end)` is the place of the characters `start` to before `end`. The grammar "integer" has
    `+ - * //`, integers, names and parentheses.
    """
    tokens = scan(text, locate, collector)
    if tokens is None:
        return None
    # White space has no meaning here; on one line, a column of `ast` is an offset.
    source = "(" + "".join(" " if c in "\t\n\r\f\v" else c for c in text) + ")"
    reader = _Reader(tokens, source, locate, collector)
    try:
        tree = _tree(source)
    except SyntaxError as error:
        at = min(max((error.offset or 1) - 2, 0), len(text) - 1)
        what = "the equation can't be read from here on"
        collector.add("equation-syntax", what, locate(at, at + 1), help=CONTENTS)
        return None
    except (RecursionError, MemoryError):
        reader.too_deep(tokens[0])
        return None
    if deep := _too_deep(tree):
        reader.too_deep(reader.first(deep))
        return None
    expression = reader.real(tree) if grammar == "real" else reader.integer(tree)
    return None if reader.refused else expression


def _tree(source: str) -> ast.expr:
    """Python's tree of `source`, in which a sum of thousands of terms is thousands deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, MAX_CHARACTERS))
    try:
        return ast.parse(source, mode="eval").body
    finally:
        sys.setrecursionlimit(limit)


class _Reader:
    """From `ast` nodes to expressions; a refused part becomes a zero, so that the rest is checked too."""

    def __init__(self, tokens: list[Token], source: str, locate: Locate, collector: Collector) -> None:
        self.tokens = tokens
        self.starts = [token.start for token in tokens]
        self.locate = locate
        self.collector = collector
        self.refused = False
        # ast counts columns in bytes of UTF-8, and the opening parenthesis is not part of the text.
        self.columns: list[int] | None = None
        if not source.isascii():
            self.columns = [at - 1 for at, c in enumerate(source) for _ in c.encode("utf-8")] + [len(source) - 1]

    def index(self, column: int | None) -> int:
        """The index of the first token at or after a column."""
        column = column or 0
        return bisect_left(self.starts, self.columns[column] if self.columns else column - 1)

    def first(self, node: ast.expr) -> Token:
        """The first token of `node`."""
        return self.tokens[self.index(node.col_offset)]

    def after(self, node: ast.expr) -> Token:
        """The first token after `node` and the parentheses that close around it."""
        index = self.index(node.end_col_offset)
        while self.tokens[index].text == ")":
            index += 1
        return self.tokens[index]

    def place(self, token: Token) -> Place:
        return self.locate(token.start, token.end)

    def refuse(self, code: str, what: str, token: Token, remedy: str) -> Expr:
        self.refused = True
        self.collector.add(code, what, self.place(token), help=remedy)
        return Number(0, self.place(token))

    def too_deep(self, token: Token) -> None:
        what = f"an equation is nested more than {MAX_NESTING} deep"
        self.refuse("too-deep", what, token, "split it into several equations")

    def real(self, node: ast.expr) -> Expr:
        """An expression of real numbers and arrays."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return Number(value, self.place(self.first(node)))
            case ast.Name():
                return self.name(node, 0)
            case ast.UnaryOp(op=ast.USub()):
                return Negate(self.real(node.operand), self.place(self.first(node)))
            case ast.BinOp():
                return self.chain(node, integers=False)
            case ast.Attribute():
                return self.transpose(node)
            case ast.Call():
                return self.call(node)
            case ast.Subscript():
                return self.subscript(node)
        return self.alien(node)

    def alien(self, node: ast.expr) -> Expr:
        what, remedy = "this is not part of the equation language", CONTENTS
        if isinstance(node, ast.Tuple):
            what, remedy = "a comma outside a call", "join vectors with concat(u, v)"
        elif isinstance(node, ast.Slice):
            what, remedy = "a slice where a number is expected", "slices are written v[start:stop]"
        return self.refuse("not-in-language", what, self.first(node), remedy)

    def name(self, node: ast.Name, lag: int) -> Expr:
        token = self.first(node)
        name = canonical(token.text)
        if name == TIME:
            what = "the step index t can't be used as a value: a known limit of version 1"
            return self.refuse("known-limit", what, token, "give the step index as an input")
        if name in FUNCTIONS:
            return self.refuse("not-a-value", f'"{name}" is a function', token, f"call it: {name}(…)")
        return Ref(name, lag, self.place(token))

    def chain(self, node: ast.BinOp, integers: bool) -> Expr:
        """A chain of operations, of integer expressions or of real ones."""
        read = self.integer if integers else self.real
        operations = _operations(node)
        first = operations[0].left
        terms = [_Term("", read(first), self.place(self.first(first)))]
        for operation in operations:
            token = self.after(operation.left)
            if integers and token.text not in _INTEGER_OPERATORS:
                remedy = "integers are divided with //" if token.text == "/" else "use + - * //"
                self.refuse("not-whole", f'"{token.text}" is not for integer expressions', token, remedy)
            elif token.text == "//" and not integers:
                remedy = "divide with /; // is for shapes and the bounds of slices"
                self.refuse("not-in-language", '"//" is not part of the equation language', token, remedy)
            terms.append(_Term(token.text, read(operation.right), self.place(token)))
        return _joined(terms)

    def transpose(self, node: ast.Attribute) -> Expr:
        token = self.tokens[self.index(node.end_col_offset) - 1]
        if node.attr != "T":
            what = f'".{token.text}" is not part of the equation language'
            return self.refuse("not-in-language", what, token, "the only attribute is .T, the transpose")
        return Transpose(self.real(node.value), self.place(token))

    def call(self, node: ast.Call) -> Expr:
        token = self.first(node.func)
        if isinstance(node.func, ast.Attribute):
            called = self.tokens[self.index(node.func.end_col_offset) - 1]
            known = canonical(called.text) in FUNCTIONS
            remedy = f"write {called.text}(…)" if known else "functions are called by their bare name"
            return self.refuse("not-in-language", f'".{called.text}" can\'t be called', called, remedy)
        if not isinstance(node.func, ast.Name):
            return self.refuse("not-in-language", "only functions can be called", token, "a product is written with *")
        name = canonical(token.text)
        if name not in FUNCTIONS and len(node.args) == 1 and _is_step(node.args[0]):
            what = f'"{name}" is called like a function of time'
            remedy = f"the value one step earlier is written {name}[t-1], with brackets, and the value now {name}"
            if isinstance(node.args[0], ast.Name):
                remedy = f"the value of this step is written {name}, or {name}[t], with brackets"
            return self.refuse("not-in-language", what, token, remedy)
        arguments = tuple(self.real(argument) for argument in node.args)
        return self.function(name, token, arguments)

    def function(self, name: str, token: Token, arguments: tuple[Expr, ...]) -> Expr:
        if name in _CONVOLUTIONS:
            what = "convolutions are a known limit of version 1"
            return self.refuse("known-limit", what, token, "write it as a product with a matrix")
        if name not in FUNCTIONS:
            remedy = nearest(name, FUNCTIONS, most=len(FUNCTIONS)) + ". A product is written with * or @"
            remedy = IDIOMS.get(name.casefold(), remedy)
            return self.refuse("unknown-function", f'unknown function "{name}"', token, remedy)
        count = FUNCTIONS[name]
        most = len(arguments) if name in VARIADIC else OPTIONAL.get(name, count)
        if not count <= len(arguments) <= most:
            wanted = f"{count} argument{'s'[: count - 1]}"
            wanted = f"{count} or more arguments" if name in VARIADIC else wanted
            wanted = f"{count} or {most} arguments" if name in OPTIONAL else wanted
            what = f"{name} takes {wanted}, not {len(arguments)}"
            remedy = "see `bp list operations`"
            if name in ("max", "min") and len(arguments) == 1:
                remedy = "it compares two values entry by entry; a smooth maximum of all entries is `logsumexp(v)`"
            return self.refuse("arity", what, token, remedy)
        return Call(name, arguments, self.place(token))

    def subscript(self, node: ast.Subscript) -> Expr:
        index = node.slice
        bracket = self.after(node.value)
        timed = next((n for n in ast.walk(index) if isinstance(n, ast.Name) and canonical(n.id) == TIME), None)
        if timed:
            return self.lagged(node, self.first(timed))
        vector = self.real(node.value)
        if isinstance(index, ast.Slice):
            if index.step is not None:
                return self.refuse("not-in-language", "slices have no step", self.first(index.step), "leave it out")
            start = self.integer(index.lower) if index.lower else None
            stop = self.integer(index.upper) if index.upper else None
            return Slice(vector, start, stop, self.place(bracket))
        if isinstance(index, ast.Tuple):
            what = "a vector has one index: only vectors can be sliced"
            return self.refuse("not-in-language", what, bracket, "write v[start:stop] or v[i]")
        return Item(vector, self.integer(index), self.place(bracket))

    def lagged(self, node: ast.Subscript, token: Token) -> Expr:
        """`name[t]` and `name[t-1]`; everything else with a t in brackets is refused."""
        if not isinstance(node.value, ast.Name):
            remedy = "put the step right after a name, as in a[t-1][1:n]"
            return self.refuse("not-in-language", "only a name has a step index", token, remedy)
        leads = token is self.first(node.slice)
        match node.slice:
            case ast.Name():
                return self.name(node.value, 0)
            case ast.BinOp(left=ast.Name(), op=ast.Sub(), right=ast.Constant(value=1)) if leads:
                return self.name(node.value, 1)
            case ast.BinOp(left=ast.Name(), op=ast.Sub()) if leads:
                what, remedy = "states older than t-1 are a known limit of version 1", "use a delay line of states"
                return self.refuse("known-limit", what, token, remedy)
        return self.refuse("not-in-language", "a step index is t or t-1", token, "write a[t-1] or a")

    def integer(self, node: ast.expr) -> Expr:
        """An integer expression: `+ - * //` of integers and names."""
        match node:
            case ast.Constant(value=int() as value):
                return Number(value, self.place(self.first(node)))
            case ast.Name():
                return self.name(node, 0)
            case ast.BinOp():
                return self.chain(node, integers=True)
            case ast.UnaryOp():
                remedy = "sizes are at least 1, and entries count from the start, from 0; a step earlier is [t-1]"
                return self.refuse("not-whole", "negative numbers are not allowed here", self.first(node), remedy)
        what, remedy = "expected an integer expression", "use + - * //, numbers and dims"
        return self.refuse("not-whole", what, self.first(node), remedy)


@dataclass(frozen=True)
class _Term:
    """An operand of a chain, with the operator before it ("" for the first)."""

    op: str
    operand: Expr
    place: Place


def _is_step(node: ast.expr) -> bool:
    """Whether an argument is t, or t plus or minus something."""
    first = node.left if isinstance(node, ast.BinOp) else node
    return isinstance(first, ast.Name) and canonical(first.id) == TIME


def _operations(node: ast.BinOp) -> list[ast.BinOp]:
    """The operations of the chain that ends in `node`, first to last; `node` alone where it is no chain."""
    kinds = next((kinds for kinds in _CHAINS if isinstance(node.op, kinds)), None)
    found = [node]
    while kinds and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, kinds):
        node = node.left
        found.append(node)
    return found[::-1]


def _too_deep(tree: ast.expr) -> ast.expr | None:
    """A node of `tree` beyond the limits on depth, within which recursion over the tree and its `Expr` is safe.

    At most `MAX_NESTING` calls, subscripts, powers and signs are nested, and expressions are at most `MAX_DEPTH` deep.
    """
    stack: list[tuple[ast.expr, int, int]] = [(tree, 0, 0)]
    while stack:
        node, level, nesting = stack.pop()
        if level > MAX_DEPTH or nesting > MAX_NESTING:
            return node
        if isinstance(node, ast.BinOp):
            operations = _operations(node)
            power = isinstance(node.op, ast.Pow)
            operands = [operations[0].left, *(operation.right for operation in operations)]
            stack += [(o, level + _depth(len(operations), i), nesting + power) for i, o in enumerate(operands)]
        else:
            children = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
            stack += [(child, level + 1, nesting + 1) for child in children]
    return None


def _depth(count: int, index: int) -> int:
    """The depth of operand `index` of a chain of `count` operations in the tree that `_joined` makes."""
    return count.bit_length() + 1 if count > STRAIGHT else count - max(index - 1, 0)


def _joined(terms: list[_Term]) -> Expr:
    """The chain as one expression, grouped from the left, or in halves where it is long: a - b + c = a - (b - c)."""
    if len(terms) - 1 > STRAIGHT:
        return _halved(terms)
    total = terms[0].operand
    for term in terms[1:]:
        total = Binary(term.op, total, term.operand, term.place)
    return total


def _halved(terms: list[_Term]) -> Expr:
    if len(terms) == 1:
        return terms[0].operand
    middle = len(terms) // 2
    left, first, right = terms[:middle], terms[middle], terms[middle:]
    if first.op in "-/":
        right = [_Term(_INVERSE[term.op], term.operand, term.place) for term in right]
    return Binary(first.op, _halved(left), _halved(right), first.place)


def evaluate(
    expression: Expr, dims: Mapping[str, int], collector: Collector, refused: Collection[str] = ()
) -> int | None:
    """The value of an expression of the grammar "integer", or None where something was refused.

    A name in `refused` gives None without a further refusal. Whether a result may be negative is for the caller.
    """
    place = expression.place
    match expression:
        case Number(value=int() as value):
            pass
        case Ref(name=name):
            if name not in dims and name not in refused:
                remedy = nearest(name, dims, "name it in [dims]")
                collector.add("unknown-name", f'unknown dim "{name}"', place, help=remedy)
            return dims.get(name)
        case Binary(op=op):
            left = evaluate(expression.left, dims, collector, refused)
            right = evaluate(expression.right, dims, collector, refused)
            if left is None or right is None:
                return None
            if op == "//" and right == 0:
                remedy = "divide by a dim or a number of at least 1"
                collector.add("out-of-range", "a division by zero", place, help=remedy)
                return None
            value = {"+": left + right, "-": left - right, "*": left * right, "//": left // (right or 1)}[op]
        case _:
            what = "expected an integer expression"
            collector.add("not-whole", what, place, help="use + - * //, numbers, dims")
            return None
    if abs(value) <= _MAX_INTEGER:
        return value
    collector.add("out-of-range", "an integer larger than any size can be", place, help="sizes are at most 2**40")
    return None
