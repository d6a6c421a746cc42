"""Refusals of the loader: each with its code, and the line and column of its token."""

from __future__ import annotations

import os

import pytest
from spec_cases import FEED_FORWARD, RECURRENT, changed, load_text, unmarked

from bpcli.errors import Collector, format_diagnostic
from bpcli.spec.load import load

HUGE = "9" * 400
KEYS = (
    "known: bench, bp, check, constants, data, description, dims, dtype, equations, inputs, kernel, objective, params, "
    "state, title, weights"
)
FUNCTIONS = (
    "known: abs, clip, concat, cos, cross_entropy, dot, erf, exp, leaky_relu, log, log_softmax, logsumexp, max, mean, "
    "min, relu, sigmoid, sin, softmax, softplus, sqrt, step, stop_gradient, sum, tanh. A "
    "product is written with * or @"
)
TWICE = "rename one of the two: dims, constants, inputs, params, states and equations share one name space"

# (what to replace, its replacement with ▸ where the refusals point, codes in the order of the text, help of each)
ONE_CHANGE = [
    # versions, keys and types
    ("bp = 1", "bp = ▸2", "unknown-version", "write bp = 1"),
    ("bp = 1", "bp = ▸true", "wrong-type", "write bp = 1, for example"),
    ("bp = 1", "bp = ▸1.0", "wrong-type", "write bp = 1, for example"),
    ("bp = 1", 'bp = ▸"1"', "wrong-type", "numbers have no quotes; write bp = 1, for example"),
    ('title = "A net"', "title = ▸3", "wrong-type", 'write title = "A network", for example'),
    (
        'title = "A net"',
        '▸titel = "A net"',
        "unknown-key",
        'did you mean "title"? ' + KEYS,
    ),
    ('"float64"', '▸"float16"', "unknown-value", 'did you mean "float64"? known: float32, float64'),
    ('"float64"', "▸64", "wrong-type", 'write dtype = "float32", for example'),
    ("n = 4\n", "n = ▸0\n", "out-of-range", "write n = 32, for example"),
    ("n = 4\n", "n = ▸-4\n", "out-of-range", "write n = 32, for example"),
    ("n = 4\n", "n = ▸4.0\n", "wrong-type", "write n = 32, for example"),
    ("n = 4\n", 'n = ▸"4"\n', "wrong-type", "numbers have no quotes; write n = 32, for example"),
    ("n = 4\n", "n = ▸true\n", "wrong-type", "write n = 32, for example"),
    ("n = 4\n", "n = ▸1979-05-27\n", "wrong-type", "write n = 32, for example"),
    ("n = 4\n", f"n = ▸{HUGE}\n", "out-of-range", "write n = 32, for example"),
    ("alpha = 0.5", "alpha = ▸nan", "not-finite", "write a finite number"),
    ("alpha = 0.5", "alpha = ▸-inf", "not-finite", "write a finite number"),
    ("alpha = 0.5", f"alpha = ▸{HUGE}", "not-finite", "write a finite number"),
    ("alpha = 0.5", f"alpha = ▸{'9' * 5000}", "not-finite", "write a number that float64 holds"),
    ("alpha = 0.5", "alpha = ▸true", "wrong-type", "write alpha = 0.5, for example"),
    ("alpha = 0.5", "alpha = ▸[0.5]", "wrong-type", "write alpha = 0.5, for example"),
    (
        "[constants]",
        "[▸constant]",
        "unknown-key",
        'did you mean "constants"? ' + KEYS,
    ),
    ("[dims]\nn = 4\nm = 2", "dims = ▸3", "wrong-type", "write [dims] on a line of its own, and n = 32 below it"),
    (
        "[dims]",
        "[▸extra]\nq = 1\n[dims]",
        "unknown-key",
        KEYS,
    ),
    # names
    (
        "alpha = 0.5",
        "alpha = 0.5\n▸n = 1.0",
        "name-clash",
        TWICE,
    ),
    ("m = 2", "m = 2\n▸t = 3", "reserved-name", 'use another name, such as "t_"'),
    ("m = 2", "m = 2\n▸sum = 3", "reserved-name", 'use another name, such as "sum_"'),
    ("m = 2", "m = 2\n▸lambda = 3", "reserved-name", 'use another name, such as "lambda_"'),
    ("m = 2", "m = 2\n▸2m = 3", "bad-name", "a name starts with a letter or _ and goes on with letters, digits and _"),
    ("m = 2", 'm = 2\n▸"" = 3', "bad-name", "a name starts with a letter or _ and goes on with letters, digits and _"),
    ("m = 2", "m = 2\n▸m-x = 3", "bad-name", "a name starts with a letter or _ and goes on with letters, digits and _"),
    (
        "m = 2",
        'm = 2\nfi = 1\n▸"ﬁ" = 3',
        "name-clash",
        TWICE,
    ),
    (
        'b = ["n"]',
        'b = ["n"]\n▸x = ["n"]',
        "name-clash",
        TWICE,
    ),
    (
        'a = ["n"]',
        'a = ["n"]\n▸b = ["n"]',
        "name-clash",
        TWICE,
    ),
    (
        'loss = "(',
        '▸V = "n"\nloss = "(',
        "name-clash",
        TWICE,
    ),
    # shapes
    ('b = ["n"]', 'b = ["▸k"]', "unknown-name", "known: m, n"),
    ('b = ["n"]', 'b = ["2*n - ▸k"]', "unknown-name", "known: m, n"),
    ('b = ["n"]', "b = [▸0]", "out-of-range", "write b = [4], for example"),
    ('b = ["n"]', "b = [▸true]", "wrong-type", "write b = [4], for example"),
    ('a = ["n"]', "a = ▸3", "wrong-type", "write a = [4], for example"),
    ('b = ["n"]', "b = [▸4.0]", "wrong-type", "write b = [4], for example"),
    ('b = ["n"]', 'b = [▸"n-4"]', "out-of-range", "change the dims in it"),
    ('b = ["n"]', 'b = ["n▸/2"]', "not-whole", "integers are divided with //"),
    (
        'b = ["n"]',
        'b = ["▸-n"]',
        "not-whole",
        "sizes are at least 1, and entries count from the start, from 0; a step earlier is [t-1]",
    ),
    ('b = ["n"]', 'b = ["▸tanh(n)"]', "not-whole", "use + - * //, numbers and dims"),
    ('b = ["n"]', 'b = [▸["n"]]', "wrong-type", "write b = [4], for example"),
    ('b = ["n"]', 'b = ▸"n"', "wrong-type", "write b = [4], for example"),
    ('b = ["n"]', "b = ▸4", "wrong-type", "write b = [4], for example"),
    ('b = ["n"]', '▸b = { init = "zeros" }', "missing-key", "write shape = …"),
    ('b = ["n"]', 'b = { shape = ["▸k"] }', "unknown-name", "known: m, n"),
    ('b = ["n"]', 'b = { shape = ▸"n" }', "wrong-type", "write shape = [4], for example"),
    ('b = ["n"]', 'b = [▸"n*1000000000000"]', "out-of-range", "change the dims in it"),
    ('b = ["n"]', 'b = ▸["n", "n", 2]', "known-limit", "declare several matrices"),
    ('x = ["m"]', 'x = ▸["m", "n"]', "known-limit", "declare a vector and cut it with slices, or several vectors"),
    ('a = ["n"]', 'a = ▸["n", "n"]', "known-limit", "declare a vector and cut it with slices, or several vectors"),
    # init, scale, value, trainable, density
    (
        'b = ["n"]',
        'b = { shape = ["n"], init = ▸"zero" }',
        "unknown-value",
        'did you mean "zeros"? known: glorot, identity, normal, ones, orthogonal, uniform, zeros',
    ),
    ('b = ["n"]', 'b = { shape = ["n"], init = ▸0 }', "wrong-type", 'write init = "normal", for example'),
    ('b = ["n"]', 'b = { shape = ["n"], init = ▸"orthogonal" }', "bad-init", "use zeros, ones, normal or uniform"),
    ('b = ["n"]', 'b = { shape = ["n"], init = ▸"identity" }', "bad-init", "use zeros, ones, normal or uniform"),
    ('b = ["n"]', 'b = { shape = ["n"], init = ▸"glorot" }', "bad-init", "use zeros, ones, normal or uniform"),
    ('a = ["n"]', 'a = { shape = ["n"], init = ▸"orthogonal" }', "bad-init", "use zeros, ones, normal or uniform"),
    (
        'b = ["n"]',
        'b = { shape = ["n"], scale = ▸"big" }',
        "wrong-type",
        "numbers have no quotes; write scale = 0.1, for example",
    ),
    ('b = ["n"]', 'b = { shape = ["n"], scale = ▸inf }', "not-finite", "write a finite number"),
    ('b = ["n"]', 'b = { shape = ["n"], scale = ▸-0.1 }', "out-of-range", "leave out the minus"),
    (
        'b = ["n"]',
        'b = { shape = ["n"], ▸scal = 1 }',
        "unknown-key",
        'did you mean "scale"? known: density, init, scale, shape, trainable, value',
    ),
    (
        'b = ["n"]',
        'b = { shape = ["n"], value = ▸1.0 }',
        "shape-mismatch",
        'write a list of 4 numbers; init = "ones" with a scale is one number in all entries',
    ),
    ('b = ["n"]', 'b = { shape = ["n"], value = ▸[1, 2, 3] }', "shape-mismatch", "write a list of 4 numbers"),
    ('b = ["n"]', 'b = { shape = ["n"], value = [1, 2, ▸nan, 4] }', "not-finite", "write a finite number"),
    (
        'b = ["n"]',
        'b = { shape = ["n"], value = [1, 2, ▸"3", ▸true] }',
        "wrong-type wrong-type",
        "write a number, without quotes | write a number, without quotes",
    ),
    ('b = ["n"]', "b = { shape = [], value = ▸[1] }", "shape-mismatch", "write one number"),
    ('b = ["n"]', "b = { shape = [1, 1], value = [[▸[1]]] }", "wrong-type", "a matrix is a list of rows"),
    (
        'b = ["n"]',
        "b = { shape = [2, 2], value = ▸[[1, 2], [3]] }",
        "shape-mismatch",
        "write a list of 2 rows of 2 numbers each",
    ),
    ('b = ["n"]', 'b = { shape = [2], value = [0, 0], ▸init = "zeros" }', "conflict", "keep one of the two"),
    ('b = ["n"]', "b = { shape = [2], ▸scale = 2, value = [0, 0] }", "conflict", "keep one of the two"),
    ('b = ["n"]', 'b = { shape = ["n"], ▸density = 0.5 }', "bad-density", "leave it out"),
    ('b = ["n"]', 'b = { shape = ["n", 2], density = ▸0 }', "out-of-range", "write density = 0.1, for example"),
    ('b = ["n"]', 'b = { shape = ["n", 2], density = ▸1.5 }', "out-of-range", "write density = 0.1, for example"),
    ('b = ["n"]', 'b = { shape = ["n"], trainable = ▸0 }', "wrong-type", "write trainable = false, for example"),
    ('a = ["n"]', 'a = { shape = ["n"], per_sample = ▸1 }', "wrong-type", "write per_sample = true, for example"),
    (
        'a = ["n"]',
        'a = { shape = ["n"], ▸per_sample = true }',
        "bad-init",
        'write init = "normal" or "uniform"',
    ),
    (
        'a = ["n"]',
        'a = { shape = ["n"], init = "uniform", trainable = true, ▸per_sample = true }',
        "conflict",
        'leave out one of the two; wrt = ["state"] differentiates an initial state that is no parameter',
    ),
    (
        'a = ["n"]',
        'a = { shape = ["n"], value = [1, 2, 3, 4], ▸per_sample = true }',
        "conflict",
        'leave out "value" or "per_sample"',
    ),
    (
        'a = ["n"]',
        'a = { shape = ["n"], ▸density = 0.5 }',
        "unknown-key",
        'did you mean "init"? known: init, per_sample, scale, shape, trainable, value',
    ),
    (
        'x = ["m"]',
        'x = { shape = ["m"], ▸init = "zeros" }',
        "unknown-key",
        "an input has only a shape; its values come from [data]",
    ),
    (
        'x = ["m"]',
        'x = { shape = ["m"], ▸value = [0, 0] }',
        "unknown-key",
        "an input has only a shape; its values come from [data]",
    ),
    # equations
    ('h = "W @ a[t-1] + V @ x + b"', "h = ▸1.0", "wrong-type", "equations are strings, numbers too: put it in quotes"),
    ('h = "W @ a[t-1] + V @ x + b"', 'h = ▸["W"]', "wrong-type", 'write h = "tanh(h)", for example'),
    ('h = "W @ a[t-1] + V @ x + b"', 'h = "W @ a[▸t-2]"', "known-limit", "use a delay line of states"),
    (
        'h = "W @ a[t-1] + V @ x + b"',
        "h = 'W @ ▸tahn(x)'",
        "unknown-function",
        'did you mean "tanh"? ' + FUNCTIONS,
    ),
    (
        'h = "W @ a[t-1] + V @ x + b"',
        'h = "\\u0057 \\t @ ▸tahn(x)"',
        "unknown-function",
        'did you mean "tanh"? ' + FUNCTIONS,
    ),
    (
        'h = "W @ a[t-1] + V @ x + b"',
        'h = """W @ a[t-1]\n  + V @ ▸tahn(x)"""',
        "unknown-function",
        'did you mean "tanh"? ' + FUNCTIONS,
    ),
    (
        'h = "W @ a[t-1] + V @ x + b"',
        "h = '''\n\nW @ a[t-1]\n  + V @ ▸tahn(x)\n'''",
        "unknown-function",
        'did you mean "tanh"? ' + FUNCTIONS,
    ),
    (
        'h = "W @ a[t-1] + V @ x + b"',
        'h = """W @ \\\n    ▸tahn(x)"""',
        "unknown-function",
        'did you mean "tanh"? ' + FUNCTIONS,
    ),
    ('h = "W @ a[t-1] + V @ x + b"', 'h = ▸""', "empty-equation", "write an expression"),
    ('a = "(1 - alpha) * a[t-1] + alpha * tanh(h)"\n', "", "missing-equation", 'write a = "…" in [equations]'),
    # the tables after the equations
    ('[objective]\nloss = "loss"', '[objective]\nloss = ▸""', "out-of-range", 'write loss = "loss", for example'),
    (
        '[objective]\nloss = "loss"',
        '[objective]\nover_time = ▸"max"',
        "unknown-value",
        'did you mean "mean"? known: last, mean, sum',
    ),
    ('[objective]\nloss = "loss"', '[objective]\nover_batch = ▸"last"', "unknown-value", "known: mean, sum"),
    (
        '[objective]\nloss = "loss"',
        '[objective]\n▸lost = "loss"',
        "unknown-key",
        'did you mean "loss"? known: loss, over_batch, over_time',
    ),
    ("[data]", "▸[weights]\n[data]", "missing-key", "write file = …"),
    ("[data]", "[weights]\nfile = ▸3\n[data]", "wrong-type", 'write file = "weights.npz", for example'),
    (
        "[data]",
        '▸[weights]\n▸path = "w.npz"\n[data]',
        "missing-key unknown-key",
        "write file = … | known: file, map, prefix",
    ),
    (
        "[data]",
        "▸[weights]\nmap = ▸3\n[data]",
        "missing-key wrong-type",
        'write file = … | write map = { W = "name in the file" }, for example',
    ),
    (
        "[data]",
        '▸[kernel.f]\n▸path = "k.py"\nfunction = ▸3\n[data]',
        "missing-key unknown-key wrong-type",
        'write file = … | known: as, file, function | write function = "gradient", for example',
    ),
    ("[data]", '[weights]\nfile = "w.npz"\nmap = { ▸Z = "q" }\n[data]', "unknown-name", "known: V, W, b"),
    (
        "[data]",
        '[weights]\nfile = "w.npz"\nmap = { W = ▸1 }\n[data]',
        "wrong-type",
        'write W = "name in the file", for example',
    ),
    ("T = 7", "T = ▸0", "out-of-range", "write T = 20, for example"),
    ("T = 7", "T = ▸7.0", "wrong-type", "write T = 20, for example"),
    ("batch = 3", "batch = ▸-1", "out-of-range", "write batch = 4, for example"),
    ("batch = 3", "seed = ▸-1", "out-of-range", "write seed = 0, for example"),
    ("batch = 3", f"seed = ▸{HUGE}", "out-of-range", "write seed = 0, for example"),
    ("batch = 3", 'task = "random"\n▸file = "x.npz"', "conflict", "[data] has one of task, file and values"),
    (
        "batch = 3",
        '▸values = { x = [0, 0], y_star = 1 }\ntask = "random"',
        "conflict",
        "[data] has one of task, file and values",
    ),
    ("batch = 3", 'input = ▸"xx"', "unknown-name", 'did you mean "x"? known: x, y_star'),
    ("batch = 3", 'file = "d.npz"\n▸target = "x"', "conflict", "leave it out"),
    ("batch = 3", "▸values = { x = [0, 0] }", "missing-array", "give every input a value"),
    ("batch = 3", "values = { x = ▸[0], y_star = 1 }", "shape-mismatch", "write a list of 2 numbers"),
    ("batch = 3", "values = { x = [0, 0], y_star = 1, ▸z = 2 }", "unknown-name", "known: x, y_star"),
    ("batch = 3", "values = { x = [0, ▸inf], y_star = 1 }", "not-finite", "write a finite number"),
    (
        "batch = 3",
        "▸bach = 3",
        "unknown-key",
        'did you mean "batch"? known: T, batch, file, input, seed, target, task, values',
    ),
    ('methods = ["bptt"]', 'methods = [▸""]', "out-of-range", 'write methods = ["bptt"], for example'),
    ('methods = ["bptt"]', "methods = [▸1]", "wrong-type", 'write methods = ["bptt"], for example'),
    ('methods = ["bptt"]', 'methods = ▸"bptt"', "wrong-type", 'write methods = ["bptt"], for example'),
    (
        'methods = ["bptt"]',
        'wrt = [▸"param"]',
        "unknown-wrt",
        'did you mean "params"? known: V, W, a, b, inputs, params, state, x, y_star',
    ),
    ('methods = ["bptt"]', "wrt = ▸[]", "out-of-range", 'write wrt = ["params"], for example'),
    ('methods = ["bptt"]', "methods = ▸[]", "out-of-range", 'write methods = ["bptt"], for example'),
    ("[bench.grid]", "[bench]\nmethods = ▸[]\n[bench.grid]", "out-of-range", 'write methods = ["bptt"], for example'),
    ("n = [4, 8]", "n = [4, ▸0]", "out-of-range", "leave it out, or give a value in this range"),
    ("n = [4, 8]", "n = [4, ▸8.0]", "wrong-type", "write an integer, without quotes or a point"),
    ("n = [4, 8]", "n = ▸[]", "out-of-range", "write n = [16, 32], for example"),
    ("n = [4, 8]", "n = ▸4", "wrong-type", "write n = [16, 32], for example"),
    ("n = [4, 8]", "alpha = [▸nan]", "not-finite", "write a finite number"),
    ("n = [4, 8]", 'alpha = [▸"x"]', "wrong-type", "write a number, without quotes"),
    ("n = [4, 8]", 'dtype = ["float32", ▸"f8"]', "unknown-value", "known: float32, float64"),
    ("n = [4, 8]", "k1 = [1, ▸[2]]", "wrong-type", "give a list of numbers or strings"),
    (
        "[bench.grid]\nn = [4, 8]",
        f"▸[bench.grid]\nk1 = {list(range(400))}\nk2 = {list(range(251))}",
        "sweep-too-large",
        "sweep fewer values",
    ),
    # TOML
    ("m = 2", "m = ▸", "toml-syntax", "text goes in quotes; numbers need a digit before and after the point"),
    ("m = 2", "m = 2 ▸3", "toml-syntax", "one key = value per line; tables start with [name]"),
    ("m = 2", "▸µ = 2", "toml-syntax", 'TOML wants quotes around such a key: "µ"'),
    ("m = 2", "m = 2\n▸n = 5", "duplicate-key", "keep one of the two"),
    ("m = 2", 'm = 2\n▸"n" = 5', "duplicate-key", "keep one of the two"),
    ("[constants]", "[▸dims]", "duplicate-key", "keep one of the two"),
    ("m = 2", "m = ▸[1]", "wrong-type", "write m = 32, for example"),
]


