"""Which pixels of a frame can be seen in the next: the forward-backward check (Sundaram, Brox & Keutzer 2010).

Where something covers a pixel, the backward flow at the place that the forward flow takes it to is that of what covers
it, and leads elsewhere.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from extraction.motion.fields import FlowField

# |w + w'|² < relative (|w|² + |w'|²) + absolute, lengths in px. Sundaram et al. (section 3.1) take 0.01 and 0.5, which
# loses more than a tenth of the visible points at 14 to 20 px per frame; a wider gap lets few hidden ones through.
RELATIVE, ABSOLUTE = 0.05, 2.0


@numba.njit(cache=True, error_model="numpy")
def _sample(field: FlowField, x: float, y: float) -> tuple[float, float]:
    """Bilinear, the border repeated."""
    height, width = field.shape[:2]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    x0, y0 = min(math.floor(x), width - 2), min(math.floor(y), height - 2)
    fx, fy = x - x0, y - y0
    w00, w01, w10, w11 = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    u = (
        w00 * field[y0, x0, 0]
        + w01 * field[y0, x0 + 1, 0]
        + w10 * field[y0 + 1, x0, 0]
        + w11 * field[y0 + 1, x0 + 1, 0]
    )
    v = (
        w00 * field[y0, x0, 1]
        + w01 * field[y0, x0 + 1, 1]
        + w10 * field[y0 + 1, x0, 1]
        + w11 * field[y0 + 1, x0 + 1, 1]
    )
    return u, v


@numba.njit(cache=True, error_model="numpy")
def turned_back(flow: FlowField) -> FlowField:
    """A first guess of the backward flow, -w(y - w(y)): float32 (H, W, 2) from flow (H, W, 2), px."""
    height, width = flow.shape[:2]
    back = np.empty_like(flow)
    for y in range(height):
        for x in range(width):
            u, v = _sample(flow, np.float64(x - flow[y, x, 0]), np.float64(y - flow[y, x, 1]))
            back[y, x, 0] = -u
            back[y, x, 1] = -v
    return back


@numba.njit(cache=True, error_model="numpy")
def returns(flow: FlowField, backward: FlowField) -> NDArray[np.bool_]:
    """Where the backward flow leads back to where the forward flow came from, bool (H, W).

    flow, backward: float32 (H, W, 2), a -> b and b -> a, px; backward is sampled bilinearly at x + flow(x).
    """
    height, width = flow.shape[:2]
    back = np.empty((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            u, v = np.float64(flow[y, x, 0]), np.float64(flow[y, x, 1])
            p, q = _sample(backward, x + u, y + v)
            gap = (u + p) ** 2 + (v + q) ** 2
            back[y, x] = gap < RELATIVE * (u * u + v * v + p * p + q * q) + ABSOLUTE
    return back
