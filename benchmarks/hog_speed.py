"""Time of trajectory-aligned HOG for each frame, beside the plain implementation that it replaced, in one run.

    python benchmarks/hog_speed.py --start-stride 4

A rendered frame of 256 x 340, 8-pixel windows around points that have moved off the grid, one thread. A frame's
gradients are computed once; its windows once for each row that crosses it, L / start stride on average. `plain` takes
atan2 at every pixel and sums in double precision. Times are the least of many repeats; the ratio is what counts.
"""

import argparse
import math
from typing import Any

import cv2
import numba
import numpy as np
from timing import shortest_ms

from data_specs.geometry import grid_points
from data_specs.scene import random_scene
from extraction.hog import gradient_map, window_histograms

LENGTH, WINDOW = 6, 8


@numba.njit(error_model="numpy")
def plain_gradients(gx: Any, gy: Any, channels: int) -> Any:
    """(bins, lower, upper), (H, W, C) each."""
    height, width, colours = gx.shape
    bins = np.empty((height, width, channels), np.uint8)
    lower, upper = np.empty(bins.shape, np.float32), np.empty(bins.shape, np.float32)
    for y in range(height):
        for x in range(width):
            strongest, best = 0, -1.0
            for c in range(colours):
                power = gx[y, x, c] * gx[y, x, c] + gy[y, x, c] * gy[y, x, c]
                if power > best:
                    best, strongest = power, c
            for out in range(channels):
                c = strongest if channels == 1 else out
                dx, dy = gx[y, x, c], gy[y, x, c]
                magnitude = math.sqrt(dx * dx + dy * dy)
                position = math.atan2(dy, dx) % math.pi * 9 / math.pi
                k = int(position)
                bins[y, x, out] = k % 9
                lower[y, x, out], upper[y, x, out] = magnitude * (1 - position + k), magnitude * (position - k)
    return bins, lower, upper


@numba.njit
def plain_windows(bins: Any, lower: Any, upper: Any, points: Any, window: int) -> Any:
    """(N, 9 C)."""
    height, width, channels = bins.shape
    histograms = np.zeros((len(points), 9 * channels))
    for i in range(len(points)):
        left, top = points[i, 0] + 0.5 - window / 2, points[i, 1] + 0.5 - window / 2
        right, bottom = left + window, top + window
        for y in range(max(0, math.floor(top)), min(height, math.ceil(bottom))):
            for x in range(max(0, math.floor(left)), min(width, math.ceil(right))):
                covered = (min(y + 1.0, bottom) - max(y, top)) * (min(x + 1.0, right) - max(x, left))
                for c in range(channels):
                    k = bins[y, x, c]
                    histograms[i, c * 9 + k] += covered * lower[y, x, c]
                    histograms[i, c * 9 + (k + 1) % 9] += covered * upper[y, x, c]
    return histograms


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-stride", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    frame = random_scene(0, 2.0, (256, 340)).frames(1)[0]
    grid = grid_points((256, 340), 8)
    points = np.clip(grid + np.random.default_rng(0).normal(0, 3, grid.shape), 0, [339, 255])
    valid = np.ones(len(points), np.bool_)

    def plain_map(channels: int) -> Any:
        gx, gy = (cv2.Sobel(frame, cv2.CV_32F, dx, 1 - dx, ksize=3) for dx in (1, 0))
        return plain_gradients(gx, gy, channels)

    print("| channels | | gradients | windows of a row | ms per frame | plain, ms per frame | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for channels in (1, 3):
        ours, theirs = gradient_map(frame, channels), plain_map(channels)
        difference = window_histograms(ours, points, valid, WINDOW) - plain_windows(*theirs, points, WINDOW)
        assert np.abs(difference).max() < 1e-5 * plain_windows(*theirs, points, WINDOW).max()
        gradients = shortest_ms(lambda c=channels: gradient_map(frame, c), options.repeats)
        windows = shortest_ms(lambda m=ours: window_histograms(m, points, valid, WINDOW), options.repeats)
        plain = shortest_ms(lambda c=channels: plain_map(c), options.repeats)
        plain_sums = shortest_ms(lambda m=theirs: plain_windows(*m, points, WINDOW), options.repeats)
        rows = LENGTH / options.start_stride
        total, plain_total = gradients + rows * windows, plain + rows * plain_sums
        print(
            f"| {channels} | {rows:.2f} rows | {gradients:.2f} | {windows:.2f} | {total:.2f} | {plain_total:.2f} "
            f"| {plain_total / total:.1f} |"
        )


if __name__ == "__main__":
    main()
