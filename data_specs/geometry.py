"""Where things are: frame sizes, the trajectory grid, start rows, points under a homography.

Pixels are OpenCV's: x to the right, y down, (0, 0) the *centre* of the top-left pixel. Sizes are
(height, width), points are (x, y). Axis legend: N points, L steps.
"""

import numpy as np
from numpy.typing import NDArray


def tracked_size(source_size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Size (height, width) at which a video is tracked: short side `short_side`, never enlarged.

    The long side is rounded to the nearest pixel (halves up), so the two axes may be scaled by slightly
    different factors. A point of the source is at (x + 0.5) * width' / width - 0.5 in the tracked frame.
    """
    height, width = source_size
    if min(source_size) <= short_side:
        return height, width
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def grid_size(frame_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(rows, columns) of the trajectory grid: whole cells of stride x stride pixels only."""
    return frame_size[0] // stride, frame_size[1] // stride


def grid_points(frame_size: tuple[int, int], stride: int) -> NDArray[np.float64]:
    """Centres of the grid's cells, float64 (rows * columns, 2) as x, y in pixels, row-major.

    Cell (i, j) covers pixels stride*i ... stride*i + stride - 1 vertically, so its centre is at
    y = stride*i + (stride - 1)/2: a 16 x 16 patch holds exactly four points of stride 8.
    """
    rows, columns = grid_size(frame_size, stride)
    centre = (stride - 1) / 2
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64) * stride + centre
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def start_frames(
    num_frames: int, length: int, frame_step: int, start_stride: int, *, keep_short: bool = False
) -> range:
    """Frames at which trajectories start: the multiples of `start_stride` with `length` whole steps left.

    A trajectory has length + 1 positions, at start + k * frame_step for k = 0 ... length. keep_short: where no frame
    leaves room for that, but frame 0 for one step, trajectories start there, and end with the video.
    """
    if keep_short and frame_step < num_frames <= length * frame_step:
        return range(1)
    return range(0, max(0, num_frames - length * frame_step), start_stride)


def apply_homography(homography: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map points (..., 2), x and y in pixels, by a 3 x 3 homography acting on (x, y, 1) column vectors."""
    points = np.asarray(points, dtype=np.float64)
    h = np.asarray(homography, dtype=np.float64)
    mapped = points @ h[:, :2].T + h[:, 2]
    return np.asarray(mapped[..., :2] / mapped[..., 2:])


def inside_frame(points: NDArray[np.floating], frame_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether points (..., 2) lie in the frame: 0 <= x <= width - 1 and 0 <= y <= height - 1 (MME eq. 7).

    NaN is outside.
    """
    height, width = frame_size
    x, y = points[..., 0], points[..., 1]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))


def compensated_displacements(
    positions: NDArray[np.floating], homographies: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Displacement of each step without the camera's part, float64 (N, L, 2), pixels of the tracked frame.

    positions: (N, L + 1, 2) in the image. homographies: (L, 3, 3), G of each step, under which a still point at
    x in the frame of step k is at G x in the frame of step k + 1. Step k gives G^-1 p(k+1) - p(k): zero for a
    still point, whatever the camera did.
    """
    steps = [
        apply_homography(np.linalg.inv(np.asarray(g, dtype=np.float64)), positions[:, k + 1]) - positions[:, k]
        for k, g in enumerate(homographies)
    ]
    return np.stack(steps, axis=1)
