"""The options that several commands share, `Common`, the value in which a command receives them, and their cluster."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bpcli.errors import BpError, fail, nearest, printable
from bpcli.render import FORMATS

if TYPE_CHECKING:
    from bpcli.cluster.connect import Cluster
    from bpcli.problem.limits import Limits

Command = Callable[..., Any]
DTYPES = ("float64", "float32")
# Files that specs are made of; no --output may replace one, whether or not this call reads it.
_INPUT_SUFFIXES = (".toml", ".py", ".pyw", ".npz", ".npy", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Common:
    """The shared options, parsed and validated.

    `overrides` (`n`, `T`, `dtype`, … from flags and `BP_*`) take precedence over the spec, which takes precedence over
    `fallbacks`, from `[tool.bp]`. `wrt` is empty where the spec decides. `outputs` pairs a format with a path.
    `max_memory` in bytes, `max_time` and `user_time` in seconds, None for the default.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    fallbacks: Mapping[str, Any] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    threads: int | None = None
    format: str = "table"
    outputs: tuple[tuple[str, str], ...] = ()
    quiet: bool = False
    verbose: bool = False
    strict: bool = False
    max_memory: int | None = None
    max_time: float | None = None
    user_time: float | None = None
    allow_outside: bool = False
    scheduler: str | None = None
    local_cluster: int | None = None

    def limits(self) -> Limits:
        """The memory and time that a run may take."""
        from bpcli.problem.limits import Limits

        given = {"max_memory": self.max_memory, "max_time": self.max_time}
        return Limits(allow_outside=self.allow_outside, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        """Write a remark to stderr, unless quiet."""
        if not self.quiet:
            click.echo(printable(text, 2000), err=True)


class Refused(click.BadParameter):
    """An invalid value, with advice of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def one_of(known: Callable[[], Collection[str]]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A click callback that accepts the words of `known()` and suggests the nearest for any other."""

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None and not context.resilient_parsing and value not in known():
            raise Refused(f'unknown value "{value}"', nearest(value, known()))
        return value

    return check


def _outputs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Parse each `FORMAT=PATH` to a pair."""
    pairs = []
    for value in values:
        name, _, path = value.partition("=")
        if not path:
            raise Refused(f'expected FORMAT=PATH, got "{value}"', "for example --output csv=results.csv")
        if name not in FORMATS:
            raise Refused(f'unknown format "{name}"', nearest(name, FORMATS))
        if path == "-" or path.startswith(("/dev/std", "/dev/fd/")):
            raise Refused(f'"{path}" is not a file', f"--format {name} writes to stdout")
        pairs.append((name, path))
    return tuple(pairs)


def _seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A positive number of seconds; "inf" lifts the limit."""
    if value is not None and not value > 0:
        option = max(parameter.opts, key=len)
        raise Refused(f"expected a positive number of seconds, got {value:g}", f"for example {option} 600")
    return value


def relative_bias(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A click callback that accepts a relative bias, from 0 on."""
    if value is not None and not 0 <= value < math.inf:
        raise Refused(f"expected a number from 0 on, got {value:g}", "0 asks for an exact method, 0.05 allows 5%")
    return value


def finite_seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A positive and finite number of seconds."""
    if not 0 < value < math.inf:
        raise Refused(f"expected a positive number of seconds, got {value:g}", f"for example {parameter.opts[0]} 0.5")
    return value


def size_option(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a size such as 500MB to bytes."""
    if value is None:
        return None
    from bpcli.problem.limits import parse_bytes

    try:
        return parse_bytes(value)
    except BpError as error:
        raise Refused(error.diagnostics[0].what, error.diagnostics[0].help) from None


OPTIONS: Mapping[str, Callable[[Command], Command]] = {
    "set": click.option("--set", "set_", multiple=True, metavar="KEY=VALUE",
        help="Set a dim, constant, T, batch, seed or dtype; repeatable."),
    "dtype": click.option("--dtype", metavar="DTYPE", callback=one_of(lambda: DTYPES),
        help="float64 or float32; default: that of the spec."),
    "seed": click.option("--seed", metavar="N", type=click.IntRange(min=0),
        help="Seed of parameters, initial states and data."),
    "wrt": click.option("--wrt", multiple=True, metavar="NAME",
        help="Differentiate with respect to params, inputs, state or one array; repeatable."),
    "threads": click.option("--threads", metavar="N", type=click.IntRange(1, 1024),
        help="Number of threads; default: NUMBA_NUM_THREADS, or one per core."),
    "max_memory": click.option("--max-memory", metavar="SIZE", callback=size_option,
        help="Memory limit, such as 500MB or 2GiB; default: 80% of free memory."),
    "max_time": click.option("--max-time", type=float, metavar="SECONDS", callback=_seconds,
        help="Refuse runs predicted to take longer; default: 3600."),
    "user_time": click.option("--user-time", type=float, metavar="SECONDS", callback=_seconds,
        help="Time limit for each call of your code; default: 60."),
    "allow_outside": click.option("--allow-outside", is_flag=True,
        help="Let specs read files outside their own folder."),
    "scheduler": click.option("--scheduler", metavar="ADDRESS",
        help="Run on the Dask cluster at this address, such as tcp://HOST:8786."),
    "local_cluster": click.option("--local-cluster", metavar="N", type=click.IntRange(1, 256),
        help="Run on N worker processes on this machine."),
    "format": click.option("--format", metavar="FORMAT", callback=one_of(lambda: FORMATS), default="table",
        help="Output format of stdout; see `bp list formats`."),
    "output": click.option("--output", metavar="FORMAT=PATH", multiple=True, callback=_outputs,
        help="Also write the results to a file; repeatable."),
    "quiet": click.option("-q", "--quiet", is_flag=True,
        help="Show only problems: no progress, notes or passing rows."),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="Show every row and column."),
    "strict": click.option("--strict", is_flag=True, help="Exit with 4 if anything is inconclusive."),
}  # fmt: skip


def shared(*names: str) -> Callable[[Command], Command]:
    """Add the shared options `names` to a command, which receives them as the argument `common`."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            common = bundle({_parameter(name): values.pop(_parameter(name)) for name in names})
            _refuse_replacing([path for _, path in common.outputs], values)
            return function(common=common, **values)

        command: Command = run
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate


def _parameter(name: str) -> str:
    return "set_" if name == "set" else name


def bundle(values: Mapping[str, Any]) -> Common:
    """The shared options among `values`, the parameters of the current command.

    Raises BpError for contradictory options and for outputs that cannot be written.
    """
    source = click.get_current_context().get_parameter_source
    given = {name: values[_parameter(name)] for name in OPTIONS if _parameter(name) in values}
    weak = {n for n in given if source(n) is ParameterSource.DEFAULT_MAP}
    settings = {n: given[n] for n in ("dtype", "seed", "wrt") if given.get(n) not in (None, ())}
    strong = {n: v for n, v in settings.items() if n not in weak and n != "wrt"}
    outputs = tuple(given.get("output", ()))
    _check_outputs([path for _, path in outputs])
    if given.get("threads"):
        use_threads(given["threads"])
    return Common(
        overrides=_overrides(given.get("set", ()), strong),
        fallbacks={n: v for n, v in settings.items() if n in weak},
        wrt=() if "wrt" in weak else tuple(given.get("wrt", ())),
        outputs=outputs,
        **{n: v for n, v in given.items() if n not in ("set", "dtype", "seed", "wrt", "output")},
    )


def use_threads(count: int) -> None:
    """Set the number of threads of the kernels, through the environment where Numba is not imported yet."""
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(count)
    if "bpcli.runtime.kernel_loader" in sys.modules:
        from bpcli.runtime import kernel_loader

        kernel_loader.set_threads(count)


def _overrides(assignments: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of `--set` and of flags for the same keys, which must not contradict each other."""
    if not (assignments or flags):
        return {}
    from bpcli.spec.load import parse_assignment

    overrides = dict(map(parse_assignment, assignments))
    for name, value in flags.items():
        if overrides.setdefault(name, value) != value:
            fail("usage", f"--set {name}={overrides[name]} contradicts --{name} {value}", help="give one of them")
    return overrides


def _check_outputs(paths: Sequence[str]) -> None:
    """Raise BpError for paths that are given twice or cannot be written, before anything is computed."""
    if not paths:
        return
    from bpcli.problem.array_files import check_writable

    if repeated := sorted({p for p in paths if paths.count(p) > 1}):
        fail("usage", f"two outputs go to {repeated[0]}", help="give each --output a path of its own")
    for path in paths:
        check_writable(path)


def _refuse_replacing(outputs: Sequence[str], values: Mapping[str, Any]) -> None:
    """Raise BpError for an output that would replace an input: a file named on the command line, or any that
    has the suffix of a spec, a program or arrays."""
    groups = [v if isinstance(v, tuple) else (v,) for name, v in values.items() if name not in ("out", "plot")]
    read = {os.path.realpath(text) for group in groups for text in group if isinstance(text, str)}
    for path in filter(os.path.isfile, outputs):
        if os.path.realpath(path) in read or path.lower().endswith(_INPUT_SUFFIXES):
            fail("usage", f'--output would replace "{path}", an input file', help="name another file")


@contextmanager
def opened_cluster(common: Common, peers: tuple[str, ...] = ()) -> Iterator[Cluster | None]:
    """The cluster of the shared options, None without one; `peers` must have the same version on all workers."""
    if common.scheduler is None and common.local_cluster is None:
        yield None
        return
    if common.scheduler is not None and common.local_cluster is not None:
        fail("usage", "--scheduler and --local-cluster name two clusters", help="give one of them")
    if importlib.util.find_spec("distributed") is None:
        what = "--scheduler and --local-cluster need the package distributed, which is not installed"
        fail("missing-extra", what, help='pip install "bp-check[distributed]"')
    from bpcli.cluster import connect
    from bpcli.runtime.machine import cores

    if common.scheduler is not None:
        entered = connect.connect(common.scheduler, peers)
    else:
        count = common.local_cluster or 1
        entered = connect.start(count, common.threads or max(1, cores() // count), peers)
    with entered as cluster:
        hosts = ", ".join(sorted({f.host for f in cluster.workers.values()}))
        common.note(f"{len(cluster.workers)} workers on {hosts}")
        yield cluster


def from_project() -> bool:
    """Whether the methods of this call come from `[tool.bp]`, in which case those of a spec take precedence."""
    source = click.get_current_context().get_parameter_source("method")
    return source is ParameterSource.DEFAULT_MAP
