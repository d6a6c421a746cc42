"""The tables, keys and types of a spec file as pydantic models, and pydantic's errors as refusals at their places.

Imported only where a spec is loaded, since pydantic takes longer to import than a spec to load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import ErrorDetails

from bpcli.errors import nearest, printable
from bpcli.spec.source import Context, KeyPath
from bpcli.spec.specification import MAX_SIZE


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _long_form(value: object) -> object:
    return {"shape": value} if isinstance(value, list) else value


Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Seed = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
NonEmpty = Annotated[str, Field(min_length=1)]
NonEmptyList = Annotated[list[NonEmpty], Field(min_length=1)]
Init = Literal["zeros", "ones", "identity", "orthogonal", "glorot", "normal", "uniform"]
_SHORT_FORM = BeforeValidator(_long_form)
"""`x = ["n"]` for `x = { shape = ["n"] }`."""


class Input(_Table):
    """An array that data supplies."""

    shape: list[Size | str]


class Initialised(_Table):
    """An array with an initial value. `value` is a number, a list or a list of rows, read by `declarations`."""

    shape: list[Size | str]
    init: Init | None = None
    scale: FiniteFloat | None = None
    value: Any = None


class State(Initialised):
    """An array that is carried from step to step; its declaration gives the value before the first."""

    trainable: bool = False
    per_sample: bool = False


class Param(Initialised):
    """A parameter."""

    trainable: bool = True
    density: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Literal["file"] | None = None


class Objective(_Table):
    """The loss and its reductions over steps and samples."""

    loss: NonEmpty = "loss"
    over_time: Literal["sum", "mean", "last"] = "sum"
    over_batch: Literal["mean", "sum"] = "mean"


class Weights(_Table):
    """Parameter values from a file."""

    file: NonEmpty
    prefix: str = ""
    map: dict[str, NonEmpty] = {}


class Data(_Table):
    """The source of the inputs: one of task, file and values."""

    task: NonEmpty | None = None
    file: NonEmpty | None = None
    values: dict[str, Any] | None = None
    input: NonEmpty | None = None
    target: NonEmpty | None = None
    T: Size | None = None
    batch: Size | None = None
    seed: Seed = 0


class Check(_Table):
    """Defaults of `bp check`; a list that is given is not empty."""

    methods: NonEmptyList = []
    wrt: NonEmptyList = ["params"]


class Bench(_Table):
    """Defaults of `bp bench`; a list that is given is not empty."""

    methods: NonEmptyList = []
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}


class Kernel(_Table):
    """A user's gradient function, called where it is asked for by name."""

    file: NonEmpty
    function: NonEmpty | None = None
    meant: NonEmpty | None = Field(default=None, alias="as")


class Document(_Table):
    """A whole spec file."""

    bp: Annotated[int, Field(ge=1, le=1)]
    title: str = ""
    description: str = ""
    dtype: Literal["float64", "float32"] = "float64"
    dims: dict[str, Size] = {}
    constants: dict[str, FiniteFloat] = {}
    inputs: dict[str, Annotated[Input, _SHORT_FORM]] = {}
    params: dict[str, Annotated[Param, _SHORT_FORM]] = {}
    state: dict[str, Annotated[State, _SHORT_FORM]] = {}
    equations: dict[str, str]
    objective: Objective = Objective()
    weights: Weights | None = None
    data: Data = Data()
    check: Check = Check()
    bench: Bench = Bench()
    kernel: dict[str, Kernel] = {}


ARRAYS: Mapping[str, type[Input | Param | State]] = {"inputs": Input, "params": Param, "state": State}
DECLARING = ("dims", "constants", *ARRAYS, "equations")
"""The tables that declare names."""
_ROUNDS = 3


def validate(raw: dict[str, Any], context: Context) -> tuple[Document, list[KeyPath]] | None:
    """The document, and the paths of the declarations that are refused and left out of it.

    None where too little is left to look for further errors. `raw` is changed.
    """
    refused: list[KeyPath] = []
    for _ in range(_ROUNDS):
        try:
            return Document.model_validate(raw), refused
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=True)
        misspelt = _misspelt_tables(raw)
        for path, kind in _refuse_errors(errors, raw, misspelt, context):
            if kind != "missing" and len(path) == 1 and path[0] in (*DECLARING, "bp"):
                return None
            _remove(raw, path, kind, refused)
        if misspelt:  # every name declared there would seem unknown
            return None
    return None