@pytest.mark.parametrize(("old", "new", "codes", "help_"), ONE_CHANGE)
def test_one_mistake_in_a_recurrent_spec(old, new, codes, help_, tmp_path):
    """Each mistake is refused alone, at its token, with its line quoted and a remedy."""
    text, places = unmarked(changed(RECURRENT, old, new))
    if codes == "missing-equation":
        places = [(17, 1)]
    _, refused = load_text(tmp_path, text)
    expected = [(code, *place) for code, place in zip(codes.split(), places, strict=True)]
    assert expected == [(d.code, d.place.line, d.place.column) for d in refused]
    assert [text.split("\n")[line - 1] for line, _ in places] == [d.place.quote for d in refused]
    assert help_ == " | ".join(d.help for d in refused)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("missing-key", 1, 1), ("missing-key", 1, 1)]),
        ("bp = 1\n", [("missing-key", 1, 1)]),
        (changed(FEED_FORWARD, "bp = 1\n", ""), [("missing-key", 1, 1)]),
        (changed(FEED_FORWARD, "[equations]", "[equation]"), [("unknown-key", 8, 2)]),
        (changed(FEED_FORWARD, "[params]", "[parms]"), [("unknown-key", 6, 2)]),
        (FEED_FORWARD + "[data]\nT = 3\n", [("recurrent-only", 12, 1)]),
        (FEED_FORWARD + "[bench]\ngrid = { T = [3] }\n", [("recurrent-only", 12, 10)]),
        (FEED_FORWARD + '[objective]\nover_time = "sum"\n', [("recurrent-only", 12, 1)]),
        (changed(FEED_FORWARD, "[params]\n", "[params.W]\n"), [("missing-key", 6, 1), ("unknown-key", 7, 1)]),
        (changed(FEED_FORWARD, "[params]\n", "[[params]]\n"), [("wrong-type", 6, 1)]),
        ("bp = 1\n[equations]\nloss = 'sum(x", [("toml-syntax", 3, 13)]),
        ("bp = 1\n[equations]\nloss = 'x\n'", [("toml-syntax", 3, 10)]),
        ("bp = 1\nnot toml\na = 1\na = 2\n", [("toml-syntax", 2, 5)]),
        ('bp = 1\ntitle = "a\\qb"\n', [("toml-syntax", 2, 11)]),
        ("bp = 1\ntitle = 'a\0b'\n", [("toml-syntax", 2, 11)]),
        ("bp = 1\n" + "x." * 40 + "y = 1\n", [("too-deep", 2, 1)]),
        ("bp = 1\ntitle = " + "[" * 60 + "]" * 60, [("too-deep", 2, 41)]),
        ("bp = 1\ntitle = " + "[" * 5000, [("too-deep", 2, 109)]),
        (b"bp = 1\ntitle = '\xff'\n", [("not-utf-8", 2, 10)]),
        ("bp = 1\ntitle = 'α'\n".encode() + b"# \xc3", [("not-utf-8", 3, 3)]),
        (b"\xef\xbb\xbfbp = 2\r\n[equations]\r\nloss = '1'\r\n", [("unknown-version", 1, 6)]),
        ("bp = 1\n" + "#" * (1 << 20), [("file-too-large", 1, 1)]),
    ],
)
def test_whole_files(text, expected, tmp_path):
    """Files that lack a table, or that are no TOML, no UTF-8 or too large."""
    _, refused = load_text(tmp_path, text)
    assert expected == [(d.code, d.place.line, d.place.column) for d in refused]


