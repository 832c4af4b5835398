"""The trunk: SAM 2's Hiera, frozen, and the adapters that steer it.

Source: Hiera (arXiv 2306.00989) as in SAM 2 (arXiv 2408.00714); adapters as in SAM2-ELNet (arXiv 2503.12404)
and SAM2-UNet (arXiv 2408.08870).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.attention import attention_for
from model.blocks import Adapter
from model.errors import ELNetError
from model.tiles import STRIDE

Mode = Literal["full", "late", "cached"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)


class TrunkError(ELNetError):
    """A trunk that is unknown, or whose weights are missing or of another network."""


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """The shape of a Hiera trunk: the arguments of `sam2.modeling.backbones.hieradet.Hiera`.

    Attributes:
        seed: set for a trunk of deterministic random weights, which needs no file; None for a trained one.
    """

    name: str
    embed_dim: int
    num_heads: int
    stages: tuple[int, int, int, int]
    global_att_blocks: tuple[int, ...]
    window_spec: tuple[int, int, int, int]
    background: tuple[int, int] = (7, 7)
    seed: int | None = None

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages, at stride 4, 8, 16 and 32."""
        c = self.embed_dim
        return c, 2 * c, 4 * c, 8 * c


def _specs() -> Iterator[TrunkSpec]:
    # The hydra configs of sam2 1.1.0; SAM 2.1 differs from 2.0 in its weights, not in its trunk.
    for family in ("sam2-hiera", "sam2.1-hiera"):
        yield TrunkSpec(f"{family}-tiny", 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7))
        yield TrunkSpec(f"{family}-small", 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7))
        yield TrunkSpec(f"{family}-base_plus", 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), (14, 14))
        yield TrunkSpec(f"{family}-large", 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8))
    yield TrunkSpec("random-nano", 16, 1, (1, 1, 2, 1), (3,), (8, 4, 4, 4), seed=0)


TRUNKS: dict[str, TrunkSpec] = {spec.name: spec for spec in _specs()}


def trunk_spec(name: str) -> TrunkSpec:
    """The shape of a trunk by its name.

    Raises:
        TrunkError: there is no trunk of this name.
    """
    if name not in TRUNKS:
        raise TrunkError(f"there is no trunk {name!r}; choose one of {', '.join(TRUNKS)}")
    return TRUNKS[name]


def build_trunk(name: str, weights: Path | None) -> nn.Module:
    """Build sam2's own Hiera: frozen, in eval mode, on the CPU, float32.

    Args:
        name: a key of `TRUNKS`.
        weights: safetensors with the names of `Hiera` (the checkpoint's without `image_encoder.trunk.`),
            float32 or float16. Not used by a random trunk.

    Raises:
        TrunkError: unknown name, no file, or a file of another network.
    """
    spec = trunk_spec(name)
    try:
        from sam2.modeling.backbones.hieradet import Hiera
    except ImportError as error:
        raise TrunkError(
            f"the package sam2 cannot be imported ({error}); install it without its dependencies: "
            "SAM2_BUILD_CUDA=0 pip install --no-build-isolation --no-deps sam2==1.1.0"
        ) from error
    with torch.random.fork_rng(devices=[]):  # its initial weights are not drawn from the caller's seed
        trunk: nn.Module = Hiera(
            embed_dim=spec.embed_dim,
            num_heads=spec.num_heads,
            stages=spec.stages,
            global_att_blocks=spec.global_att_blocks,
            window_spec=spec.window_spec,
            window_pos_embed_bkg_spatial_size=spec.background,
        )
    state = _random_state(trunk, spec.seed) if spec.seed is not None else _read_state(name, weights)
    try:
        trunk.load_state_dict(state)
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise TrunkError(f"{weights} does not hold the weights of {name}: {fault}") from error
    return trunk.requires_grad_(False).eval()


def _read_state(name: str, weights: Path | None) -> dict[str, Tensor]:
    cure = f"Fetch them: elnet weights --trunk {name}"
    if weights is None or not weights.is_file():
        raise TrunkError(f"the weights of {name} are not there ({weights}). {cure}")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise TrunkError(f"{weights} cannot be read ({error}). {cure}") from error
    return {key: value.float() for key, value in state.items()}


