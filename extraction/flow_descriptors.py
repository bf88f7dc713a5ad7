"""Short-term descriptors of dense flow for each cell of the grid: the baselines of MME's table 5 (appendix C).

`flow`: the mean flow of a cell. `hof`: histogram of the flow's orientations (Laptev et al. 2008; Wang & Schmid 2013).
`mbh`: motion boundary histograms, of the gradients of the flow's x and y components (Dalal et al. 2006).

A histogram has eight signed orientation bins over [0, 2 pi), centred at k * 45 degrees from x towards y (down). A
pixel's magnitude is shared between the two nearest bins in proportion to the angle, and none of it is lost; a cell's
histogram is the sum over exactly its pixels. No normalisation. A horizontal flip mirrors the cells, negates the flow's
x, and permutes bins: k to (4 - k) mod 8 in `hof` and in the y part of `mbh`, k to (-k) mod 8 in the x part of `mbh`,
whose component changes its sign as well.
"""

import dataclasses
import math
from collections.abc import Collection

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import MAX_STEP_PX
from data_specs.geometry import grid_size
from data_specs.recipe import Descriptor
from data_specs.schema import FLOW_BINS
from extraction.motion.fields import FlowField
from extraction.orientation import full_turn

_EIGHT, _ONE, _ZERO = np.float32(FLOW_BINS), np.float32(1), np.float32(0)


@dataclasses.dataclass(frozen=True)
class FlowDescriptors:
    """The descriptors of one flow field, N cells, row-major; None for those that were not asked for.

    `measured`: bool (N,). Where it is false the descriptors are 0 and carry no meaning: a pixel of the cell, or one
    next to it, which the gradients read, is not measured, or the mean is too long for the store (512 px).
    `flow`: float32 (N, 2), mean x and y in pixels.
    `hof`: float32 (N, 9), bins 0 ... 7 in pixels of motion times pixels of area, of the pixels that move by the
    threshold or more; bin 8 counts the others.
    `mbh`: float32 (N, 2, 8), component x and y, in pixels of motion per pixel times pixels of area.
    """

    measured: NDArray[np.bool_]
    flow: NDArray[np.float32] | None
    hof: NDArray[np.float32] | None
    mbh: NDArray[np.float32] | None


def describe_flow(
    flow: FlowField, measured: NDArray[np.bool_], grid_stride: int, kinds: Collection[Descriptor], hof_still_px: float
) -> FlowDescriptors:
    """The descriptors `kinds` of a flow field for each cell of the grid of stride `grid_stride`.

    flow: float32 (H, W, 2), x and y in pixels. measured: bool (H, W), false where the flow is not a measurement.
    hof_still_px: slower pixels count as still.
    """
    rows, columns = grid_size((flow.shape[0], flow.shape[1]), grid_stride)
    planes = [np.ascontiguousarray(plane) for plane in cv2.split(flow)]
    mean = np.stack([_cell_means(plane, grid_stride) for plane in planes], axis=-1).reshape(-1, 2)
    # beyond the frame there is nothing that a gradient would read
    with_neighbours = cv2.erode(measured.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    cells = with_neighbours[: rows * grid_stride, : columns * grid_stride].reshape(rows, grid_stride, columns, -1)
    good = (cells.min(axis=(1, 3)) == 1).ravel() & (np.abs(mean) <= MAX_STEP_PX).all(axis=1)
    hof = mbh = None
    if "hof" in kinds:
        hof = _cell_histograms(planes[0], planes[1], grid_stride, np.float32(hof_still_px)).reshape(-1, FLOW_BINS + 1)
        hof[~good] = 0
    if "mbh" in kinds:
        mbh = np.stack([_boundary_histograms(plane, grid_stride) for plane in planes], axis=1)
        mbh[~good] = 0
    mean[~good] = 0
    return FlowDescriptors(good, mean if "flow" in kinds else None, hof, mbh)


def nothing_measured(cells: int, kinds: Collection[Descriptor]) -> FlowDescriptors:
    """The descriptors of that many cells where there is no flow at all."""
    return FlowDescriptors(
        np.zeros(cells, np.bool_),
        np.zeros((cells, 2), np.float32) if "flow" in kinds else None,
        np.zeros((cells, FLOW_BINS + 1), np.float32) if "hof" in kinds else None,
        np.zeros((cells, 2, FLOW_BINS), np.float32) if "mbh" in kinds else None,
    )


def _boundary_histograms(plane: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """(N, 8) of one component of the flow: Sobel gradients as HOG's, in units of the component per pixel."""
    dx = cv2.Sobel(plane, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8, borderType=cv2.BORDER_REFLECT_101)
    dy = cv2.Sobel(plane, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8, borderType=cv2.BORDER_REFLECT_101)
    histograms = _cell_histograms(np.asarray(dx), np.asarray(dy), stride, _ZERO)
    return np.asarray(histograms.reshape(-1, FLOW_BINS + 1)[:, :FLOW_BINS])


@numba.njit(cache=True)
def _cell_means(plane: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Means over the cells, (rows, columns)."""
    rows, columns = plane.shape[0] // stride, plane.shape[1] // stride
    means = np.empty((rows, columns), dtype=np.float32)
    for row in range(rows):
        for column in range(columns):
            total = 0.0
            for y in range(row * stride, (row + 1) * stride):
                for x in range(column * stride, (column + 1) * stride):
                    total += plane[y, x]
            means[row, column] = total / (stride * stride)
    return means


@numba.njit(cache=True, error_model="numpy")
def _cell_histograms(
    dx: NDArray[np.float32], dy: NDArray[np.float32], stride: int, still: np.float32
) -> NDArray[np.float32]:
    """(rows, columns, 9): magnitudes by orientation, and the number of vectors shorter than `still`.

    Columns of pixels are summed first, a bin at a time, so that the compiler makes vector code of the inner loops.
    """
    rows, columns = dx.shape[0] // stride, dx.shape[1] // stride
    width = columns * stride
    histograms = np.zeros((rows, columns, FLOW_BINS + 1), dtype=np.float32)
    sums = np.empty((FLOW_BINS + 1, width), dtype=np.float32)
    angle, magnitude = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
    for row in range(rows):
        sums[:] = 0
        for y in range(row * stride, (row + 1) * stride):
            row_x, row_y, counts = dx[y], dy[y], sums[FLOW_BINS]
            for x in range(width):
                angle[x] = full_turn(row_x[x], row_y[x])
                length = math.sqrt(row_x[x] * row_x[x] + row_y[x] * row_y[x])
                is_still = length < still
                magnitude[x] = _ZERO if is_still else length
                counts[x] += _ONE if is_still else _ZERO
            for k in range(FLOW_BINS):
                of_bin, centre = sums[k], np.float32(k)
                for x in range(width):
                    distance = abs(angle[x] - centre)
                    share = _ONE - min(distance, _EIGHT - distance)
                    of_bin[x] += magnitude[x] * max(share, _ZERO)
        for column in range(columns):
            for k in range(FLOW_BINS + 1):
                total = _ZERO
                for x in range(column * stride, (column + 1) * stride):
                    total += sums[k, x]
                histograms[row, column, k] = total
    return histograms