def _misspelt_tables(raw: Mapping[str, Any]) -> set[str]:
    """The tables of declarations that are absent while an unknown table has nearly their name."""
    unknown = [key for key, value in raw.items() if key not in Document.model_fields and isinstance(value, dict)]
    return {name for name in DECLARING if name not in raw and get_close_matches(name, unknown, n=1, cutoff=0.8)}


def _remove(raw: dict[str, Any], path: KeyPath, kind: str, refused: list[KeyPath]) -> None:
    """Remove what is wrong from `raw`: a single key where its table can do without it, else the whole declaration."""
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
            if path[:2] not in refused:
                refused.append(path[:2])
    elif kind == "missing" or path[0] == "kernel" or path == ("weights", "file"):
        raw.pop(path[0], None)
    elif path[0] in raw:  # an earlier error may have removed the table
        raw[path[0]].pop(path[1], None)


_NUMBER = "a finite number"
_SIZE = "an integer from 1 to 2**40"
_TEXT = "a non-empty string"
_ENTRY = f"{_SIZE}, or a string with an integer expression of dims"
_SHAPE = "a list of integers of at least 1 and integer expressions of dims"
_METHODS = ("a non-empty list of methods, strings", '["bptt"]')
_EXPECTED: Mapping[KeyPath, tuple[str, str]] = {
    ("bp",): ("the integer 1", "1"),
    ("title",): ("a string", '"A network"'),
    ("description",): ("a string", '"What it is for"'),
    ("dtype",): ("a string", '"float32"'),
    ("dims", "*"): (_SIZE, "32"),
    ("constants", "*"): (_NUMBER, "0.5"),
    ("equations", "*"): ("a string, an equation", '"tanh(h)"'),
    ("*", "*"): (f"a shape ({_SHAPE}) or a table with one", "[4]"),
    ("*", "*", "shape"): (_SHAPE, "[4]"),
    ("*", "*", "shape", "*"): (_ENTRY, "[4]"),
    ("*", "*", "scale"): (_NUMBER, "0.1"),
    ("*", "*", "init"): ("a string, the name of an init", '"normal"'),
    ("*", "*", "trainable"): ("true or false", "false"),
    ("*", "*", "per_sample"): ("true or false", "true"),
    ("*", "*", "density"): ('a number above 0 and at most 1, or "file"', "0.1"),
    ("objective", "*"): (_TEXT, '"loss"'),
    ("weights", "file"): (_TEXT, '"weights.npz"'),
    ("weights", "prefix"): ("a string", '"model."'),
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
    ("kernel", "*", "as"): (_TEXT, '"tbptt:k1=1,k2=4"'),
    **{(group, "*", "*"): (_ENTRY, "[4]") for group in ARRAYS},
    ("*", "methods", "*"): (_TEXT, '["bptt"]'),
    ("*", "wrt", "*"): (_TEXT, '["params"]'),
}
"""For each key, by its path ("*" stands for any): its expected value in words, and an example."""
_EXAMPLE_LINES: Mapping[str, str] = {
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
"""For each table, an example of a line in it."""
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _refuse_errors(
    errors: Iterable[ErrorDetails], raw: Mapping[str, Any], misspelt: set[str], context: Context
) -> list[tuple[KeyPath, str]]:
    """Refuse each error once; returns the path and pydantic's type of each."""
    found: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        path = _path(error, raw)
        # Of the alternatives of a union, the one that fits the type says most.
        if path not in found or found[path]["type"].endswith("_type"):
            found[path] = error
    for path, error in found.items():
        if not context.full and not (len(path) == 1 and path[0] in misspelt):
            _refuse(path, error, context)
    return [(path, error["type"]) for path, error in found.items()]


def _path(error: ErrorDetails, raw: Any) -> KeyPath:
    """The key path of an error, without pydantic's additions: union members, and "shape" of the short form."""
    path: KeyPath = ()
    for part in error["loc"]:
        in_list = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if in_list or (isinstance(raw, dict) and part in raw):
            raw = raw[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        path = (*path, str(part))
    return path


def _refuse(path: KeyPath, error: ErrorDetails, context: Context) -> None:
    kind, value, name = error["type"], error["input"], printable(".".join(path))
    if kind == "missing":
        _refuse_missing(path, context)
    elif kind == "extra_forbidden":
        _refuse_unknown_key(path, context)
    elif path == ("bp",) and kind in _RANGES:
        context.refuse("unknown-version", f"version {describe(value)} of the format is unknown", path, "write bp = 1")
    elif kind == "literal_error" and isinstance(value, str):
        known = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        what = f'unknown {printable(path[-1])} "{printable(value)}"'
        context.refuse("unknown-value", what, path, nearest(value, known))
    elif kind == "finite_number" or (kind == "float_type" and _overflows(value)):
        context.refuse("not-finite", f"{name} must be finite in float64", path, "write a finite number")
    else:
        code = "out-of-range" if kind in (*_RANGES, "too_short", "string_too_short") else "wrong-type"
        expected, example = _expected(path)
        what = f"{name} must be {expected}, not {describe(value)}"
        context.refuse(code, what, path, _remedy(path, value, expected, example))


def _overflows(value: object) -> bool:
    """Whether pydantic refuses `value` for its size, though it calls it an error of type."""
    return type(value) is int or (isinstance(value, float) and not math.isfinite(value))


def describe(value: object) -> str:
    """A value of TOML in a few words, whatever its size and type."""
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


def _expected(path: KeyPath) -> tuple[str, str]:
    """The expected value of a key in words, and an example."""
    if len(path) == 1 and path not in _EXPECTED:
        return "a table", 'file = "kernel.py"'
    if len(path) == 2 and path[0] not in ARRAYS and path not in _EXPECTED:
        return _EXPECTED[path[0], "*"]
    for pattern, form in sorted(_EXPECTED.items(), key=lambda item: item[0].count("*")):
        if len(pattern) == len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=True)):
            return form
    return "of another type", "[4]"