def test_all_mistakes_are_reported_together(tmp_path):
    """A mistake hides no other, and makes no second one."""
    text, places = unmarked(
        """bp = 1
▸titel = "x"
[dims]
n = ▸0
m = 2
[inputs]
x = ["n"]
▸t = ["m"]
[params]
W = { shape = ["m", "n"], init = ▸"orthogonl", ▸scal = 2 }
b = { shape = ["▸k"], scale = 3 }
[state]
▸s = ["m"]
[equations]
y = "W @ x + ▸tahn(b)"
z = ▸1
▸W = "y"
loss = "sum(y) + ▸1e999"
[objective]
over_time = ▸"all"
[data]
input = ▸"q"
[check]
wrt = ["params", "x", ▸"everything"]
"""
    )
    spec, refused = load_text(tmp_path, text)
    assert places == [(d.place.line, d.place.column) for d in refused]
    assert spec is not None
    assert {"n", "x", "t", "W", "b", "y", "z", "loss"} == spec.refused
    assert set() == set(spec.equations)
    assert ["s"] == list(spec.states)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("title", "titel", 'did you mean "title"?'),
        ("[constants]", "[constant]", 'did you mean "constants"?'),
        ("tanh(h)", "tahn(h)", 'did you mean "tanh"?'),
        ('b = ["n"]', 'b = { shape = ["n"], init = "norml" }', 'did you mean "normal"?'),
        ('b = ["n"]', 'b = ["nn"]', 'did you mean "n"?'),
        ('"float64"', '"float46"', 'did you mean "float64"?'),
        ("batch = 3", 'input = "y_str"', 'did you mean "y_star"?'),
        ("m = 2", "µ = 2", '"µ"'),
        ("m = 2", "m = 2\nlambda = 3", '"lambda_"'),
        ("tanh(h)", "h / a[t-2]", "delay line"),
        ("tanh(h)", "h * t", "as an input"),
        ("tanh(h)", "h**2 if h else 0", "no conditions"),
        ('x = ["m"]', 'x = ["m", "m"]', "known limit"),
        ("tanh(h)", "conv(h, h)", "known limit"),
        ('["n", "m"], init', '["n", "m", init', "close the bracket"),
        ('b = ["n"]', "b = [n]", "text goes in quotes"),
        ('b = ["n"]', 'b = { shape = ["n"], value = 0.0 }', 'a list of 4 numbers; init = "ones" with a scale is one'),
        ('b = ["n"]', 'b = { shape = ["n", "m"], value = [1] }', "write a list of 4 rows of 2 numbers each"),
        ('b = ["n"]', "b = { shape = [], value = [1] }", "write one number"),
    ],
)
def test_what_refusals_say(old, new, says, tmp_path):
    """An unknown name is answered with the nearest known one, a limit called by that word."""
    _, refused = load_text(tmp_path, changed(RECURRENT, old, new))
    assert says in " ".join(format_diagnostic(d) for d in refused)


