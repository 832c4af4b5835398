"""The strategies of acquisition by name, for those who choose; `active_learning.acquisition` tells more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Strategy = Literal["hybrid", "random", "foreground-random", "entropy", "k-centre", "typiclust"]
HYBRID: Final[Strategy] = "hybrid"  # of a project that does not choose

MEANINGS: Final[Mapping[Strategy, str]] = {
    "hybrid": "images whose labels tell most about the others, weighed by what the model likely gets wrong",
    "random": "by chance",
    "foreground-random": "by chance, images with predicted foreground first",
    "entropy": "images whose pixels the model doubts most",
    "k-centre": "the image least like any that is labelled or stands before it",
    "typiclust": "the most typical image of each cluster without a label, the largest cluster first",
}
