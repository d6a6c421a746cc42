"""The kernels of sparse influence matrices: M ← A M + M̄ and g += q M over a block of steps, on a pattern of entries.

Columns of M with the same rows R form a group: a matrix (r, c), which only the block A[R, R] advances. As A, q and the
terms of M̄, outer products Δ(s) v(s), depend on the forward pass alone, steps s = 0 … S-1 are taken at once (Schmidhuber
1992): with L(S) = 1, λ(S-1) = q(S-1),

    L(s) = L(s+1) A(s)        λ(s-1) = q(s-1) + q_before(s) + λ(s) A(s)                     `sets_span`
    M ← L(0) M + Σ_s L(s+1) Δ(s) v(s)        g += (λ(0) A(0) + q_before(0)) M + Σ_s λ(s) Δ(s) v(s)        `groups_span`

so that all sums over steps are products of matrices. L above λ stand in slots (r + 1, r): that of step s + 1 is L(s+1)
and λ(s), the first L(0) and what multiplies M in g. g is the last row of its group, below M. Groups of one shape that
take the same vectors v are a bundle, whose products are one.
"""

from __future__ import annotations

from bpcli.kernels.blas import gemm
from bpcli.kernels.jit import inner, matrix_at, vector, vector_at, vector_from

LEAST_GEMM = 1 << 9
"""Products of numbers from which the BLAS multiplies."""

(
    LENGTH,  # length of the array that holds all numbers, from `values` on
    SETS,  # address of the table of sets of rows, int64 (SET_COUNT, SET)
    SET_COUNT,
    BUNDLES,  # address of the table of bundles of groups, int64 (BUNDLE_COUNT, BUNDLE)
    BUNDLE_COUNT,
    RUNS,  # address of the table of runs, int64 (RUN_COUNT, RUN)
    RUN_COUNT,
    DELTAS,  # address of the places of cotangents Δ, offsets of row 0, -1: zero, int64 (DELTA_COUNT,)
    DELTA_COUNT,
    ROWS,  # address of the lists of rows of sets, int64 (ROW_COUNT,)
    ROW_COUNT,
    CREDITS,  # address of the table of the credits of states, int64 (STATES, CREDIT)
    STATES,  # N, entries of the state
    BATCH,  # samples
    STEP0,  # first step of the block
    STEPS,  # steps of the block
    SLOTS,  # where the slots (step, sample, set) begin, offset; A stands in the first r rows of a step's to begin with
    SLOT_ROW,  # numbers of all sets' slots
    INFLUENCE,  # where M and g (sample, group) begin, offset
    INFLUENCE_ROW,  # numbers of all groups
    SPARE,  # where the job's room begins, offset
    FIRST_ITEM,  # first (sample, set or bundle) pair of the job, counted sample by sample; cut
    LAST_ITEM,  # pair after the last one; cut
) = range(23)
"""Fields of a job, with unit; written by `SparseSchedule`."""
JOB = LAST_ITEM + 1

(
    FIRST_ROW,  # where its rows begin in the lists
    COUNT,  # r, its rows
    SLOT,  # where its slot begins, offset from that of the first set
) = range(3)
"""Fields of a set."""
SET = SLOT + 1

(
    SET_OF,  # the set of its first group; those of the others follow
    GROUPS,  # its groups
    WIDTH,  # c, the columns of each
    PLACE,  # where its parts of M and g begin, offset from those of the first bundle
    APART,  # 1: each group has the set after that of the one before, 0: there is one group
    FIRST_RUN,  # its first run
    LAST_RUN,  # run after its last one
    FIRST_DELTA,  # where its places of cotangents (run, group, r) begin
) = range(8)
"""Fields of a bundle."""
BUNDLE = FIRST_DELTA + 1

