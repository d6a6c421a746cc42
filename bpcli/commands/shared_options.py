"""The options that commands share, and the one value that a command gets for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from bpcli.commands.common import Common
from bpcli.errors import BpError, fail, nearest

Command = Callable[..., Any]
DTYPES = ("float64", "float32")


class Refused(click.BadParameter):
    """A bad value with advice of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def one_of(known: Callable[[], tuple[str, ...]]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback that lets pass the words that `known` gives when asked, and answers others with the nearest."""

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None and value not in known():
            raise Refused(f'unknown value "{value}"', nearest(value, known()))
        return value

    return check


def _outputs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """`FORMAT=PATH` as pairs, the formats known."""
    pairs = []
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not path:
            raise Refused(f'expected FORMAT=PATH, got "{value}"', "for example --output csv=results.csv")
        if name not in formats():
            raise Refused(f'unknown format "{name}"', nearest(name, formats()))
        if path == "-" or path.startswith(("/dev/std", "/dev/fd/")):
            raise Refused(f'"{path}" is no file', f"stdout gets what --format {name} writes")
        pairs.append((name, path))
    return tuple(pairs)


def _seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A positive number; "inf" lifts the limit."""
    if value is not None and not value > 0:
        option = max(parameter.opts, key=len)
        raise Refused(f"expected a positive number of seconds, got {value:g}", f"for example {option} 600")
    return value


def _amount(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes, from text like 500MB."""
    if value is None:
        return None
    from bpcli.problem.limits import parse_bytes

    try:
        return parse_bytes(value)
    except BpError as error:
        raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None


def formats() -> tuple[str, ...]:
    """The names of the output formats."""
    from bpcli.render import known_formats

    return known_formats()


OPTIONS: Mapping[str, Callable[[Command], Command]] = {
    "set": click.option(
        "--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a dim, a constant, T, batch, seed or dtype."
    ),
    "dtype": click.option(
        "--dtype", metavar="DTYPE", callback=one_of(lambda: DTYPES), help="float64 or float32; default: the spec's."
    ),
    "seed": click.option("--seed", metavar="N", type=click.IntRange(min=0), help="Seed of parameters, state and data."),
    "wrt": click.option(
        "--wrt",
        multiple=True,
        metavar="NAME",
        help="Differentiate params, inputs, state or a single array; repeatable.",
    ),
    "threads": click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(1, 1024),
        help="Threads of the kernels; default: NUMBA_NUM_THREADS, or all cores.",
    ),
    "max_memory": click.option(
        "--max-memory", metavar="SIZE", callback=_amount, help="Refuse more: 500MB, 2GiB; default: 80% of free memory."
    ),
    "max_time": click.option(
        "--max-time", type=float, metavar="SECONDS", callback=_seconds, help="Refuse longer runs; default: 3600."
    ),
    "user_time": click.option(
        "--user-time", type=float, metavar="SECONDS", callback=_seconds, help="End longer calls of yours; default: 60."
    ),
    "allow_outside": click.option(
        "--allow-outside", is_flag=True, help="Let specs read files outside their own folder."
    ),
    "scheduler": click.option(
        "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster there, as tcp://HOST:8786: one task a worker."
    ),
    "local_cluster": click.option(
        "--local-cluster", metavar="N", type=click.IntRange(1, 256), help="Work on N worker processes of this machine."
    ),
    "format": click.option(
        "--format",
        metavar="FORMAT",
        callback=one_of(formats),
        default="table",
        help="What stdout gets; `bp list formats`.",
    ),
    "output": click.option(
        "--output", metavar="FORMAT=PATH", multiple=True, callback=_outputs, help="Write a file as well; repeatable."
    ),
    "quiet": click.option(
        "-q", "--quiet", is_flag=True, help="Only what is wrong: no progress, no notes, no good news."
    ),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="Every row and every column."),
    "strict": click.option("--strict", is_flag=True, help="Exit with 4 when anything is inconclusive."),
}


def shared(*names: str) -> Callable[[Command], Command]:
    """Offer the shared options `names`; the command gets them as `common`, outputs tested and values checked."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            common = bundle({_parameter(name): values.pop(_parameter(name)) for name in names})
            if common.outputs:
                from bpcli.commands.specs import test_spare

                test_spare([path for _, path in common.outputs], values)
            return function(common=common, **values)

        command: Command = run
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate


def _parameter(name: str) -> str:
    return "set_" if name == "set" else name


def bundle(values: Mapping[str, Any]) -> Common:
    """The shared ones among the parameters of the current command, as their values are."""
    source = click.get_current_context().get_parameter_source
    given = {name: values[_parameter(name)] for name in OPTIONS if _parameter(name) in values}
    weak = {n for n in given if source(n) is ParameterSource.DEFAULT_MAP}
    settings = {n: given[n] for n in ("dtype", "seed", "wrt") if given.get(n) not in (None, ())}
    strong = {n: v for n, v in settings.items() if n not in weak and n != "wrt"}
    outputs = tuple(given.get("output", ()))
    _test(outputs)
    if given.get("threads"):
        from bpcli.commands.progress import use_threads

        use_threads(given["threads"])
    return Common(
        overrides=_overrides(given.get("set", ()), strong),
        fallbacks={n: v for n, v in settings.items() if n in weak},
        wrt=() if "wrt" in weak else tuple(given.get("wrt", ())),
        outputs=outputs,
        **{n: given[n] for n in _AS_GIVEN if n in given},
    )


_AS_GIVEN = (
    "threads", "format", "quiet", "verbose", "strict", "max_memory", "max_time", "user_time",
    "allow_outside", "scheduler", "local_cluster",
)  # fmt: skip


def _overrides(assignments: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """`--set` and the flags that say the same, which must not contradict each other."""
    from bpcli.commands.specs import assignment

    overrides = dict(assignment(a) for a in assignments)
    for name, value in flags.items():
        if overrides.setdefault(name, value) != value:
            fail("usage", f"--set {name}={overrides[name]} contradicts --{name} {value}", help="give one of them")
    return overrides


def _test(outputs: tuple[tuple[str, str], ...]) -> None:
    """Refuse paths that can't be written, before anything is computed."""
    if not outputs:
        return
    from bpcli.commands.specs import test_writable

    paths = [path for _, path in outputs]
    if repeated := sorted({p for p in paths if paths.count(p) > 1}):
        fail("usage", f"two outputs go to {repeated[0]}", help="give each --output a path of its own")
    for path in paths:
        test_writable(path)


def from_project() -> bool:
    """Whether the methods of this call come from `[tool.bp]`, so that a spec's own count more."""
    source = click.get_current_context().get_parameter_source("method")
    return source is ParameterSource.DEFAULT_MAP
