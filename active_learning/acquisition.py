"""Strategies of acquisition: in what order images are labelled, best first. No database here.

The default, "hybrid": an image is worth what its label tells about the images that nobody looks at. Its
neighbours in the trunk's embedding are the images that it tells about, and each of them counts by how much
the champion gets wrong there, as far as it can be foreseen: what the predicted IoU lacks, times the root of
the mask's share of the image. One minus the IoU is the share of wrong pixels in prediction and truth
together, so without the root that product is the number of wrong pixels; the root keeps one huge mask from
outweighing many small ones. Images that likely hold nothing count little: most tiles of a survey hold none,
and plain uncertainty barely beats chance there (nnActive, arXiv 2511.19183).

The queue's head is chosen greedily by facility location weighted in this way (Wei, Iyer and Bilmes 2015,
"Submodularity in data subset selection and active learning"): the next image is the one that raises most the
similarity of every waiting image to its nearest labelled or chosen one. So near-copies of what is labelled or
already chosen come late, and so do outliers: noise and odd images are unlike everything, and teach nothing
about anything else. With few labels that matters most (TypiClust, arXiv 2202.02794).

The others are there to be compared with, by `elnet simulate`: "random"; "foreground-random", images with
predicted foreground first (the baseline that little beats, nnActive); "entropy", the mean entropy of the
pixels; "k-centre", farthest first (core-set, arXiv 1708.00489); "typiclust", the most typical image of each
cluster that holds no label (arXiv 2202.02794).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from active_learning.routing import seeded
from model.errors import ELNetError

EMPTY_SHARE = 0.02  # an empty mask counts like one of this share of the image, times its likeliest pixels
HEAD = 128  # how many tasks are chosen greedily: more than a cycle's worth of labels
SAMPLE = 2048  # of a longer queue, so many images stand for the rest when gains are summed,
POOL = 16_384  # and so many are candidates for the head
NEIGHBOURS = 20  # that typicality is measured by, as in TypiClust

Embedding = NDArray[np.float32]
Strategy = Callable[[Sequence["Candidate"], Sequence[Embedding], int, int], list[float]]


class AcquisitionError(ELNetError):
    """There is no such strategy."""


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


def order(
    strategy: str, candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[int]:
    """The first images by a strategy.

    Args:
        strategy: a key of `STRATEGIES`.
        candidates: in any order.
        labelled: embeddings of labelled images, (C,) each.
        count: how many are asked for.
        seed: of what is random.

    Returns:
        Keys of `count` candidates, or of all if they are fewer; what is labelled first, first.

    Raises:
        AcquisitionError: no strategy of this name.
    """
    if strategy not in STRATEGIES:
        raise AcquisitionError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if not candidates:
        return []
    worth = STRATEGIES[strategy](candidates, labelled, count, seed)
    ranked = sorted(zip(worth, candidates, strict=True), key=lambda pair: (-pair[0], pair[1].key))
    return [candidate.key for _, candidate in ranked[:count]]


def prioritise(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], head: int = HEAD
) -> list[float]:
    """Where each candidate stands in the queue of the default strategy.

    The head is chosen greedily, as said at the top of this module; the others are ordered by the gain that is
    left for them.

    A priority is the gain g at the time of the choice, as g / (10 + g); a gain is the similarity that is
    added to each waiting image, times what that image counts, summed. An image that gets its label leaves the
    others' gains as they were, so the order need not be written anew for each label.

    Args:
        candidates: in any order; one without an embedding is like nothing else.
        labelled: embeddings of labelled images, (C,) each.
        head: how many are chosen greedily.

    Returns:
        Priorities in [0, 1), in the candidates' order.
    """
    if not candidates:
        return []
    values = np.array([c.value for c in candidates], dtype=np.float32)
    points, given = _directions([c.embedding for c in candidates], labelled)
    mixed = np.argsort([seeded("queue", c.key) for c in candidates])  # stays when one leaves
    pool, others = np.sort(mixed[:POOL]), np.sort(mixed[:SAMPLE])
    alike = _similarity(points[pool], points[others])  # (pool, sample)
    alike[pool[:, None] == others] = 1  # also where there is no embedding
    covered = _similarity(points[others], given).max(axis=1, initial=0)  # (sample,)
    chosen, gains_then, covered = _facility_location(alike, values[others], covered, head)
    if len(pool) == len(points):  # then its rows stand in the order of the points
        gains = _gains(alike, values[others], covered)
    else:
        parts = np.array_split(points, len(points) // 8192 + 1)
        told = [_gains(_similarity(part, points[others]), values[others], covered) for part in parts]
        gains = np.concatenate(told)
    gains = np.where(points.any(axis=1), gains, values)
    gains = np.minimum(gains, gains_then[-1])
    gains[pool[chosen]] = gains_then
    return [priority_of(float(gain)) for gain in gains]


def priority_of(gain: float) -> float:
    """[0, infinity) -> [0, 1), with digits enough for gains of hundredths and of hundreds."""
    return gain / (10 + gain)


def _hybrid(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    return prioritise(candidates, labelled, count)


def _random(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    return [seeded("random", seed, c.key) for c in candidates]


def _foreground_random(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    return [c.foreground + seeded("random", seed, c.key) for c in candidates]


def _entropy(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    return [c.entropy for c in candidates]


def _k_centre(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    """Greedy k-centre over cosine distances; the rest by their distance at the end."""
    points, given = _directions([c.embedding for c in candidates], labelled)
    alike = (points @ given.T).max(axis=1, initial=-1)  # cosine to the nearest labelled or chosen one
    worth = np.zeros(len(candidates))
    for turn in range(min(count, len(candidates))):
        best = int(np.argmin(np.where(worth > 0, np.inf, alike)))
        worth[best] = 2 + count - turn
        alike = np.maximum(alike, points @ points[best])
    return [float(w) for w in np.where(worth > 0, worth, 1 - alike)]


def _typiclust(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], count: int, seed: int
) -> list[float]:
    """As many clusters as there will be labels; of each without one, the largest first, its densest point."""
    from sklearn.cluster import KMeans
    from sklearn.neighbors import NearestNeighbors

    points, given = _directions([c.embedding for c in candidates], labelled)
    everything = np.concatenate([points, given])
    clusters = min(len(given) + count, len(everything), 500)
    found = KMeans(clusters, n_init=1, random_state=seed).fit_predict(everything)
    near = min(NEIGHBOURS + 1, len(everything))
    distances, _ = NearestNeighbors(n_neighbors=near).fit(everything).kneighbors(points)
    typical = 1 / (distances.mean(axis=1) + 1e-6)
    taken = np.bincount(found[len(points) :], minlength=clusters)
    sizes = np.bincount(found, minlength=clusters)
    worth = typical / typical.max()
    here = found[: len(points)]
    for turn in range(min(count, len(points))):
        free = np.where(worth <= 1, here, -1)
        possible = np.unique(free[free >= 0])
        cluster = min(possible, key=lambda c: (taken[c], -sizes[c]))
        best = int(np.argmax(np.where(free == cluster, worth, -1)))
        worth[best] = 2 + count - turn
        taken[cluster] += 1
    return [float(w) for w in worth]


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "hybrid": _hybrid,
    "random": _random,
    "foreground-random": _foreground_random,
    "entropy": _entropy,
    "k-centre": _k_centre,
    "typiclust": _typiclust,
}


def _facility_location(
    alike: NDArray[np.float32], weights: NDArray[np.float32], covered: NDArray[np.float32], head: int
) -> tuple[list[int], list[float], NDArray[np.float32]]:
    """Choose up to `head` rows, each time the one with the largest gain.

    Gains only fall as rows are chosen, so a gain of before is a bound: the next row is found when the best
    of the bounds is one that was computed just now (Minoux 1978).

    Returns:
        The rows in the order of their choice, the gain of each at that time, and what they cover of each
        column.
    """
    bounds = _gains(alike, weights, covered)
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < min(head, len(alike)):
        best = int(np.argmax(bounds))
        bounds[best] = _gains(alike[best : best + 1], weights, covered)[0]
        if best != int(np.argmax(bounds)):
            continue
        chosen.append(best)
        gains.append(float(bounds[best]))
        covered = np.maximum(covered, alike[best])
        bounds[best] = -1
    return chosen, gains, covered


def _gains(
    alike: NDArray[np.float32], weights: NDArray[np.float32], covered: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How much each row adds to what is covered: the weighted sum over columns."""
    chunks = np.array_split(alike, alike.size >> 22) if alike.size >> 23 else [alike]  # 16 MiB at a time
    return np.concatenate([np.maximum(part - covered, 0) @ weights for part in chunks])


