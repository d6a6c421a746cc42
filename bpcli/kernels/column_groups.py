"""The kernel of sparse influence matrices: M ← J M + M̄ and g += q M on the entries of a pattern, group by group.

A group is some columns of M with the same rows R: a matrix (r, c), which its block J[R, R] advances. Its M̄ is a sum of
outer products: row a of a run of columns takes Δ[a] v, v being neighbouring entries of the vector that a matrix of the
network multiplies, or 1. A group is taken through all steps of a chunk while it is in cache; J, M̄ and q depend on the
forward pass alone.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at, vector_from

LEAST_GEMM = 8
"""Rows of a group from which the BLAS multiplies."""

(
    LENGTH,  # length of the array that holds all numbers, from `values` on
    GROUPS,  # address of the table of groups, int64 (GROUP_COUNT, GROUP)
    GROUP_COUNT,
    RUNS,  # address of the table of runs, int64 (RUN_COUNT, RUN)
    RUN_COUNT,
    ROWS,  # address of the lists of rows of groups, int64 (ROW_COUNT,)
    ROW_COUNT,
    CREDITS,  # address of the table of the credits of states, int64 (STATES, CREDIT)
    STATES,  # N, entries of the state
    BATCH,  # samples
    STEP0,  # first step of the chunk
    STEPS,  # steps of the chunk
    BEFORE,  # 1: the loss looks at the states before a step too
    JACOBIANS,  # where the blocks of J (step, sample, block) begin, offset
    JACOBIAN_ROW,  # numbers of all blocks
    INFLUENCE,  # where M (sample, group) begins, offset
    INFLUENCE_ROW,  # numbers of all groups
    GRADIENT,  # where g (sample, group) begins, offset
    GRADIENT_ROW,  # columns of all groups
    SPARE,  # where the job's room for a group begins, offset
    FIRST_ITEM,  # first (sample, group) pair of the job, counted sample by sample; cut
    LAST_ITEM,  # pair after the last one; cut
) = range(22)
"""Fields of a job, with unit; written by `SparseSchedule`."""
JOB = LAST_ITEM + 1

(
    FIRST_ROW,  # where its rows begin in the lists
    COUNT,  # r, its rows
    WIDTH,  # c, its columns
    BLOCK,  # where its block of J begins, offset from that of the first group
    PLACE,  # where its part of M begins, likewise
    COLUMN,  # its first column, among those of all groups
    FIRST_RUN,  # its first run
    LAST_RUN,  # run after its last one
) = range(8)
"""Fields of a group."""
GROUP = LAST_RUN + 1

(
    ROW_OF,  # row of the group that takes it
    START,  # its first column of the group
    LENGTH_OF,  # its columns
    DELTA,  # where Δ stands, offset of row 0
    DELTA_ROW,  # from one row (step, sample) to the next, numbers
    VECTOR,  # where the first entry of v stands, offset of row 0; -1: it is 1
    VECTOR_ROW,  # from one row to the next, numbers
    STEP,  # the step at which it contributes, -1: every step
) = range(8)
"""Fields of a run."""
RUN = STEP + 1

(
    AFTER,  # where q of the new state stands, offset of row 0
    AFTER_ROW,  # from one row (step, sample) to the next, numbers
    EARLIER,  # where q of the state before the step stands, offset of row 0
    EARLIER_ROW,  # from one row to the next, numbers
) = range(4)
"""Fields of the credits of an entry of the state."""
CREDIT = EARLIER_ROW + 1


def groups_span(job, values):  # type: ignore[no-untyped-def]
    """Take the groups FIRST_ITEM to LAST_ITEM through the steps of a chunk."""
    ints = job
    job = vector(job, JOB)
    V = vector_from(values, 0, job[LENGTH])
    groups = matrix_at(ints, job[GROUPS], job[GROUP_COUNT], GROUP)
    runs = matrix_at(ints, job[RUNS], job[RUN_COUNT], RUN)
    rows = vector_at(ints, job[ROWS], job[ROW_COUNT])
    credits = matrix_at(ints, job[CREDITS], job[STATES], CREDIT)
    for item in range(job[FIRST_ITEM], job[LAST_ITEM]):
        _advance_group(job, V, groups[item % job[GROUP_COUNT]], runs, rows, credits, item // job[GROUP_COUNT])


@inner
def _advance_group(job, V, group, runs, rows, credits, b):
    """One group of one sample through all steps."""
    r, c, spare, first = group[COUNT], group[WIDTH], job[SPARE], group[FIRST_ROW]
    m = job[INFLUENCE] + b * job[INFLUENCE_ROW] + group[PLACE]
    g = job[GRADIENT] + b * job[GRADIENT_ROW] + group[COLUMN]
    for t in range(job[STEPS]):
        row = t * job[BATCH] + b
        block = job[JACOBIANS] + row * job[JACOBIAN_ROW] + group[BLOCK]
        if job[BEFORE] == 1:
            for a in range(r):
                state = rows[first + a]
                _add(V, g, V[credits[state, EARLIER] + row * credits[state, EARLIER_ROW]], m + a * c, c)
        if r == 1:
            _scale(V, m, V[block], c)
        else:
            _multiply(V, r, c, block, m, spare)
        for line in range(group[FIRST_RUN], group[LAST_RUN]):
            run = runs[line]
            if run[STEP] < 0 or run[STEP] == job[STEP0] + t:
                out, delta = m + run[ROW_OF] * c + run[START], V[run[DELTA] + row * run[DELTA_ROW]]
                if run[VECTOR] < 0:
                    for k in range(run[LENGTH_OF]):
                        V[out + k] += delta
                else:
                    _add(V, out, delta, run[VECTOR] + row * run[VECTOR_ROW], run[LENGTH_OF])
        for a in range(r):
            state = rows[first + a]
            _add(V, g, V[credits[state, AFTER] + row * credits[state, AFTER_ROW]], m + a * c, c)


@inner
def _scale(V, m, factor, c):
    """m (c) *= factor."""
    for k in range(c):
        V[m + k] *= factor


@inner
def _add(V, out, factor, v, c):
    """out (c) += factor v (c); they do not overlap."""
    for k in range(c):
        V[out + k] += factor * V[v + k]


@inner
def _multiply(V, r, c, block, m, spare):
    """M (r, c) at m = J (r, r) at block times M, by way of the spare room."""
    for k in range(r * c):
        V[spare + k] = V[m + k]
    if r >= LEAST_GEMM:
        gemm(False, False, r, c, r, V, block, r, V, spare, c, False, V, m, c)
        return
    for a in range(r):
        for k in range(c):
            V[m + a * c + k] = V[block + a * r] * V[spare + k]
        for b in range(1, r):
            _add(V, m + a * c, V[block + a * r + b], spare + b * c, c)
