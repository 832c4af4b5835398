import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.convert import ConversionError, read_ort, split_position_embedding, trunk_from_ort, trunk_tensors

PATCH = "patch_embed.proj.weight"


@pytest.mark.parametrize("prefix", ["image_encoder.trunk.", "trunk.", ""])
def test_the_trunk_is_found_under_each_prefix(prefix: str) -> None:
    state = {prefix + PATCH: torch.ones(2, 3), prefix + "blocks.0.norm1.bias": torch.zeros(2)}
    if prefix:
        state["memory_encoder.weight"] = torch.ones(1)
    found = trunk_tensors(state)
    assert list(found) == ["blocks.0.norm1.bias", PATCH]
    torch.testing.assert_close(found[PATCH], torch.ones(2, 3))


def test_tensors_are_stored_as_float32_or_float16() -> None:
    state = {PATCH: torch.ones(2).bfloat16(), "a": torch.ones(2).half(), "b": torch.ones(2).double()}
    assert [t.dtype for t in trunk_tensors(state).values()] == [torch.float16, torch.float32, torch.float32]


def test_transposed_tensors_become_contiguous() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    found = trunk_tensors({PATCH: tensor})[PATCH]
    assert found.is_contiguous()
    assert torch.equal(found, tensor)


def test_no_trunk_names_what_is_there() -> None:
    with pytest.raises(ConversionError, match=r"2 tensors \(first names: decoder, vision"):
        trunk_tensors({"vision": torch.ones(1), "decoder": torch.ones(1)})
    with pytest.raises(ConversionError, match="first names: nothing"):
        trunk_tensors({})


