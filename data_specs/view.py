"""What the model sees of a video: a crop of its tracked frames, resized, perhaps flipped.

Frames and trajectories go through the same `View`, so they cannot disagree.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The crop [left, left + width) x [top, top + height) of the tracked frame, resized to `size`, then flipped.

    Lengths are in whole pixels of the tracked frame; `size` is (height, width) in pixels of the view. A horizontal
    `flip` is the last thing done. Resizing uses the half-pixel rule: x' = (x - left + 0.5) * size[1] / width - 0.5.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    flip: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.size) < 1 or min(self.top, self.left) < 0:
            raise ValueError(f"not a view: {self}")

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) factors from lengths in the tracked frame to lengths in the view, both positive."""
        return self.size[1] / self.width, self.size[0] / self.height

    def to_view(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points (..., 2), x and y in pixels of the tracked frame, to pixels of the view."""
        scale, corner = np.array(self.scale), np.array([self.left, self.top])
        moved = (np.asarray(points, dtype=np.float64) - corner + 0.5) * scale - 0.5
        if self.flip:
            moved[..., 0] = self.size[1] - 1 - moved[..., 0]
        return np.asarray(moved)

    def to_frame(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """The inverse of `to_view`."""
        moved = np.array(points, dtype=np.float64)
        if self.flip:
            moved[..., 0] = self.size[1] - 1 - moved[..., 0]
        return np.asarray((moved + 0.5) / np.array(self.scale) - 0.5 + np.array([self.left, self.top]))
