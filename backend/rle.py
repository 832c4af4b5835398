"""The run-length code in which Label Studio keeps brush masks, both ways, vectorised.

The code is thi.ng's rle-pack over the flat RGBA bytes of an image. A bit stream, most significant bit first:

    header   32 bits number of values (4 H W) | 5 bits word size - 1 | 4 x 4 bits size of a count - 1
    run      1 | 2 bits which size | count - 1 | one value
    literal  0 | 2 bits which size | count - 1 | count values

`encode_rle` writes byte for byte what `label_studio_sdk.converter.brush.mask2rle` writes, `decode_rle` reads
what that module and the editor in the browser write.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError

_WORD = 8  # bits of one value
_SIZES = (3, 4, 8, 16)  # bits of a count, as Label Studio chooses them
_HEADER_BITS = 32 + 5 + 4 * 4
_LONGEST = 1 << _SIZES[-1]  # the longest run of one token
_PAD = 16  # zero bytes behind the stream, so that a 64-bit window may begin anywhere in it
MAX_VALUES = 2**32 - 1  # the header counts values in 32 bits


class RleError(ELNetError):
    """Not a run-length code of an image of that size."""


def encode_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask as an opaque RGBA image: 255 in all four channels where it is true, else 0.

    Args:
        mask: (H, W) bool, H and W at least 1.

    Returns:
        The bytes of the code, each in 0..255.

    Raises:
        RleError: no pixels, not (H, W) bool, or more than the code can count (about 1.07e9 pixels).
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise RleError(f"a mask to encode must be (H, W) bool and not empty, not {mask.shape} {mask.dtype}")
    if mask.size * 4 > MAX_VALUES:
        raise RleError(f"a mask of {mask.shape} is more than the brush code can count; cut it into tiles")
    tokens, bits = _tokens(*_runs(mask))
    offsets = np.cumsum(bits) - bits + _HEADER_BITS
    total = int(offsets[-1] + bits[-1])
    out = np.zeros(total // 8 + 1 + _PAD, dtype=np.uint8)  # at least one bit of padding, as the SDK does
    out[:7] = np.frombuffer(_header(mask.size * 4), dtype=np.uint8)
    # A token has 14 to 27 bits, so it touches at most 5 bytes and no two begin in the same byte:
    # for each of the 5 the fancy index holds no byte twice.
    first = offsets >> 3
    shifted = tokens << (40 - (offsets & 7) - bits)
    for k in range(5):
        out[first + k] |= ((shifted >> (32 - 8 * k)) & 0xFF).astype(np.uint8)
    codes: list[int] = out[: total // 8 + 1].tolist()
    return codes


def decode_rle(rle: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Decode the alpha channel.

    Args:
        rle: the bytes of the code, each in 0..255.
        height: of the image that the region names, in pixels.
        width: the same.

    Returns:
        (H, W) uint8 alpha: 0 or 255 in masks that were pushed, anything between on human strokes' edges.

    Raises:
        RleError: not bytes, truncated, of another size, or overrunning it.
    """
    try:
        stream = bytes(rle) if not isinstance(rle, int) else b""
    except (ValueError, TypeError) as error:
        raise RleError(f"a brush code must be a list of integers in 0..255: {error}") from None
    sizes, word = _read_header(stream, height, width)
    starts = np.array(_walk(stream, sizes, word), dtype=np.int64)
    return _expand(stream, starts, sizes, word, height * width * 4).reshape(height, width)


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) lengths in RGBA values and (R,) values 0 or 255 of the runs in row-major order."""
    flat = np.ascontiguousarray(mask).reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.empty(ends.size + 2, dtype=np.int64)
    edges[0], edges[1:-1], edges[-1] = 0, ends + 1, flat.size
    values = np.empty(ends.size + 1, dtype=np.int64)
    values[0::2] = 255 if flat[0] else 0
    values[1::2] = 0 if flat[0] else 255
    return np.diff(edges) * 4, values


def _tokens(
    lengths: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs to (T,) right-aligned bit patterns and their (T,) numbers of bits.

    A run of RGBA values is at least 4 long, so literals never occur. A run beyond 65,536 becomes several
    tokens, all with the widest count.
    """
    code = np.searchsorted([1 << s for s in _SIZES[:-1]], lengths)
    pieces = (lengths - 1) // _LONGEST + 1
    if pieces.max() > 1:
        rest = lengths - (pieces - 1) * _LONGEST
        last = np.cumsum(pieces) - 1
        code, values = np.repeat(code, pieces), np.repeat(values, pieces)
        lengths = np.full(code.size, _LONGEST, dtype=np.int64)
        lengths[last] = rest
    size = np.array(_SIZES)[code]
    return ((4 + code) << (size + _WORD)) | ((lengths - 1) << _WORD) | values, 3 + size + _WORD


