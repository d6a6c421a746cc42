"""`bp train`: gradient descent on a spec's task with several methods from one start."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpcli.commands.shared_options import Common, Refused, one_of, shared
from bpcli.errors import fail, printable
from bpcli.render import FORMATS, Document, words

if TYPE_CHECKING:
    from bpcli.api.train_runner import Trained
    from bpcli.training.descent import Training

OPTIMIZERS = ("sgd", "momentum", "adam")
SOURCES = ("fresh", "fixed")
_UNTIL = re.compile(r"\s*loss\s*<\s*(\S+)\s*")
_BARS = "▁▂▃▄▅▆▇█"
_BAR_COUNT = 12
_REDRAW = 0.25
"""Seconds between two states of the progress line."""
_NEXT_LINE = 30.0
"""Seconds between two lines where there is no terminal."""
_THINNED = 1000
"""About so many losses are drawn as bars."""
_INCONCLUSIVE = 4


def _until(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """The bound of `loss<BOUND`."""
    if value is None:
        return None
    found = _UNTIL.fullmatch(value)
    try:
        bound = float(found[1]) if found else math.nan
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise Refused(f'expected loss<NUMBER, got "{value}"', 'for example --until "loss<0.01"')
    return bound


def _positive(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A positive and finite number."""
    if value is not None and not 0 < value < math.inf:
        raise Refused(f"expected a positive number, got {value:g}", f"for example {parameter.opts[0]} 0.1")
    return value


@click.command()
@click.argument("spec")
@click.option(
    "-m",
    "--method",
    multiple=True,
    metavar="METHOD",
    help="Method to train with, such as tbptt:k1=1,k2=4; repeatable; default: the exact one, or rtrl online.",
)
@click.option(
    "--optimizer",
    metavar="NAME",
    default="adam",
    callback=one_of(lambda: OPTIMIZERS),
    help="sgd, momentum (0.9) or adam; default: adam.",
)
@click.option(
    "--lr",
    type=float,
    metavar="RATE",
    callback=_positive,
    help="Learning rate; default: 0.1 for sgd, 0.02 for momentum, 0.01 for adam.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 10_000_000),
    default=1000,
    metavar="N",
    help="Sequences (batches, when feed-forward) to train on; default: 1000.",
)
@click.option("--clip", type=float, metavar="NORM", callback=_positive, help="Clip gradients to this norm.")
@click.option(
    "--until",
    metavar="loss<BOUND",
    callback=_until,
    help="Stop a method when the mean loss of its last ten steps is below BOUND.",
)
@click.option(
    "--online",
    is_flag=True,
    help="Update parameters within a sequence: at every step or, for windowed methods, after every window.",
)
@click.option(
    "--data",
    metavar="SOURCE",
    callback=one_of(lambda: SOURCES),
    help="fresh: new data of the task at every step; fixed: always the spec's; default: fresh where there is a task.",
)
@click.option(
    "--watch",
    multiple=True,
    metavar="METHOD",
    help="Compare a method's gradient with the true one along every trajectory; repeatable.",
)
@click.option(
    "--watch-every",
    type=click.IntRange(1),
    metavar="N",
    help="Compare at every N-th step, from the first; default: 1, or 10 for each watched method in plain NumPy.",
)
@click.option("--plot", metavar="FILE.svg", help="Write the loss curves to an .svg or .png file.")
@click.option("--save", metavar="W.npz", help="Write the trained parameters, for [weights] file.")
@click.option("--checkpoint", metavar="C.npz", help="Write checkpoints to this file, to resume from.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=100,
    metavar="N",
    help="Steps between checkpoints; default: 100.",
)
@click.option("--resume", metavar="C.npz", help="Resume from a checkpoint, and write later ones to it.")
@shared("set", "dtype", "seed", "threads", "max_memory", "max_time", "allow_outside",
    "format", "output", "quiet", "strict")  # fmt: skip
