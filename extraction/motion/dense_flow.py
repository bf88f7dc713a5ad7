"""Dense optical flow between two frames.

A flow takes two grey images, float32 (height, width) within 0 ... 255, and gives float32 (height, width, 2): what is at
x, y in the first is at x + flow[y, x, 0], y + flow[y, x, 1] in the second. Nothing is rounded or clipped.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.recipe import Flow

Gray = NDArray[np.float32]
FlowField = NDArray[np.float32]
FlowMethod = Callable[[Gray, Gray], FlowField]


def make_flow(method: Flow) -> FlowMethod:
    """The flow of that name, with buffers of its own: one for each thread."""
    return {"tvl1": _tvl1, "dis": _dis}[method]()


def _tvl1() -> FlowMethod:
    """Dual TV-L1 (Zach, Pock & Bischof 2007; Wedel et al. 2009), OpenCV's with its defaults.

    Floating-point images keep the grey levels between those of 8 bits that a warped frame has; OpenCV takes them
    within 0 ... 1.
    """
    solver = cv2.optflow.DualTVL1OpticalFlow_create()

    def flow(a: Gray, b: Gray) -> FlowField:
        return np.asarray(solver.calc(a / np.float32(255), b / np.float32(255), None), dtype=np.float32)

    return flow


def _dis() -> FlowMethod:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's with preset medium. It only takes 8-bit images."""
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(a: Gray, b: Gray) -> FlowField:
        return np.asarray(solver.calc(_bytes(a), _bytes(b), None), dtype=np.float32)

    return flow


def _bytes(gray: Gray) -> NDArray[np.uint8]:
    return np.clip(np.rint(gray), 0, 255).astype(np.uint8)


def median_filter(flow: FlowField) -> FlowField:
    """The 3 x 3 median of each component (MME eq. 6's M), in float32; the border is replicated."""
    return np.stack([cv2.medianBlur(np.ascontiguousarray(flow[..., c]), 3) for c in (0, 1)], axis=-1)
