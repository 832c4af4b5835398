from __future__ import annotations

import numpy as np
import pytest

from active_learning.signals import signals
from backend.desk.signal_words import in_words


def plane(inside: float, outside: float = 0.01) -> np.ndarray:
    found = np.full((32, 32), outside, np.float32)
    found[8:24, 8:24] = inside
    return found


def test_a_sure_mask_has_no_doubts() -> None:
    found = in_words(signals(plane(0.99)[None]).to_dict(), ["oil"])
    assert found is not None
    assert (found.usable, found.kind, found.shape, found.doubts) == (
        True,
        None,
        "covers 25 % of the image",
        [],
    )
    assert {signal.name for signal in found.signals} == {"outline entropy", "confidence", "stability"}


def test_a_pale_mask_is_doubted_what_ranks_best_first() -> None:
    found = in_words(signals(plane(0.55, 0.45)[None]).to_dict(), ["oil"])
    assert found is not None
    assert found.doubts == [
        "the mask changes with the cut",
        "the pixels are unsure",
        "the outline is doubtful",
    ]


def test_the_class_that_decides_is_named() -> None:
    found = in_words(signals(np.stack([plane(0.99), plane(0.55, 0.45)])).to_dict(), ["oil", "ship"])
    assert found is not None
    assert found.kind == "ship"


@pytest.mark.parametrize(("peak", "doubts"), [(0.05, []), (0.48, ["something may have been missed"])])
def test_an_empty_mask_tells_how_near_one_is(peak: float, doubts: list[str]) -> None:
    found = in_words(signals(plane(peak)[None]).to_dict(), ["oil"])
    assert found is not None
    assert found.shape == "nothing found"
    assert found.doubts == doubts
    assert found.signals[0].value == pytest.approx(peak, abs=0.01)


def test_what_was_not_measured_says_nothing() -> None:
    assert in_words({"usable": True, "classes": []}, ["oil"]) is None
    assert in_words({}, ["oil"]) is None
    unusable = signals(np.full((1, 8, 8), np.nan, np.float32)).to_dict()
    found = in_words(unusable, ["oil"])
    assert found is not None
    assert not found.usable


@pytest.mark.parametrize(
    ("share", "said"), [(0.0001, "less than 0.1 %"), (0.0123, "1.2 %"), (0.5, "50 %"), (1.0, "all")]
)
def test_shares_are_read_as_percent(share: float, said: str) -> None:
    measured = signals(plane(0.99)[None]).to_dict()
    measured["classes"][0]["foreground_share"] = share
    found = in_words(measured, ["oil"])
    assert found is not None
    assert found.shape == f"covers {said} of the image"
