import numpy as np
import pytest

from model.symmetry import SYMMETRIES, Symmetry

IMAGE = np.arange(12).reshape(3, 4)


def test_the_eight_are_all_different_and_the_first_changes_nothing() -> None:
    seen = {view.apply(IMAGE).tobytes() + bytes(view.apply(IMAGE).shape) for view in SYMMETRIES}
    assert len(seen) == 8
    np.testing.assert_array_equal(SYMMETRIES[0].apply(IMAGE), IMAGE)


def test_the_first_two_and_the_first_four_keep_the_shape_and_are_complete() -> None:
    assert [view.apply(IMAGE).tolist() for view in SYMMETRIES[:4]] == [
        IMAGE.tolist(), IMAGE[:, ::-1].tolist(), IMAGE[::-1].tolist(), IMAGE[::-1, ::-1].tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("view", SYMMETRIES)
@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (2, 3)])
def test_undo_gives_back_what_was_applied(view: Symmetry, axes: tuple[int, int]) -> None:
    array = np.random.default_rng(0).random((2, 3, 4, 5))
    np.testing.assert_array_equal(view.undo(view.apply(array, axes), axes), array)