(
    START,  # its first column of the group
    COLUMNS,  # how many they are
    VECTOR,  # where the first entry of v stands, offset of row 0; -1: it is 1
    VECTOR_ROW,  # from one row (step, sample) to the next, numbers
    DELTA_ROW,  # from one row of Δ to the next, numbers
    STEP,  # the step at which it contributes, -1: every step
    AGAIN,  # 1: Δ is that of the run before
) = range(7)
"""Fields of a run: neighbouring columns of every group of a bundle, and neighbouring entries of v."""
RUN = AGAIN + 1

(
    AFTER,  # where q of the new state stands, offset of row 0
    AFTER_ROW,  # from one row (step, sample) to the next, numbers
    EARLIER,  # where q of the state before the step stands, offset of row 0; -1: it is zero
    EARLIER_ROW,  # from one row to the next, numbers
) = range(4)
"""Fields of the credits of an entry of the state."""
CREDIT = EARLIER_ROW + 1


def sets_span(job, values):  # type: ignore[no-untyped-def]
    """Turn the blocks of A of the sets FIRST_ITEM to LAST_ITEM into L and λ."""
    ints = job
    job = vector(job, JOB)
    V = vector_from(values, 0, job[LENGTH])
    sets = matrix_at(ints, job[SETS], job[SET_COUNT], SET)
    rows = vector_at(ints, job[ROWS], job[ROW_COUNT])
    credits = matrix_at(ints, job[CREDITS], job[STATES], CREDIT)
    for item in range(job[FIRST_ITEM], job[LAST_ITEM]):
        _multiply_back(job, V, sets[item % job[SET_COUNT]], rows, credits, item // job[SET_COUNT])


@inner
def _multiply_back(job, V, own, rows, credits, b):
    """One set of one sample, from the last step of the block to the first."""
    r, first, spare, batch = own[COUNT], own[FIRST_ROW], job[SPARE], job[BATCH]
    slot = job[SLOTS] + (job[STEPS] * batch + b) * job[SLOT_ROW] + own[SLOT]
    for k in range(r * r):
        V[slot + k] = 0
    for a in range(r):
        state = rows[first + a]
        V[slot + a * r + a] = 1
        V[slot + r * r + a] = V[credits[state, AFTER] + ((job[STEPS] - 1) * batch + b) * credits[state, AFTER_ROW]]
    for s in range(job[STEPS] - 1, -1, -1):
        row, later = s * batch + b, slot
        slot -= batch * job[SLOT_ROW]
        for k in range(r * r):
            V[spare + k] = V[slot + k]
        _product(V, r + 1, r, r, later, r, spare, r, slot, r, False)
        for a in range(r):
            state, out = rows[first + a], slot + r * r + a
            if credits[state, EARLIER] >= 0:
                V[out] += V[credits[state, EARLIER] + row * credits[state, EARLIER_ROW]]
            if s > 0:
                V[out] += V[credits[state, AFTER] + (row - batch) * credits[state, AFTER_ROW]]


@inner
def _product(V, m, n, k, left, ldl, right, ldr, out, ldo, add):
    """out (m, n) = or += left (m, k) @ right (k, n)."""
    if m * n * k >= LEAST_GEMM:
        gemm(False, False, m, n, k, V, left, ldl, V, right, ldr, add, V, out, ldo)
        return
    for i in range(m):
        for j in range(n):
            total = V[out + i * ldo + j] if add else V.dtype.type(0)
            for p in range(k):
                total += V[left + i * ldl + p] * V[right + p * ldr + j]
            V[out + i * ldo + j] = total


def groups_span(job, values):  # type: ignore[no-untyped-def]
    """Take the bundles FIRST_ITEM to LAST_ITEM through the steps of a block."""
    ints = job
    job = vector(job, JOB)
    V = vector_from(values, 0, job[LENGTH])
    sets = matrix_at(ints, job[SETS], job[SET_COUNT], SET)
    bundles = matrix_at(ints, job[BUNDLES], job[BUNDLE_COUNT], BUNDLE)
    runs = matrix_at(ints, job[RUNS], job[RUN_COUNT], RUN)
    deltas = vector_at(ints, job[DELTAS], job[DELTA_COUNT])
    for item in range(job[FIRST_ITEM], job[LAST_ITEM]):
        bundle, b = bundles[item % job[BUNDLE_COUNT]], item // job[BUNDLE_COUNT]
        _carry(job, V, sets, bundle, b)
        for line in range(bundle[FIRST_RUN], bundle[LAST_RUN]):
            _enter(job, V, sets, bundle, runs[line], deltas, line - bundle[FIRST_RUN], b)


@inner
def _carry(job, V, sets, bundle, b):
    """M ← L(0) M and g += (λ(0) A(0) + q_before(0)) M of every group of a bundle."""
    r, c, spare = sets[bundle[SET_OF], COUNT], bundle[WIDTH], job[SPARE]
    for i in range(bundle[GROUPS]):
        slot = job[SLOTS] + b * job[SLOT_ROW] + sets[bundle[SET_OF] + i * bundle[APART], SLOT]
        m = job[INFLUENCE] + b * job[INFLUENCE_ROW] + bundle[PLACE] + i * (r + 1) * c
        if r == 1:
            for k in range(c):
                V[m + c + k] += V[slot + 1] * V[m + k]
            for k in range(c):
                V[m + k] *= V[slot]
            continue
        for k in range(r * c):
            V[spare + k] = V[m + k]
        _product(V, r, c, r, slot, r, spare, c, m, c, False)
        _product(V, 1, c, r, slot + r * r, r, spare, c, m + r * c, c, True)


@inner
def _factor(V, r, slot, deltas, first, shift, out):
    """out (r + 1) = L Δ, and λ Δ below."""
    if r == 1:
        delta = V[deltas[first] + shift] if deltas[first] >= 0 else V.dtype.type(0)
        V[out], V[out + 1] = V[slot] * delta, V[slot + 1] * delta
        return
    for k in range(r + 1):
        V[out + k] = 0
    for a in range(r):
        if deltas[first + a] >= 0:
            delta = V[deltas[first + a] + shift]
            for k in range(r + 1):
                V[out + k] += V[slot + k * r + a] * delta


@inner
def _enter(job, V, sets, bundle, run, deltas, which, b):
    """Add Σ_s L(s+1) Δ(s) v(s) and Σ_s λ(s) Δ(s) v(s) to the columns of a run of every group of a bundle."""
    r, groups, c, batch, x = sets[bundle[SET_OF], COUNT], bundle[GROUPS], bundle[WIDTH], job[BATCH], job[SPARE]
    high = groups * (r + 1)
    begin, end = 0, job[STEPS]
    if run[STEP] >= 0:
        begin = run[STEP] - job[STEP0]
        end = begin + 1
        if begin < 0 or begin >= job[STEPS]:
            return
    if run[AGAIN] == 0:
        first = bundle[FIRST_DELTA] + which * groups * r
        for s in range(begin, end):
            row, out = s * batch + b, x + (s - begin) * high
            slots = job[SLOTS] + (row + batch) * job[SLOT_ROW]
            for i in range(groups):
                slot = slots + sets[bundle[SET_OF] + i * bundle[APART], SLOT]
                _factor(V, r, slot, deltas, first + i * r, row * run[DELTA_ROW], out + i * (r + 1))
    out, steps = job[INFLUENCE] + b * job[INFLUENCE_ROW] + bundle[PLACE] + run[START], end - begin
    if run[VECTOR] < 0:
        for s in range(steps):
            for k in range(high):
                V[out + k * c] += V[x + s * high + k]
        return
    v, apart = run[VECTOR] + (begin * batch + b) * run[VECTOR_ROW], batch * run[VECTOR_ROW]
    if high * run[COLUMNS] * steps >= LEAST_GEMM:
        gemm(True, False, high, run[COLUMNS], steps, V, x, high, V, v, apart, True, V, out, c)
        return
    for s in range(steps):
        for k in range(high):
            for j in range(run[COLUMNS]):
                V[out + k * c + j] += V[x + s * high + k] * V[v + s * apart + j]
