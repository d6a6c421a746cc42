"""The Python API, which the command line and the plugin of pytest call: specs opened, gradients computed and judged."""
