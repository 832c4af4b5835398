"""The names of the strategies of acquisition; what they do is told in `active_learning.acquisition`."""

from __future__ import annotations

from typing import Final, Literal

Strategy = Literal["hybrid", "random", "foreground-random", "entropy", "k-centre", "typiclust"]
HYBRID: Final[Strategy] = "hybrid"  # of a project that does not choose
