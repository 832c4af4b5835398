"""What the blueprints of one application share."""

from __future__ import annotations

from dataclasses import dataclass

from flask import current_app

from active_learning.ledger import Ledger
from active_learning.ports import ImageSource
from backend.serving import Serving
from backend.settings import Settings

EXTENSION = "elnet"


@dataclass(frozen=True, slots=True)
class Services:
    """Of one application; made by `create_app`."""

    settings: Settings
    ledger: Ledger
    serving: Serving
    images: ImageSource


def services() -> Services:
    """Those of the current application."""
    found: Services = current_app.extensions[EXTENSION]
    return found
