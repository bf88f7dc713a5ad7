"""A few start rows of one video, as a store has them, and the steps of their trajectories without the camera's part.

Axis legend: R start rows, N points of each, row-major on a grid of (rows, columns), L steps that are stored, K of them
that are asked for, C colour channels of HOG.
"""

import dataclasses

import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.schema import UNIT_PX
from data_specs.track_store import StoreError
from training.reading.shard_reader import Runs

Window = tuple[range, range]
"""Rows and columns of a grid."""


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """Start rows of one video, their points still coded. Run r of each `Runs` is that of start row r."""

    place: str
    """The shard and the video, for errors."""
    grid: tuple[int, int]
    """(rows, columns); runs of points have rows * columns of them."""
    grid_stride: int
    """Pixels of the tracked frame from one grid point to the next."""
    asked: NDArray[np.int64]
    """(R,): which of the frames that were asked for row r begins in."""
    displacement: Runs | None
    """int16 (P, L, 2), x and y in units of 1/64 px; None where it was not asked for."""
    valid: Runs
    """bool (P, L + 1)."""
    homography: Runs | None
    """float32 (P, L, 3, 3) in runs of one: G of each step, where it has to be taken out of the displacements."""
    points: dict[str, Runs]
    """What else was asked for: `hog` uint8 (P, L, 9 C), `cell_measured` bool (P,), `flow` int16 (P, 2), `hof` uint8
    (P, 9), `mbh` uint8 (P, 2, 8)."""
    scales: dict[str, NDArray[np.float32]]
    """(R,) for each histogram: its value is (code / 254)² * scale."""

    def steps(self, length: int, window: Window | None = None) -> tuple[Runs, Runs]:
        """The first `length` = K steps: displacements float32 (P, K, 2), and bool (P, K) where they are valid.

        x and y in pixels of the tracked frame, 0 where not valid; without the camera, G⁻¹ p(k + 1) − p(k), if there
        are homographies, else p(k + 1) − p(k). Outside of the window of the grid no step counts as valid, and the
        displacements have no meaning. Raises StoreError for a homography that cannot be inverted, IndexError for more
        than there is.
        """
        assert self.displacement is not None
        rows, columns = window or (range(self.grid[0]), range(self.grid[1]))
        most = self.displacement.values.shape[1]
        if (
            length > most
            or min(rows.start, columns.start) < 0
            or rows.stop > self.grid[0]
            or columns.stop > self.grid[1]
        ):
            raise IndexError(f"{length} steps at {window}: there are {most}, on a grid of {self.grid}")
        points = self.grid[0] * self.grid[1]
        first = np.arange(len(self.asked)) * points
        moved = np.empty((len(first) * points, length, 2), np.float32)
        measured = np.zeros(moved.shape[:2], np.bool_)
        camera = _NO_CAMERA if self.homography is None else self.homography
        bounds = (rows.start, rows.stop, columns.start, columns.stop)
        singular = _fill_steps(
            *self.displacement, *self.valid, *camera, self.grid[1], self.grid_stride, bounds, moved, measured
        )
        if singular:
            raise StoreError(f"{self.place}: Singular matrix")
        return Runs(moved, first), Runs(measured, first)


_NO_CAMERA = Runs(np.zeros((0, 1, 3, 3), np.float32), np.zeros(0, np.int64))


def compile_steps() -> None:
    """Compile what `StoredRows.steps` calls."""
    nothing = np.zeros(0, np.int64)
    moved, valid = Runs(np.zeros((0, 1, 2), np.int16), nothing), Runs(np.zeros((0, 2), np.bool_), nothing)
    StoredRows("", (0, 0), 1, nothing, moved, valid, None, {}, {}).steps(1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_steps(
    displacement: NDArray[np.int16],
    first: NDArray[np.int64],
    valid: NDArray[np.bool_],
    first_valid: NDArray[np.int64],
    homography: NDArray[np.float32],
    first_homography: NDArray[np.int64],
    columns: int,
    stride: int,
    bounds: tuple[int, int, int, int],
    moved: NDArray[np.float32],
    measured: NDArray[np.bool_],
) -> bool:
    """Fill `moved` and `measured` within `bounds`; see `StoredRows.steps`. True if a homography has no inverse.

    In double precision: a position is far larger than what a still point moves by.
    """
    steps = moved.shape[1]
    points = len(moved) // max(len(first), 1)
    compensate = len(first_homography) > 0
    inverse = np.empty((steps, 3, 3), dtype=np.float64)
    top, bottom, left, right = bounds
    for r in range(len(first)):
        for k in range(steps if compensate else 0):
            if not _invert(homography[first_homography[r], k], inverse[k]):
                return True
        for i in range(top, bottom):
            for j in range(left, right):
                n = i * columns + j
                steps_of, valid_of = displacement[first[r] + n], valid[first_valid[r] + n]
                x, y = stride * j + (stride - 1) / 2, stride * i + (stride - 1) / 2
                for k in range(steps):
                    dx, dy = steps_of[k, 0] * UNIT_PX, steps_of[k, 1] * UNIT_PX
                    next_x, next_y = x + dx, y + dy
                    both = valid_of[k] and valid_of[k + 1]
                    if not both:
                        dx, dy = 0.0, 0.0
                    elif compensate:
                        g = inverse[k]
                        scale = 1 / (g[2, 0] * next_x + g[2, 1] * next_y + g[2, 2])
                        dx = (g[0, 0] * next_x + g[0, 1] * next_y + g[0, 2]) * scale - x
                        dy = (g[1, 0] * next_x + g[1, 1] * next_y + g[1, 2]) * scale - y
                    measured[r * points + n, k] = both
                    moved[r * points + n, k, 0], moved[r * points + n, k, 1] = dx, dy
                    x, y = next_x, next_y
    return False


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _invert(matrix: NDArray[np.float32], inverse: NDArray[np.float64]) -> bool:
    """The inverse of a 3 x 3 matrix by its cofactors, in double precision; False if it has none."""
    m = matrix.astype(np.float64)
    for i in range(3):
        for j in range(3):
            a, b, c, d = (j + 1) % 3, (j + 2) % 3, (i + 1) % 3, (i + 2) % 3
            inverse[i, j] = m[a, c] * m[b, d] - m[a, d] * m[b, c]
    determinant = m[0, 0] * inverse[0, 0] + m[0, 1] * inverse[1, 0] + m[0, 2] * inverse[2, 0]
    inverse /= determinant
    return bool(determinant != 0)
