"""Where everything lies that can be fetched or computed again: weights, features, environments, samples."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_root() -> Path:
    """`$ELNET_HOME`, or the user's cache folder; it need not exist."""
    root = os.environ.get("ELNET_HOME")
    return Path(root).expanduser() if root else user_cache_path("elnet")
