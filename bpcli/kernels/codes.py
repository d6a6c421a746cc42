"""The numbers by which kernels know operations, instruction fields and address fields (compile-time constants)."""

from __future__ import annotations

from bpcli.graph.operations import OPERATIONS

COPY, NEGATE, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER = (
    OPERATIONS[name].opcode for name in ("copy", "negate", "add", "subtract", "multiply", "divide", "power")
)
TANH, SIGMOID, RELU, LEAKY_RELU, SOFTPLUS = (
    OPERATIONS[name].opcode for name in ("tanh", "sigmoid", "relu", "leaky_relu", "softplus")
)
EXP, LOG, SQRT, SIN, COS, ABS = (OPERATIONS[name].opcode for name in ("exp", "log", "sqrt", "sin", "cos", "abs"))
MATMUL, MATMAT, TRANSPOSE = (OPERATIONS[name].opcode for name in ("matmul", "matmat", "transpose"))
SUM, DOT, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, CONCAT = (
    OPERATIONS[name].opcode for name in ("sum", "dot", "logsumexp", "softmax", "log_softmax", "concat")
)
