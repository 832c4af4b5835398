from __future__ import annotations

import pytest

from backend.desk.words import sentence, span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.008, "under 0.1 s"),
        (8.47, "8.5 s"),
        (59.97, "1 min 0 s"),
        (133.4, "2 min 13 s"),
        (3599.6, "1 h 0 min"),
        (7290, "2 h 2 min"),
    ],
)
def test_how_long_something_took(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_an_error_is_a_sentence() -> None:
    assert sentence(ValueError("cycle 3 is running")) == "Cycle 3 is running."
    assert sentence("elnet-0002 is champion") == "elnet-0002 is champion."
    assert sentence("Wait for it.") == "Wait for it."
