"""The loops of `resampling`, compiled. P and Q points in runs, of which run r begins at first[r]; L steps, D bins.

Both kernels raise IndexError for runs or destinations outside of their arrays.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray


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
def vectors_kernel(
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
def histograms_kernel(
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
