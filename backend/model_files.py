"""Checkpoints and predictors as the settings say."""

from __future__ import annotations

from pathlib import Path

from active_learning.checkpoints import Checkpoints
from active_learning.predictors import PredictorPool
from backend.settings import Settings, load_settings


def checkpoints_of(settings: Settings) -> Checkpoints:
    """Where the checkpoints of an installation lie."""
    return Checkpoints(settings.files, settings.media.s3_endpoint)


def predictors_of(settings: Settings) -> PredictorPool:
    """The resident predictors of a process."""
    return PredictorPool(settings.device, settings.batch_size, settings.flips, checkpoints_of(settings).local)


def checkpoint_folder(named: str) -> Path:
    """The checkpoint that a command names: a folder, or the address that `elnet models --json` tells.

    Raises:
        FilesError: the address cannot be fetched.
        SettingsError: the settings are not valid.
    """
    return checkpoints_of(load_settings()).folder(named)
