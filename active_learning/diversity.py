"""Strategies that spread labels over the embedding, whatever the champion says: k-centre and TypiClust.

Both give an image a place that hangs on the images that it stands beside, not on how many are asked for, so
that a label leaves the places of all others as they were (TypiClust: of all but its own cluster).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from active_learning.candidates import (
    HEAD,
    Candidate,
    Embedding,
    centred,
    centred_labelled,
    mean_of,
    nearest,
)

NEIGHBOURS = 20  # that typicality is measured by, as in TypiClust
CLUSTERS = 500  # at most, as there
WHOLE = 4096  # points up to which k-means looks at all of them in each step, and typicality at all others


@dataclass(frozen=True, slots=True)
class KCentre:
    """Farthest first, by cosine (core-set, arXiv 1708.00489): each image is as early as it is far.

    Attributes:
        chosen: key -> cosine to the nearest labelled image, or one chosen before, of those that were chosen.
    """

    chosen: Mapping[int, float]
    _mean: Embedding  # (C,)
    _centres: NDArray[np.float32]  # (m, C): directions of the labelled and the chosen ones
    _last: float  # cosine of the last one chosen

    @classmethod
    def choose(cls, pool: Sequence[Candidate], labelled: Sequence[Embedding], head: int = HEAD) -> KCentre:
        """Choose so many of the pool."""
        mean = mean_of([c.embedding for c in pool], labelled)
        points, given = centred([c.embedding for c in pool], mean), centred_labelled(labelled, mean)
        alike = nearest(points, given)
        rows: list[int] = []
        found: list[float] = []
        free = np.ones(len(pool), np.bool_)
        for _ in range(min(head, len(pool))):
            best = int(np.argmin(np.where(free, alike, np.inf)))
            free[best] = False
            rows.append(best)
            found.append(float(alike[best]))
            alike = np.maximum(alike, points @ points[best])
        chosen = {pool[row].key: cosine for row, cosine in zip(rows, found, strict=True)}
        return cls(chosen, mean, np.concatenate([given, points[rows]]), found[-1])

    def priorities(self, candidates: Sequence[Candidate]) -> list[float]:
        """Half the cosine distance; whoever was not chosen stands after all that were."""
        points = centred([c.embedding for c in candidates], self._mean)
        left = np.maximum(nearest(points, self._centres), self._last).tolist()
        return [(1 - self.chosen.get(c.key, cosine)) / 2 for c, cosine in zip(candidates, left, strict=True)]


@dataclass(frozen=True, slots=True)
class TypiClust:
    """The most typical image of each cluster without a label, the largest first (arXiv 2202.02794).

    Then the next one of each, and so on. What was not clustered stands after all that was, those nearest to
    the centre of a cluster first.

    Attributes:
        layers: key -> how many of its cluster go before it, and (below 1) how many larger clusters there are.
    """

    layers: Mapping[int, float]
    _mean: Embedding  # (C,)
    _centres: NDArray[np.float32]  # (k, C)

    @classmethod
    def choose(
        cls, pool: Sequence[Candidate], labelled: Sequence[Embedding], count: int | None, seed: int
    ) -> TypiClust:
        """Cluster the pool and the labelled images.

        As many clusters as there will be labels. For a queue that goes on (`count` is None) that is rounded
        up to a power of two: then the next label, which moves an image from one to the other, makes no other
        clusters.
        """
        mean = mean_of([c.embedding for c in pool], labelled)
        points, given = centred([c.embedding for c in pool], mean), centred_labelled(labelled, mean)
        everything = np.concatenate([points, given])
        ranks = np.lexsort(everything.T[:4])  # the same whichever of them are labelled
        labels = len(given) + (HEAD if count is None else count)
        wanted = 1 << (labels - 1).bit_length() if count is None else labels
        clusters = min(wanted, len(np.unique(everything, axis=0)), CLUSTERS)
        centres, ordered = _clusters(everything[ranks], clusters, seed)
        own = np.empty(len(everything), np.intp)
        own[ranks] = ordered
        sizes = np.bincount(own, minlength=clusters)
        behind = np.empty(clusters)
        behind[np.argsort(-sizes, kind="stable")] = (np.arange(clusters) + 1) / (clusters + 1)
        taken = np.bincount(own[len(points) :], minlength=clusters)
        layers: dict[int, float] = {}
        for row in np.argsort(-_typicality(points, everything[ranks]), kind="stable"):
            cluster = own[row]
            layers[pool[row].key] = float(taken[cluster] + behind[cluster])
            taken[cluster] += 1
        return cls(layers, mean, centres)

    def priorities(self, candidates: Sequence[Candidate]) -> list[float]:
        """One over one and the layer."""
        points = centred([c.embedding for c in candidates], self._mean)
        typical = (1 + nearest(points, self._centres)).tolist()  # the centres lie within the sphere
        last = 1 / (2 + max(self.layers.values()))
        return [
            1 / (1 + self.layers[c.key]) if c.key in self.layers else last * min(1, near / 2)
            for c, near in zip(candidates, typical, strict=True)
        ]


def _clusters(
    points: NDArray[np.float32], count: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """K-means: the centres (k, C), and to which each point belongs, (n,)."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(points) <= WHOLE else MiniBatchKMeans
    found = kind(count, n_init=1, random_state=seed).fit(points)
    return found.cluster_centers_.astype(np.float32), found.labels_


def _typicality(points: NDArray[np.float32], everything: NDArray[np.float32]) -> NDArray[np.float64]:
    """One over the mean distance to the nearest others, (n,); of very many, to those of an even sample."""
    from sklearn.neighbors import NearestNeighbors

    others = everything[:: -(-len(everything) // WHOLE)]
    near = min(NEIGHBOURS + 1, len(others))
    distances, _ = NearestNeighbors(n_neighbors=near, algorithm="brute").fit(others).kneighbors(points)
    found: NDArray[np.float64] = 1 / (distances.mean(axis=1, dtype=np.float64) + 1e-6)
    return found