def test_what_refusals_quote(tmp_path):
    """A message has the line and a caret under the token."""
    _, (refused,) = load_text(tmp_path, changed(FEED_FORWARD, "sum(y)", "1 + smu(y)"))
    assert f"""error[unknown-function]: unknown function "smu"
 --> {tmp_path / "spec.toml"}:10:13
10 | loss = "1 + smu(y)"
   |             ^^^""" == format_diagnostic(refused).partition("\nhelp")[0]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "nul"])
def test_what_is_no_regular_file(kind, tmp_path):
    """A spec that can't be opened is refused at once."""
    path = tmp_path / "spec.toml"
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    collector = Collector()
    assert load(f"{path}\0" if kind == "nul" else path, {}, collector) is None
    assert ["unreadable-file"] == [d.code for d in collector.diagnostics]


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        ({"n": 0}, "out-of-range", "--set n"),
        ({"n": 2.5}, "wrong-type", "--set n"),
        ({"n": "many"}, "wrong-type", "--set n"),
        ({"alpha": float("nan")}, "not-finite", "--set alpha"),
        ({"alpha": "x"}, "wrong-type", "--set alpha"),
        ({"T": 0}, "out-of-range", "--set T"),
        ({"seed": -1}, "out-of-range", "--seed"),
        ({"dtype": "float16"}, "unknown-value", "--dtype"),
        ({"dtype": 64}, "wrong-type", "--dtype"),
        ({"alhpa": 1}, "unknown-name", 'did you mean "alpha"?'),
    ],
)
def test_options_that_do_not_fit(overrides, code, says, tmp_path):
    """The refusal of a value that an option gives has no place in the file and names the option."""
    _, refused = load_text(tmp_path, RECURRENT, overrides)
    assert [(code, None)] == [(d.code, d.place) for d in refused]
    assert says in refused[0].help


def test_steps_of_a_network_without_any(tmp_path):
    """T is refused from an option as well where nothing has steps."""
    _, refused = load_text(tmp_path, FEED_FORWARD, {"T": 3})
    assert [("recurrent-only", None)] == [(d.code, d.place) for d in refused]
