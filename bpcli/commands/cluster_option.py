"""`--scheduler` and `--local-cluster`: the cluster that cells and losses are computed on."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bpcli.commands.shared_options import Common
from bpcli.errors import fail

if TYPE_CHECKING:
    from bpcli.bench.bench_run import Measure
    from bpcli.bench.measurement import BenchResults
    from bpcli.cluster.connect import Cluster
    from bpcli.problem.definition import Setup
    from bpcli.problem.setup import SpecFile
    from bpcli.references.perturbation.perturbed import Executor


@contextmanager
def opened(common: Common, peers: tuple[str, ...] = ()) -> Iterator[Cluster | None]:
    """The cluster of the shared options, None without one; `peers` must have the same version on all workers."""
    if common.scheduler is None and common.local_cluster is None:
        yield None
        return
    if common.scheduler is not None and common.local_cluster is not None:
        fail("usage", "--scheduler and --local-cluster name two clusters", help="give one of them")
    if importlib.util.find_spec("distributed") is None:
        what = "--scheduler and --local-cluster need the package distributed, which is not installed"
        fail("missing-extra", what, help='pip install "bp[distributed]"')
    from bpcli.cluster import connect
    from bpcli.commands.output import note
    from bpcli.runtime.machine import cores

    if common.scheduler is not None:
        entered = connect.connect(common.scheduler, peers)
    else:
        count = common.local_cluster or 1
        entered = connect.start(count, common.threads or max(1, cores() // count), peers)
    with entered as cluster:
        hosts = ", ".join(sorted({f.host for f in cluster.workers.values()}))
        note(f"{len(cluster.workers)} workers on {hosts}", common)
        yield cluster


def measuring(cluster: Cluster | None) -> Measure:
    """The function that measures the cells of a bench run, on this machine or on a cluster."""
    if cluster is None:
        from bpcli.bench.bench_run import measure_cells

        return measure_cells
    from bpcli.cluster.remote_work import measure_remotely

    return functools.partial(measure_remotely, cluster=cluster)


def machine_of(cluster: Cluster, results: BenchResults) -> dict[str, Any]:
    """The context keys of the machines that measured: all together as `machine`; if several, each in `machines`."""
    import dataclasses

    from bpcli.cluster.dask_worker import together

    there = {f.host: f.machine for f in cluster.workers.values()}
    known = {**{host: dataclasses.asdict(m) for host, m in there.items()}, **results.machines}
    whole = dataclasses.asdict(together(list(there.values())))
    if len(known) == 1:
        return {"machine": {**whole, **next(iter(known.values()))}}
    return {"machine": whole, "machines": known}


def executor(cluster: Cluster, file: SpecFile, setup: Setup, common: Common) -> Executor:
    """An executor that computes the losses of a check on the cluster."""
    from bpcli.cluster.remote_work import Farm
    from bpcli.problem.setup import digest

    return Farm(cluster, file, digest(setup, file.path), common.threads or cluster.threads)


def described(cluster: Cluster) -> Mapping[str, Any]:
    """The cluster as part of a run's identity: the versions, which all workers share.

    Its machines are not included, since a run may be resumed on others; each row names the host that measured it.
    """
    machine = next(iter(cluster.workers.values())).machine
    return {"python": machine.python, "versions": dict(machine.versions), "cluster": True}