def _header(values: int) -> bytes:
    """The 53 bits of the header in 7 bytes, the last three bits zero."""
    bits = values
    for field, width in ((_WORD - 1, 5), *((size - 1, 4) for size in _SIZES)):
        bits = bits << width | field
    return (bits << 3).to_bytes(7, "big")


def _read_header(stream: bytes, height: int, width: int) -> tuple[list[int], int]:
    """The four count sizes and the word size, once the number of values is what the image asks for."""
    if height < 1 or width < 1:
        raise RleError(f"a brush region must name its image's size, not {width} x {height}")
    if len(stream) < 7:
        raise RleError(f"a brush code of {len(stream)} bytes is truncated: its header alone has 7")
    (values,) = struct.unpack(">I", stream[:4])
    fields = int.from_bytes(stream[4:7], "big")
    if values != height * width * 4:
        raise RleError(
            f"the brush code holds {values} values, not {height * width * 4} = {width} x {height} x 4: "
            "the region belongs to an image of another size"
        )
    word = (fields >> 19) + 1
    if word > _WORD:
        raise RleError(f"the brush code has words of {word} bits; an image has words of at most {_WORD}")
    return [(fields >> shift & 15) + 1 for shift in (15, 11, 7, 3)], word


def _walk(stream: bytes, sizes: list[int], word: int) -> list[int]:
    """The bit at which each token starts.

    Where a token starts depends on all before it, so this is the one loop. It looks up each token's kind in
    a table of the 3 bits at every position, made by NumPy: about 70 ns a token.
    """
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))
    kinds = (bits[:-2] << 2 | bits[1:-1] << 1 | bits[2:]).tobytes()
    advance = [0, 0, 0, 0, *(3 + size + word for size in sizes)]  # of a run of each kind
    starts: list[int] = []
    p, end = _HEADER_BITS, len(kinds)
    while p < end:
        kind = kinds[p]
        starts.append(p)
        if kind >= 4:
            p += advance[kind]
            continue
        size = sizes[kind]
        window = int.from_bytes(stream[p >> 3 : (p >> 3) + 4].ljust(4, b"\0"), "big")
        count = (window >> (29 - (p & 7) - size) & ((1 << size) - 1)) + 1
        p += 3 + size + count * word
    return starts


def _expand(
    stream: bytes, starts: NDArray[np.int64], sizes: list[int], word: int, values: int
) -> NDArray[np.uint8]:
    """Alpha, flat (H * W,), of the tokens: every fourth value."""
    padded = stream + bytes(_PAD)
    window = _windows(padded, starts)  # 57 bits or more from each token's first
    literal = window >> np.uint64(63) == 0
    size = np.array(sizes, dtype=np.uint64)[(window >> np.uint64(61) & np.uint64(3)).astype(np.intp)]
    mask = (np.uint64(1) << size) - np.uint64(1)
    count = ((window >> (np.uint64(61) - size)) & mask).astype(np.int64) + 1
    value = window >> (np.uint64(61 - word) - size) & np.uint64((1 << word) - 1)
    first_value = starts + 3 + size.astype(np.int64)
    stop = np.cumsum(count)
    used = int(np.searchsorted(stop, values)) + 1
    if used > starts.size or first_value[used - 1] + _payload(literal, count, word, used) > len(stream) * 8:
        raise RleError("the brush code is truncated: it ends before its image does")
    if stop[used - 1] != values:
        raise RleError(f"the brush code is malformed: its tokens overrun its {values} values")
    stop, begin, literal = stop[:used], stop[:used] - count[:used], literal[:used]
    pixels = stop // 4 - begin // 4  # alpha values in each token
    alpha = np.repeat(value[:used].astype(np.uint8), pixels)
    if literal.any():
        n = pixels[literal]
        offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        pixel = np.repeat(begin[literal] // 4, n) + offset
        at = np.repeat(first_value[:used][literal], n) + (4 * pixel + 3 - np.repeat(begin[literal], n)) * word
        alpha[pixel] = (_windows(padded, at) >> np.uint64(64 - word)).astype(np.uint8)
    return alpha


def _payload(literal: NDArray[np.bool_], count: NDArray[np.int64], word: int, used: int) -> int:
    """Bits of the values of the last token that is used."""
    return int(count[used - 1]) * word if literal[used - 1] else word


def _windows(padded: bytes, at: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The bits from each position on, left-aligned in 64 bits (at least 57 of them are real)."""
    every: NDArray[np.uint64] = np.ndarray((len(padded) - 7,), dtype=">u8", buffer=padded, strides=(1,))
    windows: NDArray[np.uint64] = every[at >> 3].astype(np.uint64) << (at & 7).astype(np.uint64)
    return windows