def _remedy(path: KeyPath, value: object, expected: str, example: str) -> str:
    """An example, and advice on quotes that are missing or too many."""
    if path[0] == "equations" and isinstance(value, int | float) and not isinstance(value, bool):
        return "equations are strings, numbers too: put it in quotes"
    if len(path) == 1 and path not in _EXPECTED:
        header = "kernel.NAME" if path[0] == "kernel" else path[0]
        return f"write [{header}] on a line of its own, and {_EXAMPLE_LINES.get(path[0], example)} below it"
    key = next(part for part in reversed(path) if not part.isdecimal())
    remedy = f"write {printable(key, 60)} = {example}, for example"
    number = expected in (_NUMBER, _SIZE, _EXPECTED["bp",][0], _EXPECTED["data", "seed"][0])
    return f"numbers have no quotes; {remedy}" if number and isinstance(value, str) and value else remedy


def _refuse_missing(path: KeyPath, context: Context) -> None:
    *table, key = path
    header = context.source.outline.headers.get(tuple(table))
    place = context.source.text.place(*header) if header else context.source.key(*table)
    remedies = {"bp": "write bp = 1 at the top", "equations": "write [equations], one per line, one of them named loss"}
    inside = f" in {printable('.'.join(table))}" if table else ""
    what = f'the {"table" if key == "equations" else "key"} "{key}" is missing{inside}'
    context.collector.add("missing-key", what, place, help=remedies.get(key, f"write {key} = …"))


def _refuse_unknown_key(path: KeyPath, context: Context) -> None:
    *table, key = path
    model: Any = Document
    if table:
        models: dict[str, Any] = {name: f.annotation for name, f in Document.model_fields.items()}
        model = {**models, **ARRAYS, "weights": Weights, "kernel": Kernel}[table[0]]
    remedy = nearest(key, [field.alias or name for name, field in model.model_fields.items()])
    if model is Input:
        remedy = "an input has only a shape; its values come from [data]"
    where = f"[{printable('.'.join(table))}]" if table else "a spec"
    context.refuse_key("unknown-key", f'unknown key "{printable(key)}" in {where}', path, remedy)
