from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from active_learning.split import ENOUGH, HOLDOUT, TRAIN, assign, draw

SIDES = st.sampled_from([TRAIN, HOLDOUT])
SCENES = st.text("abcdef", min_size=1, max_size=3)


def count(images: dict[str, int], sides: dict[str, str]) -> Counter[str]:
    total: Counter[str] = Counter()
    for scene, side in sides.items():
        total[side] += images[scene]
    return total


@given(
    st.dictionaries(SCENES, st.integers(1, 5), max_size=8),
    st.dictionaries(SCENES, SIDES),
    st.floats(0.05, 0.95),
)
def test_a_known_scene_never_changes_over(
    images: dict[str, int], known: dict[str, str], share: float
) -> None:
    sides = assign(images, known, 0.25)
    assert sides.keys() == images.keys()
    assert all(sides[scene] == side for scene, side in known.items() if scene in sides)


@given(st.dictionaries(SCENES, st.integers(1, 5), min_size=2, max_size=8), st.floats(0.05, 0.95))
def test_no_side_is_left_empty_at_first(images: dict[str, int], share: float) -> None:
    sides = assign(images, {}, share)
    held = count(images, sides)
    assert min(held[TRAIN], held[HOLDOUT]) >= 1
    if all(n == 1 for n in images.values()) and len(images) >= 2 * ENOUGH:
        assert min(held[TRAIN], held[HOLDOUT]) >= ENOUGH


@given(
    st.dictionaries(SCENES, st.integers(1, 3), min_size=2, max_size=8),
    st.dictionaries(SCENES, st.integers(1, 3), max_size=8),
    st.floats(0.05, 0.95),
)
def test_the_holdout_only_grows(first: dict[str, int], more: dict[str, int], share: float) -> None:
    before = assign(first, {}, share)
    after = assign({**first, **more}, before, share)
    assert before.items() <= after.items()


@given(
    st.dictionaries(SCENES, st.integers(1, 3), min_size=8, max_size=40),
    st.floats(0.2, 0.8),
)
def test_the_share_is_kept_to_within_a_scene(images: dict[str, int], share: float) -> None:
    held = count(images, assign(images, {}, share))[HOLDOUT]
    assert abs(held - share * sum(images.values())) <= max(max(images.values()), ENOUGH)


def test_the_share_is_kept_as_labels_come_in() -> None:
    sides: dict[str, str] = {}
    for total in (8, 16, 24, 200):
        sides = assign({f"scene {i}": 1 for i in range(total)}, sides, 0.25)
        assert Counter(sides.values())[HOLDOUT] == total // 4


def test_the_order_of_the_scenes_does_not_matter() -> None:
    names = [f"scene {i}" for i in range(50)]
    assert assign(dict.fromkeys(names, 1), {}, 0.25) == assign(dict.fromkeys(reversed(names), 1), {}, 0.25)


def test_the_lowest_draws_judge() -> None:
    sides = assign({f"scene {i}": 1 for i in range(20)}, {}, 0.25)
    highest = max(draw(scene) for scene, side in sides.items() if side == HOLDOUT)
    assert highest < min(draw(scene) for scene, side in sides.items() if side == TRAIN)


def test_one_scene_alone_cannot_be_shared_out() -> None:
    assert len(set(assign({"a": 9}, {}, 0.25).values())) == 1


def test_a_side_that_is_short_takes_new_scenes_only() -> None:
    sides = assign({"old": 5, "new": 1, "newer": 1}, {"old": HOLDOUT}, 0.25)
    assert sides == {"old": HOLDOUT, "new": TRAIN, "newer": TRAIN}
