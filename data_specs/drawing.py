"""Trajectories and labels on pictures, for people to look at."""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.video import Frame

SUBPIXEL_BITS = 4
"""Binary places of the coordinates that OpenCV draws at."""


def fixed_point(positions: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.int64]:
    """Positions (..., 2), x and y in pixels, as OpenCV's `shift` wants them; those far outside `size` come nearer."""
    limit = 2.0 * max(size)
    return np.asarray(np.rint(np.clip(positions, -limit, limit) * (1 << SUBPIXEL_BITS)), dtype=np.int64)


def draw_trajectories(panel: Frame, positions: NDArray[np.floating], steps: NDArray[np.bool_]) -> None:
    """Draw trajectories, positions (N, L + 1, 2) in pixels of the panel, into it: those of their `steps` (N, L) alone.

    Colour runs from blue at the first step to yellow at the last, dark to light.
    """
    length = steps.shape[1]
    levels = np.linspace(255, 40, length)[::-1].astype(np.uint8)
    colours = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].tolist()
    tracks = fixed_point(positions, panel.shape[:2])
    for n, k in np.argwhere(steps):
        cv2.line(panel, tracks[n, k], tracks[n, k + 1], colours[k], 1, cv2.LINE_AA, SUBPIXEL_BITS)


def draw_label(panel: Frame, text: str, corner: tuple[int, int] = (0, 0)) -> None:
    """Write text (ASCII) on a black ground; `corner` is the ground's top left, x and y."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    x, y = corner
    cv2.rectangle(panel, corner, (x + width + 12, y + height + 10), (0, 0, 0), -1)
    cv2.putText(panel, text, (x + 6, y + height + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
