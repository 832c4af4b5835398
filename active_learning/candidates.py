"""Images that wait for a human, as strategies of acquisition see them, and where they lie to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

EMPTY_SHARE = 0.02  # an empty mask counts like one of this share of the image, times its likeliest pixels
HEAD = 128  # how many tasks of a queue are chosen one by one: more than a cycle's worth of labels
_ROWS = 1024  # compared with everything at a time

Embedding = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that waits for a human, with what the champion said of it.

    Attributes:
        key: its number, which also seeds its draw.
        value: what the champion gets wrong there, foreseen, in [0, 1].
        embedding: (C,), of its trunk; None: not known.
        foreground: whether any was predicted.
        entropy: mean over the pixels in bits, of the class with the highest, in [0, 1].
    """

    key: int
    value: float
    embedding: Embedding | None
    foreground: bool = True
    entropy: float = 0.0

    @classmethod
    def of(
        cls, key: int, quality: float, measured: Mapping[str, Any], embedding: Embedding | None
    ) -> Candidate:
        """From a prediction's quality and signals, as `active_learning.signals.Signals.to_dict` has them."""
        classes = measured["classes"]
        share = max(EMPTY_SHARE * c["peak"] if c["empty"] else c["foreground_share"] for c in classes)
        return cls(
            key,
            (1 - quality) * math.sqrt(float(share)) if measured["usable"] else 1.0,
            embedding,
            not all(c["empty"] for c in classes),
            max(c.get("entropy", 0.0) for c in classes),
        )


class Ranking(Protocol):
    """An order of the queue, that says of each image where it stands."""

    def priorities(self, candidates: Sequence[Candidate]) -> list[float]:
        """In [0, 1], in their order: the first of the queue have the highest."""
        ...


def mean_of(embeddings: Sequence[Embedding | None], labelled: Sequence[Embedding]) -> Embedding:
    """(C,): of the queue and the labelled, so that it stays where it is when an image gets its label."""
    known = [e for e in embeddings if e is not None and np.isfinite(e).all()]
    if not known:
        return np.zeros(1, np.float32)
    mean: Embedding = np.mean(known + [e for e in labelled if len(e) == len(known[0])], axis=0)
    return mean


def centred_labelled(labelled: Sequence[Embedding], mean: Embedding) -> NDArray[np.float32]:
    """(m, C), without those of another network."""
    return centred([e for e in labelled if len(e) == len(mean)], mean)


def centred(embeddings: Sequence[Embedding | None], mean: Embedding) -> NDArray[np.float32]:
    """(n, C) unit vectors from the mean: raw embeddings all point the same way.

    Zeros where there is no embedding, or one of another network.
    """
    if not embeddings:
        return np.zeros((0, len(mean)), np.float32)
    return _unit(np.stack([e if e is not None and len(e) == len(mean) else mean for e in embeddings]) - mean)


def nearest(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row to the nearest of the columns, (n,) in [-1, 1]; -1 where there is none."""
    parts = [rows[start : start + _ROWS] @ columns.T for start in range(0, len(rows), _ROWS)]
    return np.concatenate([np.zeros(0, np.float32), *(part.max(axis=1, initial=-1) for part in parts)])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; rows of (almost) no length, or that are not finite, become zeros."""
    clean = np.nan_to_num(vectors.astype(np.float32), posinf=0, neginf=0)
    length = np.linalg.norm(clean, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.where(length > 1e-6, clean / np.maximum(length, 1e-6), 0)
    return scaled
