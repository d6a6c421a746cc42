"""A cluster: found or started, its workers tested for fitness and given work.

A worker is fit if it has the same versions and the same sources of bp: results must not depend on the worker.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import queue
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin
from distributed.comm import get_address_host_port

import bpcli
from bpcli.errors import BpError, Collector, Diagnostic, fail
from bpcli.problem.setup import SpecFile, digest
from bpcli.runtime.machine import Machine, describe

PLACE: Mapping[str, float] = {"bp": 1}
"""The resources that an order takes of a worker: all of them, so that no two run side by side."""
PATIENCE = 15.0
"""Seconds that a scheduler has to answer, and that a cluster may be without a worker."""
_START, _LOOK, _CLOSE = 120.0, 2.0, 5.0
"""Seconds that a local cluster may take to start, between looks at a cluster, and that closing may take."""
# Without Dask's MALLOC_TRIM_THRESHOLD_, which returns memory at every turn and slows kernels by a tenth and more.
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1)
# Processes that profile themselves a hundred times a second take a tenth of a core from measurements.
_CALM: Mapping[str, Any] = {
    "distributed.nanny.pre-spawn-environ": _ENVIRONMENT,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
_SAME_FILES = "workers must find specs, and the files they name, at the same paths as here"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Facts:
    """A process: its `host`, the machine with its versions, and a digest of the sources of bp (`sources`)."""

    host: str
    machine: Machine
    sources: str


def facts(packages: tuple[str, ...] = ()) -> Facts:
    """The facts of this process, with the versions of `packages` beside the usual ones."""
    return Facts(platform.node(), describe(packages), _sources())


def differences(here: Facts, there: Facts) -> list[str]:
    """Reasons why a process is unfit to work for another: `numba 0.68.1 (0.69.0 here)`, one for each package."""
    own, other = ({"python": f.machine.python, **f.machine.versions} for f in (here, there))
    names = dict.fromkeys((*own, *other))
    found = [f"{n} {other.get(n, 'missing')} ({own.get(n, 'none')} here)" for n in names if own.get(n) != other.get(n)]
    if not found and here.sources != there.sources:
        return [f"another bp {bpcli.__version__}: its sources differ"]
    return found


def together(machines: Sequence[Machine]) -> Machine:
    """One description of several machines, in which values that differ are listed: `2 or 64` cores."""
    first = machines[0]

    def listed(name: str) -> str:
        return " or ".join(sorted({str(getattr(m, name)) for m in machines}))

    cores = first.cores if len({m.cores for m in machines}) == 1 else listed("cores")
    return replace(first, cpu=listed("cpu"), cores=cores, vectors=listed("vectors"), system=listed("system"))  # type: ignore[arg-type]


@functools.cache
def _sources() -> str:
    """A digest of all modules of bp, as two checkouts may have one version."""
    home = Path(bpcli.__file__).parent
    total = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        total.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


class Reserve(WorkerPlugin):  # type: ignore[misc] # its sources are not read
    """Gives every worker, however late it joins, the resources for one order; an unfit worker gets none."""

    name = "bp"

    def __init__(self, here: Facts, packages: tuple[str, ...]) -> None:
        self.here, self.packages = here, packages

    async def setup(self, worker: Any) -> None:
        """Called by each worker as it joins."""
        fit = not differences(self.here, facts(self.packages))
        await worker.set_resources(**{name: float(fit and count) for name, count in PLACE.items()})


def same_spec(spec: SpecFile, sha256: str) -> tuple[Diagnostic, ...]:
    """Why this worker cannot open the very same spec; empty where it can."""
    found = answered(lambda: require_same(spec, sha256))
    return found if isinstance(found, tuple) else ()


def require_same(spec: SpecFile, sha256: str) -> None:
    """Raise BpError where the spec, or a file that it names, is missing here or has other contents."""
    if not os.path.exists(spec.path):
        fail("other-files", f'there is no "{spec.path}"', help=_SAME_FILES)
    if digest(spec.open({}), spec.path) != sha256:
        fail("other-files", f'"{spec.path}", or a file that it names, is another one', help=_SAME_FILES)


def answered(work: Callable[[], Answer]) -> Answer | tuple[Diagnostic, ...]:
    """The result of `work`, or its diagnostics: exceptions lose their parts on the way to another process."""
    try:
        return work()
    except BpError as error:
        return error.diagnostics
    except MemoryError:
        return (Diagnostic("memory", "out of memory", help="smaller sizes, or workers with more memory"),)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return (Diagnostic("internal", what, help="a bug in bp: please report it"),)


@dataclass(frozen=True, eq=False)
class Cluster:
    """Workers that are fit for work, by address; `local`: they run on this machine.

    `threads` is the number that the smallest of them has, so that all give the same rows.
    """

    client: Client
    workers: Mapping[str, Facts]
    threads: int
    local: bool

    @property
    def identity(self) -> Mapping[str, Any]:
        """The cluster as part of a run's identity: the versions, which all workers share.

        Its machines are not included, since a run may be resumed on others; each row names the host that measured it.
        """
        machine = next(iter(self.workers.values())).machine
        return {"python": machine.python, "versions": dict(machine.versions), "cluster": True}

    def machines(self, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The context keys of the machines, by host: all together as `machine`; if several, each in `machines`.

        `measured` has the descriptions, with rates, of those that have measured cells.
        """
        there = {f.host: f.machine for f in self.workers.values()}
        known = {**{host: asdict(m) for host, m in there.items()}, **measured}
        whole = asdict(together(list(there.values())))
        if len(known) == 1:
            return {"machine": {**whole, **next(iter(known.values()))}}
        return {"machine": whole, "machines": known}

    def require(self, spec: SpecFile, sha256: str) -> None:
        """Raise BpError unless every worker finds the same spec at the same path, with the same files that it names."""
        collector = Collector()
        for address, told in self.client.run(same_spec, spec, sha256).items():
            for d in told:
                host = self.workers[address].host if address in self.workers else "a host that joined later"
                collector.add(d.code, f"worker {address} on {host}: {d.what}", help=d.help)
        collector.finish()

    def results(self, work: Callable[[Any], Any], orders: Sequence[Any], each: int = 1) -> Iterator[tuple[int, Any]]:
        """The number of each order with the result of `work`, as they finish; orders of a lost worker are done again.

        Orders are handed out in sequence, `each` at a time to a worker, so that none waits at a busy worker while
        another is idle. Where an order failed, its result is a tuple of diagnostics. Raises BpError when the cluster is
        lost.
        """
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        waiting: dict[str, tuple[int, Future]] = {}
        left = deque(enumerate(orders))
        last = time.monotonic()
        try:
            while left or waiting:
                places = self._places()
                last = time.monotonic() if places else last
                while left and len(waiting) < each * places:
                    number, order = left.popleft()
                    future = self.client.submit(work, order, resources=dict(PLACE), pure=False)
                    waiting[future.key] = (number, future)
                    future.add_done_callback(done.put)
                try:
                    number, future = waiting[done.get(timeout=_LOOK).key]
                except queue.Empty:
                    if time.monotonic() - last > PATIENCE:
                        what = f"the cluster has had no worker for {PATIENCE:g} s"
                        fail("no-workers", what, help="start one with `dask worker ADDRESS` where bp is installed")
                    continue
                yield number, self._answer(future)
                del waiting[future.key], future  # lets the worker forget it
        finally:
            self.client.cancel([future for _, future in waiting.values()])

    def _places(self) -> int:
        """The number of fit workers now, with those that joined later."""
        if self.client.status != "running":
            return 0
        known = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(bool(worker.get("resources", {}).get(name)) for worker in known for name in PLACE)

    def _answer(self, future: Future) -> Any:
        while True:
            try:
                return future.result(timeout=_LOOK)
            except TimeoutError:  # its worker was lost before it answered: another one does it again
                if self._places():
                    continue
            except KilledWorker:
                what = "every worker that took this on was lost"
                return (Diagnostic("worker-lost", what, help="often they are out of memory: try smaller sizes"),)
            except CancelledError:
                pass
            except Exception as error:
                return (Diagnostic("internal", _brief(error), help="a bug in bp: please report it"),)
            fail("cluster-lost", "the scheduler, or all workers, are gone", help="start them again; --resume continues")


