"""Our brush RLE against label-studio-sdk's, on ragged objects."""

from __future__ import annotations

import numpy as np
from label_studio_sdk.converter import brush
from numpy.typing import NDArray
from scipy import ndimage

from backend.rle import decode_rle, encode_rle
from benchmarks.timing import in_turn

_CASES = ((256, 20, 9), (1024, 300, 5), (4096, 5000, 1))  # side, objects, rounds


def ragged(side: int, objects: int, seed: int = 0) -> NDArray[np.bool_]:
    """A mask of so many blobs with frayed outlines: (side, side) bool."""
    random = np.random.default_rng(seed)
    seeds = np.zeros((side, side), dtype=np.float32)
    rows, columns = random.integers(0, side, (2, objects))
    seeds[rows, columns] = 1
    smooth = ndimage.gaussian_filter(seeds, 6)
    noise = random.normal(0, 1, seeds.shape).astype(np.float32)
    return smooth + 0.0008 * ndimage.gaussian_filter(noise, 1) > 0.0015


def main() -> None:
    """Print a table."""
    print("| mask | runs | encode: ours, sdk (ms) | ratio | decode: ours, sdk (ms) | ratio |")
    print("|---|---|---|---|---|---|")
    for side, objects, rounds in _CASES:
        mask = ragged(side, objects)
        runs = int(np.count_nonzero(np.diff(mask.ravel()))) + 1
        encode, decode = _seconds(mask, rounds)
        print(
            f"| {side} x {side}, {objects} objects | {runs:,} | {_beside(encode)} | {_beside(decode)} |",
        )


def _seconds(mask: NDArray[np.bool_], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    grey = mask.astype(np.uint8) * 255
    code = encode_rle(mask)
    if code != brush.mask2rle(grey):
        raise SystemExit(f"the codes of the {mask.shape} mask differ: the comparison would mean nothing")
    encode = in_turn({"ours": lambda: encode_rle(mask), "sdk": lambda: brush.mask2rle(grey)}, rounds)
    ways = {"ours": lambda: decode_rle(code, *mask.shape), "sdk": lambda: brush.decode_rle(code)}
    decode = in_turn(ways, rounds)
    return encode, decode


def _beside(seconds: dict[str, float]) -> str:
    ours, sdk = seconds["ours"], seconds["sdk"]
    return f"{1000 * ours:.1f}, {1000 * sdk:.1f} | {sdk / ours:.1f}"
