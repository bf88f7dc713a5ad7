"""The trajectory field of a tracked frame, resampled to the grid of a view.

A value is interpolated bilinearly between the four grid points around it, of which only the valid ones count (their
weights are made to sum to 1). Validity itself is never interpolated: a resampled point is valid where the nearest grid
point is, and where that is no further away than one stride of the grid along either axis.

Axis legend: (rows, columns) of the tracked frame's grid, (Gh, Gw) of the view's, L steps, D bins.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import HISTOGRAM_LEVELS
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.view import View
from training.reading.resampling_kernels import histograms_kernel, vectors_kernel
from training.reading.shard_reader import Runs


def view_points(size: tuple[int, int], points: tuple[int, int]) -> NDArray[np.float64]:
    """Centres of the cells of a view's grid of `points` = (Gh, Gw): float64 (Gh, Gw, 2), x and y in its pixels.

    `size`: (height, width) of the view; its cells are size / points pixels, so that a 16 x 16 patch with 2 x 2 points
    has them 4 pixels from its sides, at 3.5 and 11.5.
    """
    y, x = ((np.arange(n) + 0.5) * (length / n) - 0.5 for n, length in zip(points, size, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1)


@functools.lru_cache(maxsize=8)
def _first_column_and_row(size: tuple[int, int], points: tuple[int, int]) -> NDArray[np.float64]:
    """Of `view_points`: (Gh + Gw, 2). A view moves x and y apart from each other, so they stand for all."""
    both = view_points(size, points)
    return np.concatenate([both[:, 0], both[0]])


class Resampler:
    """Resamples the fields of one tracked grid to the grid of one view.

    grid_size: (rows, columns); grid_stride in pixels of the tracked frame; points: (Gh, Gw). `window`: the rows and
    columns of the tracked grid that the view's points lie between; no others are looked at.

    `resample_*` take R fields in the tracked frame and write into `values` and `valid` what they are in the view:
    lengths scaled by the resize, mirrored by the flip. Fields are runs of rows * columns points, row-major; that of run
    r goes to values[to[r]] and valid[to[r]]. `measured`, runs as well, says which of their L steps count; it may have
    more steps than L, of which the first do.
    """

    def __init__(self, view: View, grid_size: tuple[int, int], grid_stride: int, points: tuple[int, int]) -> None:
        self.view, self._grid = view, grid_size
        frame = view.to_frame(_first_column_and_row(view.size, points))
        # in strides of the grid, from its first point
        cells = (frame - (grid_stride - 1) / 2) / grid_stride
        self._y, self._x = cells[: points[0], 1].copy(), cells[points[0] :, 0].copy()
        self.window = _range_between(self._y, grid_size[0]), _range_between(self._x, grid_size[1])

    def resample_vectors(
        self,
        field: Runs,
        measured: Runs,
        to: NDArray[np.int64],
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """field float32 (P, L, 2), x and y in pixels of the tracked frame; measured bool (Q, L or more).

        Fills values (t, Gh, Gw, L, 2), in pixels of the view, and valid (t, Gh, Gw, L), for t in `to` (R,).
        """
        x, y = self.view.scale
        factors = (-x if self.view.flip else x, y)
        vectors_kernel(*field, *measured, to, factors, self._grid, self._y, self._x, self._bounds(), values, valid)

    def resample_histograms(
        self,
        codes: Runs,
        scales: NDArray[np.floating],
        measured: Runs,
        mirror: NDArray[np.int64],
        to: NDArray[np.int64],
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """codes uint8 (P, L or more, D) of value (code / 254)^2 * scales[r]; measured bool (Q, L or more).

        mirror (D,): the bin that a bin becomes in the mirror image. Fills values (t, Gh, Gw, L, D), in the unit of
        `scales`, and valid (t, Gh, Gw, L), for t in `to` (R,). The resize does not change a histogram: for an
        anisotropic one there is no exact counterpart.
        """
        units = (scales / HISTOGRAM_LEVELS**2).astype(np.float32)
        histograms_kernel(
            *codes,
            units,
            *measured,
            mirror,
            self.view.flip,
            to,
            self._grid,
            self._y,
            self._x,
            self._bounds(),
            values,
            valid,
        )

    def _bounds(self) -> tuple[int, int, int, int]:
        rows, columns = self.window
        return rows.start, rows.stop, columns.start, columns.stop


def compile_resampling() -> None:
    """Compile what `Resampler` calls."""
    first = np.zeros(1, np.int64)
    resampler = Resampler(View(top=0, left=0, height=1, width=1, size=(1, 1)), (1, 1), 1, (1, 1))
    field, codes = Runs(np.zeros((1, 1, 2), np.float32), first), Runs(np.zeros((1, 1, 1), np.uint8), first)
    measured, mirror = Runs(np.ones((1, 1), np.bool_), first), np.zeros(1, np.int64)
    values, valid = np.zeros((1, 1, 1, 1, 2), np.float32), np.zeros((1, 1, 1, 1), np.bool_)
    resampler.resample_vectors(field, measured, first, values, valid)
    resampler.resample_histograms(codes, np.ones(1), measured, mirror, first, values[..., :1].copy(), valid)


def _range_between(cells: NDArray[np.float64], count: int) -> range:
    """Which of `count` points along an axis are neighbours of any of `cells`, positions that rise or fall."""
    first, last = sorted((float(cells[0]), float(cells[-1])))
    low, high = (min(max(math.floor(cell), 0), count - 1) for cell in (first, last))
    return range(low, min(high + 1, count - 1) + 1)


@functools.cache
def mirrored_hog(channels: int) -> NDArray[np.int64]:
    """The bins that HOG's 9 * channels bins become in the mirror image: an angle θ of [0, π) becomes π − θ."""
    bins = (HOG_BINS - np.arange(HOG_BINS)) % HOG_BINS
    return np.concatenate([bins + HOG_BINS * c for c in range(channels)])


@functools.cache
def mirrored_hof() -> NDArray[np.int64]:
    """The bins that HOF's 9 bins become in the mirror image; the ninth, of still pixels, stays."""
    return np.append(_mirrored_flow(), FLOW_BINS)


@functools.cache
def mirrored_mbh() -> NDArray[np.int64]:
    """The bins that MBH's 2 * 8 bins become in the mirror image, where the flow's x component changes its sign too."""
    return np.concatenate([-np.arange(FLOW_BINS) % FLOW_BINS, _mirrored_flow() + FLOW_BINS])


def _mirrored_flow() -> NDArray[np.int64]:
    return (FLOW_BINS // 2 - np.arange(FLOW_BINS)) % FLOW_BINS