def position_sum(pos_embed: torch.Tensor, window: torch.Tensor, size: int) -> torch.Tensor:
    """What Hiera._get_pos_embed adds to the tokens."""
    grid = F.interpolate(pos_embed[None], size=(size, size), mode="bicubic")[0]
    return grid + window.tile(1, size // window.shape[1], size // window.shape[2])


def test_position_embeddings_are_split_as_they_were_summed() -> None:
    generator = torch.Generator().manual_seed(0)
    pos_embed = torch.randn(5, 7, 7, generator=generator, dtype=torch.float64)
    window = torch.randn(5, 8, 8, generator=generator, dtype=torch.float64)
    # the constant that can move between the two is put where the split puts it: both have one sum
    shift = (pos_embed.sum((1, 2)) - window.sum((1, 2))) / (49 + 64)
    pos_embed -= shift[:, None, None]
    window += shift[:, None, None]
    total = position_sum(pos_embed, window, 256).numpy().astype(np.float32)
    background, tile = split_position_embedding(total)
    assert background.dtype == tile.dtype == np.float32
    np.testing.assert_allclose(background, pos_embed, atol=2e-6)
    np.testing.assert_allclose(tile, window, atol=2e-6)


def test_the_split_gives_the_same_sum_at_other_sizes() -> None:
    generator = torch.Generator().manual_seed(1)
    pos_embed, window = torch.randn(3, 7, 7, generator=generator), torch.randn(3, 8, 8, generator=generator)
    parts = split_position_embedding(position_sum(pos_embed, window, 256).numpy())
    background, tile = (torch.from_numpy(part) for part in parts)
    for size in (8, 64, 88):
        torch.testing.assert_close(
            position_sum(background, tile, size), position_sum(pos_embed, window, size), atol=1e-5, rtol=0
        )


def flatbuffer(tensors: dict[str, np.ndarray], magic: bytes = b"ORTM") -> bytes:
    """A minimal ONNX Runtime model: InferenceSession -> Model -> Graph -> initializers.

    Written front to back: offsets point forward, every table has its own vtable before it.
    """
    out = bytearray(b"\0\0\0\0" + magic)

    def pointer() -> int:
        out.extend(bytes(4))
        return len(out) - 4

    def aim(at: int) -> None:
        out.extend(bytes(-len(out) % 8))
        struct.pack_into("<I", out, at, len(out) - at)

    def table(at: int, slots: dict[int, int | None]) -> dict[int, int]:
        """Write a table with a pointer (or the given number) at each slot; returns their positions."""
        out.extend(bytes(-len(out) % 8))
        vtable = len(out)
        size = max(slots) + 2
        out.extend(struct.pack("<HH", size, 4 + 4 * len(slots)) + bytes(size - 4))
        aim(at)
        start = len(out)
        out.extend(struct.pack("<i", start - vtable))
        places = {}
        for slot, number in slots.items():
            struct.pack_into("<H", out, vtable + slot, len(out) - start)
            places[slot] = pointer()
            if number is not None:
                struct.pack_into("<i", out, places[slot], number)
        return places

    def vector(at: int, count: int, content: bytes) -> None:
        out.extend(bytes((4 - len(out)) % 8))
        struct.pack_into("<I", out, at, len(out) - at)
        out.extend(struct.pack("<I", count) + content)

    model = table(0, {6: None})[6]
    graph = table(model, {18: None})[18]
    initializers = table(graph, {4: None})[4]
    vector(initializers, len(tensors), b"")
    pointers = [pointer() for _ in tensors]
    for at, (name, array) in zip(pointers, tensors.items(), strict=True):
        kind = {"float32": 1, "int64": 7}[array.dtype.name]
        places = table(at, {4: None, 8: None, 10: kind, 12: None})
        vector(places[4], len(name), name.encode())
        vector(places[8], array.ndim, np.array(array.shape, "<i8").tobytes())
        vector(places[12], array.nbytes, array.tobytes())
    return bytes(out)


def test_float_initializers_are_read_and_others_left_out() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = read_ort(flatbuffer({"weight": weight, "shape": np.arange(2), "one": np.float32([7])}))
    assert list(arrays) == ["weight", "one"]
    np.testing.assert_array_equal(arrays["weight"], weight)
    np.testing.assert_array_equal(arrays["one"], [7])


def test_a_trunk_is_rebuilt_from_a_model() -> None:
    linear = np.arange(6, dtype=np.float32).reshape(2, 3)
    total = np.ones((1, 2, 256, 256), np.float32)
    trunk = trunk_from_ort(
        flatbuffer(
            {
                f"model.image_encoder.trunk.{PATCH}": np.ones((2, 3, 7, 7), np.float32),
                "/image_encoder/trunk/blocks.0/attn/qkv/Transpose_output_0": linear,
                "/image_encoder/trunk/blocks.0/mlp/act/Constant_output_0": np.float32(3).reshape(()),
                "/image_encoder/trunk/Transpose_output_0": total,
                "model.sam_mask_decoder.weight": linear,
            }
        )
    )
    assert sorted(trunk) == ["blocks.0.attn.qkv.weight", PATCH, "pos_embed", "pos_embed_window"]
    np.testing.assert_array_equal(trunk["blocks.0.attn.qkv.weight"], linear.T)
    restored = position_sum(trunk["pos_embed"][0], trunk["pos_embed_window"][0], 256)
    np.testing.assert_allclose(restored, total[0], atol=1e-6)


def test_a_model_without_a_trunk() -> None:
    with pytest.raises(ConversionError, match="holds no SAM 2 trunk"):
        trunk_from_ort(flatbuffer({"weight": np.ones(3, np.float32)}))


def test_another_file_is_refused() -> None:
    with pytest.raises(ConversionError, match="not an ONNX Runtime model"):
        read_ort(flatbuffer({}, magic=b"GIF8"))
    with pytest.raises(ConversionError, match="not an ONNX Runtime model"):
        read_ort(b"")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
def test_a_cut_file_is_refused(share: float) -> None:
    whole = flatbuffer({f"weight {i}": np.ones((4, 4), np.float32) for i in range(4)})
    with pytest.raises(ConversionError, match="damaged"):
        read_ort(whole[: int(len(whole) * share)])
