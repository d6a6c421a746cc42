"""The cluster that `--scheduler` and `--local-cluster` ask for."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.commands.common import Common

if TYPE_CHECKING:
    from bpcli.bench.planning import Results
    from bpcli.cluster.connect import Cluster
    from bpcli.problem.definition import Setup
    from bpcli.references.perturbation.executor import Executor


@contextmanager
def opened(common: Common, peers: tuple[str, ...] = ()) -> Iterator[Cluster | None]:
    """The cluster while it is needed; None where nobody asks for one. `peers` must be of one version everywhere."""
    from bpcli.errors import fail

    if common.scheduler is None and common.local_cluster is None:
        yield None
        return
    if common.scheduler is not None and common.local_cluster is not None:
        fail("usage", "--scheduler and --local-cluster name two clusters", help="give one of them")
    if importlib.util.find_spec("distributed") is None:
        what = "a cluster takes Dask's package distributed, which is not installed"
        fail("missing-extra", what, help='pip install "bp[distributed]"')
    from bpcli.bench.machine import cores
    from bpcli.cluster import connect
    from bpcli.commands.output import note

    if common.scheduler is not None:
        entered = connect.connect(common.scheduler, peers)
    else:
        count = common.local_cluster or 1
        entered = connect.start(count, common.threads or max(1, cores() // count), peers)
    with entered as cluster:
        hosts = ", ".join(sorted({f.host for f in cluster.workers.values()}))
        note(f"{len(cluster.workers)} workers on {hosts}", common)
        yield cluster


def measuring(cluster: Cluster | None) -> Callable[..., None]:
    """What measures the cells of a bench run: here, or on a cluster. Called as `bpcli.bench.run.run`."""
    from bpcli.bench.run import run

    if cluster is None:
        return run
    from bpcli.cluster import remote_cells as cells

    return functools.partial(cells.run, cluster=cluster)


def machine_of(cluster: Cluster, results: Results) -> dict[str, Any]:
    """What a document says of the machines that measured: together as `machine`, and each where there are several."""
    import dataclasses

    from bpcli.cluster.dask_worker import together

    there = {f.host: f.machine for f in cluster.workers.values()}
    known = {**{host: dataclasses.asdict(m) for host, m in there.items()}, **results.machines}
    whole = dataclasses.asdict(together(list(there.values())))
    if len(known) == 1:
        return {"machine": {**whole, **next(iter(known.values()))}}
    return {"machine": whole, "machines": known}


def executor(cluster: Cluster | None, path: Path, setup: Setup, common: Common) -> Executor | None:
    """Who computes the losses that a check of the spec at `path` takes; None for this process."""
    if cluster is None:
        return None
    from bpcli.bench.target import Target, digest
    from bpcli.cluster.losses import Farm
    from bpcli.commands.specs import said_over

    target = Target(str(path), setup.spec.name, *said_over(path, common), common.limits())
    return Farm(cluster, target, digest(setup, str(path)), common.threads or cluster.threads)


def described(cluster: Cluster) -> Mapping[str, Any]:
    """What the rows of a run on a cluster depend on besides the call: versions, which all workers have in common.

    Not on which machines are there: a run may go on with others, and each row says who measured it.
    """
    machine = next(iter(cluster.workers.values())).machine
    return {"python": machine.python, "versions": dict(machine.versions), "cluster": True}
