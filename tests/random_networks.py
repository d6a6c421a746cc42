"""Random networks by the thousand: nothing may accuse a right gradient, break, or disagree with anything else.

`python tests/random_networks.py --count 20000 --jobs 2` takes some half an hour. It prints counts and, of each kind of
failure, the smallest network that shows it, and writes `reports/random-networks.csv`, a line per class of numbers and
dtype. `--count 1000 --seed 5000` is a look at others, `--seed N --count 1` looks at one network again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from network_differential import EXTRAS, Failure, examine
from network_generator import SCALES, generate
from network_shrinker import shrink

from bpcli import __version__
from bpcli.backends.jax import PEER as JAX

ROOT = Path(__file__).parents[1]
# The first of these that a network shows stands for all: most often it is the cause of the others.
KINDS = (
    "crash", "hang", "internal", "printed", "warning", "disagreement", "accusation", "reference", "missed", "refused",
    "memory",
)  # fmt: skip
CAUSES = ("noise", "no power", "references disagree", "jump", "overflow", "underflow")
COLUMNS = (
    "scales",
    "dtype",
    "networks",
    "refused_lawfully",
    "gradients",
    *KINDS,
    "inconclusive",
    *CAUSES,
    "other",
    "version",
)
CLASSES = {"all": SCALES, "ordinary": SCALES[:2]}
# A share of the networks has what takes longer.
EVERY = {"jax": 100, "ladder": 3, "memory": 20, "spoiled": 4, "windows": 5}
COMMAND = (sys.executable, __file__)
COUNT = 20_000
_CHUNK = 400
_HANGS = 120.0
_SHRINKINGS = 600


def extras(seed: int) -> list[str]:
    """What a seed's network is looked at for beside the rest."""
    return [name for name in EXTRAS if seed % EVERY[name] == 0]


def look(seed: int, scales: tuple[str, ...]) -> dict[str, Any]:
    """The journal's line on one network."""
    network = generate(seed, scales)
    start = time.perf_counter()
    outcome = examine(network.text(), extras(seed))
    return {
        "seed": seed,
        "scales": network.scales,
        "dtype": network.dtype,
        "judged": outcome.judged,
        "refused": outcome.refused,
        "open": outcome.open,
        "failures": [[f.kind, f.what] for f in outcome.failures],
        "seconds": round(time.perf_counter() - start, 3),
    }


def smallest(seed: int, scales: tuple[str, ...], failure: Failure) -> str:
    """The smallest spec found that fails like a seed's network."""
    needed = {
        "memory": failure.kind == "memory",
        "spoiled": failure.kind == "missed",
        "windows": "tbptt" in failure.what,
    }
    wanted = [name for name in extras(seed) if needed.get(name, name in failure.what)]
    found = shrink(generate(seed, scales), lambda n: failure in examine(n.text(), wanted).failures, _SHRINKINGS)
    return found.text()


@dataclass
class Worker:
    """A process that looks at the networks `first` to `last`, and the journal that it writes."""

    first: int
    last: int
    scales: str
    journal: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        handle, name = tempfile.mkstemp(suffix=".jsonl")
        os.close(handle)
        self.journal = Path(name)
        span = ["--seed", str(self.first), "--count", str(self.last - self.first), "--scales", self.scales]
        self.process = subprocess.Popen([*COMMAND, "--journal", name, *span])

    def lines(self) -> list[dict[str, Any]]:
        """What it has written in whole."""
        text = self.journal.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def ended(self) -> str | None:
        """None while it works; then "" or how it broke."""
        code = self.process.poll()
        if code is not None:
            return "" if code == 0 else f"crash: the process ended with {code}"
        if time.time() - self.journal.stat().st_mtime > _HANGS:
            self.process.kill()
            self.process.wait()
            return f"hang: more than {_HANGS:g} seconds"
        return None


def work(first: int, last: int, scales: tuple[str, ...], journal: Path) -> None:
    """Look at networks one after the other; the journal has a line before each and one after it."""
    with journal.open("a", encoding="utf-8") as file:
        for seed in range(first, last):
            for line in ({"start": seed}, look(seed, scales)):
                file.write(json.dumps(line) + "\n")
                file.flush()


