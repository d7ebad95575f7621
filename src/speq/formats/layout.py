"""Where codes and residuals lie in their planes, in NumPy.

Within a 4 x 64 tile the elements of a row are not in order of their column: byte ``b`` of the codes holds the element
``k_lo[b]`` in its low nibble and ``k_lo[b] + 32`` in its high nibble, in an order that lets a vector kernel reach
ascending columns by unpacking alone. All residual bytes follow the same order.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from speq.formats.spec import Dtype
from speq.formats.tensor import COLUMNS, ROWS

HALF = COLUMNS // 2

Number = TypeVar("Number", np.uint8, np.uint16)


def low_nibble_order(dtype: Dtype) -> NDArray[np.intp]:
    """``k_lo``: the column within a block of the low nibble of each of the 32 code bytes of a row."""
    byte = np.arange(HALF)
    lane, i = byte // 16, byte % 16
    if dtype == "bf16":
        vector, position = 2 * (i // 8) + i % 2, i % 8 // 2 + 4 * lane
    else:
        vector, position = 2 * (i // 8) + lane, i % 8
    return (8 * vector + position).astype(np.intp)


def pack(
    codes: NDArray[np.uint8], residuals: NDArray[np.uint16], dtype: Dtype, residual_bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes and residuals of whole tiles [4 * RB, 64 * B] to the planes ``codes`` and ``residual``."""
    order = low_nibble_order(dtype)
    code_tiles, residual_tiles = _tiles(codes), _tiles(residuals)
    packed = code_tiles[..., order] | code_tiles[..., order + HALF] << 4
    low, high = residual_tiles[..., order], residual_tiles[..., order + HALF]
    low_top, high_top = low >> 8, high >> 8
    if residual_bits == 12:
        top = low_top | high_top << 4
    else:
        top = low_top[..., :16] | low_top[..., 16:] << 2 | high_top[..., :16] << 4 | high_top[..., 16:] << 6
    pieces = [(part & 0xFF).astype(np.uint8).reshape(*part.shape[:2], -1) for part in (low, high, top)]
    return packed.astype(np.uint8), np.concatenate(pieces, axis=2)


def unpack_codes(codes: NDArray[np.uint8], dtype: Dtype) -> NDArray[np.uint8]:
    """The plane ``codes`` back to one code per element [4 * RB, 64 * B]."""
    order = low_nibble_order(dtype)
    tiles = np.empty((*codes.shape[:3], COLUMNS), np.uint8)
    tiles[..., order], tiles[..., order + HALF] = codes & 15, codes >> 4
    return _rows(tiles)


def unpack_residuals(residual: NDArray[np.uint8], dtype: Dtype, residual_bits: int) -> NDArray[np.uint16]:
    """The plane ``residual`` back to one residual per element [4 * RB, 64 * B]."""
    order = low_nibble_order(dtype)
    pieces = residual.astype(np.uint16)
    low, high, top = (piece.reshape(*residual.shape[:2], ROWS, -1) for piece in np.split(pieces, [128, 256], axis=2))
    if residual_bits == 12:
        low_top, high_top = top & 15, top >> 4
    else:
        low_top = np.concatenate([top & 3, top >> 2 & 3], axis=-1)
        high_top = np.concatenate([top >> 4 & 3, top >> 6], axis=-1)
    tiles = np.empty((*residual.shape[:2], ROWS, COLUMNS), np.uint16)
    tiles[..., order], tiles[..., order + HALF] = low | low_top << 8, high | high_top << 8
    return _rows(tiles)


def _tiles(rows: NDArray[Number]) -> NDArray[Number]:
    return rows.reshape(len(rows) // ROWS, ROWS, -1, COLUMNS).transpose(0, 2, 1, 3)


def _rows(tiles: NDArray[Number]) -> NDArray[Number]:
    row_blocks, blocks = tiles.shape[:2]
    return tiles.transpose(0, 2, 1, 3).reshape(ROWS * row_blocks, COLUMNS * blocks)
