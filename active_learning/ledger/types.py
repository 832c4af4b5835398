"""Column types that SQLAlchemy does not bring: masks, embeddings, times in UTC."""

from __future__ import annotations

import hashlib
import struct
import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import DateTime, LargeBinary
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_HEADER = struct.Struct("<III")


def utc_now() -> datetime:
    """The time of day in UTC, aware of its zone."""
    return datetime.now(UTC)


def encode_masks(masks: NDArray[np.bool_]) -> bytes:
    """Pack N binary maps into bytes, without loss.

    Args:
        masks: (N, H, W) bool, one map per class in the project's order.

    Returns:
        N, H, W as little-endian uint32, then the zlib stream of the bits in row-major order.

    Raises:
        ValueError: the array is not three-dimensional or not bool.
    """
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(f"masks must be a (N, H, W) bool array, not {masks.shape} {masks.dtype}")
    return _HEADER.pack(*masks.shape) + zlib.compress(np.packbits(masks).tobytes(), 6)


def decode_masks(data: bytes) -> NDArray[np.bool_]:
    """Undo `encode_masks`.

    Returns:
        (N, H, W) bool.
    """
    n, h, w = _HEADER.unpack_from(data)
    bits = np.frombuffer(zlib.decompress(data[_HEADER.size :]), dtype=np.uint8)
    return np.unpackbits(bits, count=n * h * w).reshape(n, h, w).astype(np.bool_)


def hash_masks(masks: NDArray[np.bool_] | None) -> str:
    """Sha256 of what (N, H, W) bool says; of nothing for a skip.

    Not of `encode_masks`: two builds of zlib may compress differently. Where nothing is drawn the size does
    not count, for a tool may not tell it: then the masks are (N, 0, 0).
    """
    if masks is None:
        return hashlib.sha256(b"").hexdigest()
    if not masks.any():
        return hashlib.sha256(_HEADER.pack(masks.shape[0], 0, 0)).hexdigest()
    return hashlib.sha256(_HEADER.pack(*masks.shape) + np.packbits(masks).tobytes()).hexdigest()


class MaskType(TypeDecorator[NDArray[np.bool_]]):
    """(N, H, W) bool, kept as packed and compressed bits."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: NDArray[np.bool_] | None, dialect: Dialect) -> bytes | None:
        """Array to bytes."""
        return None if value is None else encode_masks(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[np.bool_] | None:
        """Bytes to array."""
        return None if value is None else decode_masks(value)


class EmbeddingType(TypeDecorator[NDArray[np.float32]]):
    """(C,) float32, kept as its little-endian bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: NDArray[np.float32] | None, dialect: Dialect) -> bytes | None:
        """Array to bytes."""
        return None if value is None else np.ascontiguousarray(value, dtype="<f4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[np.float32] | None:
        """Bytes to array."""
        return None if value is None else np.frombuffer(value, dtype="<f4").astype(np.float32)


class UtcDateTime(TypeDecorator[datetime]):
    """A time that goes in and comes out aware of UTC, also where the database forgets zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """To UTC; a time without a zone is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use utc_now() or an aware time")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
