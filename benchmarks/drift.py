"""How soon is it seen that other imagery has come in, and how often where none has?

`python -m benchmarks.drift --checkpoint C --data sar_oil/test --known palsar --other road/test`

Some scenes whose names contain `--known` are audited, others are accepted: of the same kind, a half or all of
the other kind in the folder, or a fifth or all of another folder. Drawn anew `--draws` times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from active_learning.drift import compare
from model.device import describe_machine
from model.pairs import find_pairs, read_pair
from model.predictor import Predictor

AUDITED = (20, 40)  # scenes
ACCEPTED = 30  # scenes


@dataclass(frozen=True, slots=True)
class Images:
    """Embeddings (n, C) and the scene of each."""

    embeddings: NDArray[np.float32]
    scenes: NDArray[np.str_]

    def of(self, scenes: Sequence[str]) -> Images:
        """Those of some scenes."""
        which = np.isin(self.scenes, scenes)
        return Images(self.embeddings[which], self.scenes[which])


def main() -> None:
    """Predict, draw and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--known", required=True, help="part of the names of the kind that is audited")
    parser.add_argument("--other", type=Path, required=True, help="folder of other imagery")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}")
    predictor = Predictor(given.checkpoint)
    here, there = collect(predictor, given.data), collect(predictor, given.other)
    print(f"{ACCEPTED} accepted scenes, {given.draws} draws\n")
    print("| accepted images | audited scenes | strange, mean | alarms |\n|---|---|---|---|")
    for audited in AUDITED:
        for name, shares, alarms in table(here, there, given.known, audited, given.draws):
            print(f"| {name} | {audited} | {shares:.0%} | {alarms:.1%} |")


def collect(predictor: Predictor, folder: Path) -> Images:
    """The embeddings of a folder."""
    pairs, _ = find_pairs(folder)
    found = [predictor.predict([read_pair(pair)[0]])[0].embedding for pair in pairs]
    return Images(np.stack(found), np.array([pair.scene for pair in pairs]))


def table(
    here: Images, there: Images, known: str, audited: int, draws: int
) -> Iterator[tuple[str, float, float]]:
    """Name of the mixture, mean share that is strange, share of the draws that alarm."""
    kinds = np.unique(here.scenes)
    same = np.array([scene for scene in kinds if known in scene])
    another, foreign = np.setdiff1d(kinds, same), np.unique(there.scenes)
    mixtures = {
        "of the same kind": (another, 0.0),
        "half of another kind": (another, 0.5),
        "all of another kind": (another, 1.0),
        "a fifth from the other folder": (foreign, 0.2),
        "all from the other folder": (foreign, 1.0),
    }
    for name, (strangers, share) in mixtures.items():
        drawn = []
        for seed in range(draws):
            random = np.random.default_rng(seed)
            mixed = random.permutation(same)
            new = min(round(share * ACCEPTED), len(strangers))
            accepted = [*random.permutation(strangers)[:new], *mixed[audited:][: ACCEPTED - new]]
            before, one, two = here.of(mixed[:audited]), here.of(accepted), there.of(accepted)
            after = np.concatenate([one.embeddings, two.embeddings])
            scenes = [*one.scenes.tolist(), *two.scenes.tolist()]
            found = compare(before.embeddings, before.scenes.tolist(), after, scenes)
            if found is not None:
                drawn.append((found.strange, found.alarming))
        shares, alarms = np.mean(drawn, axis=0) if drawn else (np.nan, np.nan)
        yield name, float(shares), float(alarms)


if __name__ == "__main__":
    main()
