from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.blocks import Adapter
from model.hiera import TRUNKS, AdaptedTrunk, TrunkError, build_trunk, trunk_digest


def nano() -> AdaptedTrunk:
    return AdaptedTrunk(build_trunk("random-nano", None), TRUNKS["random-nano"])


def test_every_published_trunk_has_its_shape() -> None:
    assert set(TRUNKS) == {
        "random-nano",
        *(f"sam2{v}-hiera-{s}" for v in ("", ".1") for s in ("tiny", "small", "base_plus", "large")),
    }
    assert TRUNKS["sam2-hiera-tiny"].channels == (96, 192, 384, 768)
    assert TRUNKS["sam2.1-hiera-large"].channels == (144, 288, 576, 1152)


def test_stages_have_the_channels_and_strides_that_the_spec_says() -> None:
    adapted = nano()
    stages = adapted(torch.zeros(2, 3, 64, 96))
    assert [tuple(s.shape) for s in stages] == [
        (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)
    ]  # fmt: skip
    assert tuple(s.shape[1] for s in stages) == adapted.channels


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 96), (256, 224)])
def test_untrained_adapters_leave_sam2s_own_features(size: tuple[int, int]) -> None:
    trunk = build_trunk("random-nano", None)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(AdaptedTrunk(trunk, TRUNKS["random-nano"])(x), trunk(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_trunk_is_frozen_and_stays_in_eval_mode() -> None:
    adapted = nano().train()
    assert adapted.training
    assert not any(m.training for m in adapted.trunk.modules())
    assert not any(p.requires_grad for p in adapted.trunk.parameters())
    adapted(torch.zeros(1, 3, 32, 32))[-1].sum().backward()
    assert all(p.grad is None for p in adapted.trunk.parameters())


def test_gradients_reach_the_adapter_before_the_first_block() -> None:
    adapted = nano()
    sum(s.square().mean() for s in adapted(torch.ones(1, 3, 64, 64))).backward()
    first = adapted.adapters[0]
    assert isinstance(first, Adapter)
    assert first.up.weight.grad is not None
    assert first.up.weight.grad.any()


@pytest.mark.parametrize(("mode", "kept"), [("full", 1), ("late", 3), ("cached", 4)])
def test_what_is_frozen_can_be_kept(mode: str, kept: int) -> None:
    """The first part gives no gradients and does not depend on the adapters; both parts make the whole."""
    trunk = build_trunk("random-nano", None)
    adapted = AdaptedTrunk(trunk, TRUNKS["random-nano"], mode=mode, adapter_dim=4)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    before = adapted.frozen(x)
    assert len(before) == kept
    assert not any(m.requires_grad for m in before)
    with torch.no_grad():
        for ours, theirs in zip(adapted.adapted(before), trunk(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # untrained adapters do nothing
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1
        changed = adapted(x)
    assert all(torch.equal(a, b) for a, b in zip(before, adapted.frozen(x), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(changed, trunk(x), strict=True))
    for parameter in adapted.parameters():
        parameter.grad = None
    torch.stack([m.square().mean() for m in adapted(x)]).sum().backward()  # type: ignore[no-untyped-call]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.any() for p in trained)


def test_the_random_trunk_is_the_same_everywhere_and_leaves_the_callers_seed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trunk = build_trunk("random-nano", None)
    assert torch.equal(torch.rand(3), expected)
    assert trunk_digest(trunk) == "fcb57a909e3207dca39e14abe4584b5243e3f3114ed25baf2c406aeded47e796"


def test_weights_of_half_precision_are_computed_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = build_trunk("random-nano", None)
    monkeypatch.setattr("model.hiera.TRUNKS", {"nano": replace(TRUNKS["random-nano"], seed=None)})
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in trunk.state_dict().items()}, path)
    loaded = build_trunk("nano", path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for key, value in trunk.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-3)


def test_unknown_trunk() -> None:
    with pytest.raises(TrunkError, match="no trunk 'sam3'; choose one of sam2-hiera-tiny"):
        build_trunk("sam3", None)


def test_unknown_mode() -> None:
    with pytest.raises(
        TrunkError, match="unknown mode 'beside' of the adapters; choose one of full, late, cached"
    ):
        AdaptedTrunk(build_trunk("random-nano", None), TRUNKS["random-nano"], mode="beside")


def test_trained_trunk_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(TrunkError, match=r"not there.*elnet weights --trunk sam2-hiera-tiny"):
        build_trunk("sam2-hiera-tiny", tmp_path / "absent.safetensors")


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not tensors")
    with pytest.raises(TrunkError, match=r"broken\.safetensors cannot be read.*elnet weights"):
        build_trunk("sam2-hiera-tiny", path)


def test_file_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(TrunkError, match=r"other\.safetensors does not hold the weights of sam2-hiera-tiny"):
        build_trunk("sam2-hiera-tiny", path)


def test_without_the_package_sam2_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam2.modeling.backbones.hieradet", None)
    with pytest.raises(TrunkError, match=r"pip install .*--no-deps sam2==1\.1\.0"):
        build_trunk("random-nano", None)
