"""The brush code against the one that Label Studio's SDK carries, and against malformed streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter.brush import decode_rle as sdk_decode
from label_studio_sdk.converter.brush import mask2rle

from backend.rle import RleError, decode_rle, encode_rle

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


def rle_pack(values: list[int], pieces: list[int], sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Encode as the browser may: runs and literals, cut where `pieces` says."""
    bits = f"{len(values):032b}00111" + "".join(f"{size - 1:04b}" for size in sizes)
    i, turn = 0, 0
    while i < len(values):
        piece = values[i : i + pieces[turn % len(pieces)]]
        turn += 1
        i += len(piece)
        code = next(k for k, size in enumerate(sizes) if len(piece) <= 1 << size)
        run = len(set(piece)) == 1 and turn % 3 != 0
        bits += f"{int(run)}{code:02b}{len(piece) - 1:0{sizes[code]}b}"
        bits += "".join(f"{value:08b}" for value in (piece[:1] if run else piece))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


@given(masks)
def test_bytes_are_the_sdks_and_round_trip_is_exact(mask):
    code = encode_rle(mask)
    assert code == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(decode_rle(code, *mask.shape), mask.astype(np.uint8) * 255)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 16384), (1, 16385), (128, 129), (300, 300)])
@pytest.mark.parametrize("value", [False, True])
def test_runs_at_the_widest_count(shape, value):
    mask = np.full(shape, value)
    assert encode_rle(mask) == mask2rle(mask.astype(np.uint8) * 255)
    mask[-1, -1] = not value
    code = encode_rle(mask)
    assert code == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(decode_rle(code, *shape) == 255, mask)


def test_non_contiguous_mask():
    mask = np.random.default_rng(0).random((40, 30)) > 0.5
    assert encode_rle(mask.T) == encode_rle(np.ascontiguousarray(mask.T))


@settings(max_examples=60)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.sampled_from([(3, 4, 8, 16), (2, 4, 6, 8), (1, 5, 5, 12)]),
)
def test_any_stream_of_the_browser_decodes_as_the_sdk_does(rgba, pieces, sizes):
    code = rle_pack(rgba.ravel().tolist(), [min(p, 1 << max(sizes)) for p in pieces], sizes)
    expected = sdk_decode(code).reshape(rgba.shape)[..., 3]
    assert np.array_equal(expected, rgba[..., 3])
    assert np.array_equal(decode_rle(code, *rgba.shape[:2]), expected)


def test_long_literals():
    rgba = np.random.default_rng(1).integers(0, 256, (70, 80, 4), dtype=np.uint8)
    code = rle_pack(rgba.ravel().tolist(), [5000, 1, 17000])
    assert np.array_equal(decode_rle(code, 70, 80), rgba[..., 3])


@given(masks, st.data())
def test_truncated_streams_are_refused(mask, data):
    code = encode_rle(mask)
    kept = data.draw(st.integers(0, len(code) - 2))  # the last byte may be padding only
    with pytest.raises(RleError, match="truncated"):
        decode_rle(code[:kept], *mask.shape)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_decoded_never_a_crash(garbage):
    header = encode_rle(np.zeros((3, 5), dtype=np.bool_))[:7]
    try:
        alpha = decode_rle(header + list(garbage), 3, 5)
    except RleError:
        return
    assert alpha.shape == (3, 5)


def test_wrong_size_overrun_wide_words_and_non_bytes_are_refused():
    code = encode_rle(np.ones((4, 6), dtype=np.bool_))
    with pytest.raises(RleError, match="another size"):
        decode_rle(code, 6, 5)
    overrun = rle_pack([9] * 30, [30])
    overrun[:4] = [0, 0, 0, 24]
    with pytest.raises(RleError, match="overrun"):
        decode_rle(overrun, 2, 3)
    wide = code.copy()
    wide[4] = 0b01111000 | wide[4] & 7
    with pytest.raises(RleError, match="16 bits"):
        decode_rle(wide, 4, 6)
    for bad in ([300], [-1], ["a"], [None], None, 7):
        with pytest.raises(RleError):
            decode_rle(bad, 1, 1)
    with pytest.raises(RleError, match="size"):
        decode_rle(code, 0, 6)


@pytest.mark.parametrize(
    "mask", [np.zeros((0, 3), np.bool_), np.zeros((2, 2, 2), np.bool_), np.zeros((2, 2), np.uint8)]
)
def test_what_is_no_mask_is_not_encoded(mask):
    with pytest.raises(RleError, match="must be"):
        encode_rle(mask)
