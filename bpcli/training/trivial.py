"""The loss that a task leaves to a predictor which ignores its input: below it, something was learned.

The predictor says the same of every sample, at each step the mean of the targets, or its logarithm where that is the
better one: these are the best constants under a squared error and under a cross-entropy.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bpcli.graph.nodes import Phase, ancestors
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw, draw_inputs
from bpcli.references.perturbation.frozen import held_setup, name_of_held
from bpcli.runtime.evaluation import whole_loss
from bpcli.tasks import ROLES, parse_task

SAMPLES, BATCHES, ROWS = 1024, 64, 1 << 20
"""Samples that means are taken over, in at most so many batches, and steps of all samples together."""
LEAST = 1e-12
"""A probability of zero has no logarithm."""


def trivial_loss(setup: Setup) -> float | None:
    """The loss of that predictor on the spec's task.

    None where the data is no task with a target, or the loss does not compare the target with one value of the network.
    """
    data = setup.spec.data
    if data.task is None or parse_task(data.task, None).task.name == "random" or not setup.graph.recurrent:
        return None
    target = data.target or ROLES["target"]
    prediction = predicted(setup, target)
    if prediction is None or setup.graph.nodes[prediction].shape != setup.spec.inputs[target].shape:
        return None
    batches = max(1, min(BATCHES, -(-SAMPLES // setup.batch), ROWS // (setup.T * setup.batch)))
    drawn = [draw_inputs(setup, number) for number in range(1, batches + 1)]
    means = np.mean([inputs[target].mean(axis=1, dtype=np.float64) for inputs in drawn], axis=0)
    problem = draw(setup)
    shape = (setup.T, setup.batch, *setup.spec.inputs[target].shape)
    found = []
    for constant in (means, np.log(np.maximum(means, LEAST))):
        values = np.broadcast_to(constant[:, None], shape).astype(setup.dtype)
        found.append(float(np.mean([_loss(problem, inputs, prediction, values) for inputs in drawn])))
    return min((loss for loss in found if np.isfinite(loss)), default=None)


def predicted(setup: Setup, target: str) -> int | None:
    """The node that the loss compares with the target; None where there is not one alone.

    It is what varies, does not depend on the target, and enters what does; of logarithms what they are taken of, as not
    every vector is one.
    """
    graph = setup.graph
    if target not in graph.leaf:
        return None
    leaf, args = graph.leaf[target], [node.args for node in graph.nodes]
    above = {n for n in ancestors([graph.loss], args) if leaf in ancestors([n], args)} - {leaf}
    entering = {a for n in above for a in args[n]} - above - {leaf}
    varying = [n for n in entering if graph.nodes[n].phase is not Phase.STATIC and graph.nodes[n].op != "previous"]
    if len(varying) != 1:
        return None
    found = graph.nodes[varying[0]]
    while found.op in ("log", "log_softmax"):
        found = graph.nodes[found.args[0]]
    return found.index


def _loss(problem: Problem, inputs: dict[str, Array], node: int, values: Array) -> float:
    """The loss with a node's values replaced."""
    setup = held_setup(problem.setup, (node,))
    held = {**inputs, name_of_held(node): values}
    return whole_loss(dataclasses.replace(problem, setup=setup, inputs=held))
