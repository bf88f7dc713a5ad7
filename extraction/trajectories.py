"""Integration of dense flow into trajectories: MME eq. 6, at sub-pixel positions and in floating point throughout."""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import MAX_STEP_PX


@numba.njit(cache=True)
def advance(
    points: NDArray[np.float64],
    alive: NDArray[np.bool_],
    flow: NDArray[np.float32],
    measured: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    homography: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Move points by one step: p' = G (p + flow(p)), flow sampled bilinearly at p.

    points: (N, 2), x and y in pixels. alive: (N,), which of them are still valid; the others stay where they are.
    flow: (H, W, 2), median-filtered. measured: (H, W), false where the flow is not a measurement.
    visible: (H, W), false where the pixel is covered in the next frame.
    homography: G; the identity moves the points by the flow alone.
    Returns the new points and which of those are valid: measured at every pixel that the sample is taken from, visible
    at half of it or more, and inside the frame afterwards, 0 <= x <= W - 1 and 0 <= y <= H - 1 (eq. 7). A step too long
    for the store (512 px) counts as not measured. An invalid point is returned where it was.
    """
    height, width = measured.shape
    moved = points.copy()
    valid = np.zeros(len(points), dtype=np.bool_)
    for i in range(len(points)):
        if not alive[i]:
            continue
        x, y = points[i, 0], points[i, 1]
        x0, y0 = min(math.floor(x), width - 1), min(math.floor(y), height - 1)
        fx, fy = x - x0, y - y0
        sx = sy = 0.0
        is_measured, seen = True, 0.0
        for dy in range(2):
            for dx in range(2):
                weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy)
                if weight == 0.0:  # also keeps the last row and column from reaching beyond the frame
                    continue
                is_measured = is_measured and measured[y0 + dy, x0 + dx]
                seen += weight if visible[y0 + dy, x0 + dx] else 0.0
                sx += weight * flow[y0 + dy, x0 + dx, 0]
                sy += weight * flow[y0 + dy, x0 + dx, 1]
        u, v = x + sx, y + sy
        w = homography[2, 0] * u + homography[2, 1] * v + homography[2, 2]
        new_x = (homography[0, 0] * u + homography[0, 1] * v + homography[0, 2]) / w
        new_y = (homography[1, 0] * u + homography[1, 1] * v + homography[1, 2]) / w
        inside = 0 <= new_x <= width - 1 and 0 <= new_y <= height - 1
        fits = abs(new_x - x) < MAX_STEP_PX - 1 and abs(new_y - y) < MAX_STEP_PX - 1
        if is_measured and seen >= 0.5 and inside and fits:
            moved[i, 0], moved[i, 1] = new_x, new_y
            valid[i] = True
    return moved, valid