def _directions(
    embeddings: Sequence[Embedding | None], labelled: Sequence[Embedding]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors from the mean embedding: raw embeddings all point the same way.

    Returns:
        (n, C) for the queue, zeros where there is no embedding, and (m, C) for the labelled.
    """
    known = [e for e in embeddings if e is not None]
    if not known:
        return np.zeros((len(embeddings), 1), np.float32), np.zeros((0, 1), np.float32)
    width = len(known[0])
    alike = [e for e in labelled if len(e) == width]
    mean = np.mean(known + alike, axis=0)  # of both: it stays where it is when an image gets its label
    queue = np.stack([mean if e is None else e for e in embeddings]) - mean
    others = np.stack(alike) - mean if alike else np.zeros((0, width), np.float32)
    return _unit(queue), _unit(others)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; rows of (almost) no length, or that are not finite, become zeros."""
    clean = np.nan_to_num(vectors.astype(np.float32), posinf=0, neginf=0)
    length = np.linalg.norm(clean, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.where(length > 1e-6, clean / np.maximum(length, 1e-6), 0)
    return scaled


def _similarity(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of directions, (n, m) in [0, 1]: 0 at a right angle or beyond, or unknown."""
    similarity: NDArray[np.float32] = np.clip(rows @ columns.T, 0, 1)
    return similarity
