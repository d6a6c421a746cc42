"""The figures of reports/performance.md, measured anew.

    python tests/performance_report.py [FIGURE]...

Prints a line of Markdown for each FIGURE, all of them unless named, as soon as it is measured: what it is, its target,
what was measured, and the command that shows it in full. Peers are measured with the Python that runs this, which must
have them. Some figures take minutes; none means anything beside other work on the same cores.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diagonal_lstm

from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.runtime.reverse_mode import Unrolled

ROOT = Path(__file__).parents[1]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """`command` shows it, without the program's name where that is bp; `measure` runs it and says what came out."""

    target: str
    command: str
    measure: Callable[[str], str]


def bench(command: str) -> list[Row]:
    """The rows that a bench command gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        out = ["--output", f"json={path}", "--output", f"csv={folder}/run.csv", "--max-time", "3600"]
        run = subprocess.run(program(command.removeprefix("bp ")) + out, cwd=ROOT, capture_output=True, text=True)
        if not path.exists() or run.returncode not in (0, 4):
            raise SystemExit(f"{command}\n{run.stdout}{run.stderr}")
        rows: list[Row] = json.loads(path.read_text())["cells"]
    return rows


def program(arguments: str) -> list[str]:
    """`bp ARGUMENTS` by this Python."""
    return [sys.executable, "-m", "bpcli", *arguments.split()]


def middle(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def beside_peer(command: str) -> str:
    """How much longer the peer takes, and the fraction of the GEMM rate where sizes are large enough for one."""
    return ratios_and_rates(bench(command))


def ratios_and_rates(rows: Sequence[Row]) -> str:
    """Ratios to the peer, and fractions of the GEMM rate."""
    ratios = [row["ratio"]["median"] for row in rows if row["ratio"]]
    said = [f"{middle(ratios):.2f}x, least {min(ratios):.2f}x of {len(ratios)} cells"] if ratios else []
    own = [row for row in rows if row["backend"] == "bp"]
    large = [row for row in own if row["grid"].get("n", 0) >= 128 and row["grid"].get("batch", 32) == 32]
    fractions = [f"{row['gemm_fraction']:.0%} ({row['limit']})" for row in large]
    unrest = max(max(row["control_moved"].values()) for row in rows)
    return "; ".join([*said, f"of GEMM rate {', '.join(fractions)}", f"control kernels moved {unrest:.0%}"])


def differences(command: str) -> str:
    """Beside the peer; and what two evaluations of all steps for every entry would take at the GEMM rate."""
    rows = bench(command)
    said = []
    for row in rows:
        n = row["grid"]["n"]
        if row["backend"] == "bp" and row["gemm_fraction"] and n >= 64:
            setup = open_setup(ROOT / "specs/vanilla_rnn.toml", {"T": 20, "n": n}, (), Limits())
            sizes = [math.prod(tensor.shape) for tensor in setup.wrt]
            matrices = [math.prod(tensor.shape) for tensor in setup.wrt if len(tensor.shape) == 2]
            flops = 2 * sum(sizes) * setup.T * setup.batch * 2 * sum(matrices)  # a product and a sum for each weight
            said.append(f"n={n}: {flops / row['flops'] * row['gemm_fraction']:.2f} times as long")
    return f"{ratios_and_rates(rows)}; entry by entry, at the GEMM rate: {', '.join(said)}"


def memory(command: str) -> str:
    """By how much allocated bytes and the growth of the process miss the prediction."""
    said = []
    for row in bench(command):
        misses = (row[name] / row["predicted_bytes"] - 1.0 for name in ("allocated_bytes", "peak_bytes"))
        said.append("{} {:+.1%} {:+.1%}".format(row["method"], *misses))
    return "; ".join(said)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of some calls after a first one."""
    work()
    return statistics.median(diagonal_lstm.seconds(work) for _ in range(rounds))


