"""A cluster from the side of the command: found or started, its workers tested for fitness and given work."""

from __future__ import annotations

import logging
import queue
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm import get_address_host_port

from bpcli.cluster.dask_worker import PLACE, Facts, Reserve, differences, facts, same_spec
from bpcli.errors import BpError, Collector, Diagnostic, fail
from bpcli.problem.setup import SpecFile

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


@dataclass(frozen=True, eq=False)
class Cluster:
    """Workers that are fit for work, by address; `local`: they run on this machine.

    `threads` is the number that the smallest of them has, so that all give the same rows.
    """

    client: Client
    workers: Mapping[str, Facts]
    threads: int
    local: bool

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
                what = "every worker that took this on was lost, one after the other"
                return (Diagnostic("worker-lost", what, help="often they are out of memory: try smaller sizes"),)
            except CancelledError:
                pass
            except Exception as error:
                return (Diagnostic("internal", _brief(error), help="a bug in bp: please report it"),)
            fail("cluster-lost", "the scheduler, or all workers, are gone", help="start them again; --resume goes on")


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
