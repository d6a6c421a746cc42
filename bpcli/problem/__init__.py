"""From a spec to the arrays that it runs on: sizes and limits first, then seeded draws, files and inline values."""