def train(spec: str, common: Common, **values: Any) -> int:
    """Train the parameters of SPEC by gradient descent with each METHOD, from the same start and on the same data.

    CSV and JSON have a row for each step and method; the loss of a step is the one before its update. A method stops
    when its loss is not finite. With --strict, the exit code is 4 unless every method reaches --until, or all steps.
    """
    from bpcli.api.train_runner import TrainCall, Trained, open_training
    from bpcli.commands.output import announce
    from bpcli.commands.specs import single, spec_file

    path = single(spec)
    _check_paths(values, path, common)
    own = {f.name: values[f.name] for f in fields(TrainCall) if f.name != "methods"}
    announce(common)
    training = open_training(spec_file(path, common), TrainCall(methods=values["method"], **own))
    if values["save"] and (count := len(training.learners)) > 1:
        advice = "train the method to keep on its own"
        fail("usage", f"--save needs a single method, and {count} are trained", help=advice)
    call = _call(training, path, common)
    if values["resume"]:
        from bpcli.training.checkpoint import read_checkpoint

        read_checkpoint(values["resume"], training, call)
    _run(training, values, call, common)
    return _finish(Trained(training), values, common)


def _check_paths(values: Mapping[str, Any], spec: Path, common: Common) -> None:
    """Raise BpError for outputs that cannot be written, or of which two are one file."""
    from bpcli.commands.grad import check_out
    from bpcli.problem.array_files import check_writable

    names = ("save", "checkpoint", "resume")
    for name in names:
        if values[name]:
            check_out(f"--{name}", values[name], spec, common)
    if values["resume"] and not os.path.isfile(values["resume"]):
        advice = "name a file that bp train --checkpoint wrote"
        fail("no-such-file", f'--resume: no file "{printable(values["resume"])}"', help=advice)
    if values["plot"]:
        from bpcli.render.page.figure import need_matplotlib

        need_matplotlib()
        if Path(values["plot"]).suffix.lower() not in (".svg", ".png"):
            what = f'--plot "{printable(values["plot"])}" is neither .svg nor .png'
            fail("usage", what, help="for example --plot curve.svg")
        check_writable(values["plot"])
    given = {name: os.path.realpath(values[name]) for name in ("save", "checkpoint") if values[name]}
    if values["resume"] and not values["checkpoint"]:
        given["resume"] = os.path.realpath(values["resume"])
    if len(set(given.values())) < len(given):
        fail("usage", f"{' and '.join(f'--{n}' for n in given)} go to one file", help="give each a path of its own")


def _call(training: Training, path: Path, common: Common) -> dict[str, Any]:
    """Everything that determines the numbers of a run; a checkpoint continues only a run that agrees in it."""
    from bpcli.problem.setup import digest

    watch = training.options.watch
    own = {key: value for key, value in training.options.plain().items() if key != "steps"}
    settings = {key: common.overrides[key] for key in sorted(common.overrides)}
    called = {"method": [x.call.text for x in training.learners], "watch": [c.text for c in watch.calls]}
    every = {"watch-every": watch.every} if watch.calls or training.options.online else {}
    return {"spec": digest(training.setup, str(path)), "set": settings, **called, **every, **own}


def _run(training: Training, values: Mapping[str, Any], call: Mapping[str, Any], common: Common) -> None:
    """Take all steps, with checkpoints and progress on the way: on a terminal a line that is redrawn, else one every
    half minute."""
    from bpcli.commands.output import lively, progress
    from bpcli.training.checkpoint import write_checkpoint

    path, every = values["checkpoint"] or values["resume"], values["checkpoint_every"]
    redraw = _REDRAW if lively() else _NEXT_LINE
    before = max(learner.done for learner in training.learners)
    with progress(common) as draw:
        say = draw if lively() else common.note
        start = shown = time.monotonic()
        for done in training.run():
            if path and done % every == 0:
                write_checkpoint(path, training, call)
            if (now := time.monotonic()) - shown > redraw:
                shown = now
                left = (now - start) / (done - before) * (training.options.steps - done)
                say(_state(training, done, left))
    if path:
        write_checkpoint(path, training, call)


