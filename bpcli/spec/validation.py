"""pydantic's errors in our own words, each at its place.

Tables to a validated document; what is refused is cut out, so that the rest can still be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bpcli.errors import nearest, printable
from bpcli.spec import schema
from bpcli.spec.context import Context
from bpcli.spec.schema import Document
from bpcli.spec.toml import KeyPath

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


ARRAYS: Mapping[str, type[schema.Input | schema.Param | schema.State]] = {
    "inputs": schema.Input,
    "params": schema.Param,
    "state": schema.State,
}
DECLARING = ("dims", "constants", "equations", *ARRAYS)
_NUMBER = "a finite number"
_SIZE = "an integer from 1 to 2**40"
_TEXT = "a non-empty string"
_ENTRY = f"{_SIZE}, or a string with an integer expression of dims"
_METHODS = ("a non-empty list of methods, strings", '["bptt"]')
_FORMS: Mapping[KeyPath, tuple[str, str]] = {
    ("bp",): ("the integer 1", "1"),
    ("title",): ("a string", '"A network"'),
    ("description",): ("a string", '"What it is for"'),
    ("dtype",): ("a string", '"float32"'),
    ("dims", "*"): (_SIZE, "32"),
    ("constants", "*"): (_NUMBER, "0.5"),
    ("equations", "*"): ("a string, an equation", '"tanh(h)"'),
    ("*", "*"): (f"a shape ({schema.SHAPE}) or a table with one", "[4]"),
    ("*", "*", "shape"): (schema.SHAPE, "[4]"),
    ("*", "*", "shape", "*"): (_ENTRY, "[4]"),
    ("*", "*", "scale"): (_NUMBER, "0.1"),
    ("*", "*", "init"): ("a string, the name of an init", '"normal"'),
    ("*", "*", "trainable"): ("true or false", "false"),
    ("*", "*", "density"): ("a number above 0 and at most 1", "0.1"),
    ("objective", "*"): (_TEXT, '"loss"'),
    ("weights", "file"): (_TEXT, '"weights.npz"'),
    ("weights", "map"): ("a table of our name = name in the file", '{ W = "name in the file" }'),
    ("weights", "map", "*"): (_TEXT, '"name in the file"'),
    ("data", "*"): (_TEXT, '"x"'),
    ("data", "task"): (_TEXT, '"random"'),
    ("data", "file"): (_TEXT, '"data.npz"'),
    ("data", "values"): ("a table of input = numbers", "{ x = 1.0 }"),
    ("data", "T"): (_SIZE, "20"),
    ("data", "batch"): (_SIZE, "4"),
    ("data", "seed"): ("an integer from 0 to 2**63 - 1", "0"),
    ("check", "methods"): _METHODS,
    ("check", "wrt"): ("a non-empty list of params, inputs, state", '["params"]'),
    ("bench", "methods"): _METHODS,
    ("bench", "grid"): ("a table of lists", "{ n = [16, 32] }"),
    ("bench", "grid", "*"): ("a non-empty list of numbers or strings", "[16, 32]"),
    ("kernel", "*"): ("a table with file, and function where it has another name", '{ file = "kernel.py" }'),
    ("kernel", "*", "file"): (_TEXT, '"kernel.py"'),
    ("kernel", "*", "function"): (_TEXT, '"gradient"'),
    **{(group, "*", "*"): (_ENTRY, "[4]") for group in ARRAYS},
    ("*", "methods", "*"): (_TEXT, '["bptt"]'),
    ("*", "wrt", "*"): (_TEXT, '["params"]'),
}
"""Of each key, by its path ("*": any): what its value must be, in words, and an example."""
_BELOW: Mapping[str, str] = {
    "dims": "n = 32",
    "constants": "alpha = 0.5",
    "inputs": "x = [2]",
    "params": "W = [4, 2]",
    "state": "a = [4]",
    "equations": 'loss = "sum(W @ x)"',
    "objective": 'loss = "loss"',
    "weights": 'file = "weights.npz"',
    "data": "batch = 4",
    "check": 'methods = ["bptt"]',
    "bench": 'methods = ["bptt"]',
}
"""A line of each table."""
_ALIKE = 0.8
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def complain(errors: Iterable[ErrorDetails], raw: Mapping[str, Any], context: Context) -> list[tuple[KeyPath, str]]:
    """Note every error once; returns the path and pydantic's type of each."""
    found: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        path = _path(error, raw)
        # Of the alternatives of a union, the one that fits the type says most.
        if path not in found or found[path]["type"].endswith("_type"):
            found[path] = error
    meant = misspelt(raw)
    for path, error in found.items():
        if not context.full and not (len(path) == 1 and path[0] in meant):
            _complain(path, error, context)
    return [(path, error["type"]) for path, error in found.items()]


def misspelt(raw: Mapping[str, Any]) -> set[str]:
    """The tables of declarations that are absent and meant, all but a letter or two, by an unknown key."""
    known = schema.Document.model_fields
    unknown = [key for key, value in raw.items() if key not in known and isinstance(value, dict)]
    absent = [name for name in DECLARING if name not in raw]
    return {name for name in absent if get_close_matches(name, unknown, n=1, cutoff=_ALIKE)}


