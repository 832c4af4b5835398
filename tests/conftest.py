"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real imagery (ELNET_DATA, default ../shared/data from the project's root); skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ELNET_DATA", default))
    if not (folder / "sar_oil").is_dir():
        pytest.skip(f"no real imagery at {folder}: name its folder by ELNET_DATA")
    return folder
