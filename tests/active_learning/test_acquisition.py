from __future__ import annotations

import time
from typing import get_args

import numpy as np
import pytest

from active_learning import acquisition
from active_learning.acquisition import STRATEGIES, AcquisitionError, order, prioritise, ranking
from active_learning.candidates import Candidate
from active_learning.strategy import MEANINGS, Strategy


def plain_greedy(values, embeddings, count):
    """Facility location without laziness, by its definition."""
    unit = embeddings - embeddings.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    alike = np.clip(unit @ unit.T, 0, 1)
    chosen: list[int] = []
    for _ in range(count):
        total = [
            (values * alike[[*chosen, i]].max(axis=0)).sum() if i not in chosen else -1
            for i in range(len(values))
        ]
        chosen.append(int(np.argmax(total)))
    return chosen


def test_the_head_is_what_plain_greedy_chooses():
    rng = np.random.default_rng(0)
    values, embeddings = rng.uniform(0, 1, 60), rng.normal(size=(60, 8)).astype(np.float32)
    candidates = [Candidate(i, float(v), e) for i, (v, e) in enumerate(zip(values, embeddings, strict=True))]
    found = prioritise(candidates, [])
    assert np.argsort(found)[::-1][:20].tolist() == plain_greedy(values, embeddings, 20)


def test_a_long_queue_has_a_head_and_a_tail(monkeypatch):
    monkeypatch.setattr(acquisition, "SAMPLE", 400)
    monkeypatch.setattr(acquisition, "POOL", 600)
    rng = np.random.default_rng(0)
    values, embeddings = rng.uniform(0, 1, 1000), rng.normal(size=(1000, 8)).astype(np.float32)
    candidates = [Candidate(i, float(v), e) for i, (v, e) in enumerate(zip(values, embeddings, strict=True))]
    found = prioritise(candidates, [])
    assert all(0 <= p < 1 for p in found)
    head = np.argsort(found, kind="stable")[::-1][: acquisition.HEAD]
    assert len(set(np.array(found)[head])) > 0.9 * acquisition.HEAD
    assert found == prioritise(candidates, [])


@pytest.mark.parametrize("embedding", [None, np.zeros(4, np.float32), np.full(4, np.nan, np.float32)])
def test_embeddings_that_say_nothing_do_no_harm(embedding):
    candidates = [Candidate(0, 0.3, embedding), Candidate(1, 0.5, np.ones(4, np.float32))]
    one, other = prioritise(candidates, [np.ones(4, np.float32)])
    assert 0 <= one <= 1
    assert 0 <= other <= 1
    assert prioritise([], []) == []


def test_thousands_of_tasks_take_seconds():
    rng = np.random.default_rng(0)
    candidates = [Candidate(i, 0.5, e) for i, e in enumerate(rng.normal(size=(5000, 768)).astype(np.float32))]
    started = time.monotonic()
    prioritise(candidates, [])
    assert time.monotonic() - started < 20


