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

_PI = np.float32(math.pi)
_BINS_PER_RADIAN = np.float32(HOG_BINS / math.pi)


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
    gx = cv2.Sobel(frame, cv2.CV_32F, 1, 0, ksize=3, borderType=cv2.BORDER_REFLECT_101)
    gy = cv2.Sobel(frame, cv2.CV_32F, 0, 1, ksize=3, borderType=cv2.BORDER_REFLECT_101)
    return GradientMap(*_share_out(gx, gy, channels))


@numba.njit(cache=True)
def _share_out(
    gx: NDArray[np.float32], gy: NDArray[np.float32], channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    height, width, colours = gx.shape
    bins = np.empty((height, width, channels), dtype=np.uint8)
    lower = np.empty((height, width, channels), dtype=np.float32)
    upper = np.empty((height, width, channels), dtype=np.float32)
    for y in range(height):
        for x in range(width):
            strongest = 0
            if channels == 1:
                best = -1.0
                for c in range(colours):
                    power = gx[y, x, c] * gx[y, x, c] + gy[y, x, c] * gy[y, x, c]
                    if power > best:
                        best, strongest = power, c
            for out in range(channels):
                c = strongest if channels == 1 else out
                dx, dy = gx[y, x, c], gy[y, x, c]
                magnitude = math.sqrt(dx * dx + dy * dy)
                signed = math.atan2(dy, dx)
                angle = signed + _PI if signed < 0 else signed
                position = angle * _BINS_PER_RADIAN  # 0 ... 9, and 9 is bin 0 again
                k = int(position)
                share = position - k
                bins[y, x, out] = k % HOG_BINS
                lower[y, x, out] = magnitude - magnitude * share
                upper[y, x, out] = magnitude * share
    return bins, lower, upper


def window_histograms(
    gradients: GradientMap, points: NDArray[np.float64], valid: NDArray[np.bool_], window: int
) -> NDArray[np.float32]:
    """Histograms around points (N, 2) of the frame: float32 (N, 9 C), channel by channel; zeros where not `valid`.

    The window spans `window` pixels each way; what of it lies outside the frame adds nothing. At the centre of a cell
    of the grid it is exactly the cell.
    """
    return np.asarray(_sum_windows(gradients.bins, gradients.lower, gradients.upper, points, valid, window))


@numba.njit(cache=True)
def _sum_windows(
    bins: NDArray[np.uint8],
    lower: NDArray[np.float32],
    upper: NDArray[np.float32],
    points: NDArray[np.float64],
    valid: NDArray[np.bool_],
    window: int,
) -> NDArray[np.float32]:
    height, width, channels = bins.shape
    histograms = np.zeros((len(points), HOG_BINS * channels), dtype=np.float32)
    total = np.empty(HOG_BINS * channels, dtype=np.float64)
    for i in range(len(points)):
        if not valid[i]:
            continue
        total[:] = 0
        # pixel x covers x - 0.5 ... x + 0.5, so with 0.5 added to both a pixel is an interval between integers
        left, top = points[i, 0] + 0.5 - window / 2, points[i, 1] + 0.5 - window / 2
        right, bottom = left + window, top + window
        for y in range(max(0, math.floor(top)), min(height, math.ceil(bottom))):
            covered_y = min(y + 1.0, bottom) - max(float(y), top)
            for x in range(max(0, math.floor(left)), min(width, math.ceil(right))):
                covered = covered_y * (min(x + 1.0, right) - max(float(x), left))
                for c in range(channels):
                    k = bins[y, x, c]
                    total[c * HOG_BINS + k] += covered * lower[y, x, c]
                    total[c * HOG_BINS + (k + 1) % HOG_BINS] += covered * upper[y, x, c]
        histograms[i] = total
    return histograms
