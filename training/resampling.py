"""The trajectory field of a tracked frame, resampled to the grid of a view.

A value is interpolated bilinearly between the four grid points around it, of which only the valid ones count (their
weights are made to sum to 1). Validity itself is never interpolated: a resampled point is valid where the nearest grid
point is, and where that is no further away than one stride of the grid along either axis.

Axis legend: (rows, columns) of the tracked frame's grid, (Gh, Gw) of the view's, L steps, D bins.
"""

import dataclasses

import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import HISTOGRAM_LEVELS
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.view import View


def view_points(size: tuple[int, int], points: tuple[int, int]) -> NDArray[np.float64]:
    """Centres of the cells of a view's grid of `points` = (Gh, Gw): float64 (Gh, Gw, 2), x and y in its pixels.

    `size`: (height, width) of the view; its cells are size / points pixels, so that a 16 x 16 patch with 2 x 2 points
    has them 4 pixels from its sides, at 3.5 and 11.5.
    """
    y, x = ((np.arange(n) + 0.5) * (length / n) - 0.5 for n, length in zip(points, size, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """For each point along one axis of the view: its two neighbours on the tracked grid and which one is nearer."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64]
    """Of `high`; `low` has the rest."""
    nearest: NDArray[np.int64]
    """-1 where none is within one stride."""

    @classmethod
    def of(cls, positions: NDArray[np.float64], stride: int, count: int) -> "_Axis":
        """positions: along the axis, in pixels of the tracked frame; the grid has `count` points of this stride."""
        cell = (positions - (stride - 1) / 2) / stride
        low = np.clip(np.floor(cell).astype(np.int64), 0, count - 1)
        high = np.minimum(low + 1, count - 1)
        nearest = np.clip(np.floor(cell + 0.5).astype(np.int64), 0, count - 1)
        near = np.abs(cell - nearest) <= 1
        return cls(low, high, np.clip(cell - low, 0.0, 1.0), np.where(near, nearest, -1))


class Resampler:
    """Resamples the fields of one tracked grid to the grid of one view.

    grid_size: (rows, columns); grid_stride in pixels of the tracked frame; points: (Gh, Gw). `resample_*` take fields
    in the tracked frame and write into `values` and `valid` what they are in the view: lengths scaled by the resize,
    mirrored by the flip.
    """

    def __init__(self, view: View, grid_size: tuple[int, int], grid_stride: int, points: tuple[int, int]) -> None:
        self.view = view
        frame = view.to_frame(view_points(view.size, points))
        self._y = _Axis.of(frame[:, 0, 1], grid_stride, grid_size[0])
        self._x = _Axis.of(frame[0, :, 0], grid_stride, grid_size[1])

    def _axes(self) -> tuple[NDArray[np.int64] | NDArray[np.float64], ...]:
        y, x = self._y, self._x
        return y.low, y.high, y.weight, y.nearest, x.low, x.high, x.weight, x.nearest

    def resample_vectors(
        self,
        field: NDArray[np.float32],
        measured: NDArray[np.bool_],
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """field (rows, columns, L, 2), x and y in pixels of the tracked frame; measured (rows, columns, L).

        Fills values (Gh, Gw, L, 2), in pixels of the view, and valid (Gh, Gw, L).
        """
        x, y = self.view.scale
        factors = np.array([-x if self.view.flip else x, y], dtype=np.float32)
        _resample_vectors(field, measured, factors, *self._axes(), values, valid)

    def resample_histograms(
        self,
        codes: NDArray[np.uint8],
        scale: float,
        measured: NDArray[np.bool_],
        mirror: NDArray[np.int64],
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """codes (rows, columns, L, D) of value (code / 254)^2 * scale; measured (rows, columns, L).

        mirror (D,): the bin that a bin becomes in the mirror image. Fills values (Gh, Gw, L, D), in the unit of
        `scale`, and valid (Gh, Gw, L). The resize does not change a histogram: for an anisotropic one there is no
        exact counterpart.
        """
        source = np.argsort(mirror) if self.view.flip else np.arange(len(mirror))
        unit = np.float32(scale / HISTOGRAM_LEVELS**2)
        _resample_histograms(np.ascontiguousarray(codes), unit, measured, source, *self._axes(), values, valid)


def mirrored_hog(channels: int) -> NDArray[np.int64]:
    """The bins that HOG's 9 * channels bins become in the mirror image: an angle θ of [0, π) becomes π − θ."""
    bins = (HOG_BINS - np.arange(HOG_BINS)) % HOG_BINS
    return np.concatenate([bins + HOG_BINS * c for c in range(channels)])


def mirrored_hof() -> NDArray[np.int64]:
    """The bins that HOF's 9 bins become in the mirror image; the ninth, of still pixels, stays."""
    return np.append(_mirrored_flow(), FLOW_BINS)


def mirrored_mbh() -> NDArray[np.int64]:
    """The bins that MBH's 2 * 8 bins become in the mirror image, where the flow's x component changes its sign too."""
    return np.concatenate([-np.arange(FLOW_BINS) % FLOW_BINS, _mirrored_flow() + FLOW_BINS])


def _mirrored_flow() -> NDArray[np.int64]:
    return (FLOW_BINS // 2 - np.arange(FLOW_BINS)) % FLOW_BINS


@numba.njit(cache=True, nogil=True)
def _resample_vectors(
    field: NDArray[np.float32],
    measured: NDArray[np.bool_],
    factors: NDArray[np.float32],
    y_low: NDArray[np.int64],
    y_high: NDArray[np.int64],
    y_weight: NDArray[np.float64],
    y_nearest: NDArray[np.int64],
    x_low: NDArray[np.int64],
    x_high: NDArray[np.int64],
    x_weight: NDArray[np.float64],
    x_nearest: NDArray[np.int64],
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            ys, xs = (y_low[i], y_high[i]), (x_low[j], x_high[j])
            wy, wx = (1 - y_weight[i], y_weight[i]), (1 - x_weight[j], x_weight[j])
            for k in range(values.shape[2]):
                valid[i, j, k] = y_nearest[i] >= 0 and x_nearest[j] >= 0 and measured[y_nearest[i], x_nearest[j], k]
                values[i, j, k, :] = 0
                if not valid[i, j, k]:
                    continue
                total, dx, dy = 0.0, 0.0, 0.0
                for a in range(2):
                    for b in range(2):
                        if measured[ys[a], xs[b], k]:
                            weight = wy[a] * wx[b]
                            total += weight
                            dx += weight * field[ys[a], xs[b], k, 0]
                            dy += weight * field[ys[a], xs[b], k, 1]
                values[i, j, k, 0] = dx / total * factors[0]
                values[i, j, k, 1] = dy / total * factors[1]


@numba.njit(cache=True, nogil=True)
def _resample_histograms(
    codes: NDArray[np.uint8],
    unit: np.float32,
    measured: NDArray[np.bool_],
    source: NDArray[np.int64],
    y_low: NDArray[np.int64],
    y_high: NDArray[np.int64],
    y_weight: NDArray[np.float64],
    y_nearest: NDArray[np.int64],
    x_low: NDArray[np.int64],
    x_high: NDArray[np.int64],
    x_weight: NDArray[np.float64],
    x_nearest: NDArray[np.int64],
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    """A value is unit * code². Rows first, then columns, as if everything were valid; then the few points by hand that
    have a neighbour which is not."""
    grid_rows, grid_columns, steps, bins = codes.shape
    flat = codes.reshape(grid_rows, grid_columns * steps * bins)
    whole = np.empty((grid_rows, grid_columns), dtype=np.bool_)
    for a in range(grid_rows):
        for b in range(grid_columns):
            whole[a, b] = measured[a, b].all()
    between = np.empty((grid_columns, steps * bins), dtype=np.float32)
    mixed = np.empty(steps * bins, dtype=np.float32)
    weights = np.empty(4, dtype=np.float32)
    one = np.float32(1)
    for i in range(values.shape[0]):
        ys, wy = (y_low[i], y_high[i]), np.float32(y_weight[i])
        _mix_squares(flat[ys[0]], flat[ys[1]], unit * (one - wy), unit * wy, between.reshape(-1))
        for j in range(values.shape[1]):
            xs, wx = (x_low[j], x_high[j]), np.float32(x_weight[j])
            near = y_nearest[i] >= 0 and x_nearest[j] >= 0
            if near and whole[ys[0], xs[0]] and whole[ys[0], xs[1]] and whole[ys[1], xs[0]] and whole[ys[1], xs[1]]:
                _mix(between[xs[0]], between[xs[1]], one - wx, wx, mixed)
                valid[i, j, :] = True
            else:
                for k in range(steps):
                    valid[i, j, k] = near and measured[y_nearest[i], x_nearest[j], k]
                    total = np.float32(0)
                    for a in range(2):
                        for b in range(2):
                            weight = (wy if a else one - wy) * (wx if b else one - wx)
                            weights[2 * a + b] = weight if measured[ys[a], xs[b], k] else np.float32(0)
                            total += weights[2 * a + b]
                    for d in range(bins):
                        value = np.float32(0)
                        if valid[i, j, k]:
                            for n in range(4):
                                code = np.float32(codes[ys[n // 2], xs[n % 2], k, d])
                                value += weights[n] / total * unit * code * code
                        mixed[k * bins + d] = value
            for k in range(steps):
                for d in range(bins):
                    values[i, j, k, d] = mixed[k * bins + source[d]]


@numba.njit(cache=True, nogil=True)
def _mix_squares(
    a: NDArray[np.uint8], b: NDArray[np.uint8], of_a: np.float32, of_b: np.float32, out: NDArray[np.float32]
) -> None:
    for e in range(out.size):
        x, y = np.float32(a[e]), np.float32(b[e])
        out[e] = of_a * x * x + of_b * y * y


@numba.njit(cache=True, nogil=True)
def _mix(
    a: NDArray[np.float32], b: NDArray[np.float32], of_a: np.float32, of_b: np.float32, out: NDArray[np.float32]
) -> None:
    for e in range(out.size):
        out[e] = of_a * a[e] + of_b * b[e]
