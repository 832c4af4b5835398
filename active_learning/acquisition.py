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

The others can be chosen by a project, and compared by `elnet simulate`: "random"; "foreground-random", images
with predicted foreground first (the baseline that little beats, nnActive); "entropy", the mean entropy of the
pixels; "k-centre" and "typiclust", see `active_learning.diversity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from active_learning.candidates import (
    HEAD,
    Candidate,
    Embedding,
    Ranking,
    centred,
    centred_labelled,
    mean_of,
)
from active_learning.diversity import KCentre, TypiClust
from active_learning.ledger.draws import seeded
from active_learning.strategy import HYBRID
from model.errors import ELNetError

SAMPLE = 2048  # of a longer queue, so many images stand for the rest when gains are summed,
POOL = 16_384  # and so many are candidates for the head

Choose = Callable[[Sequence[Candidate], Sequence[Embedding], int | None, int], Ranking]


class AcquisitionError(ELNetError):
    """There is no such strategy."""


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
    worth = prioritise(candidates, labelled, count, strategy, seed)
    ranked = sorted(zip(worth, candidates, strict=True), key=lambda pair: (-pair[0], pair[1].key))
    return [candidate.key for _, candidate in ranked[:count]]


def prioritise(
    candidates: Sequence[Candidate],
    labelled: Sequence[Embedding],
    count: int | None = None,
    strategy: str = HYBRID,
    seed: int = 0,
) -> list[float]:
    """Where candidates stand that are all in memory, (n,) in their order; see `ranking`."""
    pool = set(pool_of([c.key for c in candidates]))
    ranked = ranking(strategy, [c for c in candidates if c.key in pool], labelled, count, seed)
    return ranked.priorities(candidates) if candidates else []


def ranking(
    strategy: str,
    pool: Sequence[Candidate],
    labelled: Sequence[Embedding],
    count: int | None = None,
    seed: int = 0,
) -> Ranking:
    """The order of a queue by a strategy.

    Args:
        strategy: a key of `STRATEGIES`.
        pool: what may be chosen first, see `pool_of`; empty: each image stands as if it taught about itself
            alone.
        labelled: embeddings of labelled images, (C,) each.
        count: how many labels are asked for; None: of a queue that goes on, in which a place should stay as
            others get their labels.
        seed: of what is random.

    Raises:
        AcquisitionError: no strategy of this name.
    """
    check(strategy)
    if not pool and strategy not in POINTWISE:
        return Alone(lambda c: priority_of(c.value))
    return STRATEGIES[strategy](pool, labelled, count, seed)


def check(strategy: str) -> None:
    """Refuse what is no strategy.

    Raises:
        AcquisitionError: see there.
    """
    if strategy not in STRATEGIES:
        raise AcquisitionError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}")


@dataclass(frozen=True, slots=True)
class Alone:
    """Each image by what is known of it alone."""

    worth: Callable[[Candidate], float]  # in [0, 1]

    def priorities(self, candidates: Sequence[Candidate]) -> list[float]:
        """The worth of each."""
        return [self.worth(candidate) for candidate in candidates]


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
        mean = mean_of([c.embedding for c in pool], labelled)
        points, given = centred([c.embedding for c in pool], mean), centred_labelled(labelled, mean)
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
        points = centred([c.embedding for c in candidates], self._mean)
        gains = _gains(_similarity(points, self._others), self._values, self._covered)
        gains = np.where(points.any(axis=1), gains, [c.value for c in candidates])
        left = np.minimum(gains, self._least).tolist()
        return [priority_of(self.chosen.get(c.key, gain)) for c, gain in zip(candidates, left, strict=True)]


def pool_of(keys: Sequence[int]) -> list[int]:
    """The images that the head is chosen of: all, or of very many a sample that stays when one leaves."""
    if len(keys) <= POOL:
        return list(keys)
    return sorted(nsmallest(POOL, keys, key=lambda key: seeded("queue", key)))


def priority_of(gain: float) -> float:
    """[0, infinity) -> [0, 1), with digits enough for gains of hundredths and of hundreds."""
    return gain / (10 + gain)


STRATEGIES: Final[Mapping[str, Choose]] = {
    "hybrid": lambda pool, labelled, count, seed: Head.choose(pool, labelled, count or HEAD),
    "random": lambda pool, labelled, count, seed: Alone(lambda c: seeded("random", seed, c.key)),
    "foreground-random": lambda pool, labelled, count, seed: Alone(
        lambda c: (c.foreground + seeded("random", seed, c.key)) / 2
    ),
    "entropy": lambda pool, labelled, count, seed: Alone(lambda c: c.entropy),
    "k-centre": lambda pool, labelled, count, seed: KCentre.choose(pool, labelled, count or HEAD),
    "typiclust": TypiClust.choose,
}
POINTWISE: Final[frozenset[str]] = frozenset({"random", "foreground-random", "entropy"})  # need no pool


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


def _similarity(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of directions, (n, m) in [0, 1]: 0 at a right angle or beyond, or unknown."""
    similarity: NDArray[np.float32] = np.clip(rows @ columns.T, 0, 1)
    return similarity
