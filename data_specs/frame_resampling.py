"""A box of a frame, resized: what is cut out may begin and end between pixels, and is interpolated once.

The filter is the triangle: bilinear where the box is enlarged; where it shrinks, the triangle widens with the step from
one output pixel to the next, so that nothing aliases. So does Pillow's bilinear resize, with which the published
loaders train. Pixels beyond the box count where the filter reaches them; beyond the frame there is nothing, and the
rest counts more.
"""

from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray


class BoxResampler:
    """Resizes one box of frames of one size; call it with a frame.

    source_size: (height, width) of the frames. box: (top, left, height, width) in pixels of the frame, fractions
    allowed, inside the frame. size: (height, width) of what comes out; flip: mirrored left to right at the end.
    Output pixel j is at left + (j + 0.5) * width / size[1] - 0.5 of the frame (half-pixel rule).
    """

    def __init__(
        self, source_size: tuple[int, int], box: tuple[float, float, float, float], size: tuple[int, int], flip: bool
    ) -> None:
        top, left, height, width = box
        self._rows = _weights(source_size[0], top, height, size[0])
        first, weights = _weights(source_size[1], left, width, size[1])
        self._left = int(first.min())
        self._right = int(first.max()) + weights.shape[1]
        first = first - self._left
        self._columns = (first[::-1].copy(), weights[::-1].copy()) if flip else (first, weights)
        self._size = size

    def __call__(self, rows: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """rows: a frame's RGB rows, uint8 (height, at least 3 * width), contiguous; what lies behind the width is not
        read. out: uint8 (*size, 3), contiguous.
        """
        height, width = self._size
        narrow = np.empty((height, self._right - self._left, 3), np.uint8)
        _mix_rows(rows, 3 * self._left, *self._rows, narrow.reshape(height, -1))
        # along x in the same way: rows are contiguous, columns are not
        turned = cv2.transpose(narrow)
        mixed = np.empty((width, height, 3), np.uint8)
        _mix_rows(turned.reshape(len(turned), -1), 0, *self._columns, mixed.reshape(width, -1))
        cv2.transpose(mixed, dst=out)


def _weights(length: int, begin: float, extent: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For each of `size` outputs along an axis of `length` pixels, the first pixel it is made of, int64 (size,), and
    the weights of that one and those behind it, float32 (size, taps); each row's sum is 1.
    """
    step = extent / size
    reach = max(step, 1.0)
    centre = begin + (np.arange(size) + 0.5) * step - 0.5
    taps = min(int(np.ceil(2 * reach)) + 1, length)
    first = np.clip(np.floor(centre - reach).astype(np.int64) + 1, 0, length - taps)
    distance = first[:, None] + np.arange(taps) - centre[:, None]
    weights = np.maximum(1 - np.abs(distance) / reach, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.flatnonzero(weights.any(axis=0))
    return first, weights[:, : used[-1] + 1].astype(np.float32)


@numba.njit(cache=True, error_model="numpy")
def _mix_rows(rows: Any, begin: Any, first: Any, weights: Any, out: Any) -> None:
    """out[i, x] = sum over k of weights[i, k] * rows[first[i] + k, begin + x], rounded to 8 bits.

    numba widens products of integers to 64 bits; those of float32 stay as they are, and fill vector registers.
    """
    width = out.shape[1]
    total = np.empty(width, np.float32)
    for i in range(out.shape[0]):
        total[:] = np.float32(0.5)
        for k in range(weights.shape[1]):
            weight = weights[i, k]
            if weight != 0:
                row = rows[first[i] + k, begin : begin + width]
                for x in range(width):
                    total[x] += weight * np.float32(row[x])
        line = out[i]
        for x in range(width):
            line[x] = np.uint8(total[x])