def describe(value: object) -> str:
    """A value in a few words, fit for any size and type."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) < 10**20 else "an integer of more than 20 digits"
        case float():
            return repr(value)
        case str():
            return f'the string "{printable(value, 40)}"'
        case list():
            return "an array" if value else "an empty array"
        case dict():
            return "a table"
    return "a date or time"


def _path(error: ErrorDetails, raw: Any) -> KeyPath:
    """The key path of an error, without what pydantic adds: union members, and "shape" of the short form."""
    path: KeyPath = ()
    for part in error["loc"]:
        in_list = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if in_list or (isinstance(raw, dict) and part in raw):
            raw = raw[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        path = (*path, str(part))
    return path


def _complain(path: KeyPath, error: ErrorDetails, context: Context) -> None:
    kind, value, name = error["type"], error["input"], printable(".".join(path))
    if kind == "missing":
        _missing(path, context)
    elif kind == "extra_forbidden":
        _unknown_key(path, context)
    elif path == ("bp",) and kind in _RANGES:
        context.refuse("unknown-version", f"version {describe(value)} of the format is unknown", path, "write bp = 1")
    elif kind == "literal_error" and isinstance(value, str):
        known = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        what = f'unknown {printable(path[-1])} "{printable(value)}"'
        context.refuse("unknown-value", what, path, nearest(value, known))
    elif kind == "finite_number" or (kind == "float_type" and _is_huge(value)):
        context.refuse("not-finite", f"{name} must be finite in float64", path, "write a finite number")
    else:
        code = "out-of-range" if kind in (*_RANGES, "too_short", "string_too_short") else "wrong-type"
        what = f"{name} must be {_expected(path)}, not {describe(value)}"
        context.refuse(code, what, path, _remedy(path, value))


def _is_huge(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and not math.isfinite(value))


def _remedy(path: KeyPath, value: object) -> str:
    """An example; and the quotes that are missing or too many."""
    expected, example = _form(path)
    if path[0] == "equations" and isinstance(value, int | float) and not isinstance(value, bool):
        return "equations are strings, numbers too: put it in quotes"
    if isinstance(value, str) and value and expected in (_NUMBER, _SIZE, _FORMS["bp",][0], _FORMS["data", "seed"][0]):
        return f"numbers have no quotes; {_example(path, example)}"
    return _example(path, example)


def _example(path: KeyPath, example: str) -> str:
    if len(path) == 1 and path not in _FORMS:
        header = "kernel.NAME" if path[0] == "kernel" else path[0]
        return f"write [{header}] on a line of its own, and {_BELOW.get(path[0], example)} below it"
    key = next(part for part in reversed(path) if not part.isdecimal())
    return f"write {printable(key, 60)} = {example}, for example"


def _expected(path: KeyPath) -> str:
    return _form(path)[0]


def _form(path: KeyPath) -> tuple[str, str]:
    """What the value of a key must be, and an example."""
    if len(path) == 1 and path not in _FORMS:
        return "a table", 'file = "kernel.py"'
    if len(path) == 2 and path[0] not in ARRAYS and path not in _FORMS:
        return _FORMS[path[0], "*"]
    for pattern, form in sorted(_FORMS.items(), key=lambda item: item[0].count("*")):
        if len(pattern) == len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=True)):
            return form
    return "of another type", "[4]"


def _missing(path: KeyPath, context: Context) -> None:
    *table, key = path
    header = context.outline.headers.get(tuple(table))
    place = context.text.place(*header) if header else context.source.key(*table)
    remedies = {"bp": "write bp = 1 at the top", "equations": "write [equations], one equation a line, one called loss"}
    inside = f" in {printable('.'.join(table))}" if table else ""
    what = f'the {"table" if key == "equations" else "key"} "{key}" is missing{inside}'
    context.collector.add("missing-key", what, place, help=remedies.get(key, f"write {key} = …"))


def _unknown_key(path: KeyPath, context: Context) -> None:
    *table, key = path
    models: dict[str, Any] = {name: f.annotation for name, f in schema.Document.model_fields.items()}
    model: Any = schema.Document
    if table:
        model = ARRAYS.get(table[0]) or models[table[0]]
        model = {"weights": schema.Weights, "kernel": schema.Kernel}.get(table[0], model)
    remedy = nearest(key, model.model_fields)
    if model is schema.Input:
        remedy = "an input has a shape alone; its numbers come from [data]"
    where = f"[{printable('.'.join(table))}]" if table else "a spec"
    context.refuse_key("unknown-key", f'unknown key "{printable(key)}" in {where}', path, remedy)


_ROUNDS = 3


def validate(raw: dict[str, Any], context: Context) -> tuple[Document, list[KeyPath]] | None:
    """The document and the paths of the declarations cut out of it; None where too little is left.

    `raw` is changed.
    """
    cut: list[KeyPath] = []
    for _ in range(_ROUNDS):
        try:
            return Document.model_validate(raw), cut
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=True)
        lost = misspelt(raw)
        for path, kind in complain(errors, raw, context):
            if len(path) == 1 and (path[0] in DECLARING) and kind != "missing":
                return None
            if path == ("bp",) and kind != "missing":
                return None
            _cut(raw, path, kind, cut)
        if lost:  # every name that is declared there would seem unknown
            return None
    return None


def _cut(raw: dict[str, Any], path: KeyPath, kind: str, cut: list[KeyPath]) -> None:
    """Take what `path` names out of `raw`: a key where that leaves a declaration with a shape, else all of it."""
    if path in (("bp",), ("equations",)):
        raw[path[0]] = 1 if path == ("bp",) else {}
    elif len(path) == 1:
        raw.pop(path[0], None)
    elif path[0] in DECLARING:
        table = raw[path[0]]
        declaration = table.get(path[1])
        if len(path) > 2 and isinstance(declaration, dict) and path[2] != "shape":
            declaration.pop(path[2], None)
        else:
            table.pop(path[1], None)
            if path[:2] not in cut:
                cut.append(path[:2])
    elif kind == "missing" or path[0] == "kernel" or path == ("weights", "file"):
        raw.pop(path[0], None)
    elif path[0] in raw:  # an earlier error may have taken the table
        raw[path[0]].pop(path[1], None)
