"""The trajectory field of a tracked frame, resampled to the grid of a view.

A value is interpolated bilinearly between the four grid points around it, of which only the valid ones count (their
weights are made to sum to 1). Validity itself is never interpolated: a resampled point is valid where the nearest grid
point is, and where that is no further away than one stride of the grid along either axis.

Axis legend: (rows, columns) of the tracked frame's grid, (Gh, Gw) of the view's, L steps, D bins.
"""

import functools
import math

import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import HISTOGRAM_LEVELS
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.view import View
from training.shard_reader import Runs


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
        _resample_vectors(*field, *measured, to, factors, self._grid, self._y, self._x, self._bounds(), values, valid)

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
        _resample_histograms(
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


@numba.njit(cache=True, nogil=True)
def _neighbours(
    cells: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """For positions along an axis of `count` points: the two neighbours of each, the weight of the higher one (the
    lower one has the rest), and which is nearer; -1 where none is within one stride."""
    low, high = np.empty(len(cells), np.int64), np.empty(len(cells), np.int64)
    weight, nearest = np.empty(len(cells), np.float64), np.empty(len(cells), np.int64)
    for i, cell in enumerate(cells):
        low[i] = min(max(math.floor(cell), 0), count - 1)
        high[i] = min(low[i] + 1, count - 1)
        weight[i] = min(max(cell - low[i], 0.0), 1.0)
        near = min(max(math.floor(cell + 0.5), 0), count - 1)
        nearest[i] = near if abs(cell - near) <= 1 else -1
    return low, high, weight, nearest


@numba.njit(cache=True, nogil=True)
def _check(first: NDArray[np.int64], count: int, length: int) -> None:
    """Raise IndexError unless `count` elements from each of `first` are among `length`: compiled code does not look."""
    for n in first:
        if n < 0 or n + count > length:
            raise IndexError("a run of points, or the place that it goes to, is outside of its array")


@numba.njit(cache=True, nogil=True)
def _find_whole(
    measured: NDArray[np.bool_],
    first: int,
    columns: int,
    steps: int,
    bounds: tuple[int, int, int, int],
    whole: NDArray[np.bool_],
) -> None:
    """Which points of a field, within `bounds`, are measured at each of their steps."""
    top, bottom, left, right = bounds
    for i in range(top, bottom):
        for n in range(i * columns + left, i * columns + right):
            every = True
            for k in range(steps):
                every &= measured[first + n, k]
            whole[n] = every


@numba.njit(cache=True, nogil=True)
def _resample_vectors(
    field: NDArray[np.float32],
    first: NDArray[np.int64],
    measured: NDArray[np.bool_],
    first_measured: NDArray[np.int64],
    to: NDArray[np.int64],
    factors: tuple[float, float],
    grid: tuple[int, int],
    cells_y: NDArray[np.float64],
    cells_x: NDArray[np.float64],
    bounds: tuple[int, int, int, int],
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    rows, columns = grid
    steps = values.shape[3]
    _check(first, rows * columns, len(field))
    _check(first_measured, rows * columns, len(measured))
    _check(to, 1, len(values))
    if measured.shape[1] < steps or valid.shape != values.shape[:4] or not len(first) == len(first_measured) == len(to):
        raise IndexError("the shapes of a field, of what of it is measured, and of the results do not agree")
    field = field.reshape(len(field), 2 * steps)
    values = values.reshape(values.shape[0], len(cells_y), len(cells_x), 2 * steps)
    factor = np.empty(2 * steps, dtype=np.float64)
    factor[0::2], factor[1::2] = np.float32(factors[0]), np.float32(factors[1])
    y_low, y_high, y_weight, y_near = _neighbours(cells_y, rows)
    x_low, x_high, x_weight, x_near = _neighbours(cells_x, columns)
    whole = np.empty(rows * columns, dtype=np.bool_)
    for r in range(len(first)):
        _find_whole(measured, first_measured[r], columns, steps, bounds, whole)
        t, at, flags = to[r], first[r], first_measured[r]
        for i in range(len(cells_y)):
            for j in range(len(cells_x)):
                wy, wx = y_weight[i], x_weight[j]
                a, b = y_low[i] * columns + x_low[j], y_low[i] * columns + x_high[j]
                c, d = y_high[i] * columns + x_low[j], y_high[i] * columns + x_high[j]
                of_a, of_b, of_c, of_d = (1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx
                near = y_near[i] >= 0 and x_near[j] >= 0
                if near and whole[a] and whole[b] and whole[c] and whole[d]:
                    for k in range(steps):
                        valid[t, i, j, k] = True
                    for e in range(2 * steps):
                        mixed = of_a * field[at + a, e] + of_b * field[at + b, e]
                        mixed = mixed + of_c * field[at + c, e] + of_d * field[at + d, e]
                        values[t, i, j, e] = mixed * factor[e]
                    continue
                nearest = y_near[i] * columns + x_near[j]
                for k in range(steps):
                    total, dx, dy = 0.0, 0.0, 0.0
                    valid[t, i, j, k] = near and measured[flags + nearest, k]
                    if valid[t, i, j, k]:
                        for n, weight in ((a, of_a), (b, of_b), (c, of_c), (d, of_d)):
                            if measured[flags + n, k]:
                                total += weight
                                dx += weight * field[at + n, 2 * k]
                                dy += weight * field[at + n, 2 * k + 1]
                        dx, dy = dx / total, dy / total
                    values[t, i, j, 2 * k] = dx * factor[0]
                    values[t, i, j, 2 * k + 1] = dy * factor[1]


@numba.njit(cache=True, nogil=True)
def _resample_histograms(
    codes: NDArray[np.uint8],
    first: NDArray[np.int64],
    units: NDArray[np.float32],
    measured: NDArray[np.bool_],
    first_measured: NDArray[np.int64],
    mirror: NDArray[np.int64],
    flip: bool,
    to: NDArray[np.int64],
    grid: tuple[int, int],
    cells_y: NDArray[np.float64],
    cells_x: NDArray[np.float64],
    bounds: tuple[int, int, int, int],
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    """A value is unit * code². Rows first, then columns, as if everything were valid; then the few steps by hand that
    have a neighbour which is not.
    """
    rows, columns = grid
    left, right = bounds[2:]
    steps, bins = values.shape[3:]
    _check(first, rows * columns, len(codes))
    _check(first_measured, rows * columns, len(measured))
    _check(to, 1, len(values))
    if min(measured.shape[1], codes.shape[1]) < steps or len(mirror) != bins or valid.shape != values.shape[:4]:
        raise IndexError("the shapes of histograms, of what of them is measured, and of the results do not agree")
    if not len(first) == len(first_measured) == len(to) == len(units):
        raise IndexError("there must be as many scales, and as many places, as there are runs")
    codes = codes.reshape(len(codes), codes.shape[1] * bins)
    values = values.reshape(values.shape[0], len(cells_y), len(cells_x), steps * bins)
    y_low, y_high, y_weight, y_near = _neighbours(cells_y, rows)
    x_low, x_high, x_weight, x_near = _neighbours(cells_x, columns)
    whole = np.empty(rows * columns, dtype=np.bool_)
    source = np.empty(steps * bins, dtype=np.uint64)  # unsigned: an index that needs no look at its sign
    for k in range(steps):
        for d in range(bins):
            source[k * bins + (mirror[d] if flip else d)] = k * bins + d
    between = np.empty((right - left, codes.shape[1]), dtype=np.float32)
    mixed = np.empty(steps * bins, dtype=np.float32)
    one = np.float32(1)
    for r in range(len(first)):
        _find_whole(measured, first_measured[r], columns, steps, bounds, whole)
        t, at, flags, unit = to[r], first[r], first_measured[r], units[r]
        for i in range(len(cells_y)):
            wy = np.float32(y_weight[i])
            low, high = at + y_low[i] * columns, at + y_high[i] * columns
            _mix_squares(
                codes[low + left : low + right].reshape(-1),
                codes[high + left : high + right].reshape(-1),
                unit * (one - wy),
                unit * wy,
                between.reshape(-1),
            )
            for j in range(len(cells_x)):
                wx = np.float32(x_weight[j])
                a, b = y_low[i] * columns + x_low[j], y_low[i] * columns + x_high[j]
                c, d = y_high[i] * columns + x_low[j], y_high[i] * columns + x_high[j]
                p, q, rest = x_low[j] - left, x_high[j] - left, one - wx
                near = y_near[i] >= 0 and x_near[j] >= 0
                every = near and whole[a] and whole[b] and whole[c] and whole[d]
                for k in range(steps):
                    valid[t, i, j, k] = every
                if every and not flip:
                    for e in range(steps * bins):
                        values[t, i, j, e] = rest * between[p, e] + wx * between[q, e]
                    continue
                for e in range(steps * bins):
                    mixed[e] = rest * between[p, e] + wx * between[q, e]
                if not every:
                    nearest = flags + y_near[i] * columns + x_near[j]
                    points = (a, b, c, d)
                    weights = ((one - wy) * rest, (one - wy) * wx, wy * rest, wy * wx)
                    for k in range(steps):
                        valid[t, i, j, k] = near and measured[nearest, k]
                        if not valid[t, i, j, k]:
                            mixed[k * bins : (k + 1) * bins] = 0
                        elif not _all_measured(measured, flags, points, k):
                            _mix_measured(codes, at, measured, flags, points, weights, unit, k, bins, mixed)
                for e in range(steps * bins):
                    values[t, i, j, e] = mixed[source[e]]


@numba.njit(cache=True, nogil=True)
def _all_measured(measured: NDArray[np.bool_], first: int, points: tuple[int, int, int, int], step: int) -> bool:
    a, b, c, d = points
    of_low = measured[first + a, step] and measured[first + b, step]
    return bool(of_low and measured[first + c, step] and measured[first + d, step])


@numba.njit(cache=True, nogil=True)
def _mix_measured(
    codes: NDArray[np.uint8],
    first: int,
    measured: NDArray[np.bool_],
    first_measured: int,
    points: tuple[int, int, int, int],
    weights: tuple[np.float32, np.float32, np.float32, np.float32],
    unit: np.float32,
    step: int,
    bins: int,
    mixed: NDArray[np.float32],
) -> None:
    """Fill one step's bins of `mixed` from those of four points that are measured there."""
    total = np.float32(0)
    for n in range(4):
        if measured[first_measured + points[n], step]:
            total += weights[n]
    low, high = step * bins, (step + 1) * bins
    for e in range(low, high):
        mixed[e] = 0
    for n in range(4):
        if measured[first_measured + points[n], step]:
            factor = weights[n] / total * unit
            for e in range(low, high):
                code = np.float32(codes[first + points[n], e])
                mixed[e] += factor * code * code


@numba.njit(cache=True, nogil=True)
def _mix_squares(
    a: NDArray[np.uint8], b: NDArray[np.uint8], of_a: np.float32, of_b: np.float32, out: NDArray[np.float32]
) -> None:
    for e in range(out.size):
        x, y = np.float32(a[e]), np.float32(b[e])
        out[e] = of_a * x * x + of_b * y * y
