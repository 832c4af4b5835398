from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.elnet import SAM2ELNet
from model.hiera import TRUNKS, TrunkError, build_trunk

NANO = TRUNKS["random-nano"]


def nano(classes: int = 1, width: int = 16, **others: Any) -> SAM2ELNet:
    torch.manual_seed(0)
    trunk = build_trunk("random-nano", None)
    return SAM2ELNet(trunk, NANO, classes, adapter_dim=4, width=width, **others)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (224, 160)])
def test_shapes_in_training(classes: int, size: tuple[int, int]) -> None:
    output = nano(classes).train()(image(2, 3, *size))
    maps = [output.mask, output.edge, *output.sides, *output.edge_sides]
    assert len(maps) == 6
    assert {tuple(m.shape) for m in maps} == {(2, classes, *size)}
    assert output.embedding.shape == (2, NANO.channels[-1])


@pytest.mark.parametrize("scale", [0.5, 1.5, 2])
@pytest.mark.parametrize("mode", ["full", "cached"])
def test_masks_keep_the_images_size_whatever_the_trunk_sees(mode: str, scale: float) -> None:
    model, x = nano(mode=mode, scale=scale, prompt=True).train(), image(2, 3, 64, 96)
    stages = model.encoder(x)
    assert stages[0].shape[-2:] == (64 * scale // 4, round(96 * scale / 32) * 32 // 4)
    output = model(x, image(2, 2, 64, 96).sign())
    assert {tuple(m.shape) for m in (output.mask, output.edge, *output.sides)} == {(2, 1, 64, 96)}


def test_a_scale_is_the_same_as_an_image_of_that_size() -> None:
    x = image(1, 3, 64, 64)
    half = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    with torch.no_grad():
        ours = nano(scale=0.5).eval().encoder(x)
        theirs = nano().eval().encoder(half)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_in_eval_mode_the_coarser_maps_are_left_out_and_the_mask_is_the_same() -> None:
    model, x = nano(), image(1, 3, 64, 64)
    with torch.no_grad():
        training, evaluated = model.train()(x), model.eval()(x)
    assert evaluated.sides == evaluated.edge_sides == []
    assert torch.equal(training.mask, evaluated.mask)
    assert torch.equal(training.edge, evaluated.edge)


def test_logits_are_not_stretched_to_the_image_range() -> None:
    """No min-max: a map depends on no other image, and need not span [0, 1]."""
    model = nano().eval()
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        both, alone = model(x).mask, model(x[:1]).mask
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)
    probability = both.sigmoid().flatten(1)
    assert (probability.amax(1) - probability.amin(1)).max() < 0.99


def test_classes_are_independent_maps() -> None:
    """Each class can be certain of the same pixel: no softmax over classes."""
    model = nano(2).eval()
    for head in model.heads:
        torch.nn.init.constant_(head.bias, 20.0)  # type: ignore[arg-type]
    with torch.no_grad():
        assert model(image(1, 3, 32, 32)).mask.sigmoid().min() > 0.99


def test_only_adapters_receptive_fields_decoder_and_heads_train() -> None:
    trained = {name.split(".")[0] for name, p in nano().named_parameters() if p.requires_grad}
    assert trained == {"encoder", "receptive", "decoder", "heads"}
    inside = {
        n.split(".")[1] for n, p in nano().named_parameters() if p.requires_grad and n.startswith("enc")
    }
    assert inside == {"adapters"}


def test_every_trained_parameter_gets_a_gradient_once_the_adapters_speak() -> None:
    model = nano().train()
    for adapter in model.encoder.adapters:
        torch.nn.init.normal_(adapter.up.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    output = model(image(2, 3, 64, 64))
    torch.stack([output.mask, output.edge, *output.sides, *output.edge_sides]).square().mean().backward()  # type: ignore[no-untyped-call]
    without = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without


def test_trainable_state_moves_a_network_to_another_copy() -> None:
    first, second, x = nano(), nano(), image(1, 3, 64, 64)
    torch.nn.init.normal_(first.heads[-1].weight)  # type: ignore[arg-type]
    state = first.trainable_state()
    assert not any("trunk" in name for name in state)
    second.load_trainable_state(state)
    with torch.no_grad():
        assert torch.equal(first.eval()(x).mask, second.eval()(x).mask)


@pytest.mark.parametrize("change", ["drop", "add", "shape"])
def test_state_of_another_network_is_refused(change: str) -> None:
    state = dict(nano().trainable_state())
    if change == "drop":
        state.pop("heads.0.bias")
    elif change == "add":
        state["heads.9.bias"] = torch.zeros(1)
    else:
        state["heads.0.bias"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"heads\.\d\.bias"):
        nano().load_trainable_state(state)


def test_the_architecture_rebuilds_the_network() -> None:
    model = nano(2, width=24, scale=0.5)
    again = SAM2ELNet(build_trunk("random-nano", None), NANO, 2, **model.architecture)
    again.load_trainable_state(model.trainable_state())
    assert again.architecture == {
        "mode": "full",
        "adapter_dim": 4,
        "width": 24,
        "prompt": False,
        "scale": 0.5,
        "quality": False,
    }


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(TrunkError, match="mode"):
        SAM2ELNet(build_trunk("random-nano", None), NANO, 1, mode="nowhere")


def test_bfloat16_gives_float32_maps_close_to_float32s() -> None:
    model, x = nano().eval(), image(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x)
    assert rough.mask.dtype == rough.embedding.dtype == torch.float32
    assert (rough.mask.sigmoid() - exact.mask.sigmoid()).abs().mean() < 0.02
