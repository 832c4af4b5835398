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
from heapq import nsmallest
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from active_learning.ledger.draws import seeded
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


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a queue, and what it leaves for the others: the order of the default strategy.

    A priority is the gain g at the time of the choice, as g / (10 + g); a gain is the similarity that is
    added to each waiting image, times what that image counts, summed. An image that gets its label leaves the
    others' gains as they were, so the order need not be written anew for each label.

    Attributes:
        chosen: key -> gain, of the images that were chosen greedily, as said at the top of this module.
    """

    chosen: Mapping[int, float]
    _mean: Embedding  # (C,), of the embeddings
    _others: NDArray[np.float32]  # (S, C): directions of the images that stand for all that wait,
    _values: NDArray[np.float32]  # (S,): what each counts,
    _covered: NDArray[np.float32]  # (S,): and its similarity to the nearest labelled or chosen one
    _least: float  # gain of the last one chosen

    @classmethod
    def choose(cls, pool: Sequence[Candidate], labelled: Sequence[Embedding], head: int = HEAD) -> Head:
        """Choose the head.

        Args:
            pool: what may be chosen, see `pool_of`; at least one.
            labelled: embeddings of labelled images, (C,) each.
            head: how many at most.
        """
        values = np.array([c.value for c in pool], dtype=np.float32)
        mean = _mean_of([c.embedding for c in pool], labelled)
        points, given = _centred([c.embedding for c in pool], mean), _centred_labelled(labelled, mean)
        others = np.sort(np.argsort([seeded("queue", c.key) for c in pool])[:SAMPLE])
        alike = _similarity(points, points[others])  # (pool, sample)
        alike[np.arange(len(pool))[:, None] == others] = 1  # also where there is no embedding
        covered = _similarity(points[others], given).max(axis=1, initial=0)  # (sample,)
        rows, gains, covered = _facility_location(alike, values[others], covered, head)
        chosen = {pool[row].key: gain for row, gain in zip(rows, gains, strict=True)}
        return cls(chosen, mean, points[others], values[others], covered, gains[-1])

    def priorities(self, candidates: Sequence[Candidate]) -> list[float]:
        """Where candidates stand, those that were not in the pool too: in [0, 1), in their order.

        One that was not chosen stands after all that were, by the gain that is left for it; one without an
        embedding is like nothing else, and tells about itself alone.
        """
        points = _centred([c.embedding for c in candidates], self._mean)
        gains = _gains(_similarity(points, self._others), self._values, self._covered)
        gains = np.where(points.any(axis=1), gains, [c.value for c in candidates])
        left = np.minimum(gains, self._least).tolist()
        return [priority_of(self.chosen.get(c.key, gain)) for c, gain in zip(candidates, left, strict=True)]


def prioritise(
    candidates: Sequence[Candidate], labelled: Sequence[Embedding], head: int = HEAD
) -> list[float]:
    """`Head.priorities` of candidates that are all in memory, (n,) in their order."""
    if not candidates:
        return []
    pool = set(pool_of([c.key for c in candidates]))
    return Head.choose([c for c in candidates if c.key in pool], labelled, head).priorities(candidates)


def pool_of(keys: Sequence[int]) -> list[int]:
    """The images that the head is chosen of: all, or of very many a sample that stays when one leaves."""
    if len(keys) <= POOL:
        return list(keys)
    return sorted(nsmallest(POOL, keys, key=lambda key: seeded("queue", key)))


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
    """Unit vectors from the mean embedding, (n, C) and (m, C), see `_centred`."""
    mean = _mean_of(embeddings, labelled)
    return _centred(embeddings, mean), _centred_labelled(labelled, mean)


def _mean_of(embeddings: Sequence[Embedding | None], labelled: Sequence[Embedding]) -> Embedding:
    """(C,): of the queue and the labelled, so that it stays where it is when an image gets its label."""
    known = [e for e in embeddings if e is not None and np.isfinite(e).all()]
    if not known:
        return np.zeros(1, np.float32)
    mean: Embedding = np.mean(known + [e for e in labelled if len(e) == len(known[0])], axis=0)
    return mean


def _centred_labelled(labelled: Sequence[Embedding], mean: Embedding) -> NDArray[np.float32]:
    """(m, C), without those of another network."""
    return _centred([e for e in labelled if len(e) == len(mean)], mean)


def _centred(embeddings: Sequence[Embedding | None], mean: Embedding) -> NDArray[np.float32]:
    """(n, C) unit vectors from the mean: raw embeddings all point the same way.

    Zeros where there is no embedding, or one of another network.
    """
    if not embeddings:
        return np.zeros((0, len(mean)), np.float32)
    return _unit(np.stack([e if e is not None and len(e) == len(mean) else mean for e in embeddings]) - mean)


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
