"""The table of commands: their modules and one-line help, available without importing any of them.

A command's module holds a click command of its name; the other modules are what commands share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import click


@dataclass(frozen=True)
class Entry:
    """A command: its module, its line in `bp --help`, and the rows key and summary of an empty JSON document."""

    module: str
    help: str
    rows_key: str = "rows"
    summary: dict[str, int] = field(default_factory=dict)


COMMANDS = {
    "check": Entry(
        "bpcli.commands.check",
        "Check gradients against references with error bounds.",
        "findings",
        {"passed": 0, "wrong": 0, "inconclusive": 0},
    ),
    "grad": Entry("bpcli.commands.grad", "Write the loss and its gradient to a file.", "arrays"),
    "export": Entry("bpcli.commands.grad", "Write parameters, inputs and initial states to a file.", "arrays"),
    "explain": Entry("bpcli.commands.explain_spec", "Derive the gradients of a spec, line by line."),
    "train": Entry("bpcli.commands.train", "Train a network with several gradient methods from one start.", "steps"),
    "reproduce": Entry("bpcli.commands.reproduce", "Compute published results, and show both.", "figures"),
    "bench": Entry("bpcli.commands.bench", "Measure time and memory of methods over a sweep.", "cells"),
    "merge": Entry("bpcli.commands.bench", "Merge saved bench runs.", "cells"),
    "report": Entry("bpcli.commands.report", "Write saved runs as an HTML page with plots."),
    "compare": Entry("bpcli.commands.compare", "Compare two saved runs.", "comparisons"),
    "ab": Entry("bpcli.commands.compare", "Compare two installations of bp, timed in turn.", "comparisons"),
    "gradbench": Entry("bpcli.commands.gradbench", "Answer evals of GradBench on stdin and stdout."),
    "advise": Entry("bpcli.commands.advise", "Recommend a method for given memory, bias and time.", "methods"),
    "new": Entry("bpcli.commands.new", "Write a spec to start from, with a gradient function and a test."),
    "list": Entry("bpcli.commands.list", "List methods, tasks, cells, operations, references and formats.", "entries"),
    "schema": Entry("bpcli.commands.json_schema", "Print the JSON Schema of specs, for editors."),
    "completion": Entry("bpcli.commands.completion", "Print the script by which a shell completes bp."),
    "help": Entry("bpcli.commands.help_page", "Show a page on a topic, or the options of a command."),
    "doctor": Entry("bpcli.commands.doctor", "Examine the installation.", "checks"),
}


def option_name(option: click.Parameter) -> str:
    """The long name of an option as an identifier: `max_memory` for `--max-memory`."""
    longest = max(option.opts, key=len)
    return longest.lstrip("-").replace("-", "_")
