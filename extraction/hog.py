"""Trajectory-aligned histograms of oriented gradients (MME eq. 5; Dalal & Triggs 2005).

Nine unsigned orientation bins over [0, pi), centred at k * 20 degrees, so that a horizontal flip maps bin k to bin
(9 - k) mod 9. A pixel's gradient magnitude is shared between the two nearest bins and none of it is lost; a histogram
is the sum over a square window centred on the tracked point, pixels at its rim counted by the part that it covers. No
normalisation.
"""

import dataclasses
import math

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.schema import HOG_BINS
from data_specs.video import Frame
from extraction.orientation import half_turn

Gradient = NDArray[np.int16] | NDArray[np.float32]

_BINS_PER_OCTANT = np.float32(HOG_BINS / 4)


@dataclasses.dataclass(frozen=True)
class GradientMap:
    """The gradients of one frame, shared out over bins. C is 1 or 3.

    `bins`: uint8 (H, W, C), the lower of the two bins k and (k + 1) mod 9 that a pixel's gradient falls between.
    `lower`, `upper`: float32 (H, W, C), the magnitude that each of the two gets.
    """

    bins: NDArray[np.uint8]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]


def gradient_map(frame: Frame, channels: int) -> GradientMap:
    """Sobel gradients (3 x 3, no bias, borders mirrored without the edge pixel) of an RGB frame (H, W, 3).

    channels: 3 keeps each colour; 1 takes at each pixel the colour with the strongest gradient, the first of equals.
    """
    depth = cv2.CV_16S if frame.dtype == np.uint8 else cv2.CV_32F  # either holds the gradients exactly
    colours = cv2.split(frame)
    gx, gy = (
        [cv2.Sobel(colour, depth, dx, 1 - dx, ksize=3, borderType=cv2.BORDER_REFLECT_101) for colour in colours]
        for dx in (1, 0)
    )
    shape = (channels, *frame.shape[:2])  # a colour's plane is in one piece, which is what the loops are fast on
    bins, lower, upper = np.empty(shape, np.uint8), np.empty(shape, np.float32), np.empty(shape, np.float32)
    pairs = [_strongest(gx[0], gx[1], gx[2], gy[0], gy[1], gy[2])] if channels == 1 else zip(gx, gy, strict=True)
    for c, (dx, dy) in enumerate(pairs):
        _share_out(dx, dy, bins[c], lower[c], upper[c])
    return GradientMap(*(np.moveaxis(planes, 0, -1) for planes in (bins, lower, upper)))


@numba.njit(cache=True)
def _strongest(
    x0: Gradient, x1: Gradient, x2: Gradient, y0: Gradient, y1: Gradient, y2: Gradient
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The gradient (x, y) of the colour whose gradient is the strongest, at each pixel; the first of equals."""
    height, width = x0.shape
    gx, gy = np.empty((height, width), dtype=np.float32), np.empty((height, width), dtype=np.float32)
    for y in range(height):
        for x in range(width):
            ax, ay = np.float32(x0[y, x]), np.float32(y0[y, x])
            bx, by = np.float32(x1[y, x]), np.float32(y1[y, x])
            cx, cy = np.float32(x2[y, x]), np.float32(y2[y, x])
            a, b, c = ax * ax + ay * ay, bx * bx + by * by, cx * cx + cy * cy
            is_b = b > a
            ab = b if is_b else a
            ax, ay = bx if is_b else ax, by if is_b else ay
            is_c = c > ab
            gx[y, x], gy[y, x] = cx if is_c else ax, cy if is_c else ay
    return gx, gy


@numba.njit(cache=True, error_model="numpy")
def _share_out(
    gx: Gradient, gy: Gradient, bins: NDArray[np.uint8], lower: NDArray[np.float32], upper: NDArray[np.float32]
) -> None:
    """Fill the last three, (H, W) each: the lower bin, its magnitude, and the next bin's."""
    height, width = gx.shape
    for y in range(height):
        for x in range(width):
            dx, dy = np.float32(gx[y, x]), np.float32(gy[y, x])
            magnitude = math.sqrt(dx * dx + dy * dy)
            position = half_turn(dx, dy) * _BINS_PER_OCTANT  # 0 ... 9, and 9 is bin 0 again
            k = np.int32(position)
            of_upper = magnitude * (position - np.float32(k))
            bins[y, x] = np.uint8(0 if k == HOG_BINS else k)
            lower[y, x] = magnitude - of_upper
            upper[y, x] = of_upper


def window_histograms(
    gradients: GradientMap, points: NDArray[np.float64], valid: NDArray[np.bool_], window: int
) -> NDArray[np.float32]:
    """Histograms around points (N, 2) of the frame: float32 (N, 9 C), channel by channel; zeros where not `valid`.

    The window spans `window` pixels each way; what of it lies outside the frame adds nothing. At the centre of a cell
    of the grid it is exactly the cell.
    """
    bins, lower, upper = (np.moveaxis(a, -1, 0) for a in (gradients.bins, gradients.lower, gradients.upper))
    return np.asarray(_sum_windows(bins, lower, upper, points, valid, window))


@numba.njit(cache=True)
def _sum_windows(
    bins: NDArray[np.uint8],
    lower: NDArray[np.float32],
    upper: NDArray[np.float32],
    points: NDArray[np.float64],
    valid: NDArray[np.bool_],
    window: int,
) -> NDArray[np.float32]:
    """Planes are (C, H, W)."""
    channels, height, width = bins.shape
    histograms = np.zeros((len(points), HOG_BINS * channels), dtype=np.float32)
    total = np.empty(HOG_BINS + 1, dtype=np.float32)  # with bin 0 at both ends
    covered_x = np.empty(window + 1, dtype=np.float32)
    for i in range(len(points)):
        if not valid[i]:
            continue
        # pixel x covers x - 0.5 ... x + 0.5, so with 0.5 added to both a pixel is an interval between integers
        left, top = points[i, 0] + 0.5 - window / 2, points[i, 1] + 0.5 - window / 2
        right, bottom = left + window, top + window
        first, last = max(0, math.floor(left)), min(width, math.ceil(right))
        for x in range(first, last):
            covered_x[x - first] = min(x + 1.0, right) - max(float(x), left)
        for c in range(channels):
            total[:] = 0
            for y in range(max(0, math.floor(top)), min(height, math.ceil(bottom))):
                covered_y = np.float32(min(y + 1.0, bottom) - max(float(y), top))
                for x in range(first, last):
                    covered = covered_y * covered_x[x - first]
                    k = bins[c, y, x]
                    total[k] += covered * lower[c, y, x]
                    total[k + 1] += covered * upper[c, y, x]
            total[0] += total[HOG_BINS]
            histograms[i, c * HOG_BINS : (c + 1) * HOG_BINS] = total[:HOG_BINS]
    return histograms
