"""Gradient descent with several methods from one start, by sequence or online, and comparisons of them on the way."""
