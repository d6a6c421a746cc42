"""The worker under the name by which `bp ab` of every version starts it."""

from __future__ import annotations

from bpcli.bench.worker import main

if __name__ == "__main__":
    main()