def _random_state(trunk: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that are the same on every machine: NumPy's generator is stable, torch's depends on the CPU."""
    random = np.random.default_rng(seed)
    state = {}
    for key, value in trunk.state_dict().items():
        noise = torch.from_numpy(random.standard_normal(tuple(value.shape), dtype=np.float32))
        if "norm" in key:  # near LayerNorm's identity
            state[key] = 0.1 * noise + (1.0 if key.endswith("weight") else 0.0)
        elif value.ndim >= 2:  # variance 1 / fan-in keeps the scale from block to block
            state[key] = noise / value[0].numel() ** 0.5
        else:
            state[key] = 0.1 * noise
    return state


def trunk_digest(trunk: nn.Module) -> str:
    """The sha256 over names and values of a trunk's weights: the identity of one that has no file."""
    digest = sha256()
    for key, value in sorted(trunk.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resample(x: Tensor, scale: float) -> Tensor:
    """(B, C, H, W) -> the same `scale` times as large, each side to the nearest multiple of 32 there is."""
    if scale == 1:
        return x
    size = [max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


class AdaptedTrunk(nn.Module):
    """Image -> the features of four stages, through a frozen trunk that adapters steer.

    The mode says where the adapters stand. What comes before the first of them never changes: `frozen`
    computes it, `adapted` goes on from there, and between the two it can be kept.

    - "full": an adapter before every block, as in the paper. Only the patch embedding never changes.
    - "late": before the blocks of the last stage, and on the maps of the three other stages.
    - "cached": on the maps of the four stages.

    The trunk has no gradients and stays in eval mode whatever mode its parent is put in. It sees the image
    resampled by `scale`: larger for objects of a few pixels, smaller where a pixel says little by itself (the
    speckle of SAR). The trunk's cost goes with the square.
    """

    def __init__(
        self, trunk: Any, spec: TrunkSpec, *, mode: str = "full", adapter_dim: int = 32, scale: float = 1.0
    ):
        super().__init__()
        self.mode = mode
        self.scale = scale
        if mode not in MODES:
            raise TrunkError(f"unknown mode {mode!r} of the adapters; choose one of {', '.join(MODES)}")
        stages = {"full": 0, "late": 3, "cached": 4}[mode]  # so many never change
        self._first = sum(spec.stages[:stages])  # the first block with an adapter
        self.trunk = trunk.requires_grad_(False).eval()
        self.channels = spec.channels
        self.adapters = nn.ModuleList(Adapter(b.dim, adapter_dim) for b in trunk.blocks[self._first :])
        self.map_adapters = nn.ModuleList(Adapter(c, adapter_dim) for c in spec.channels[:stages])

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the adapters; the trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def frozen(self, x: Tensor) -> list[Tensor]:
        """What no adapter has a part in.

        Args:
            x: (B, 3, H, W) normalised image; H and W multiples of 32.

        Returns:
            The maps of as many stages as never change, (B, C_i, H/s, W/s) at stride s = 4, 8, 16, 32; in mode
            "full" the embedded patches, (B, C_0, H/4, W/4). H and W here are those of the resampled image.
            All are channels last in memory.
        """
        trunk = self.trunk
        with torch.no_grad():
            x = resample(x, self.scale).contiguous(memory_format=torch.channels_last)
            x = trunk.patch_embed(x)  # (B, H/4, W/4, C_0)
            x = x + trunk._get_pos_embed(x.shape[1:3])
            maps = []
            for i, block in enumerate(trunk.blocks[: self._first]):
                x = block(x)  # stages 2 to 4 begin by halving H and W and doubling C
                if i in trunk.stage_ends:
                    maps.append(x.permute(0, 3, 1, 2))
            return maps or [x.permute(0, 3, 1, 2)]

    def adapted(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Go on from what `frozen` gave.

        Returns:
            Four maps (B, C_i, H/s, W/s) at stride s = 4, 8, 16, 32 of the resampled image.
        """
        trunk = self.trunk
        maps = []
        for adapter, kept_map in zip(self.map_adapters, kept, strict=False):  # no adapters in mode "full"
            x = kept_map.permute(0, 2, 3, 1)  # (B, H/s, W/s, C_i)
            maps.append((x + adapter(x)).permute(0, 3, 1, 2))
        x = kept[-1].permute(0, 2, 3, 1)
        with attention_for(x):
            for i, adapter in enumerate(self.adapters, start=self._first):
                x = trunk.blocks[i](x + adapter(x))
                if i in trunk.stage_ends:
                    maps.append(x.permute(0, 3, 1, 2))
        return maps

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised image -> what `adapted` returns."""
        return self.adapted(self.frozen(x))
