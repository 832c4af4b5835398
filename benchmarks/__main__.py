"""Run the benchmarks: `python -m benchmarks [rle] [network]`, all of them without a name."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import torch

from benchmarks import network, rle
from model.device import describe_machine

_ALL = {"rle": rle.main, "network": network.main}


def main() -> int:
    """Run the named benchmarks."""
    names = sys.argv[1:] or list(_ALL)
    if unknown := [name for name in names if name not in _ALL]:
        print(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(_ALL)}.", file=sys.stderr)
        return 2
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}")
    print(f"command: python -m benchmarks {' '.join(names)}")
    for name in names:
        print()
        _ALL[name]()
    return 0


sys.exit(main())
