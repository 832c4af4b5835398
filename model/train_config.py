"""How to train: every setting, its default and its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from model.device import Precision
from model.errors import ELNetError
from model.hiera import Mode

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

EPOCHS = 20
WARM_EPOCHS = 10  # of a network that goes on from a checkpoint: more would fit a small set by heart
MIN_STEPS = 75
MODE: Final[Mode] = "full"  # of a network that starts anew


class TrainingError(ELNetError):
    """Training that cannot begin, or that went astray."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class TrainConfig:
    """How to train. The defaults suit thirty images of 256 x 256 px and a few minutes of two cores.

    Attributes:
        trunk: a key of `model.hiera.TRUNKS`.
        epochs: passes over the training crops; None: `EPOCHS`, or `WARM_EPOCHS` from a checkpoint, or more
            where they would be fewer than `MIN_STEPS` steps of the optimiser.
        size: side of a crop, px, a multiple of 32; less where every image is smaller.
        batch_size: crops a step.
        lr: the highest learning rate, reached after the warm-up; then it follows a cosine down to 1 % of it.
        warm_lr: the same for a network that goes on from a checkpoint: gentler, for what it knows is to stay.
        warmup: the warm-up's share of all steps.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        edge_weight: of the boundary loss against the mask loss.
        structure: how much more pixels near a mask's outline weigh in the mask loss, see
            `model.losses.structure_weight`; 5 is SAM2-UNet's.
        seed: of initial weights, order and augmentation. On a CPU the same seed and number of threads give
            the same weights, bit for bit.
        limit: train on so many images, drawn by the seed; None: all.
        device: "auto", "cpu" or "cuda".
        precision: "auto" is bf16 on GPUs and CPUs that have it in hardware, else fp32.
        mode: where the adapters of a network that starts anew stand, see `model.hiera.AdaptedTrunk`; one that
            goes on from a checkpoint keeps that checkpoint's.
        views: so many augmented views of each crop are drawn from, the same in every training, for modes that
            keep the frozen trunk's features; None: 16, fewer for more than 62 images, at least 4. In mode
            "full" every view is a new one.
        cache_gb: of disk for these features; 0: none.
        prompted: share of the crops that come with a coarse version of their mask, from which the network
            learns to enhance labels; a network that starts anew with 0 takes no coarse masks at all.
        workers: processes that make crops; None: none beside a CPU, up to 8 beside a GPU.
        adapter_dim: bottleneck of the adapters, of a network that starts anew.
        width: channels of its decoder.
        scale: so many times as large its trunk sees the images; None: as they are. See
            `model.hiera.AdaptedTrunk`.
    """

    trunk: str = "sam2-hiera-tiny"
    epochs: Count | None = None
    size: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    batch_size: Count = 4
    lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    warm_lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: NotNegative = 5e-4
    clip: Positive = 1.0
    edge_weight: NotNegative = 1.0
    structure: NotNegative = 5.0
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    device: str = "auto"
    precision: Precision = "auto"
    mode: Mode | None = None
    views: Count | None = None
    cache_gb: NotNegative = 20.0
    prompted: Annotated[float, Field(ge=0, le=1)] = 0.0
    workers: Annotated[int, Field(ge=0)] | None = None
    adapter_dim: Count = 32
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    scale: Annotated[float, Field(ge=0.25, le=4)] | None = None

    def epochs_of(self, batches: int, *, warm: bool = False) -> int:
        """The passes over a set of so many batches, from a checkpoint (`warm`) or anew."""
        return self.epochs or max(WARM_EPOCHS if warm else EPOCHS, math.ceil(MIN_STEPS / batches))

    def views_of(self, images: int, mode: str) -> int | None:
        """The views of each crop of a set of so many images; None: all that there are."""
        return None if mode == "full" else self.views or min(16, max(4, 1000 // images))

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The settings of a YAML file, for `from_mapping`.

        Raises:
            TrainingError: it cannot be read, or is no mapping.
        """
        try:
            values = yaml.safe_load(path.read_text())
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TrainingError(f"{path} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise TrainingError(f"{path} should hold training settings, such as `epochs: 20`, one a line")
        return values

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a config of parsed JSON or YAML, or of a command line's options.

        Raises:
            TrainingError: settings that do not exist, or values of another type or out of range: names each.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            faults = [f"{e['loc'][0]}: {e['msg']} (it is {e['input']!r})" for e in error.errors()]
            raise TrainingError(f"training settings: {'; '.join(faults)}") from error
