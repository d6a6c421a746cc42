"""`python -m bpcli` is `bp`."""

from bpcli.cli import main

main()