def _state(training: Training, done: int, left: float) -> str:
    """The steps done, the time left, and the losses of each method as bars."""
    from bpcli.commands.output import duration

    thinned = [x.losses[:: x.done // _THINNED + 1].tolist() for x in training.learners]
    drawn = zip(training.learners, map(spark, thinned), strict=True)
    curves = (f"{x.call.text} {bars} {x.recent():.3g}" for x, bars in drawn)
    return f"step {done} of {training.options.steps}, {duration(left)} left · {' · '.join(curves)}"


def spark(losses: Sequence[float]) -> str:
    """The losses as a row of bars, on a logarithmic scale; a dot stands for one that is not positive and finite."""
    width = -(-len(losses) // _BAR_COUNT) or 1
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    means = [sum(part) / len(part) for part in parts]
    logs = [math.log(m) if 0 < m < math.inf else None for m in means]
    known = [v for v in logs if v is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(_BARS) - 1
    heights = [None if v is None else round((v - low) / (high - low) * top) if high > low else 0 for v in logs]
    return "".join("·" if h is None else _BARS[h] for h in heights)


def _finish(trained: Trained, values: Mapping[str, Any], common: Common) -> int:
    """Write the files, and the result; the exit code."""
    from bpcli.commands.output import describe, emit
    from bpcli.commands.train_document import RUN_COLUMNS, column, sentences
    from bpcli.problem.array_files import replace_file, write_npz

    training, name = trained.training, trained.training.setup.spec.name
    if values["save"]:
        write_npz(values["save"], training.learners[0].parameters.saved())
        common.note(f"wrote {values['save']}")
    if values["plot"]:
        from bpcli.render.page.curves import loss_curves
        from bpcli.render.page.figure import picture

        figure = loss_curves(name, {x.call.text: x.losses.tolist() for x in training.learners}, trained.trivial_loss)
        image = picture([figure], Path(values["plot"]).suffix.lower().removeprefix("."))
        replace_file(values["plot"], lambda stream: stream.write(image))
        common.note(f"wrote {values['plot']}")
    task = training.setup.spec.data.task
    context = describe("train", common, spec=name, task=task, **training.options.plain())
    summary = {"trivial_loss": trained.trivial_loss, "runs": trained.runs}
    told, notes = sentences(context, trained.trivial_loss), _notes(training)
    brief = Document("Training", "steps", RUN_COLUMNS, trained.runs, context=context, sentences=told, notes=notes)
    whole = brief
    if common.outputs or FORMATS[common.format].machine:
        columns = [column(key, key, words) for key in trained.columns]
        whole = Document("Training", "steps", columns, trained.rows(), context=context, summary=summary)
    code = emit(whole, common, brief=brief, silent=common.quiet)
    wanted = "reached" if training.options.until is not None else ""
    return code or (_INCONCLUSIVE if common.strict and any(x.outcome != wanted for x in training.learners) else 0)


def _notes(training: Training) -> tuple[str, ...]:
    """Methods that ended, comparisons in the mean, and the influence that is stale."""
    import numpy as np

    from bpcli.commands.train_document import alignment
    from bpcli.training.descent import STALE
    from bpcli.training.online import is_stale

    notes = []
    for learner in training.learners:
        if learner.outcome == "not finite":
            why = f"its loss, gradient or parameters are not finite at step {learner.done}"
            notes.append(f"{learner.call.text} stopped: {why}; try a smaller --lr, or --clip 1")
        notes += alignment(learner.call.text, {n: v[: learner.done].tolist() for n, v in learner.curve.items()})
        if training.options.online:
            cosines = learner.curve[STALE][: learner.done]
            kind = "its influence matrix stems from earlier parameters; " if is_stale(learner.call) else ""
            told = f"{np.nanmean(cosines):.4g}" if np.isfinite(cosines).any() else "unknown"
            notes.append(
                f"{learner.call.text}: {kind}mean cosine of a sequence's last gradient with the true one: {told}"
            )
    return tuple(notes)
