"""From a spec to the arrays that a network runs on: sizes, limits, seeded draws, files and inline values."""
