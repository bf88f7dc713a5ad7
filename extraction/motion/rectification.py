"""Taking the camera's homography G out of a frame and out of a flow (MME, appendix A; Wang & Schmid 2013)."""

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from extraction.motion.fields import FlowField, Gray

EDGE_PX = 0.5
"""A border pixel's own footprint. Without it the border of a still scene is lost or kept by G's last digits."""


def rectify(gray: Gray, homography: NDArray[np.float64]) -> tuple[Gray, NDArray[np.bool_]]:
    """b~(x) = b(G x) and where it is a measurement: float32 (H, W) and bool (H, W).

    Where G x lies outside b, by more than half a pixel, there is nothing to measure: those pixels, and their neighbours
    that the median filter mixes with them, are not measured. They repeat b's border, never a pixel of a.
    """
    height, width = gray.shape
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(gray, homography, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = np.empty((height, width), np.uint8)
    _maps_inside(homography, EDGE_PX, inside)
    measured = cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1)
    return np.asarray(warped, dtype=np.float32), measured.view(np.bool_)


@numba.njit(cache=True, error_model="numpy")
def _maps_inside(homography: NDArray[np.float64], edge: float, inside: NDArray[np.uint8]) -> None:
    height, width = inside.shape
    g = homography
    for y in range(height):
        row = inside[y]
        for x in range(width):
            w = g[2, 0] * x + (g[2, 1] * y + g[2, 2])  # more than 0: the homography is plausible
            u = g[0, 0] * x + (g[0, 1] * y + g[0, 2])
            v = g[1, 0] * x + (g[1, 1] * y + g[1, 2])
            row[x] = (
                (u >= -edge * w) & (u <= (width - 1 + edge) * w) & (v >= -edge * w) & (v <= (height - 1 + edge) * w)
            )


@numba.njit(cache=True, error_model="numpy")
def expected_residual(flow: FlowField, homography: NDArray[np.float64]) -> FlowField:
    """The residual r that a full flow f and the camera G leave, G (x + r) = x + f: float32 (H, W, 2), px.

    0 where x + f lies beyond the horizon of G's inverse, of which nothing in a can be seen.

    flow: float32 (H, W, 2), a -> b. homography: float64 (3, 3), G.
    """
    height, width = flow.shape[:2]
    residual = np.empty_like(flow)
    g = np.linalg.inv(homography)
    for y in range(height):
        for x in range(width):
            u, v = x + np.float64(flow[y, x, 0]), y + np.float64(flow[y, x, 1])
            w = g[2, 0] * u + g[2, 1] * v + g[2, 2]
            if w <= 1e-6:
                residual[y, x, 0] = residual[y, x, 1] = 0
                continue
            residual[y, x, 0] = (g[0, 0] * u + g[0, 1] * v + g[0, 2]) / w - x
            residual[y, x, 1] = (g[1, 0] * u + g[1, 1] * v + g[1, 2]) / w - y
    return residual
