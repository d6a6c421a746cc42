"""A gradient checker and benchmarking suite for networks written as equations."""

__version__ = "0.1.0"