def look_at_all(first: int, count: int, scales: str, jobs: int) -> list[dict[str, Any]]:
    """The lines on all networks, from processes side by side; what follows one that breaks is taken up by another."""
    todo = [(start, min(start + _CHUNK, first + count)) for start in range(first, first + count, _CHUNK)]
    running: list[Worker] = []
    lines: list[dict[str, Any]] = []
    while todo or running:
        while todo and len(running) < jobs:
            running.append(Worker(*todo.pop(0), scales))
        time.sleep(0.2)
        for worker, broke in [(w, w.ended()) for w in running]:
            if broke is None:
                continue
            running.remove(worker)
            written = worker.lines()
            lines += [line for line in written if "seed" in line]
            if broke:
                seed = max((line["start"] for line in written if "start" in line), default=worker.first)
                lines.append(broken(seed, broke, CLASSES[scales]))
                todo += [(seed + 1, worker.last)] if seed + 1 < worker.last else []
            worker.journal.unlink()
            print(f"{len(lines)} of {count} networks", file=sys.stderr)
    return lines


def broken(seed: int, how: str, scales: tuple[str, ...]) -> dict[str, Any]:
    """The line on a network that ended its process."""
    network = generate(seed, scales)
    own = {"seed": seed, "scales": network.scales, "dtype": network.dtype, "failures": [how.split(": ", 1)]}
    return {**own, "judged": 0, "refused": "", "open": [], "seconds": 0.0}


def rows(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts by class of numbers and dtype. Of kinds of failures networks are counted, of causes gradients."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[SCALES.index(line["scales"]), line["dtype"]].append(line)
    return [_row(SCALES[scale], dtype, members) for (scale, dtype), members in sorted(groups.items())]


def _row(scales: str, dtype: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = Counter(kind for line in lines for kind in {kind for kind, _ in line["failures"]})
    causes = Counter(cause for line in lines for cause in line["open"])
    return {
        "scales": scales,
        "dtype": dtype,
        "networks": len(lines),
        "refused_lawfully": sum(bool(line["refused"]) for line in lines),
        "gradients": sum(line["judged"] for line in lines),
        **{kind: kinds[kind] for kind in KINDS},
        "inconclusive": causes.total(),
        **{cause: causes[cause] for cause in CAUSES},
        "other": causes.total() - sum(causes[cause] for cause in CAUSES),
        "version": __version__,
    }


def report(lines: list[dict[str, Any]], scales: tuple[str, ...], shown: int) -> bool:
    """Print the counts, and each kind of failure with its smallest network; returns whether there is none."""
    table = rows(lines)
    sums = {column: sum(row[column] for row in table) for column in COLUMNS[2:-1]}
    print(", ".join(f"{name.replace('_', ' ')} {number}" for name, number in sums.items()))
    for row in table:
        share = row["inconclusive"] / max(1, row["gradients"])
        print(
            f"  {row['scales']} {row['dtype']}: {row['networks']} networks, {share:.2%} of the gradients inconclusive"
        )
    print(
        f"longest {max(line['seconds'] for line in lines):.3g} s, jax {'beside' if not JAX.available() else 'missing'}"
    )
    groups: dict[Failure, list[int]] = defaultdict(list)
    for line in lines:
        failures = [Failure(*failure) for failure in line["failures"]]
        if failures:
            groups[min(failures, key=lambda f: KINDS.index(f.kind))].append(line["seed"])
    for number, (failure, seeds) in enumerate(sorted(groups.items(), key=lambda item: -len(item[1]))):
        print(f"\n{failure}: {len(seeds)} networks, seeds {', '.join(map(str, seeds[:8]))}", flush=True)
        if number < shown and failure.kind not in ("crash", "hang"):
            print(smallest(seeds[0], scales, failure), flush=True)
    return not groups


def write(lines: list[dict[str, Any]], target: Path) -> None:
    """The table of counts."""
    text = "\n".join([",".join(COLUMNS), *(",".join(str(row[c]) for c in COLUMNS) for row in rows(lines))])
    target.write_text(f"{text}\n", encoding="utf-8")


def main() -> int:
    """0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--scales", choices=CLASSES, default="all", help="which numbers there are")
    parser.add_argument("--shown", type=int, default=10, help="so many kinds of failures are shrunk and shown")
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="the table; by default that of reports/, of a run that is as long")
    asked = parser.parse_args()
    if asked.journal is not None:
        work(asked.seed, asked.seed + asked.count, CLASSES[asked.scales], asked.journal)
        return 0
    start = time.perf_counter()
    lines = look_at_all(asked.seed, asked.count, asked.scales, asked.jobs)
    print(f"{asked.count} networks in {time.perf_counter() - start:.0f} s, {asked.jobs} at a time")
    if asked.write or asked.count >= COUNT:
        write(lines, asked.write or ROOT / "reports" / "random-networks.csv")
    return 0 if report(lines, CLASSES[asked.scales], asked.shown) else 1


if __name__ == "__main__":
    sys.exit(main())