def crowds(sizes: list[int], seed: int = 0) -> list[Candidate]:
    """Clusters of so many candidates each, one after another."""
    rng = np.random.default_rng(seed)
    points = [3 * rng.normal(size=8) + 0.1 * rng.normal(size=(n, 8)) for n in sizes]
    return [Candidate(i, 0.3, e.astype(np.float32)) for i, e in enumerate(np.concatenate(points))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_the_first_few_each_once_and_the_same_again(strategy: str) -> None:
    candidates = crowds([12, 9, 7])
    labelled = [c.embedding for c in candidates[:2] if c.embedding is not None]
    first = order(strategy, candidates, labelled, 5, 1)
    assert len(set(first)) == 5
    assert first == order(strategy, candidates, labelled, 5, 1)
    assert sorted(order(strategy, candidates, [], 99, 1)) == list(range(28))
    assert order(strategy, [], [], 3, 1) == []
    assert order(strategy, [Candidate(7, 0.5, None)], [], 3, 1) == [7]


@pytest.mark.parametrize("strategy", ["k-centre", "typiclust", "hybrid"])
def test_what_is_spread_out_takes_one_of_each_crowd(strategy: str) -> None:
    first = order(strategy, crowds([10, 10, 10]), [], 3, 0)
    assert sorted(key // 10 for key in first) == [0, 1, 2]


@pytest.mark.parametrize("strategy", ["k-centre", "typiclust", "hybrid"])
def test_what_is_spread_out_leaves_crowds_that_hold_a_label_for_later(strategy: str) -> None:
    candidates = crowds([10, 10, 10])
    labelled = [c.embedding for c in candidates[:2] if c.embedding is not None]
    first = order(strategy, candidates[2:], labelled, 2, 0)
    assert sorted(key // 10 for key in first) == [1, 2]


def test_random_hangs_on_the_seed() -> None:
    candidates = crowds([30])
    assert order("random", candidates, [], 10, 0) != order("random", candidates, [], 10, 1)


def test_foreground_random_takes_predicted_foreground_first() -> None:
    candidates = [Candidate(i, 0.5, None, foreground=i % 3 == 0) for i in range(30)]
    first = order("foreground-random", candidates, [], 10, 0)
    assert all(key % 3 == 0 for key in first)
    assert first != sorted(first)


def test_entropy_takes_the_highest() -> None:
    candidates = [Candidate(i, 0.5, None, entropy=e) for i, e in enumerate([0.1, 0.9, 0.5])]
    assert order("entropy", candidates, [], 2, 0) == [1, 2]


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(AcquisitionError, match=r"no strategy 'best'.*hybrid"):
        order("best", crowds([3]), [], 1, 0)


def test_the_strategies_that_a_project_can_choose_are_all_that_there_are() -> None:
    assert get_args(Strategy) == tuple(STRATEGIES) == tuple(MEANINGS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_label_leaves_the_places_of_the_others_as_they_were(strategy: str) -> None:
    candidates = crowds([30, 20, 12, 5])
    before = dict(zip([c.key for c in candidates], prioritise(candidates, [], None, strategy), strict=True))
    assert all(0 <= place <= 1 for place in before.values())
    for count in (1, 2, 6):
        done = set(sorted(before, key=lambda key: (-before[key], key))[:count])
        left = [c for c in candidates if c.key not in done]
        labelled = [c.embedding for c in candidates if c.key in done and c.embedding is not None]
        after = prioritise(left, labelled, None, strategy)
        assert after == pytest.approx([before[c.key] for c in left], abs=1e-4)


@pytest.mark.parametrize("strategy", ["k-centre", "typiclust", "hybrid"])
def test_what_is_not_in_the_pool_stands_after_what_was_chosen_of_it(strategy: str) -> None:
    candidates = crowds([60, 60, 60])
    pool = candidates[::3]
    ranked = ranking(strategy, pool, [], 12)
    inside = sorted(ranked.priorities(pool), reverse=True)
    outside = ranked.priorities([c for c in candidates if c.key % 3])
    assert inside[11] >= max(outside)
    assert min(outside) >= 0
    assert len(set(outside)) > 50


def test_typiclust_takes_the_densest_of_a_cluster_first_and_the_next_of_it_after_all_others() -> None:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(2, 8))
    near = [centres[0] + 0.02 * rng.normal(size=(10, 8)), centres[0] + 0.4 * rng.normal(size=(2, 8))]
    points = np.concatenate([*near, centres[1] + 0.1 * rng.normal(size=(6, 8))]).astype(np.float32)
    candidates = [Candidate(i, 0.3, e) for i, e in enumerate(points)]
    first = order("typiclust", candidates, [], 2, 0)
    assert first[0] < 10
    assert first[1] >= 12
    assert set(order("typiclust", candidates, [], 18, 0)[-2:]) <= set(range(12))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_that_are_all_alike_or_of_unknown_looks_have_an_order_too(strategy: str) -> None:
    for embedding in (None, np.ones(4, np.float32)):
        candidates = [Candidate(i, 0.5, embedding) for i in range(12)]
        assert sorted(order(strategy, candidates, [], 12, 0)) == list(range(12))
