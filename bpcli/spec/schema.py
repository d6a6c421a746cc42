"""The shape of a spec file: its tables, keys and types, as pydantic models. Imported only where a spec is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from bpcli.spec.integers import MAX_SIZE

SHAPE = "a list of integers of at least 1 and integer expressions of dims"
VALUE = "a number, a list of numbers or a list of rows"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Seed = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, Field(min_length=1)]
Shape = Annotated[list[Size | str], Field(description=SHAPE)]
Value = Annotated[Any, Field(description=VALUE)]
Init = Literal["zeros", "ones", "identity", "orthogonal", "glorot", "normal", "uniform"]
Dtype = Literal["float64", "float32"]


class Input(_Table):
    """An array that data supplies."""

    shape: Shape


class State(_Table):
    """The value before the first step."""

    shape: Shape
    init: Init | None = None
    scale: FiniteFloat | None = None
    value: Value = None
    trainable: bool = False


class Param(_Table):
    """What is differentiated."""

    shape: Shape
    init: Init | None = None
    scale: FiniteFloat | None = None
    value: Value = None
    trainable: bool = True
    density: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None


class _ShortForm:
    """`x = ["n"]` for `x = { shape = ["n"] }`."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        shape = {"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}}
        return {"anyOf": [{**shape, "description": SHAPE}, handler(core)]}


def _long_form(value: object) -> object:
    return {"shape": value} if isinstance(value, list) else value


_SHORT = (BeforeValidator(_long_form), _ShortForm())


class Objective(_Table):
    """The loss and how it is reduced."""

    loss: Text = "loss"
    over_time: Literal["sum", "mean", "last"] = "sum"
    over_batch: Literal["mean", "sum"] = "mean"


class Weights(_Table):
    """Parameter values from a file."""

    file: Text
    map: dict[str, Text] = {}


class Data(_Table):
    """Where the inputs come from: one of task, file and values."""

    task: Text | None = None
    file: Text | None = None
    values: dict[str, Value] | None = None
    input: Text | None = None
    target: Text | None = None
    T: Size | None = None
    batch: Size | None = None
    seed: Seed = 0


class Check(_Table):
    """Defaults of `bp check`; a list that is given is not empty."""

    methods: Annotated[list[Text], Field(min_length=1)] = []
    wrt: Annotated[list[Text], Field(min_length=1)] = ["params"]


class Bench(_Table):
    """Defaults of `bp bench`; a list that is given is not empty."""

    methods: Annotated[list[Text], Field(min_length=1)] = []
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}


class Kernel(_Table):
    """A user's gradient function, run when it is asked for by name."""

    file: Text
    function: Text | None = None


class Document(_Table):
    """A whole spec file."""

    bp: Annotated[int, Field(ge=1, le=1)]
    title: str = ""
    description: str = ""
    dtype: Dtype = "float64"
    dims: dict[str, Size] = {}
    constants: dict[str, FiniteFloat] = {}
    inputs: dict[str, Annotated[Input, *_SHORT]] = {}
    params: dict[str, Annotated[Param, *_SHORT]] = {}
    state: dict[str, Annotated[State, *_SHORT]] = {}
    equations: dict[str, str]
    objective: Objective = Objective()
    weights: Weights | None = None
    data: Data = Data()
    check: Check = Check()
    bench: Bench = Bench()
    kernel: dict[str, Kernel] = {}
