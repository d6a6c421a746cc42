"""Validation of the arguments of the Python API, with refusals in place of tracebacks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

from pydantic import Field, ValidationError, validate_call

from bpcli.errors import fail, printable

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000)]
"""A positive time in seconds."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A positive number."""
P = ParamSpec("P")
R = TypeVar("R")


def validated(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its arguments checked against their annotations; it raises BpError for those that differ."""

    @functools.cache  # a validator takes about a millisecond to build, and most functions are not called
    def validator() -> Callable[P, R]:
        return validate_call(config={"arbitrary_types_allowed": True})(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return validator()(*args, **kwargs)
        except ValidationError as error:
            if error.title != function.__qualname__:
                raise
            first = error.errors()[0]
            names = list(inspect.signature(function).parameters)
            at, message = first["loc"][0], str(first["msg"]).lower().removeprefix("input ")
            name = names[at] if isinstance(at, int) else at
            what = f"{function.__name__}: {name} {message}, got {printable(repr(first['input']), 60)}"
        fail("usage", what, help=f"help(bpcli.{function.__qualname__}) describes the arguments")

    return call