@contextmanager
def connect(address: str, packages: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """The cluster whose scheduler is at `address`; bp and `packages` must have the same version everywhere.

    Raises BpError where none answers, it has no worker, or one has other versions.
    """
    _quiet()
    try:
        get_address_host_port(address)  # a client of no address takes half a minute to end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions: those that matter are compared below
            client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        what = f'no Dask scheduler answers at "{address}"'
        advice = f"start one with `dask scheduler`; its address is like tcp://HOST:8786 ({_brief(error)})"
        fail("no-scheduler", what, help=advice)
    with client:
        yield _ready(client, (1, PATIENCE), packages, local=False)


@contextmanager
def start(count: int, threads: int, packages: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """A cluster of `count` worker processes on this machine, with `threads` threads each, closed afterwards."""
    _quiet()
    with dask.config.set(_CALM):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=threads,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            env={"NUMBA_NUM_THREADS": str(threads)},
        )
    try:
        with Client(cluster, set_as_default=False) as client:
            yield _ready(client, (count, _START), packages, local=True)
    finally:
        cluster.close(timeout=_CLOSE)


def _ready(client: Client, wanted: tuple[int, float], packages: tuple[str, ...], local: bool) -> Cluster:
    """The cluster behind `client` once so many workers have joined, within so many seconds; BpError if one is unfit."""
    count, patience = wanted
    try:
        client.wait_for_workers(count, timeout=patience)
    except TimeoutError:
        what = f"no worker has joined {client.scheduler.address} within {patience:g} s"
        fail("no-workers", what, help="start one with `dask worker ADDRESS` where bp is installed")
    workers = client.run(facts, packages, on_error="return")
    try:
        scheduler = client.run_on_scheduler(facts, packages)  # it unpickles the work that it hands out
    except Exception as error:
        scheduler = error
    here = facts(packages)
    _refuse_unfit({"the scheduler": scheduler, **{f"worker {a}": there for a, there in workers.items()}}, here)
    client.register_plugin(Reserve(here, packages))
    threads = min(w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values())
    return Cluster(client, workers, threads, local)


def _refuse_unfit(told: Mapping[str, Any], here: Facts) -> None:
    """Raise BpError that names every process unfit to work for this one; `told` has the facts of each, or its error."""
    unfit = []
    for name, there in told.items():
        if not isinstance(there, Facts):
            what = f"{name} can't run bp: {_brief(there)}"
            unfit.append(Diagnostic("wrong-versions", what, help="install the same bp there"))
        elif found := differences(here, there):
            what = f"{name} on {there.host} has {', '.join(found)}"
            unfit.append(Diagnostic("wrong-versions", what, help="install the same versions there as here"))
    if unfit:
        raise BpError(unfit)


def _quiet() -> None:
    """Silence Dask's messages about lost workers: bp reports the consequences."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _brief(error: object) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