def ran(command: str, cache: str = "") -> float:
    """Seconds that a command of bp takes, with its own folder of compiled kernels where `cache` names one."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    start = time.perf_counter()
    subprocess.run(program(command.removeprefix("bp ")), cwd=ROOT, env=environment, capture_output=True, check=True)
    return time.perf_counter() - start


def started(command: str) -> str:
    """The median of seven."""
    return f"{seconds(lambda: ran(command), 7):.2f} s"


def compiled(command: str) -> str:
    """What a check takes longer while no kernel is compiled."""
    with tempfile.TemporaryDirectory() as cache:
        cold = ran(command, cache)
        return f"{cold - ran(command, cache):.1f} s"


def by_hand(command: str) -> str:
    """The line that the script prints."""
    run = subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def windows(command: str) -> str:
    """Windows of truncated BPTT side by side, and the same one after another."""
    setup = open_setup(ROOT / "specs/vanilla_rnn.toml", {"n": 128, "T": 512, "batch": 1}, (), Limits())
    problem, call = draw(setup), parse("tbptt:k1=1,k2=16")
    apart = Unrolled(setup, call.definition(setup).over(setup))
    apart.__dict__["batched"] = None  # as where they do not fit
    beside, after = (seconds(work, 15) for work in (lambda: call.gradient(problem), lambda: apart.gradient(problem)))
    return f"{after / beside:.1f}x: {beside * 1e3:.1f} ms side by side, {after * 1e3:.1f} ms one after another"


def clustered(command: str) -> str:
    """How much sooner a cluster of two is done than one process; and two processes with half of the cells each."""
    alone = command.replace(" --local-cluster 2", "")
    rows: dict[str, list[Row]] = {}
    spent = {
        text: diagonal_lstm.seconds(lambda text=text: rows.update({text: bench(text)})) for text in (alone, command)
    }
    if lasting(rows[alone]) != lasting(rows[command]):
        raise SystemExit(f"{command}\nother rows than without the cluster")
    with ThreadPoolExecutor() as both:
        halves = [f"{alone} --shard {part}/2" for part in (1, 2)]
        limit = spent[alone] / diagonal_lstm.seconds(lambda: list(both.map(bench, halves)))
    said = f"{spent[alone] / spent[command]:.2f}x ({spent[alone]:.0f} s to {spent[command]:.0f} s), the same rows"
    return f"{said}; two processes by themselves, half of the cells each: {limit:.2f}x"


def lasting(rows: Sequence[Row]) -> list[list[Any]]:
    """Of each row what does not depend on the clock."""
    names = ("cell", "method", "grid", "predicted_bytes", "forward_steps", "flops", "bias", "cosine", "check")
    return [[row[name] for name in names] for row in rows]


GRID = "-g n=32,64,128,256,512 -g batch=1,32 --set T=100 --peer jax"
FIGURES = {
    **{
        f"bptt-{spec}": Figure(
            "3x JAX, no cell below 1.5x; 60% of GEMM rate at n >= 128, batch 32",
            f"bp bench specs/{spec}.toml -m bptt {GRID}",
            beside_peer,
        )
        for spec in ("vanilla_rnn", "gru", "lstm")
    },
    "rtrl": Figure(
        "2.5x JAX, no cell below 1.5x; 80% of GEMM rate at n >= 128",
        "bp bench specs/vanilla_rnn.toml -m rtrl -g n=16,32,64,128,256 --set T=20 --set batch=1 --peer jax",
        beside_peer,
    ),
    "differences": Figure(
        "100x gradcheck; 50% of GEMM rate at n >= 64",
        "bp bench specs/vanilla_rnn.toml -m central -g n=16,32,64,128 --set T=20 --peer torch",
        differences,
    ),
    "diagonal": Figure("5 ms", "python tests/diagonal_lstm.py", by_hand),
    "windows": Figure("5x", "python tests/performance_report.py windows", windows),
    "cluster": Figure(
        "1.7x",
        "bp bench specs/vanilla_rnn.toml -m check --set n=96 --set T=40 -g seed=0,1,2,3,4,5,6,7,8,9 "
        "--threads 1 --budget 0.01 --local-cluster 2",
        clustered,
    ),
    "help": Figure("0.15 s", "bp --help", started),
    "check": Figure("1.0 s", "bp check specs/vanilla_rnn.toml", started),
    "compile": Figure("30 s", "bp check specs", compiled),
    **{
        name: Figure(
            "allocated 1%, peak 10%",
            f"bp bench specs/vanilla_rnn.toml {ways} -g k2=16 --set n=256 --set T=1000 --set batch=1 --budget 0.01",
            memory,
        )
        for name, ways in (
            ("memory", "-m bptt -m tbptt:k1=16,k2=16 -m ebptt:16"),
            ("memory-windows", "-m tbptt:k1=1,k2=16"),  # a minute or two each, most of it for the check
            ("memory-fbptt", "-m fbptt:16"),
        )
    },
    "memory-rtrl": Figure(
        "allocated 1%, peak 10%",
        "bp bench specs/vanilla_rnn.toml -m rtrl --set n=256 --set T=20 --set batch=1 --budget 0.01",
        memory,
    ),
}


def main(names: Sequence[str]) -> int:
    """Print the figures named."""
    if unknown := [name for name in names if name not in FIGURES]:
        raise SystemExit(f"no figure {', '.join(unknown)}; there are: {', '.join(FIGURES)}")
    print("| figure | target | measured | command |\n|---|---|---|---|")
    for name in names or FIGURES:
        figure = FIGURES[name]
        measured = figure.measure(figure.command)
        print(f"| {name} | {figure.target} | {measured} | `{figure.command}` |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
