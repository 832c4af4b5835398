"""What each part of the network and its training brings: the default, and one thing changed at a time.

`python -m benchmarks.ablation --data ../shared/data/sar_oil --out ablation.jsonl --share 0.25 --seeds 3`

Adapters stand on the kept feature maps (mode cached), which is several times as fast, unless a line says
otherwise. Lines are kept as by `benchmarks.accuracy`.
"""

from __future__ import annotations

from typing import Any, Final

from benchmarks import accuracy

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "no weight near outlines": {"structure": 0.0},
    "no edge supervision": {"edge_weight": 0.0},
    "trunk sees half the size": {"scale": 0.5},
    "trunk sees twice the size": {"scale": 2.0},
    "batches of 12": {"batch_size": 12},
    "half the decoder": {"width": 32},
    "mode late": {"mode": "late"},
    "mode full": {"mode": "full"},
}


def main() -> None:
    """Run what is missing and print the table."""
    variants = {name: accuracy.ELNet({"mode": "cached", **settings}) for name, settings in VARIANTS.items()}
    accuracy.main("ablation", variants)


if __name__ == "__main__":
    main()
